"""The command line: what it does, and one clear error with exit code 2 for everything that cannot be done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from forked import shared
from safetensors.torch import load_file

import lorakit
from helpers import make_gpt2

Write = Callable[[str, str], Path]
LINE = "adapt q_proj,v_proj rank 4 quant nf4 double paged\n"


def lorakit_command(
    *arguments: object, code: int = 0, cwd: Path | None = None, anew: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; no traceback may ever show.

    It is forked from one that has imported everything, or begins anew, which takes seconds.
    """
    if anew:
        command = [sys.executable, "-m", "lorakit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    else:
        done = shared().run(*arguments, cwd=cwd)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.fixture
def chats(write: Write) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 3}]}
        for word in ("ab", "cd", "ef", "gh", "ij", "kl") * 4
    ]
    return write("chats.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_the_whole_journey(llama_folder: Path, chats: Path, write: Write, tmp_path: Path) -> None:
    spec = write("qlora.lora", LINE)
    assert "well-formed, 1 rule" in lorakit_command("check", spec, anew=True).stdout
    planned = lorakit_command("plan", spec, llama_folder, anew=True).stdout
    assert "nf4 double" in planned and "memory of a training step" in planned
    assert "none recomputed" in planned
    assert "blocks recomputed" in lorakit_command("plan", spec, llama_folder, "--gradient-checkpointing").stdout
    plan = json.loads(lorakit_command("plan", spec, llama_folder, "--format", "json").stdout)
    # two layers of seven matrices, of which the rule adapts two
    assert len(plan["entries"]) == 14 and sum(entry["adapter"] is not None for entry in plan["entries"]) == 4
    lorakit_command("apply", spec, llama_folder, "-o", tmp_path / "fresh", anew=True)
    assert set(os.listdir(tmp_path / "fresh")) == {"adapter_model.safetensors", "adapter_config.json", "plan.json"}
    trained = lorakit_command(
        "train", spec, llama_folder, chats, "-o", tmp_path / "out", "--steps", 12, "--lr", "2e-2", "--held-out", "0.2"
    )
    losses = [
        float(line.split(": ")[1].split()[0]) for line in trained.stdout.splitlines() if line.startswith("held-out")
    ]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.1
    assert "running on" in trained.stdout and not trained.stderr.strip().count("%|")
    shown = json.loads(lorakit_command("inspect", tmp_path / "out", "--format", "json").stdout)
    assert shown["written_by"] == "lorakit" and all(row["update_norm"] > 0 for row in shown["adapters"])
    fresh = json.loads(lorakit_command("inspect", tmp_path / "fresh", "--format", "json").stdout)
    assert all(row["update_norm"] == 0 for row in fresh["adapters"])
    lorakit_command("inspect", tmp_path / "out", anew=True)
    merged = lorakit_command("merge", tmp_path / "out", llama_folder, "-o", tmp_path / "merged", anew=True).stdout
    assert "relative (Frobenius)" in merged
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, plain = (AutoModelForCausalLM.from_pretrained(path) for path in (llama_folder, tmp_path / "merged"))
    ids = torch.arange(3, 30)[None]
    untouched = base(ids).logits
    loaded = lorakit.merge(lorakit.load(tmp_path / "out", base, quantize=False))
    torch.testing.assert_close(plain(ids).logits, loaded(ids).logits, rtol=0, atol=1e-5)
    assert float((plain(ids).logits - untouched).abs().max()) > 1e-2
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_training_is_repeatable(llama_folder: Path, chats: Path, write: Write, tmp_path: Path) -> None:
    spec = write("spec.lora", "adapt @attention rank 2 dropout 0.1\n")
    for run in ("one", "two"):
        lorakit_command("train", spec, llama_folder, chats, "-o", tmp_path / run, "--steps", 4)
    one, two = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_plain_model_trains_from_the_command_line(write: Write, tmp_path: Path) -> None:
    from test_plain import MODEL

    net, spec = write("net.py", MODEL), write("spec.lora", "adapt body.* rank 4\ntrain head\n")
    common = ["train", spec, f"{net}:net", f"{net}:pairs", "--lr", "2e-2"]
    done = lorakit_command(*common, "-o", tmp_path / "out", "--steps", 30, "--save-every", 10)
    losses = [float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("held-out")]
    assert losses[-1] < losses[0]
    checkpoints = tmp_path / "out-checkpoints"
    assert sorted(os.listdir(checkpoints)) == ["checkpoint-10", "checkpoint-20"]
    # from step 20 on, the same steps give the same adapter
    (tmp_path / "out").rename(tmp_path / "whole")
    lorakit_command(*common, "-o", tmp_path / "out", "--steps", 30, "--save-every", 10, "--resume")
    whole, resumed = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lorakit_command("merge", tmp_path / "out", f"{net}:net", "-o", tmp_path / "merged")
    assert "body.0.weight" in load_file(tmp_path / "merged" / "model.safetensors")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adapt q_proj rnak 4\n", ["spec.lora:1:14", "rank"]),
        ("adapt q_proj rank 4 quant nf5\n", ["spec.lora:1:27", "nf5", "`nf4`"]),
        ("adapt q_proj rank 0\n", ["spec.lora:1:19", "rank"]),
        ("adapt q_proj rank 65\n", ["spec.lora:1:19", "64 × 64", "64 at most"]),
        ("adapt q_porj rank 4\n", ["spec.lora:1:7", "matches no module", "`q_proj`"]),
        ("adapt q_proj rank 4 init zeros\n", ["spec.lora:1:26", "zeros"]),
        ("# nothing\n", ["no rules"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "apply", "train"])
def test_bad_specs(
    command: str, spec: str, words: Sequence[str], llama_folder: Path, chats: Path, write: Write, tmp_path: Path
) -> None:
    path = write("spec.lora", spec)
    before = sorted(os.listdir(tmp_path))
    more = {"plan": [], "apply": ["-o", tmp_path / "out"], "train": [chats, "-o", tmp_path / "out"]}[command]
    done = lorakit_command(command, path, llama_folder, *more, code=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("error") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_bad_models(llama_folder: Path, chats: Path, write: Write, tmp_path: Path) -> None:
    spec = write("spec.lora", LINE)
    empty = tmp_path / "empty"
    empty.mkdir()
    short, garbage, pickled, unknown = (tmp_path / name for name in ("short", "garbage", "pickled", "unknown"))
    for folder in (short, garbage, pickled, unknown):
        shutil.copytree(llama_folder, folder)
    os.truncate(short / "model.safetensors", 1000)
    (garbage / "config.json").write_text("{")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    (unknown / "config.json").write_text('{"model_type": "not-a-model"}')
    for model, words in {
        tmp_path / "missing": "no such model folder",
        empty: "no config.json",
        spec: "is a file",
        short: "model.safetensors is damaged or cut short",
        garbage: "is no JSON",
        pickled: "--allow-pickle",
        unknown: "not-a-model",
    }.items():
        done = lorakit_command("apply", spec, model, "-o", tmp_path / "out", code=2)
        assert words in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_places_and_data(llama_folder: Path, chats: Path, write: Write, tmp_path: Path) -> None:
    spec = write("spec.lora", LINE)
    taken = write("taken.txt", "mine").parent / "taken"
    taken.mkdir()
    for arguments, words in (
        (["plan", tmp_path / "none.lora", llama_folder], "none.lora"),
        (["apply", spec, llama_folder, "-o", taken], "exists; give another place, or --force"),
        (["apply", spec, llama_folder, "-o", "/dev/null/here"], "cannot write to"),
        (["train", spec, llama_folder, tmp_path / "none.jsonl", "-o", tmp_path / "out"], "no such data file"),
        (
            ["train", spec, llama_folder, write("bad.jsonl", '{"text": "a"}\n{\n'), "-o", tmp_path / "out"],
            "bad.jsonl:2",
        ),
        (["train", spec, llama_folder, write("odd.jsonl", '{"story": "a"}\n'), "-o", tmp_path / "out"], "`story`"),
        (["train", spec, llama_folder, chats, "-o", tmp_path / "out", "--resume"], "nothing to resume"),
        (["merge", taken, llama_folder, "-o", tmp_path / "out"], "no adapter_config.json"),
        (["inspect", tmp_path / "nowhere"], "no such adapter folder"),
        (["plan", spec, llama_folder, "--set", "rank"], "NAME=VALUE"),
        (["plan", spec, llama_folder, "--format", "xml"], "xml"),
        (["frobnicate"], "frobnicate"),
    ):
        done = lorakit_command(*arguments, code=2)
        assert words in done.stderr, done.stderr
    assert not (tmp_path / "out").exists() and os.listdir(taken) == []
    lorakit_command("apply", spec, llama_folder, "-o", taken, "--force")
    assert (taken / "plan.json").is_file()


def test_an_adapter_for_another_model(llama_folder: Path, write: Write, tmp_path: Path) -> None:
    make_gpt2().save_pretrained(tmp_path / "gpt2")  # type: ignore[operator]
    lorakit_command("apply", write("spec.lora", LINE), llama_folder, "-o", tmp_path / "adapter")
    done = lorakit_command("merge", tmp_path / "adapter", tmp_path / "gpt2", "-o", tmp_path / "out", code=2)
    assert "for another model" in done.stderr and "q_proj" in done.stderr
    assert not (tmp_path / "out").exists()


def test_too_little_room_is_said_before_any_work(llama_folder: Path, chats: Path, write: Write, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        spec = write("spec.lora", "adapt @linear rank 16\n")
        for arguments in (["apply", spec, llama_folder], ["train", spec, llama_folder, chats]):
            done = lorakit_command(*arguments, "-o", disk / "out", code=2)
            assert "bytes; the disk there has" in done.stderr
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_stops_with_a_checkpoint_that_resumes(
    llama_folder: Path, chats: Path, write: Write, tmp_path: Path
) -> None:
    spec = write("spec.lora", LINE)
    common = ["train", spec, llama_folder, chats, "-o", tmp_path / "out", "--save-every", 5]
    command = [sys.executable, "-m", "lorakit", *map(str, [*common, "--steps", 100_000])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "out-checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "--resume goes on" in out
    assert not (tmp_path / "out").exists()
    last = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    from transformers import AutoModelForCausalLM

    assert lorakit.load(last, AutoModelForCausalLM.from_pretrained(llama_folder))
    steps = int(last.name.rpartition("-")[2]) + 3
    resumed = lorakit_command(*common, "--steps", steps, "--resume")
    assert "held-out loss after step" in resumed.stdout and (tmp_path / "out" / "plan.json").is_file()


def test_check_plan_and_help_of_every_command() -> None:
    overview = lorakit_command("--help", anew=True).stdout
    for command in ("check", "fmt", "explain", "plan", "apply", "train", "merge", "inspect", "demo"):
        assert command in overview
        assert "Example: lorakit" in " ".join(lorakit_command(command, "--help").stdout.split())
    # brackets are no markup
    assert "'lorakit[gguf]'" in lorakit_command("export", "--help").stdout
    assert lorakit_command("--version").stdout == f"lorakit {lorakit.__version__}\n"


def test_check_imports_neither_torch_nor_transformers(write: Write) -> None:
    spec = write("spec.lora", LINE)
    probe = (
        "import sys; sys.argv = ['lorakit', 'check', sys.argv[1]]\n"
        "from lorakit.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", probe, str(spec)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
