"""Names in an editor: references, highlights and renaming, over the files that include each other."""

from __future__ import annotations

import pytest
from lsp_helpers import Editor, changed, marked
from lsprotocol import types
from pygls.exceptions import JsonRpcException

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "let |r = 4\nlet t = [q, v]\nadapt t rank r alpha 2*r\nadapt r rank r\n"


def at(uri: str, position: types.Position) -> dict[str, object]:
    return {"text_document": types.TextDocumentIdentifier(uri), "position": position}


async def rename(editor: Editor, uri: str, position: types.Position, name: str) -> dict[str, list[types.TextEdit]]:
    asked = types.RenameParams(types.TextDocumentIdentifier(uri), position, name)
    edit = await editor.client.text_document_rename_async(asked)
    return {uri: list(edits) for uri, edits in ((edit.changes if edit else None) or {}).items()}


async def test_a_name_has_its_uses_and_its_definition(editor: Editor) -> None:
    text, position = marked(TEXT)
    uri = editor.open(text)
    for declared, count in ((True, 4), (False, 3)):
        context = types.ReferenceContext(declared)
        asked = types.ReferenceParams(context, types.TextDocumentIdentifier(uri), position)
        assert len(await editor.client.text_document_references_async(asked) or ()) == count
    lit = types.DocumentHighlightParams(types.TextDocumentIdentifier(uri), position)
    found = await editor.client.text_document_document_highlight_async(lit) or ()
    assert [one.kind for one in found] == [types.DocumentHighlightKind.Write] + [types.DocumentHighlightKind.Read] * 3


async def test_a_new_name_replaces_its_uses_alone(editor: Editor) -> None:
    text, position = marked(TEXT)
    uri = editor.open(text)
    edits = await rename(editor, uri, position, "width")
    expected = "let width = 4\nlet t = [q, v]\nadapt t rank width alpha 2*width\nadapt r rank width\n"
    assert changed(text, edits[uri]) == expected
    edits = await rename(editor, uri, types.Position(2, 6), "both")
    assert changed(text, edits[uri]) == text.replace("let t", "let both").replace("adapt t", "adapt both")


async def test_a_name_changes_in_every_file_of_its_programs(editor: Editor) -> None:
    names = "let r = 4\n"
    inner = editor.open(names, "names.lora")
    one = editor.open('include "names.lora"\nadapt q rank r\n', "one.lora")
    other = editor.open("let r = 8\nadapt q rank r\n", "other.lora")
    for uri, position in ((inner, types.Position(0, 4)), (one, types.Position(1, 13))):
        edits = await rename(editor, uri, position, "width")
        assert edits.keys() == {inner, one} and other not in edits
        assert changed(names, edits[inner]) == "let width = 4\n"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (TEXT, "rank", "word of the language"),
        (TEXT, "2x", "begins with no digit"),
        (TEXT, "t", "is defined in"),
        (TEXT, "trainable", "is a quantity"),
        ("let |t = [q]\nadapt t rank 4\nadapt v rank 4", "v", "would become this list"),
        ("let |r = 4\nadapt q rnak r", "width", "cannot be read"),
    ],
)
async def test_a_name_that_would_change_the_program_is_refused(
    editor: Editor, text: str, name: str, words: str
) -> None:
    text, position = marked(text)
    with pytest.raises(JsonRpcException, match=words):
        await rename(editor, editor.open(text), position, name)


@pytest.mark.parametrize("text", ["adapt |q rank 4", "# le|t", "ad|apt q rank 4", "adapt q rank 2*r|ank"])
async def test_other_words_have_no_name(editor: Editor, text: str) -> None:
    text, position = marked(text)
    uri = editor.open(text)
    asked = types.PrepareRenameParams(types.TextDocumentIdentifier(uri), position)
    assert await editor.client.text_document_prepare_rename_async(asked) is None
    lit = types.DocumentHighlightParams(types.TextDocumentIdentifier(uri), position)
    assert await editor.client.text_document_document_highlight_async(lit) is None
