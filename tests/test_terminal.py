"""What the command line prints: whole at any width, in any encoding, without colour, and quick to refuse."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Nursery
from rich.console import Console
from torch import nn

import lorakit
from lorakit.cli import main
from lorakit.encoding import ERRORS, encodable
from lorakit.errors import PromiseError
from lorakit.planning.report import layers_alike, plan_markdown, plan_view
from lorakit.planning.sheet import Sheet

Write = Callable[[str, str], Path]
COMMANDS = [
    [],
    *([name] for name in (*main.COMMANDS, "help")),
    ["plugins", "new"],
    ["plugins", "test"],
]
PLAIN = {
    "no colour": {"NO_COLOR": "1"},
    "a dumb terminal": {"TERM": "dumb"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252", "NO_COLOR": "1"},
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command in this process and returns its exit code and what it printed."""

    def runner(*words: object, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "argv", ["lorakit", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return runner


def rendered(view: object, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors=ERRORS)
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(view)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def in_a_terminal(words: list[str], **environment: str) -> str:
    """Return what a command writes to a terminal."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "lorakit", *words], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**clean, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    written = read_terminal(ours)
    process.wait()
    return written


def read_terminal(end: int) -> str:
    """Return what is written to the other end of a terminal until that is closed."""
    written = b""
    # how Linux says that the other end is closed
    with contextlib.suppress(OSError):
        while chunk := os.read(end, 65536):
            written += chunk
    os.close(end)
    return written.decode("utf-8", "replace")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_keeps_every_word_whole_at_every_width(words: list[str], run: Callable[..., tuple[int, str, str]]) -> None:
    shown = {}
    for width in (60, 80, 200):
        code, shown[width], _ = run(*words, "--help", width=width)
        assert code == 0 and max(map(len, shown[width].splitlines())) <= width
        assert "…" not in shown[width] and not re.search(r"<\w|\[\[|\{|\.\.\.\.", shown[width])
    assert shown[60].split() == shown[80].split() == shown[200].split()


def test_help_says_what_has_to_be_given(run: Callable[..., tuple[int, str, str]]) -> None:
    assert "Usage: lorakit train [OPTIONS] SPEC MODEL DATA -o OUT\n" in run("train", "--help")[1]
    assert "Usage: lorakit chat [OPTIONS] [ADAPTER] MODEL\n" in run("chat", "--help")[1]
    assert "Usage: lorakit plugins [OPTIONS] [COMMAND ...]\n" in run("plugins", "--help")[1]
    shown = " ".join(run("train", "--help")[1].split())
    assert "Passes over the data, where --steps is not given. [default: 1.0; X>=0.01]" in shown


def test_help_is_written_in_what_the_terminal_has() -> None:
    command = [sys.executable, "-m", "lorakit", "plan", "--help"]
    done = subprocess.run(command, env={**os.environ, **PLAIN["ascii"]}, capture_output=True, check=True)
    assert b"--batch x" in done.stdout and done.stdout.isascii()


def test_help_names_every_command(run: Callable[..., tuple[int, str, str]]) -> None:
    code, overview, _ = run("--help")
    assert code == 0 and all(f"\n  {words[0]} " in overview for words in COMMANDS if len(words) == 1)
    assert run("help", "plan")[1] == run("plan", "--help")[1]
    assert run("help", "plugins", "new")[1] == run("plugins", "new", "--help")[1]
    assert run("-V")[1] == f"lorakit {lorakit.__version__}\n"
    assert run("help", "plna")[2].endswith("No such command 'plna'. Did you mean 'plan'?\n")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 140, 200])
def test_no_word_of_a_plan_is_cut(llama: nn.Module, width: int, encoding: str) -> None:
    plan = lorakit.plan("adapt layers[0..1].self_attn.q_proj,v_proj rank 4 quant nf4 double paged\ntrain @norm", llama)
    text = rendered(plan_view(plan), width, encoding)
    assert max(map(len, text.splitlines())) <= width + 1
    words = text.split()
    for entry in plan.entries:
        assert layers_alike(entry.path) in words
    for figure in (f"{entry.added:,}" for entry in plan.entries if entry.added):
        assert any(word.strip(";") == figure for word in words)
    assert encodable("64 × 64", encoding) in " ".join(words) and encodable("bf16 → nf4", encoding)[-3:] in words


def test_a_sheet_is_a_table_where_it_fits_and_records_where_not() -> None:
    sheet = Sheet(("module", "left"), ("count", "right"), ("what", "prose"))
    sheet.add_row("model.layers.*.q_proj", "30", "adapters of rank sixteen")
    assert re.split(r" {2,}", rendered(sheet, 60).splitlines()[-1].strip()) == [
        "model.layers.*.q_proj",
        "30",
        "adapters of rank sixteen",
    ]
    assert [line.rstrip() for line in rendered(sheet, 30).splitlines()] == [
        " model.layers.*.q_proj",
        "    count 30;",
        "    what adapters of rank",
        "    sixteen",
    ]
    assert sheet.markdown().splitlines()[1:] == [
        "| --- | ---: | --- |",
        r"| model.layers.\*.q_proj | 30 | adapters of rank sixteen |",
    ]


def test_markdown_holds_the_whole_plan(llama: nn.Module) -> None:
    text = plan_markdown(lorakit.plan("adapt q_proj rank 4", llama))
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 and all(len({line.count(" | ") for line in one.splitlines()}) == 1 for one in tables)
    assert "\n- note: line 1: alpha is not given" in text


@pytest.mark.parametrize("environment", PLAIN.values(), ids=PLAIN)
def test_no_escape_code_where_none_is_wanted(environment: dict[str, str], write: Write) -> None:
    bad = write("bad.lora", "adapt größe rnak 4\n")
    for words in (["check", str(bad)], ["plan", "--help"], ["plan", str(bad)], ["plugins"], ["explain", "L101"]):
        shown = in_a_terminal(words, **environment)
        assert "\x1b" not in shown and "Traceback" not in shown and "rank" in shown + "rank" * (words[0] != "check")
    if "NO_COLOR" in environment:
        assert "\x1b[1;31m" in in_a_terminal(["check", str(bad)])


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "x -> ... \\u5024"), ("cp1252", "× -> … \\u5024"), ("utf-8", "× → … 値")]
)
def test_what_an_encoding_lacks_has_a_plain_form(encoding: str, shown: str) -> None:
    assert encodable("× → … 値", encoding) == shown


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, config in (("model", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / config).write_text("{}")
    (tmp_path / "a.lora").write_text("adapt q_proj rank 4")
    (tmp_path / "b.lora").write_text("adapt q_proj rank 8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("plan model a.lora", "plan a.lora model"),
        ("apply model a.lora -o out", "apply a.lora model -o out"),
        ("train model a.lora x.jsonl -o out", "train a.lora model x.jsonl -o out"),
        ("diff model a.lora b.lora", "diff a.lora b.lora model"),
        ("merge model adapter -o out", "merge adapter model -o out"),
        ("export model adapter -o out", "export adapter model -o out"),
        ("inspect --quant model a.lora", "inspect --quant a.lora model"),
    ],
)
def test_swapped_arguments_are_told(
    given: str, right: str, folders: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run(*given.split())
    assert code == 2 and "comes first; write" in err and err.endswith(f"  lorakit {right}\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("plan a.lora modle", "did you mean `model`?"),
        ("plan a.lora mode", "did you mean `model`?"),
        ("plan a.lora no/such/model", "no such model folder: no/such/model"),
        ("plan a.lora nets.py:net", "no such file: nets.py"),
        ("apply c.lora model -o out", "cannot read `c.lora`"),
        ("merge nowhere model -o out", "no such adapter folder: nowhere"),
        ("export nowhere model -o out", "no such adapter folder: nowhere"),
        ("inspect nowhere", "no such adapter folder: nowhere"),
        ("diff a.lora c.lora model", "cannot read `c.lora`"),
    ],
)
def test_what_is_not_there_is_told_before_torch_is_imported(given: str, words: str, folders: Path) -> None:
    probe = (
        f"import sys; sys.argv = ['lorakit', *{given.split()!r}]\n"
        "from lorakit.cli.main import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_broken_promise_is_refused_after_the_plan(
    llama_folder: Path, write: Write, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    spec, base = (
        write("a.lora", "adapt q_proj rank 4\nrequire trainable < 0.01%\n"),
        write("b.lora", "adapt v_proj rank 4"),
    )
    for words in (["plan", spec], ["apply", "-o", tmp_path / "out", spec]):
        code, out, err = run(*words, llama_folder)
        assert code == 2 and "memory of a training step" in out and err.startswith("error[L105]")
    code, out, err = run("diff", base, spec, llama_folder)
    assert code == 2 and "2 to add, 0 to change, 2 to remove" in out and "error[L105]" in err
    assert not (tmp_path / "out").exists()
    with pytest.raises(PromiseError) as raised:
        lorakit.plan(spec, llama_folder)
    assert raised.value.plan.trainable_share > 1e-4


def test_quiet_prints_errors_alone(llama_folder: Path, write: Write, run: Callable[..., tuple[int, str, str]]) -> None:
    good, bad = write("good.lora", "adapt q_proj rank 4"), write("bad.lora", "adapt q_prj rank 4")
    assert run("plan", "-q", good, llama_folder) == (0, "", "")
    code, out, err = run("plan", "-q", bad, llama_folder)
    assert code == 2 and not out and "error[L101]" in err
    assert run("check", "-q", good) == (0, "", "")


def test_quiet_lets_through_what_was_asked_for_as_data(
    llama_folder: Path, write: Write, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    good, warned = write("good.lora", "adapt q_proj rank 4"), write("warned.lora", "let r = 4\nadapt q_proj rank 4")
    code, out, err = run("plan", "-q", good, llama_folder, "--format", "json")
    assert (code, err) == (0, "") and json.loads(out)["entries"]
    assert run("diff", "-q", good, good, llama_folder) == (0, "", "")
    assert run("check", "-q", warned) == (0, "", "") and "warning" in run("check", warned)[1]
    assert "error" not in run("check", "-q", warned, "--format", "github")[1]
    code, out, err = run("init", "-q", llama_folder)
    assert code == 0 and out.startswith("#") and not err
    assert run("init", "-q", llama_folder, "-o", tmp_path / "starter.lora") == (0, "", "")
    ugly = write("ugly.lora", "adapt   q_proj rank 4")
    assert run("fmt", "-q", "--check", ugly) == (1, "", "") and "+adapt q_proj" in run("fmt", "-q", "--diff", ugly)[1]
    assert run("fmt", "-q", ugly) == (0, "", "") and ugly.read_text() == "adapt q_proj rank 4\n"


TRAINED = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8))

def data():
    rows = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
    return [(row, row) for row in rows]
"""
IN_A_TERMINAL = """
import os
os.environ.pop("COLUMNS", None)
os.environ.pop("NO_COLOR", None)
os.environ["TERM"] = "xterm"
end = os.open({name!r}, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(end, stream)
os.close(end)
os.write(1, b"begun")
"""


@pytest.mark.parametrize(("width", "more"), [(60, []), (80, []), (200, []), (80, ["-q"])])
def test_the_bar_of_a_training_run_fits_its_terminal(
    width: int, more: list[str], nursery: Nursery, write: Write, tmp_path: Path
) -> None:
    net, spec = write("net.py", TRAINED), write("a.lora", "adapt 0 rank 2")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    words = ["train", spec, f"{net}:make", f"{net}:data", "-o", tmp_path / "out", "--steps", "40", *more]
    child = nursery.command(*words, before=IN_A_TERMINAL.format(name=os.ttyname(theirs)))
    # until then nobody but this process holds it open
    assert os.read(ours, len("begun")) == b"begun"
    os.close(theirs)
    written = read_terminal(ours)
    assert child.wait() == 0, child.err
    if more:
        assert written == ""
        return
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))]
    bars = [line for line in lines if "elapsed" in line and "/40" in line]
    assert bars and not any("…" in line or len(line) > width for line in bars)
    assert re.search(r"40/40 loss \d+\.\d+ (.* )?elapsed \d:\d\d:\d\d left \d:\d\d:\d\d$", bars[-1]), bars
    assert ("training" in bars[-1]) == ("rows/s" in bars[-1]) == (width > 60)


