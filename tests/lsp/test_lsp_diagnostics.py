"""Diagnostics in an editor: the records of `lorakit check`, at the client's positions, alive while one types."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lsp_helpers import Client, Editor
from lsprotocol import types

from lorakit.language import analyse

pytestmark = pytest.mark.asyncio(loop_scope="session")

FAULTY = """adapt q_proj rnak 16
adapt v_proj rank 0 quant nf5
let r = 4
let r = 5
optimizer adamw(betas=3) lr -1
"""


def columns(found: types.Diagnostic) -> tuple[int, int, int]:
    assert found.range.start.line == found.range.end.line
    return found.range.start.line, found.range.start.character, found.range.end.character


async def test_the_records_are_those_of_check(editor: Editor) -> None:
    expected = analyse(FAULTY).diagnostics
    found = await editor.found_in(FAULTY)
    assert len(expected) >= 5
    assert [(one.code, *columns(one)) for one in found] == [
        (one.code, one.line - 1, one.column - 1, one.end_column - 1) for one in expected
    ]
    assert all(one.severity == types.DiagnosticSeverity.Error and one.source == "lorakit" for one in found)
    assert [one.message.split("\n")[0] for one in found] == [one.message for one in expected]
    assert "help: did you mean `rank`?" in found[0].message


async def test_a_place_in_a_note_becomes_a_link(editor: Editor) -> None:
    found = await editor.found_in("let r = 4\nlet r = 5\nadapt q rank r")
    (related,) = found[0].related_information or []
    assert related.message == "it is first defined here"
    assert related.location.range.start == types.Position(0, 4)


async def test_every_change_is_followed(editor: Editor) -> None:
    uri = editor.open("adapt q_proj rank 16\n")
    assert await editor.diagnostics(uri) == []
    editor.change(uri, "adapt q_proj rank\n")
    assert [one.code for one in await editor.diagnostics(uri)] == ["L004"]
    editor.change(uri, "adapt q_proj rank 8\n")
    assert await editor.diagnostics(uri) == []


async def test_of_changes_in_a_row_the_last_counts(editor: Editor) -> None:
    uri = editor.open("adapt q_proj rank 16\n")
    await editor.diagnostics(uri)
    for end in range(1, 21):
        version = editor.change(uri, "adapt q_proj rank 16\n"[:end])
    while (published := await editor.published(uri)).version != version:
        pass
    assert not published.diagnostics


async def test_a_closed_document_has_no_diagnostics(editor: Editor) -> None:
    uri = editor.open("adapt")
    assert await editor.diagnostics(uri)
    editor.close(uri)
    assert await editor.diagnostics(uri) == []


# Wide characters: four, three and two bytes; a pair of surrogates, one unit each otherwise
@pytest.mark.parametrize(
    ("before", "units"),
    [
        ('let 名 = "🦙";', {"utf-8": 17, "utf-16": 13, "utf-32": 12}),
        ('let é = "ｆｕｌｌ"; ', {"utf-8": 25, "utf-16": 16, "utf-32": 16}),
        ('let e = "e\u0301👩‍👧"; ', {"utf-8": 26, "utf-16": 19, "utf-32": 17}),
    ],
)
async def test_columns_are_in_the_clients_units(
    encoded_client: Client, tmp_path: Path, before: str, units: dict[str, int]
) -> None:
    editor = Editor(encoded_client, tmp_path)
    encoding = encoded_client.encoding
    assert encoding is not None
    (found,) = await editor.found_in(f"# 🦙\n{before}adapt q_proj rnak 16\n")
    start = units[encoding] + len("adapt q_proj ")
    assert columns(found) == (1, start, start + len("rnak"))


async def test_lines_end_as_the_client_counts_them(editor: Editor) -> None:
    (found,) = await editor.found_in("let a = 1\r\n# one\u2028line\x0c\r\nadapt q_proj rnak 16\r\n")
    assert columns(found) == (2, 13, 17)


async def test_a_byte_order_mark_counts_as_the_client_sent_it(editor: Editor) -> None:
    (found,) = await editor.found_in("\ufeffadapt q_proj rnak 16\n")
    assert columns(found) == (0, 14, 18)


async def test_errors_of_an_included_file_show_at_the_include(editor: Editor) -> None:
    (editor.folder / "outer.lora").write_text('# 🦙\ninclude "inner.lora"\n', encoding="utf-8")
    (editor.folder / "inner.lora").write_text('let s = "🦙"; adapt q_proj rnak 4\n', encoding="utf-8")
    (found,) = await editor.found_in('let r = 4\ninclude "outer.lora"\n')
    assert columns(found) == (1, 8, 20)
    assert "inner.lora" in found.message and "`rnak` is no clause" in found.message
    related = found.related_information or []
    places = [(Path(one.location.uri).name, one.message) for one in related]
    assert places[:2] == [("inner.lora", "`rnak` is no clause"), ("outer.lora", "included here")]
    assert related[0].location.range.start == types.Position(0, 27)
    assert related[1].location.range.start == types.Position(1, 8)


async def test_what_is_not_saved_yet_is_included_as_it_is(editor: Editor) -> None:
    inner = editor.open("let r = 4\n", "parts.lora")
    outer = editor.open('include "parts.lora"\nadapt q_proj rank r\n', "whole.lora")
    assert await editor.diagnostics(outer) == []
    editor.change(inner, "let s = 4\n")
    assert [one.code for one in await editor.diagnostics(outer)] == ["L020"]
    editor.close(inner)
    assert [one.code for one in await editor.diagnostics(outer)] == ["L060"]


async def test_a_file_that_changes_on_the_disk_is_read_anew(editor: Editor) -> None:
    outer = editor.open('include "late.lora"\n')
    assert [one.code for one in await editor.diagnostics(outer)] == ["L060"]
    late = editor.folder / "late.lora"
    late.write_text("let r = 1\n")
    event = types.FileEvent(late.as_uri(), types.FileChangeType.Created)
    editor.client.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
    assert await editor.diagnostics(outer) == []
    shutil.rmtree(editor.folder)
    editor.client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(outer)))
    assert [one.code for one in await editor.diagnostics(outer)] == ["L060"]


async def test_a_text_that_looks_like_a_path_is_a_text(editor: Editor) -> None:
    assert [one.code for one in await editor.found_in("include missing.lora")] == ["L004"]


async def test_what_no_encoding_holds_is_an_error_in_its_place(editor: Editor) -> None:
    assert await editor.found_in("adapt q_proj rank 16 # \ud800\n") == []
    (found,) = await editor.found_in("adapt q_proj \udc00 rank 16\n")
    assert found.range.start.character == 13
