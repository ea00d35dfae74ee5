"""`lorakit chat`: one answer, a conversation in a pipe or a terminal, two sides, and what it refuses."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit
from helpers import randomize
from lorakit.cli.main import app, main
from lorakit.conversation import Places, read_conversation


@pytest.fixture
def adapter(llama_folder: Path, tmp_path: Path) -> Path:
    model = lorakit.apply("adapt @linear rank 4", str(llama_folder))
    randomize(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.mul_(10)
    return lorakit.save(model, tmp_path / "adapter")


def expected(folder: Path, turns: list[dict[str, str]], tokens: int, adapter: Path | None = None) -> str:
    """What transformers' own greedy search says."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = lorakit.load(adapter, model)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.eval().generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_prompt_is_answered_once(llama_folder: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for places in ([llama_folder], [adapter, llama_folder]):
        app(["chat", *map(str, places), "--prompt", "say ab", "--max-tokens", "8"], standalone_mode=False)
        own = adapter if len(places) == 2 else None
        assert capsys.readouterr().out.strip() == expected(llama_folder, [user("say ab")], 8, own)


def test_compare_shows_both_sides(llama_folder: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = Places.of([str(adapter), str(llama_folder)], compare=True)
    answers = read_conversation(places, max_tokens=8, temperature=0, seed=0).ask("say ab")
    assert answers == {
        "base": expected(llama_folder, [user("say ab")], 8),
        "adapted": expected(llama_folder, [user("say ab")], 8, adapter),
    }
    assert answers["base"] != answers["adapted"]
    command = ["chat", str(adapter), str(llama_folder), "--compare", "--prompt", "say ab", "--max-tokens", "8"]
    app(command, standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[0].split() == ["base", "adapted"]


def test_each_side_remembers_its_answers_until_reset(llama_folder: Path, adapter: Path) -> None:
    places = Places.of([str(adapter), str(llama_folder)], compare=True)
    talk = read_conversation(places, max_tokens=4, temperature=0, seed=0)
    first = talk.ask("ab")
    second = talk.ask("cd")
    turns = [user("ab"), {"role": "assistant", "content": first["base"]}, user("cd")]
    assert second["base"] == expected(llama_folder, turns, 4)
    turns[1]["content"] = first["adapted"]
    assert second["adapted"] == expected(llama_folder, turns, 4, adapter)
    talk.reset()
    assert talk.ask("ab") == first


def test_draws_follow_the_seed(llama_folder: Path) -> None:
    def drawn(seed: int) -> str:
        places = Places.of([str(llama_folder)], compare=False)
        return read_conversation(places, max_tokens=12, temperature=1.0, seed=seed).ask("ab")["base"]

    assert drawn(1) == drawn(1) != drawn(2)


def test_lines_of_a_pipe_are_messages(
    llama_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("say ab\n\n/reset\nsay ab\n"))
    app(["chat", str(llama_folder), "--max-tokens", "4"], standalone_mode=False)
    answer = expected(llama_folder, [user("say ab")], 4)
    assert capsys.readouterr().out.split("\n") == f"{answer}\n{answer}\n".split("\n")


def test_a_conversation_that_fills_the_model_says_so_and_goes_on(
    llama_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'long ' * 20}\n/reset\nsay ab\n"))
    app(["chat", str(llama_folder), "--max-tokens", "4"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "and the model has 64 positions; /reset forgets" in out
    assert expected(llama_folder, [user("say ab")], 4) in out


@pytest.mark.parametrize("key", [b"\x04", b"\x03"])
def test_ctrl_d_and_ctrl_c_end_it_cleanly_on_a_terminal(key: bytes, llama_folder: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "lorakit", "chat", str(llama_folder), "--max-tokens", "4"]
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=own_terminal,
    ) as process:  # fmt: skip
        os.close(follower)
        seen = until(leader, b"> ")
        os.write(leader, b"say ab\n")
        seen += until(leader, b"> ")
        seen += until(leader, None, key)
        try:
            assert process.wait(30) == 0, seen
        finally:
            process.kill()
    os.close(leader)
    assert b"Ctrl-D ends" in seen and b"Traceback" not in seen


def own_terminal() -> None:
    """Make standard input the terminal whose keys reach this process, which a test in the background would ignore."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(leader: int, mark: bytes | None, key: bytes = b"") -> bytes:
    """Return what a terminal shows until a mark is at its end, or until it is closed.

    A key is pressed again while nothing happens: what is typed before a line is being edited may be thrown away.
    """
    seen = b""
    os.write(leader, key)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 5.0)[0]:
            os.write(leader, key)
            continue
        try:
            read = os.read(leader, 4096)
        except OSError:
            return seen
        if not read:
            return seen
        seen += read
        if mark is not None and seen.endswith(mark):
            return seen
    return seen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "{adapter}"], "is the adapter: lorakit chat {adapter} {model}"),
        (["{adapter}"], "name its base model too"),
        (["{model}", "--compare"], "--compare takes an adapter"),
        (["nowhere", "{model}"], "nowhere is no adapter folder"),
        (["{adapter}", "no/such/folder"], "no such model folder"),
        (["net.py:net"], "chat takes a Hugging Face language model"),
        (["{adapter}", "{model}", "{model}"], "these are 3"),
        (["{model}", "--prompt", "long {many}"], "and the model has 64 positions"),
    ],
)
def test_what_cannot_be_talked_to(
    arguments: list[str], words: str, llama_folder: Path, adapter: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    names = {"model": str(llama_folder), "adapter": str(adapter), "many": "and " * 30}
    monkeypatch.setattr("sys.argv", ["lorakit", "chat", *(one.format(**names) for one in arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and words.format(**names) in " ".join(capsys.readouterr().err.split())
