"""`lorakit check`, `fmt` and `explain`: what they print and how they exit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.diagnostics import Code

ROOT = Path(__file__).parents[2]


def lorakit(*words: object, stdin: bytes = b"", folder: Path = ROOT) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of a command."""
    command = [sys.executable, "-m", "lorakit", *map(str, words)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=folder)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.lora").write_text("let r = 4\nadapt q rank r\n")
    (tmp_path / "bad.lora").write_text("adapt größe rnak 4\nadapt k\n", encoding="utf-8")
    (tmp_path / "ugly.lora").write_bytes(b"\xef\xbb\xbfadapt   q rank 4 # why\r\n")
    return tmp_path


def test_check(folder: Path) -> None:
    assert lorakit("check", "good.lora", folder=folder) == (0, "good.lora: well-formed, 1 rule\n", "")
    code, out, err = lorakit("check", "good.lora", "bad.lora", folder=folder)
    assert code == 2 and not err
    assert out.startswith("error[L003]: `rnak` is no clause\n --> bad.lora:1:13\n  |\n1 | adapt größe rnak 4\n")
    assert out.endswith("\n2 errors\n")
    assert lorakit("check", "nowhere.lora", folder=folder)[0] == 2
    assert lorakit("check", folder=folder)[0] == 2


def test_check_formats(folder: Path) -> None:
    code, out, _ = lorakit("check", "bad.lora", "--format", "json", folder=folder)
    assert code == 2 and [(found["code"], found["line"]) for found in json.loads(out)] == [("L003", 1), ("L042", 2)]
    assert lorakit("check", "good.lora", "--format", "json", folder=folder) == (0, "[]\n", "")
    code, out, _ = lorakit("check", "bad.lora", "--format", "github", folder=folder)
    assert code == 2 and out.splitlines()[0] == (
        "::error file=bad.lora,line=1,col=13,endLine=1,endColumn=17,title=lorakit L003::"
        "`rnak` is no clause%0Ahelp: did you mean `rank`?"
    )
    assert lorakit("check", "good.lora", "--format", "github", folder=folder) == (0, "", "")
    assert lorakit("check", "good.lora", "--format", "xml", folder=folder)[0] == 2


def test_check_standard_input(folder: Path) -> None:
    assert lorakit("check", "-", stdin=b"adapt q rank 4") == (0, "-: well-formed, 1 rule\n", "")
    code, out, _ = lorakit("check", "-", stdin=b"adapt q rank \xff", folder=folder)
    assert code == 2 and "--> <stdin>:1:14" in out
    (folder / "sub").mkdir()
    assert lorakit("check", "-", stdin=b'include "good.lora"', folder=folder)[0] == 0


def test_check_set(folder: Path) -> None:
    assert lorakit("check", "good.lora", "--set", "r=2*8", folder=folder)[0] == 0
    code, out, _ = lorakit("check", "good.lora", "--set", "r=0.5", folder=folder)
    assert code == 2 and "error[L043]" in out
    code, out, _ = lorakit("check", "good.lora", "--set", "r=x", "--set", "s=1", folder=folder)
    assert code == 2 and "`--set r=x` gives `r` no value" in out and "`--set s`: the spec has no `let s`" in out


@pytest.mark.parametrize(
    ("setting", "words", "advice"),
    [
        ("r", "r", "help: write the name of a `let` and its value, as in `--set r=8`"),
        ("=3", "=3", "help: write the name of a `let` and its value, as in `--set r=8`"),
        ("r=1 2", "2", "note: a value is a number, a string in double quotes, or a list of targets in brackets"),
        ("s=4", "s", "note: the names are `r`"),
        ("r=x", "x", "note: a value is a number, a string in double quotes, or a list of targets in brackets"),
    ],
)
def test_what_is_wrong_with_a_setting_is_shown_in_the_option(
    setting: str, words: str, advice: str, folder: Path
) -> None:
    code, out, err = lorakit("check", "good.lora", "--set", setting, folder=folder)
    name = setting.partition("=")[0]
    lines = (out + err).splitlines()
    place = lines.index(f" --> --set {name if name else setting}")
    assert code == 2 and lines[place + 1 : place + 3] == ["  |", f"  | --set {setting}"]
    assert lines[place + 3] == "  | " + " " * f"--set {setting}".rindex(words) + "^" * len(words)
    assert lines[place + 4].strip() == f"= {advice}"