def test_a_plan_is_made_of_standard_input(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    for text, code, words in ((b"adapt q_proj rank 4", 0, "adapt q_proj"), (b"adapt q_proj rnak 4", 2, "<stdin>:1:14")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        left, out, err = run("plan", "-", llama_folder)
        assert left == code and words in out + err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lorakit plan a", {"plain,a.lora"}),
        ("lorakit plan m", {"file,m"}),
        ("lorakit explain L10", {f"plain,L10{n}" for n in range(1, 10)}),
        ("lorakit help mer", {"plain,merge"}),
        ("lorakit plan --form", {"plain,--format"}),
    ],
)
def test_shells_complete_what_is_cheap_to_know(words: str, offered: set[str], folders: Path) -> None:
    ask = {"_LORAKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "lorakit"], env={**os.environ, **ask}, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("shell", "script", "startup"),
    [
        ("bash", ".bash_completions/lorakit.sh", ".bashrc"),
        ("zsh", ".zfunc/_lorakit", ".zshrc"),
        ("fish", ".config/fish/completions/lorakit.fish", None),
    ],
)
def test_completion_is_installed_once(
    shell: str, script: str, startup: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    if startup is not None:
        (tmp_path / startup).write_text("alias l=ls")
    for words in (["--install-completion"], ["--install-completion", shell]):
        code, out, _ = run(*words)
        assert code == 0 and str(tmp_path / script) in out
    assert (tmp_path / script).read_text() == run("--show-completion")[1] == run("--show-completion", shell)[1]
    assert f"_LORAKIT_COMPLETE={shell}_complete" in (tmp_path / script).read_text()
    if startup is not None:
        alias, line = (tmp_path / startup).read_text().splitlines()
        assert alias == "alias l=ls" and Path(script).parent.name in line


def test_a_shell_that_is_not_known_is_told(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run("--show-completion", "csh")
    assert code == 2 and "`csh` is none" in err and "bash, zsh, fish, powershell" in err
    monkeypatch.delenv("SHELL", raising=False)
    code, _, err = run("--install-completion")
    assert code == 2 and "$SHELL names none" in err


def test_what_is_no_language_model_sees_rows_and_no_tokens(llama: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(8, 8))
    assert "estimate for 512 rows" in rendered(plan_view(lorakit.plan("adapt 0 rank 2", net)), 140)
    assert "estimate for 1 × 512 tokens" in rendered(plan_view(lorakit.plan("adapt q_proj rank 2", llama)), 140)
