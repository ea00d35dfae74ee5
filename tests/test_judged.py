"""What a person sees of a training run: lines on the way, a record of it in the folder, reports, what comes next."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import lorakit
from helpers import NET
from lorakit.cli.main import app
from lorakit.trainers import display

Write = Callable[[str, str], Path]
LOSSES = f"""{NET}
def absolute(prediction, target):
    return (prediction - target).abs().mean()

def still():
    return nn.Sequential(*(nn.Identity() if isinstance(one, nn.Dropout) else one for one in net()))
"""
# every option of the schedule and the step at once
MORE = ["--schedule", "cosine", "--warmup", 2, "--accumulate", 2, "--max-grad-norm", 0.01, "--weight-decay", 0.1]


def run(*arguments: object) -> None:
    app([str(one) for one in arguments], standalone_mode=False)


@pytest.fixture
def texts(llama_folder: Path, write: Write) -> list[object]:
    """`train` on a small Llama."""
    rows = "".join(
        json.dumps({"text": f"hello world {'again ' * (number % 3)}{number}"}) + "\n" for number in range(12)
    )
    spec = write("spec.lora", "# with dropout\nadapt q_proj,v_proj rank 2 dropout 0.1\n")
    return ["train", spec, llama_folder, write("rows.jsonl", rows), "--batch", 2, "--tokens", 32]


@pytest.fixture
def pairs(write: Write) -> list[object]:
    """`train` on a PyTorch model."""
    code = write("net.py", LOSSES)
    return ["train", write("net.lora", "adapt 0 rank 2\nadapt 2 rank 2 alpha 4\n"), f"{code}:net", f"{code}:pairs"]


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_a_pipe_gets_lines_with_all_that_a_bar_shows(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(display.Display.__init__, "__defaults__", (0.0,))
    run(*request.getfixturevalue(kind), "-o", tmp_path / "my out", "--steps", 4)
    out = capsys.readouterr().out
    unit = "tokens" if kind == "texts" else "rows"
    lines = re.findall(rf"^step (\d)/4  loss [\d.]+  lr [\d.e-]+  [\d.,]+ {unit}/s  left \d:\d\d:\d\d$", out, re.M)
    assert lines == ["1", "2", "3", "4"], out
    # only where a loss is one of tokens
    assert out.count("(perplexity") == 2 * (kind == "texts")
    end = out[out.index("trained 4 steps") :]
    assert f"{unit}/s" in end and "peak memory" in end
    nexts = dict(line.split(maxsplit=1) for line in end[end.index("next:\n") + 6 :].splitlines())
    assert set(nexts) == ({"load", "chat", "merge", "export"} if kind == "texts" else {"load", "merge"})
    assert eval(nexts["load"], {"lorakit": lorakit}) is not None
    for name in sorted(nexts.keys() - {"load"}):
        words = shlex.split(nexts[name])
        run(*words[1:], *(["--prompt", "hello", "--max-tokens", 2] if name == "chat" else []))
    assert (tmp_path / "my out-merged").is_dir()


def test_lines_are_seconds_apart_and_the_first_and_last_are_there(
    pairs: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display.Display.__init__, "__defaults__", (1e6,))
    run(*pairs, "-o", tmp_path / "out", "--steps", 12)
    assert re.findall(r"^step +(\d+)/12 ", capsys.readouterr().out, re.M) == ["1", "12"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            [],
            "schedule linear, warmup 0, lr 0.0002, weight decay 0, batch {batch} × accumulation 1, "
            "gradient norm at most 1, packing off, gradient checkpointing off, seed 0",
        ),
        (
            [*MORE, "--lr", "1e-3", "--seed", 3],
            "schedule cosine, warmup 2, lr 0.001, weight decay 0.1, batch {batch} × accumulation 2, "
            "gradient norm at most 0.01, packing off, gradient checkpointing off, seed 3",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_every_setting_is_said_and_recorded(
    kind: str, more: list[object], words: str, request: pytest.FixtureRequest, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run(*request.getfixturevalue(kind), "-o", tmp_path / "out", "--steps", 2, *more)
    said = words.format(batch=2 if kind == "texts" else 4)
    assert f"\ntraining: {said}\n" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["training"] == said
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["optimizer"]["lr"] == facts["optimizer"]["lr"] == (1e-3 if more else 2e-4)


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_with_every_option_a_resumed_run_is_the_unbroken_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    more = [*MORE, "--steps", 6, "--save-every", 2, "--evaluate-every", 3, *(["--pack"] if kind == "texts" else [])]
    command = [*request.getfixturevalue(kind), "-o", tmp_path / "out", "--held-out", 0.2, *more]
    run(*command)
    (tmp_path / "out").rename(tmp_path / "whole")
    assert (tmp_path / "out-checkpoints" / "checkpoint-4").is_dir()
    # as after a crash in step 5 or 6
    torch.manual_seed(99)
    run(*command, "--resume")
    whole, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    histories = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("whole", "out")]
    names = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    one, two = ([{name: json.loads(line).get(name) for name in names} for line in lines] for lines in histories)
    # Trainer sums itself up at the end of each part
    assert [line for line in one if line["loss"] is not None] == [line for line in two if line["loss"] is not None]
    assert [line for line in one if line["eval_loss"]] == [line for line in two if line["eval_loss"]]
    assert [line["step"] for line in two if line["eval_loss"]][:2] == [0, 3]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_both_loops_have_the_same_schedule_behind_the_warm_up(
    schedule: str, texts: list[object], pairs: list[object], tmp_path: Path
) -> None:
    rates = []
    for number, command in enumerate((texts, pairs)):
        out = tmp_path / str(number)
        run(*command, "-o", out, "--steps", 5, "--schedule", schedule)
        lines = map(json.loads, (out / "history.jsonl").read_text().splitlines())
        rates.append([line["learning_rate"] for line in lines if "learning_rate" in line])
    assert len(rates[0]) == 5 and rates[0] == pytest.approx(rates[1])


def test_accumulated_batches_are_one_batch(pairs: list[object], tmp_path: Path) -> None:
    for name, more in (("one", ["--batch", 8]), ("two", ["--batch", 4, "--accumulate", 2])):
        # without dropout, which draws a batch at a time
        run(*pairs[:2], str(pairs[2]).replace(":net", ":still"), pairs[3], "-o", tmp_path / name, "--steps", 3, *more)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-6)


def test_the_folder_says_how_it_came_about(texts: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*texts, "-o", out, "--steps", 3, "--evaluate-every", 2)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in history if "eval_loss" in line] == [0, 2, 3]
    facts = json.loads((out / "training.json").read_text())
    assert facts["spec"] == {str(texts[1]): Path(str(texts[1])).read_text()}
    assert facts["versions"]["torch"] == torch.__version__ and facts["versions"]["lorakit"] == lorakit.__version__
    assert facts["command"].startswith("lorakit") and facts["seed"] == 0
    after = next(line["eval_loss"] for line in reversed(history) if "eval_loss" in line)
    assert facts["result"]["held_out_after"] == after
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == str(texts[2]) and card.data.library_name == "peft"
    assert {"lora", "lorakit"} <= set(card.data.tags or ())
    assert "# with dropout" in card.text and f"{after:.4f} after" in card.text
    code = re.findall(r"```python\n(.*?)```", card.text, re.S)[0].replace("'out'", repr(str(out)))
    names: dict[str, object] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"


def test_a_card_that_a_person_edited_stays(texts: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*texts, "-o", out, "--steps", 1)
    first = (out / "README.md").read_text()
    run(*texts, "-o", out, "--steps", 2, "--force")
    second = (out / "README.md").read_text()
    assert second != first and "| steps | 2 in" in second
    (out / "README.md").write_text(second.replace("# out", "# My poet"))
    run(*texts, "-o", out, "--steps", 1, "--force")
    assert "# My poet" in (out / "README.md").read_text() and "| steps | 2 in" in (out / "README.md").read_text()
    # nor does `save` take it away, which knows nothing of the training
    model = lorakit.load(out, str(texts[2]))
    lorakit.save(model, out)
    assert "# My poet" in (out / "README.md").read_text() and not (out / "history.jsonl").exists()


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_csv_and_plot(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = [*request.getfixturevalue(kind), "-o", tmp_path / "out", "--steps", 4, "--report", "csv"]
    run(*command, "--save-every", 2, "--plot", tmp_path / "loss.png")
    with (tmp_path / "out-logs" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["eval_loss"]] == ["0", "4"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "out").rename(tmp_path / "whole")
    run(*command, "--save-every", 2, "--resume")
    with (tmp_path / "out-logs" / "history.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_tensorboard_has_every_loss_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [*request.getfixturevalue(kind), "-o", tmp_path / "out", "--steps", 5, "--report", "tensorboard"]
    run(*command, "--save-every", 3)
    (tmp_path / "out").rename(tmp_path / "whole")
    shutil.rmtree(tmp_path / "out-checkpoints" / "checkpoint-5", ignore_errors=True)
    run(*command, "--save-every", 3, "--resume")
    events = EventAccumulator(str(tmp_path / "out-logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 5]


def test_data_to_measure_on_may_lie_apart(
    texts: list[object], pairs: list[object], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = write("apart.jsonl", '{"text": "hello there"}\n{"text": "good bye"}\n')
    run(*texts, "-o", tmp_path / "out", "--steps", 1, "--held-out-data", apart)
    assert re.search(rf"^12 rows to train on .*, 2 held out in {apart};", capsys.readouterr().out, re.M)
    run(*pairs, "-o", tmp_path / "plain", "--steps", 1, "--held-out-data", pairs[3])
    assert f"24 pairs to train on, 24 held out by {pairs[3]}" in capsys.readouterr().out
    with pytest.raises(lorakit.DataError, match="give one of them"):
        run(*texts, "-o", tmp_path / "none", "--held-out-data", apart, "--held-out", 0.1)


def test_a_loss_takes_prediction_and_target(pairs: list[object], tmp_path: Path) -> None:
    losses = []
    for name, more in (("mean square", []), ("absolute", ["--loss", str(pairs[3]).replace(":pairs", ":absolute")])):
        run(*pairs, "-o", tmp_path / name, "--steps", 1, *more)
        losses.append(json.loads((tmp_path / name / "training.json").read_text())["result"]["held_out_before"])
    assert losses[0] == pytest.approx(losses[1] ** 2)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("texts", ["--report", "trackio"], "needs trackio: pip install trackio"),
        ("texts", ["--report", "excel"], "there are csv, tensorboard, trackio, wandb"),
        ("texts", ["--held-out-data", "none.jsonl"], "no such data file: none.jsonl"),
        ("texts", ["--plot", "loss.docx"], "cannot draw loss.docx"),
        ("pairs", ["--report", "wandb"], "a PyTorch model takes csv, tensorboard"),
        ("pairs", ["--schedule", "polynomial"], "a PyTorch model takes linear, cosine, constant"),
        ("pairs", ["--pack"], "a PyTorch model trains on pairs"),
        ("pairs", ["--loss", "none.py:loss"], "no such file: none.py"),
    ],
)
def test_what_cannot_be_is_said_before_torch_is_there(
    kind: str, more: list[str], words: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    probe = (
        "import sys\nfrom lorakit.cli.main import main\nsys.argv = ['lorakit', *sys.argv[1:]]\n"
        "sys.modules['trackio'] = None\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [
        sys.executable,
        "-c",
        probe,
        *map(str, request.getfixturevalue(kind)),
        "-o",
        str(tmp_path / "out"),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_schedule_that_the_optimizer_does_not_want_is_refused(
    texts: list[object], write: Write, tmp_path: Path
) -> None:
    spec = write("free.lora", "adapt q_proj rank 2\noptimizer schedulefree\n")
    with pytest.raises(lorakit.DataError, match="made for a rate that stays"):
        run(texts[0], spec, *texts[2:], "-o", tmp_path / "out", "--schedule", "cosine")
    spec = write("sgd.lora", "adapt q_proj rank 2\noptimizer sgd\n")
    run(texts[0], spec, *texts[2:], "-o", tmp_path / "out", "--steps", 1, "--weight-decay", 0.5)
    assert "weight_decay" in (tmp_path / "out" / "plan.json").read_text()