def test_fmt(folder: Path) -> None:
    assert lorakit("fmt", "--check", "ugly.lora", "good.lora", folder=folder) == (1, "ugly.lora would change\n", "")
    code, out, _ = lorakit("fmt", "--diff", "ugly.lora", folder=folder)
    assert code == 1 and "-adapt   q rank 4 # why" in out and "+adapt q rank 4  # why" in out
    assert (folder / "ugly.lora").read_bytes().startswith(b"\xef\xbb\xbf")
    (folder / "ugly.lora").chmod(0o640)
    assert lorakit("fmt", "ugly.lora", folder=folder) == (0, "ugly.lora changed\n", "")
    assert (folder / "ugly.lora").read_bytes() == b"adapt q rank 4  # why\n"
    assert (folder / "ugly.lora").stat().st_mode & 0o777 == 0o640
    assert lorakit("fmt", "ugly.lora", "--check", folder=folder) == (0, "", "")
    assert sorted(path.name for path in folder.iterdir()) == ["bad.lora", "good.lora", "ugly.lora"]


def test_fmt_standard_input() -> None:
    assert lorakit("fmt", "-", stdin=b"adapt  q  rank 4") == (0, "adapt q rank 4\n", "")
    assert lorakit("fmt", "--check", "-", stdin=b"adapt  q  rank 4") == (1, "<stdin> would change\n", "")


def test_fmt_of_what_cannot_be_read(folder: Path) -> None:
    before = (folder / "bad.lora").read_bytes()
    code, out, err = lorakit("fmt", "bad.lora", "ugly.lora", folder=folder)
    assert code == 2 and out == "ugly.lora changed\n" and "error[L003]" in err and "L042" not in err
    assert (folder / "bad.lora").read_bytes() == before
    assert lorakit("fmt", "nowhere.lora", folder=folder)[0] == 2
    assert lorakit("fmt", "-", stdin=b"\xff")[0] == 2


def test_fmt_through_a_link(folder: Path) -> None:
    (folder / "link.lora").symlink_to("ugly.lora")
    assert lorakit("fmt", "link.lora", folder=folder)[0] == 0
    assert (folder / "link.lora").is_symlink() and b"  # why" in (folder / "ugly.lora").read_bytes()


def test_explain() -> None:
    code, out, err = lorakit("explain", "l035")
    assert (code, err) == (0, "") and out.startswith("# L035: `init zeros` does not exist\n")
    code, out, _ = lorakit("explain")
    assert code == 0 and len(out.splitlines()) == len(Code)
    code, _, err = lorakit("explain", "L42")
    assert code == 2 and err == "error: there is no code `L42`; did you mean L042?\n"
    code, out, _ = lorakit("explain", "quantize")
    assert code == 0 and "or with `none` leaves them as they are" in " ".join(out.split()) and "A statement." in out
    assert (
        "- `bf16`: bfloat16" in lorakit("explain", "dtype")[1]
        and "A clause of `adapt`." in lorakit("explain", "rank")[1]
    )
    assert "did you mean quant?" in lorakit("explain", "qant")[2]
    assert lorakit("explain", "nonsense")[2].endswith("`lorakit explain` lists all codes\n")


def test_help_has_examples() -> None:
    for command in ("check", "fmt", "explain"):
        code, out, _ = lorakit(command, "--help")
        assert code == 0 and f"Example: lorakit {command}" in out
