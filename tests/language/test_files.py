"""Files: paths, encodings, includes, and values set from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from language_helpers import codes, look, only, plugins, read, rule

from lorakit.diagnostics import Span
from lorakit.errors import SpecError
from lorakit.language import parse
from lorakit.language.analysis import Analysis, analyse
from lorakit.language.settings import variables_of
from lorakit.language.spec import Spec
from lorakit.language.statements import Target


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files and return the path of the first."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / next(iter(files))


def check(path: Path) -> Analysis:
    return analyse(path, None, plugins())


def test_what_counts_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"a.lora": "adapt q rank 4", "b.txt": "adapt q rank 4"})
    wanted = parse("adapt q rank 4")
    assert parse(path) == parse(str(path)) == parse(tmp_path / "b.txt") == wanted != Spec()
    monkeypatch.chdir(tmp_path)
    assert parse("a.lora") == wanted
    assert parse("adapt q rank 4 # a.lora\n") == wanted
    for missing in (
        tmp_path / "c.lora",
        "c.lora",
        "adapt q rank 4 # no.lora",
        tmp_path,
        "\x00.lora",
        "x" * 9999 + ".lora",
    ):
        with pytest.raises(SpecError) as raised:
            parse(missing)
        assert [found.code for found in raised.value.diagnostics] == ["L060"]


def test_encodings(tmp_path: Path) -> None:
    line = "adapt größe rank 4\r\nadapt k rnak 4"
    for data, column in ((line.encode(), 9), (b"\xef\xbb\xbf" + line.encode(), 9)):
        (found,) = check(write(tmp_path, {"a.lora": data})).diagnostics
        assert (found.line, found.column) == (2, column)
    (found,) = check(write(tmp_path, {"a.lora": "# größe\nadapt q rank 4".encode("latin-1")})).diagnostics
    assert (found.code, found.line, found.column) == ("L011", 1, 5)
    assert found.message == "the byte 0xF6 is not UTF-8"
    both = check(write(tmp_path, {"a.lora": "adapt grö rank 4\nadapt k rnak 4".encode("latin-1")})).diagnostics
    assert [found.code for found in both] == ["L011", "L003"]
    for encoding in ("utf-16", "utf-16-le"):
        data = line.encode(encoding)
        data = data if encoding == "utf-16" else b"\xff\xfe" + data
        assert [found.code for found in check(write(tmp_path, {"a.lora": data})).diagnostics] == ["L011"]


def test_includes_stand_where_they_are_written(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "main.lora": 'let r = 4\nadapt a rank r\ninclude "sub/b.lora"\nadapt d rank s',
            "sub/b.lora": 'adapt b rank r\ninclude "../sub/c.lora"\nlet s = 8',
            "sub/c.lora": "adapt c rank 2*r",
        },
    )
    spec = parse(main)
    assert [(str(one.targets[0]), getattr(one, "rank", None)) for one in spec.rules] == [
        ("a", 4), ("b", 4), ("c", 8), ("d", 8),
    ]  # fmt: skip
    assert [one.span.line for one in spec.rules if one.span] == [2, 1, 1, 4]
    assert len(spec.sources) == 3 and spec.source == spec.sources[str(main)]


def test_a_file_counts_once(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "main.lora": 'include "a.lora"\ninclude "b.lora"\ninclude "./a.lora"',
            "a.lora": 'include "c.lora"\nadapt a rank 4',
            "b.lora": 'include "c.lora"',
            "c.lora": "let r = 4",
        },
    )
    assert len(parse(main).rules) == 1


def test_a_cycle_shows_its_chain(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "main.lora": 'include "a.lora"',
            "a.lora": 'include "b.lora"\nadapt q rank 4',
            "b.lora": '\ninclude "a.lora"',
        },
    )
    (found,) = check(main).diagnostics
    assert found.code == "L061" and found.file == str(tmp_path / "b.lora")
    assert found.message == "this file includes itself: a.lora → b.lora → a.lora"
    assert found.notes == (f"included at {tmp_path / 'a.lora'}:1:9", f"included at {main}:1:9")
    (found,) = check(write(tmp_path, {"self.lora": 'include "self.lora"'})).diagnostics
    assert found.message == "this file includes itself: self.lora → self.lora"


def test_errors_inside_an_include_carry_the_chain(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "main.lora": 'adapt x rnak 4\ninclude "a.lora"\nadapt x alpha 1',
            "a.lora": 'include "b.lora"',
            "b.lora": "adapt q\nadapt k rnak 4",
        },
    )
    analysis = check(main)
    names = [(Path(found.file).name, found.code, found.line, len(found.notes)) for found in analysis.diagnostics]
    assert names == [
        ("main.lora", "L003", 1, 0),
        ("main.lora", "L042", 3, 0),
        ("b.lora", "L042", 1, 2),
        ("b.lora", "L003", 2, 2),
    ]
    assert analysis.diagnostics[3].notes[-1] == f"included at {main}:2:9"


def test_includes_that_cannot_be_read(tmp_path: Path) -> None:
    main = write(tmp_path, {"main.lora": 'include "nroms.lora"', "norms.lora": ""})
    (found,) = check(main).diagnostics
    assert found.suggestion == 'did you mean `"norms.lora"`?' and "no such file" in found.message
    for name in ("", ".", "/dev/zero", "/dev/null/x", "x" * 5000):
        assert [found.code for found in check(write(tmp_path, {"m.lora": f'include "{name}"'})).diagnostics] == ["L060"]
    os.mkfifo(tmp_path / "pipe")
    assert [found.code for found in check(write(tmp_path, {"m.lora": 'include "pipe"'})).diagnostics] == ["L060"]


def test_a_long_chain_of_includes(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{n}.lora": f'include "{n + 1}.lora"' for n in range(3000)}
    assert [found.code for found in check(write(tmp_path, files)).diagnostics] == ["L062"]


def test_an_editor_reads_what_is_not_saved() -> None:
    unsaved = {"main.lora": b'include "b.lora"', "b.lora": b"adapt q rank 4"}
    analysis = analyse("main.lora", None, plugins(), read=lambda path: unsaved[path.name])
    assert analysis.spec is not None and len(analysis.spec.rules) == 1
    assert [tree.source.name for tree in analysis.trees] == ["main.lora", "b.lora"]


def test_set() -> None:
    text = 'let r = 4\nlet t = [q]\nlet s = "x"\nadapt t rank r quant wide(label=s)'
    assert rule(text, r="2*8").rank == 16 and rule(text, r=8).rank == 8
    assert [str(target) for target in rule(text, t="[k_proj, @mlp]").targets] == ["k_proj", "@mlp"]
    assert rule(text, t=["k", "v"]).targets == rule(text, t="[k,\n v]").targets
    assert dict(rule(text, s='"y z"').quant.options) == {"label": "y z"}  # type: ignore[union-attr]
    assert rule("let a = 2\nlet b = 3\nadapt q rank b", b="a*8").rank == 16
    assert rule("let t = 3\nadapt t rank 4", t="[k]").targets == (
        Target((*rule("adapt k rank 4").targets[0].segments,)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "value", ["", "many", "1 2", "1; adapt q rank 4", "[q", '"x', "1/0", "24gib", "true", "(1, 2)", "\n"]
)
def test_set_to_what_is_no_value(value: str) -> None:
    text = "let r = 4\nadapt q rank r alpha r"
    (found,) = look(text, r=value).diagnostics
    assert found.code == "L024" and found.message.startswith(f"`--set r={value}` gives `r` no value")
    assert found.file == "--set r"


def test_set_of_another_kind() -> None:
    assert codes("let r = 4\nadapt q rank r", r="[q]") == ["L025"]
    assert codes("let r = 4\nadapt q rank r", r="0.5") == ["L043"]


def test_set_of_an_unknown_name() -> None:
    assert only("let rank_ = 4", rnk_="8") == "`--set rnk_`: the spec has no `let rnk_` | did you mean `rank_`?"
    missing = "it has no `let`; `let x = …` gives a value the name that `--set` takes"
    assert only("", x="8") == f"`--set x`: the spec has no `let x` | {missing}"
    assert codes("let = 4", x="8") == ["L004", "L023"]
    assert codes('include "nowhere.lora"', x="8") == ["L060"]
    assert codes("let x = ", x="8") == ["L004"]


def test_words_of_the_command_line() -> None:
    assert variables_of(["r=8", " t = [q, k]", "s=a=b"]) == {"r": "8", "t": "[q, k]", "s": "a=b"}
    for bad in ("r", "", "=3", "a b=3", "1=2"):
        with pytest.raises(SpecError, match="expected NAME=VALUE"):
            variables_of([bad])


def test_more_quantities() -> None:
    analysis = analyse("require flops < 3", None, plugins(), quantities={"flops": ""})
    assert analysis.spec is not None and not analysis.diagnostics
    assert codes("require flops < 3") == ["L051"]


def test_names_of_texts() -> None:
    analysis = analyse(b"adapt q rnak 3", None, plugins(), name="<stdin>")
    assert analysis.diagnostics[0].file == "<stdin>"
    assert read("adapt q rank 3").rules[0].span == Span("<text>", 1, 1, 1, 15)
