"""Data formats and shapes of plugins: found, used, refused and blamed as all other plugins are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lorakit
from distributions import install, lorakit_with
from lorakit.data.rows import Row
from lorakit.data.shapes import read_columns
from lorakit.data.source import Data, Reading, read_data
from lorakit.hooks import Chat, Completion, DataFormat, Fields, LeftOut, Plugins, Text, hookimpl
from lorakit.plugins import load_plugins
from lorakit.testing import CheckError, check_data_format, check_data_shape
from lorakit.testing.distribution import checks_of_distribution


@dataclass(frozen=True)
class Lines:
    """Lines of names and values, `prompt=… completion=…`."""

    name: str = "lines"
    suffixes: Any = (".lines",)
    marks: Any = ("lines.index",)
    give: Callable[[str, str], Any] = lambda place, line: Row(place, dict(word.split("=") for word in line.split()))

    def rows(self, path: Path, progress: Callable[[int, int], None]) -> Iterator[Row]:
        """Yield a row a line."""
        file = path / "lines.index" if path.is_dir() else path
        for number, line in enumerate(file.read_text().splitlines(), 1):
            yield self.give(f"{path}:{number}", line)


@dataclass(frozen=True)
class Doubled:
    """A word is learned twice."""

    name: str = "doubled words"
    needs: Any = ("word",)
    may: Any = ("end",)
    make: Callable[[Fields], Any] = lambda fields: Text(fields.place, fields.text("word") * 2 + fields.text("end"))

    def example(self, fields: Fields) -> Any:
        """Return the word twice."""
        return self.make(fields)


def completions(data: Data) -> list[Completion]:
    assert all(isinstance(one, Completion) for one in data.examples)
    return [one for one in data.examples if isinstance(one, Completion)]


class Sample:
    """A plugin object of these formats and shapes."""

    def __init__(self, formats: list[Any] = [], shapes: list[Any] = []) -> None:  # noqa: B006
        self.formats, self.shapes = formats, shapes

    @hookimpl
    def lorakit_data_formats(self) -> list[Any]:
        return self.formats

    @hookimpl
    def lorakit_data_shapes(self) -> list[Any]:
        return self.shapes


def plugins_of(*, formats: list[Any] = [], shapes: list[Any] = []) -> Plugins:  # noqa: B006
    return load_plugins(modules={"sample 1.0": Sample(formats, shapes)})


def test_lorakit_data_formats(tmp_path: Path) -> None:
    plugins = plugins_of(formats=[Lines()])
    (tmp_path / "a.lines").write_text("prompt=a completion=b\nprompt=c completion=d")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.lines").write_text("prompt=a completion=b\nprompt=c completion=d")
    (folder / "README.md").write_text("no data")
    marked = tmp_path / "marked"
    marked.mkdir()
    (marked / "lines.index").write_text("prompt=a completion=b\nprompt=c completion=d")
    for path in (tmp_path / "a.lines", folder, marked):
        assert [(one.prompt, one.completion) for one in completions(read_data(path, plugins))] == [
            ("a", "b"),
            ("c", "d"),
        ]
    with pytest.raises(lorakit.DataError, match=r"it reads .*\.lines .* and folders of `datasets` and `lines`"):
        read_data(write(tmp_path, "", "none.xyz"), plugins)
    with pytest.raises(lorakit.DataError, match=r"what ends in \.lines is no data that lorakit reads"):
        read_data(tmp_path / "a.lines", load_plugins())


def test_lorakit_data_shapes(tmp_path: Path) -> None:
    plugins = plugins_of(shapes=[Doubled()])
    path = tmp_path / "a.jsonl"
    path.write_text('{"word": "ab", "text": "not this"}\n{"text": "this"}\n{"word": ""}')
    data = read_data(path, plugins)
    assert [one.text for one in data.examples if isinstance(one, Text)] == ["abab", "this"] and data.forms == {
        "doubled words": 2,
        "texts": 1,
    }
    assert data.left_out == (LeftOut(f"{path}:3", "with nothing in `word`"),)
    path.write_text('{"w": "ab", "e": "!"}')
    (made,) = read_data(path, plugins, Reading(read_columns("word=w,end=e", plugins))).examples
    assert made == Text(f"{path}:1", "abab!")
    with pytest.raises(lorakit.DataError, match="lorakit knows no name `word`"):
        read_columns("word=w", load_plugins())
    with pytest.raises(lorakit.DataError, match="a record is `word`, `messages`, `conversations`"):
        read_data(write(tmp_path, '{"other": 1}'), plugins)


INSTALLED = '''
from dataclasses import dataclass

from lorakit.hooks import Row, hookimpl


@dataclass(frozen=True)
class Broken:
    """Files that nobody can read."""

    name: str = "broken"
    suffixes: tuple = (".broken",)
    marks: tuple = ()

    def rows(self, path, progress):
        raise RuntimeError("oops")


@hookimpl
def lorakit_data_formats():
    return [Broken()]
'''


def test_the_commands_list_an_installed_format_and_blame_its_distribution(tmp_path: Path) -> None:
    install(tmp_path, "broken-rows", INSTALLED, version="3.1")
    listed = lorakit_with(tmp_path, "plugins").stdout
    assert re.search(r"broken-rows 3\.1\n.*data format +broken +.*Files that nobody can read\.", listed, re.S), listed
    assert re.search(r"data shape +chats +", listed) and re.search(r"data format +parquet +", listed)
    write(tmp_path, "adapt q_proj rank 4\n", "a.lora"), write(tmp_path, "", "rows.broken")
    failed = lorakit_with(tmp_path, "train", "a.lora", "nowhere", "rows.broken", "-o", "out")
    words = "rows.broken: plugin broken-rows 3.1: the data format `broken` failed: RuntimeError: oops"
    assert failed.returncode and words in failed.stderr and "Traceback" not in failed.stderr


def write(folder: Path, text: str, name: str = "b.jsonl") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    "formats, shapes, words",
    [
        ([Lines(suffixes=".lines")], [], "`suffixes` of the data format `lines` is '.lines'; it is a tuple of texts"),
        ([Lines(marks=None)], [], "`marks` of the data format `lines` is None; it is a tuple of texts"),
        ([Lines], [], r"the data format `lines` is a class; return an instance: `Lines\(\)`"),
        ([Lines(), Lines("other")], [], r"it adds the data format `\.lines` twice"),
        ([Lines("JSON")], [], r"two plugins add `JSON` as data format: lorakit \(data_formats\) and sample 1\.0"),
        ([Lines(suffixes=(".csv",))], [], r"two plugins add `\.csv` as data format: lorakit \(data_formats\) and"),
        ([Lines(marks=("state.json",))], [], r"two plugins add `state\.json` as data format"),
        ([], [Doubled(needs="word")], "`needs` of the data shape `doubled words` is 'word'; it is a tuple of texts"),
        ([], [Doubled("texts")], r"two plugins add `texts` as data shape: lorakit \(data_shapes\) and sample 1\.0"),
        ([], [7], "lorakit_data_shapes returned 7, which has no `name`"),
    ],
)
def test_what_fits_no_protocol_is_refused(formats: list[Any], shapes: list[Any], words: str) -> None:
    with pytest.raises(lorakit.PluginError, match=words):
        plugins_of(formats=formats, shapes=shapes)


def test_a_format_that_inherits_nothing_but_the_protocol_has_no_words() -> None:
    class Empty(DataFormat):
        name = "empty"

    with pytest.raises(lorakit.PluginError, match="`suffixes` of the data format `empty` is None"):
        plugins_of(formats=[Empty()])  # type: ignore[abstract]


def test_a_suffix_of_two_distributions_belongs_to_neither(tmp_path: Path) -> None:
    plugins = load_plugins(modules={"one 1.0": Sample([Lines()]), "two 2.0": Sample([Lines("lines too", marks=())])})
    assert not {"lines", "lines too"} & plugins.data_formats.keys()
    path = write(tmp_path, "prompt=a completion=b", "a.lines")
    with pytest.raises(lorakit.DataError, match=r"two plugins add `\.lines`: one 1\.0 and two 2\.0; uninstall one"):
        read_data(path, plugins)


@pytest.mark.parametrize(
    "form, shape, words",
    [
        (Lines(give=lambda place, line: 1 / 0), Doubled(), "the data format `lines` failed: ZeroDivisionError"),
        (Lines(give=lambda place, line: {"word": "a"}), Doubled(), "the data format `lines` gave a dict"),
        (Lines(), Doubled(make=lambda fields: fields.values["end"]), "the data shape `doubled words` failed: KeyError"),
        (Lines(), Doubled(make=lambda fields: "a"), "the data shape `doubled words` returned a str; it is to return a"),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_version_and_the_place(
    form: Any, shape: Any, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "word=a", "a.lines")
    with pytest.raises(lorakit.PluginError, match=words) as raised:
        read_data(path, plugins_of(formats=[form], shapes=[shape]))
    assert "plugin sample 1.0: " in str(raised.value) and str(raised.value).startswith(str(path))


def test_an_error_of_a_plugins_own_goes_through_as_it_is(tmp_path: Path) -> None:
    def refuse(fields: Fields) -> Any:
        raise lorakit.DataError(f"{fields.place}: no word")

    with pytest.raises(lorakit.DataError, match=r"^.*b\.jsonl:1: no word$"):
        read_data(write(tmp_path, '{"word": "a"}'), plugins_of(shapes=[Doubled(make=refuse)]))


def faultless() -> dict[str, list[Any]]:
    plugins = load_plugins()
    return checks_of_distribution(plugins, ("lorakit (data_formats)", "lorakit (data_shapes)"))


def test_the_built_ins_keep_what_is_asked_of_plugins() -> None:
    found = faultless()
    assert {"data format JSON", "data format datasets", "data shape chats"} <= found.keys() and len(found) == 11
    for checks in found.values():
        for check in checks:
            check()


@pytest.mark.parametrize(
    "form, words",
    [
        (Lines(suffixes=("lines",)), "the suffix 'lines' is never found"),
        (Lines(suffixes=(".LINES",)), "the suffix '.LINES' is never found"),
        (Lines(suffixes=(), marks=()), "neither `suffixes` nor `marks`"),
        (Lines(), "It raised FileNotFoundError"),
        (Lines(), "It raised UnicodeDecodeError"),
        (Lines(give=lambda place, line: Row("line 1", {})), "which does not name data"),
    ],
)
def test_faults_of_a_format_are_found(form: Any, words: str) -> None:
    with pytest.raises(CheckError, match=words):
        check_data_format(form)


def test_an_error_that_names_no_file_is_found() -> None:
    class Silent(Lines):
        def rows(self, path: Path, progress: Callable[[int, int], None]) -> Iterator[Row]:
            raise lorakit.DataError("something is wrong")

    with pytest.raises(CheckError, match="'something is wrong' does not name the file"):
        check_data_format(Silent())


@pytest.mark.parametrize(
    "shape, words",
    [
        (Doubled(needs=()), "`needs` is empty"),
        (Doubled(may=("word",)), "word stands twice among"),
        (
            Doubled(make=lambda fields: Text(fields.place, fields.values["word"])),
            "be learned of 7 is no text",
        ),
        (Doubled(make=lambda fields: Completion("here", "a", "b")), "the place of what it returned is 'here'"),
        (Doubled(make=lambda fields: fields.values["word"].upper()), "It raised AttributeError"),
        (Doubled(make=lambda fields: None), "`example` returned a NoneType"),
        (Doubled(make=lambda fields: Chat(fields.place, (), (True,))), "`learned` is not as long as `messages`"),
    ],
)
def test_faults_of_a_shape_are_found(shape: Any, words: str) -> None:
    with pytest.raises(CheckError, match=words):
        check_data_shape(shape)


def test_a_shape_without_a_fault_passes() -> None:
    check_data_shape(Doubled())
