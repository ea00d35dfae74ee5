"""Files and folders of data: what is read of each format, and where each says that something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import lorakit
from lorakit.data.formats import read_rows
from lorakit.data.source import read_data
from lorakit.plugins import load_plugins

PLUGINS = load_plugins()

RECORDS = [{"prompt": 'a, "b"\n; c', "completion": "é 😀"}, {"prompt": "", "completion": "\u2028 d"}]


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(path, PLUGINS)]


def places(path: Path) -> list[str]:
    return [row.place.removeprefix(str(path)) for row in read_rows(path, PLUGINS)]


def lines(records: list[dict[str, Any]], ascii_only: bool = False) -> str:
    return "".join(json.dumps(one, ensure_ascii=ascii_only) + "\n" for one in records)


CSV = 'prompt,completion\n"a, ""b""\n; c",é 😀\n,\u2028 d\n'


@pytest.mark.parametrize(
    ("name", "text", "at"),
    [
        ("a.jsonl", lines(RECORDS), [":1", ":2"]),
        ("a.jsonl", lines(RECORDS, ascii_only=True), [":1", ":2"]),
        ("a.ndjson", "\n\n" + lines(RECORDS).replace("\n", "\n\n"), [":3", ":5"]),
        ("a.jsonl", lines(RECORDS).replace("\n", "\r\n"), [":1", ":2"]),
        ("a.json", json.dumps(RECORDS), [":1", ":1"]),
        ("a.json", json.dumps(RECORDS, indent=2), [":2", ":6"]),
        ("a.json", lines(RECORDS), [":1", ":2"]),
        # a list under another name
        ("a.jsonl", json.dumps(RECORDS, indent=1), [":2", ":6"]),
        ("a.csv", CSV, [":2", ":4"]),
        ("A.CSV", CSV, [":2", ":4"]),
        ("a.csv", CSV.replace("\n,", "\r\n,"), [":2", ":4"]),
        ("a.csv", 'prompt;completion\n"a, ""b""\n; c";é 😀\n;\u2028 d\n', [":2", ":4"]),
        ("a.tsv", 'prompt\tcompletion\n"a, ""b""\n; c"\té 😀\n\t\u2028 d\n', [":2", ":4"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_holds_its_records_each_with_its_line(
    tmp_path: Path, name: str, text: str, at: list[str], encoding: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name) == RECORDS
    assert places(tmp_path / name) == at


def test_a_text_is_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n\r\n three \r\n\r\n\r\n\r\n".encode())
    assert read(path) == [{"text": "one\ntwo"}, {"text": "three"}]
    assert places(path) == [":1", ":5"]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', r"a\.jsonl:2: no JSON: Expecting value at column 10"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b\n', r"a\.jsonl:3: no JSON: Unterminated string starting at"),
        ("a.jsonl", '{"text": "a"}\n7\n', r"a\.jsonl:2: a record is a JSON object; this is a number"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\ud83d"}\n', r"a\.jsonl:2: `text` holds '\\ud83d', which is half of a"),
        ("a.jsonl", '{"text": {"b": ["\\uDe00"]}}\n', r"a\.jsonl:1: `text` holds '\\ude00'"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: JSON that cannot be read"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"a\.jsonl:1: JSON that cannot be read: .*digits"),
        ("a.json", '[\n{"text": "a"}\n{"text": "b"}]', r"a\.json:3: no JSON: a comma or `\]` is missing"),
        ("a.json", '[\n{"text": "a"},\n{"text": "b"}', r"a\.json:3: no JSON: the array does not end"),
        ("a.json", '[\n{"text": "a"}\n]\n{"text": "b"}', r"a\.json:4: something follows the array"),
        ("a.csv", "text,more\na,b\nc\n", r"a\.csv:3: 1 fields, where the first line names 2"),
        ("a.csv", 'text,more\na,"b\n', r"a\.csv:2: no CSV: unexpected end of data"),
        ("a.csv", "text,text\na,b\n", r"a\.csv:1: two columns are called `text`"),
        (
            "a.yaml",
            "text: a\n",
            r"a\.yaml: what ends in \.yaml is no data that lorakit reads; it reads \.arrow \.csv \.tsv \.jsonl",
        ),
        ("a.lora", "adapt q_proj rank 4\n", r"a\.lora: what ends in \.lora is no data"),
        ("a.jsonl", "\n \n", r"a\.jsonl holds no text"),
        ("a.json", "[]", r"a\.json holds no text"),
        ("a.csv", "text\n", r"a\.csv holds no text"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(lorakit.DataError, match=complaint):
        read_data(tmp_path / name, PLUGINS)


def test_what_is_no_text_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\ngood\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(lorakit.DataError, match=r"a\.csv:3: no UTF-8 text: .* at byte 13"):
        read_data(path, PLUGINS)
    with pytest.raises(lorakit.DataError, match=r"no such data file: .*none\.jsonl"):
        read_data(tmp_path / "none.jsonl", PLUGINS)


def test_a_field_of_a_table_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(read(tmp_path / "a.csv")[0]["text"]) == 200_000


def test_a_folder_is_the_files_of_its_training_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("data/train-00001.jsonl", "data/train-00000.jsonl", "data/test-00000.jsonl", ".cache/train.jsonl"):
        (tmp_path / name).write_text(lines([{"text": name}]))
    (tmp_path / "README.md").write_text("no data")
    assert [row["text"] for row in read(tmp_path)] == ["data/train-00000.jsonl", "data/train-00001.jsonl"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["README.md"], "holds no data that lorakit reads"),
        (["a.jsonl", "b.csv"], "holds CSV and JSON; name one file"),
        (["a.jsonl", "validation.jsonl"], r"holds validation.jsonl and nothing named train: name the file to read"),
    ],
)
def test_a_folder_of_which_it_is_unclear_what_to_read_is_refused(
    tmp_path: Path, names: list[str], complaint: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("text\n")
    with pytest.raises(lorakit.DataError, match=complaint):
        read_data(tmp_path, PLUGINS)


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    (tmp_path / "a.jsonl").write_text(lines([{"text": "a"}]) * 1200)
    (tmp_path / "a.csv").write_text("text\n" + "a\n" * 1200)
    for name in ("a.jsonl", "a.csv"):
        told.clear()
        assert len(list(read_rows(tmp_path / name, PLUGINS, lambda done, total: told.append((done, total))))) == 1200
        assert len(told) == 2 and 0 < told[0][0] < told[1][0] < told[1][1]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
OTHER = {"type": "function", "function": {"name": "time", "arguments": {"zone": 1}}}
CALLED = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    for call in (CALL, OTHER)
]
# what holds nothing is not there
CLEAN = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}
    for call in (CALL, OTHER)
]


def test_parquet_holds_what_was_written(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == RECORDS
    assert places(tmp_path / "a.parquet") == [", row 1", ", row 2"]
    parquet.write_table(arrow.Table.from_pylist(CALLED), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == CLEAN
    with arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        table = arrow.Table.from_pylist(CALLED)
        with arrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path / "a.arrow") == CLEAN
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-10])
    with pytest.raises(lorakit.DataError, match=r"cannot read .*c\.parquet: "):
        read(tmp_path / "c.parquet")


def test_folders_of_datasets_hold_what_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(CALLED)
    made.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one") == CLEAN
    assert read(next((tmp_path / "one").glob("*.arrow"))) == CLEAN
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "splits") == CLEAN
    assert read(tmp_path / "splits" / "test") == CLEAN[:1]
    datasets.DatasetDict({"a": made, "b": made}).save_to_disk(str(tmp_path / "unclear"))
    with pytest.raises(lorakit.DataError, match="holds the splits a, b: name one"):
        read(tmp_path / "unclear")
    if hasattr(datasets, "Json"):
        mixed = datasets.Dataset.from_list(CALLED, on_mixed_types="use_json")
        mixed.to_parquet(str(tmp_path / "mixed.parquet"))
        assert read(tmp_path / "mixed.parquet") == CLEAN


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("a", "datasets")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    if package == "datasets":
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    else:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        lorakit.DataError, match=rf"{name}: reading this needs {package}: pip install 'lorakit\[data\]'"
    ):
        read(tmp_path / name)


def test_every_format_is_in_the_readme() -> None:
    section = (
        Path(__file__).parents[1].joinpath("README.md").read_text().partition("\n## Data\n")[2].partition("\n## ")[0]
    )
    for form in PLUGINS.data_formats.values():
        for suffix in form.suffixes:
            assert not suffix or f"`{suffix}`" in section, suffix
