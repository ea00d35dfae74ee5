"""Training that leaves the finite numbers stops at that step, says where, and writes nothing of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lorakit
from helpers import NET
from lorakit.cli.main import app

PLAIN = f"""{NET}
def exploding(output, target):
    return (output - target).square().mean() * 1e6
"""


def run(*arguments: object) -> None:
    app([str(one) for one in arguments], standalone_mode=False)


def finite(file: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in load_file(file).values())


@pytest.fixture
def plain(write: Callable[[str, str], Path], tmp_path: Path) -> list[object]:
    code = write("net.py", PLAIN)
    spec = write("spec.lora", "adapt 0 rank 2\nadapt 2 rank 2 alpha 4\n")
    return ["train", spec, f"{code}:net", f"{code}:pairs", "-o", tmp_path / "out", "--held-out", 0, "--batch", 4]


@pytest.mark.parametrize("lr", ["1e30", "1e38"])
def test_a_plain_loop_stops_at_the_step_and_keeps_the_last_checkpoint(
    lr: str, plain: list[object], tmp_path: Path
) -> None:
    with pytest.raises(lorakit.TrainingError, match=r"step \d"):
        run(*plain, "--steps", 9, "--save-every", 1, "--lr", lr)
    assert not (tmp_path / "out").exists()
    for folder in tmp_path.glob("out-checkpoints/*"):
        assert finite(folder / "adapter_model.safetensors")
        assert finite(folder / "optimizer.safetensors")


def test_the_message_names_the_loss_and_the_rule_whose_gradient_went_first() -> None:
    from lorakit.trainers.finite import Finite

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    lorakit.apply("adapt 0 rank 2\nadapt 1 rank 2\nadapt 2 rank 2", model)
    with torch.no_grad():
        for layer in model:
            layer.lora_B.fill_(1.0)  # type: ignore[operator]
    # the gradient breaks on its way back between the last layer and the others
    broken: Any = model[2]
    broken.register_full_backward_hook(lambda module, given, taken: (given[0] * math.inf,))
    optimizer = lorakit.optimizer(model)
    loss = model(torch.ones(2, 4)).square().mean()
    with Finite(model, optimizer).watching() as watch:
        loss.backward()
        with pytest.raises(lorakit.TrainingError, match=r"step 1 has the loss \d.* of `1\.lora_[AB]` \(.*:2\)"):
            watch.check_loss(loss)


@pytest.mark.parametrize(
    ("lr", "words"), [("1e30", ("step 2 has the loss", "spec.lora:1")), ("1e38", ("step 2", "not finite"))]
)
def test_trainer_stops_too_and_the_command_ends_with_1(
    lr: str,
    words: tuple[str, ...],
    llama_folder: Path,
    write: Callable[[str, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorakit.cli.main import main

    data = write("data.jsonl", "\n".join(json.dumps({"text": f"hello world {number}"}) for number in range(8)))
    spec = write("spec.lora", "adapt @linear rank 2")
    command = ["lorakit", "train", spec, llama_folder, data, "-o", tmp_path / "out", "--steps", 6, "--held-out", 0]
    monkeypatch.setattr("sys.argv", [str(one) for one in (*command, "--save-every", 1, "--lr", "1e30")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert [one for one in (*words, "error") if one not in said] == [] and "Traceback" not in said, said
    assert not (tmp_path / "out").exists()
    for folder in tmp_path.glob("out-checkpoints/*"):
        assert finite(folder / "adapter_model.safetensors")


def test_a_plain_run_with_dropout_resumes_as_if_never_broken(plain: list[object], tmp_path: Path) -> None:
    run(*plain, "--steps", 9, "--save-every", 4, "--held-out", 0.2)
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    (tmp_path / "out").rename(tmp_path / "whole")
    # as after a crash in step 9: the last checkpoint is that of step 8
    torch.manual_seed(99)
    run(*plain, "--steps", 9, "--save-every", 4, "--held-out", 0.2, "--resume")
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
