"""Every command and every example of the README, as printed there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lorakit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def script(command: str, venv: Path, *arguments: str, cwd: Path = ROOT) -> str:
    """Run a command of the README in an environment of its own, and return what it prints."""
    shell, path = command.split()
    done = subprocess.run(
        [shell, str(ROOT / path), *arguments],
        cwd=cwd,
        env={**os.environ, "LORAKIT_VENV": str(venv), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_first_command_from_nothing_and_again(tmp_path: Path) -> None:
    command = blocks("sh")[0].strip()
    printed = script(command, tmp_path / "venv", "--steps", "12", cwd=tmp_path)
    losses = [float(loss) for loss in re.findall(r"held-out loss .*?: ([\d.]+)", printed)]
    assert losses[-1] < losses[0] - 0.1, printed
    assert printed.count("sample before") == printed.count("sample after") == 1
    assert "running on" in printed and "adapt q_proj, v_proj" in printed
    assert set(os.listdir(tmp_path / "demo-adapter")) >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "plan.json",
    }
    again = script(command, tmp_path / "venv", "--steps", "1", cwd=tmp_path)
    assert "held-out loss" in again


def test_the_second_command() -> None:
    # the environment of this very run, so that it installs nothing anew; one quick file in the place of all
    printed = script(blocks("sh")[1].strip(), Path(sys.prefix), "tests/language/test_words.py", "-q")
    assert "..." in printed


def test_the_printed_plan_is_what_is_printed() -> None:
    from lorakit.demo import smollm2

    console = blocks("console")[0]
    first, expected = console.split("\n", 1)
    command = first.removeprefix("$ lorakit ").split()
    # as on a machine that is quick in the model's own dtype
    code = (
        "from lorakit.application import hardware\nfrom lorakit.planning.hardware import Hardware\n"
        "hardware.hardware = lambda: Hardware('cpu', frozenset({'bfloat16', 'float16'}), 'this CPU')\n"
        "from lorakit.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command[:-1], str(smollm2())],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected.strip()


def test_the_one_line_is_the_example_file() -> None:
    line = blocks("lora")[0].strip()
    assert lorakit.parse(line) == lorakit.parse(ROOT / "examples" / "qlora.lora")


@pytest.mark.parametrize("text", blocks("lora"))
def test_specs(text: str) -> None:
    assert lorakit.parse(text).rules


def test_the_python_lines(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0].replace("SmolLM2-135M-Instruct", str(llama_folder)).replace("rank 16", "rank 4")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert lorakit.merge(lorakit.load("adapter", str(llama_folder)))


def test_the_lines_of_a_loop_of_ones_own(llama_folder: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 2", str(llama_folder))
    ids = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    names = {"lorakit": lorakit, "model": model, "batches": [{"input_ids": ids, "labels": ids}] * 3}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    first = model(input_ids=ids, labels=ids).loss
    assert float(first) < names["loss"] and not names["step"].climbs  # type: ignore[operator,attr-defined]


def test_the_lines_on_several_adapters(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("poet", "coder", "poet-v2")):
        lorakit.save(lorakit.apply("adapt q_proj rank 2", str(llama_folder), seed=seed), name)
    exec(
        compile(blocks("python")[2].replace("SmolLM2-135M-Instruct", str(llama_folder)), "README.md", "exec"),
        {"lorakit": lorakit},
    )
    copied, swapped = (Path(name, "adapter_model.safetensors").read_bytes() for name in ("poet-copy", "poet-v2"))
    assert copied == swapped


def test_every_command_is_in_the_table() -> None:
    listed = set(re.findall(r"\| `lorakit (\w+)", README))
    from lorakit.cli.main import COMMANDS

    assert listed == {*COMMANDS, "help"}
