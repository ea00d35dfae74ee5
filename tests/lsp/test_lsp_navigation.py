"""Going to definitions, outlines, formatting and quick fixes in an editor."""

from __future__ import annotations

import pytest
from lsp_helpers import Editor, changed, marked
from lsprotocol import types

from lorakit.language.format import format_text

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def definition(editor: Editor, text: str) -> types.Location | None:
    text, position = marked(text)
    uri = editor.open(text, "here.lora")
    asked = types.DefinitionParams(types.TextDocumentIdentifier(uri), position)
    found = await editor.client.text_document_definition_async(asked)
    assert found is None or isinstance(found, types.Location)
    return found


def place(line: int, start: int, end: int) -> types.Range:
    return types.Range(types.Position(line, start), types.Position(line, end))


async def test_a_name_leads_to_its_let(editor: Editor) -> None:
    found = await definition(editor, "let r = 4\nlet t = [q]\nadapt t rank 2*|r")
    assert found == types.Location((editor.folder / "here.lora").as_uri(), place(0, 4, 5))
    found = await definition(editor, "let r = 4\nlet t = [q]\nadapt |t rank r")
    assert found is not None and found.range == place(1, 4, 5)


async def test_a_name_leads_into_an_included_file(editor: Editor) -> None:
    included = editor.folder / "shared names.lora"
    included.write_text('# 🦙\nlet s = "🦙"; let width = 24\n', encoding="utf-8")
    found = await definition(editor, 'include "shared names.lora"\nadapt q rank wid|th')
    assert found == types.Location(included.as_uri(), place(1, 18, 23))


async def test_an_include_leads_to_its_file(editor: Editor) -> None:
    (editor.folder / "part.lora").write_text("")
    found = await definition(editor, 'include "par|t.lora"')
    assert found == types.Location((editor.folder / "part.lora").as_uri(), place(0, 0, 0))
    assert await definition(editor, 'include "oth|er.lora"') is None


@pytest.mark.parametrize("text", ["adapt |q rank 4", "adapt q ra|nk 4", "# le|t", "adapt q rank |r", 'let s = "q|"'])
async def test_other_words_lead_nowhere(editor: Editor, text: str) -> None:
    assert await definition(editor, text) is None


async def test_the_outline_has_an_entry_a_statement(editor: Editor) -> None:
    uri = editor.open("let r = 4\nadapt @mlp,\n  q_proj {\n  rank r\n}\nadpat q\nquantize v nf4 double\n")
    asked = types.DocumentSymbolParams(types.TextDocumentIdentifier(uri))
    found = await editor.client.text_document_document_symbol_async(asked)
    assert [one.name for one in found or ()] == ["let r = 4", "adapt @mlp, q_proj", "quantize v nf4 double"]
    assert found is not None and isinstance(found[1], types.DocumentSymbol)
    assert found[1].range == types.Range(types.Position(1, 0), types.Position(4, 1))


async def formatted(editor: Editor, text: str) -> list[types.TextEdit]:
    uri = editor.open(text)
    options = types.FormattingOptions(tab_size=4, insert_spaces=True)
    asked = types.DocumentFormattingParams(types.TextDocumentIdentifier(uri), options)
    return list(await editor.client.text_document_formatting_async(asked) or ())


async def test_formatting_is_that_of_fmt(editor: Editor) -> None:
    text = 'adapt   q_proj , v_proj rank 16 {quant nf4\n  alpha 32} # 🦙\nlet s="🦙"'
    (edit,) = await formatted(editor, text)
    assert edit.new_text == format_text(text)
    assert edit.range == types.Range(types.Position(0, 0), types.Position(2, 10))
    assert await formatted(editor, edit.new_text) == []


async def test_what_cannot_be_read_is_not_formatted(editor: Editor) -> None:
    assert await formatted(editor, "adapt   q rnak 16") == []


async def fixes(editor: Editor, text: str, *only: str) -> list[str]:
    """Return the texts that the actions of a kind at the mark lead to, quick fixes if no other is asked for."""
    text, position = marked(text)
    uri = editor.open(text)
    context = types.CodeActionContext([], only=list(only) or [types.CodeActionKind.QuickFix])
    asked = types.CodeActionParams(types.TextDocumentIdentifier(uri), types.Range(position, position), context)
    actions = await editor.client.text_document_code_action_async(asked) or ()
    return [changed(text, next(iter(action.edit.changes.values()))) for action in actions]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("adapt q\nadpa|t q rank 4", "adapt q\nadapt q rank 4"),
        ("adapt q rn|ak 16", "adapt q rank 16"),
        ("adapt q rank 4 quant n|f5", "adapt q rank 4 quant nf4"),
        ("adapt q rank 4 init gaussian(sigm|=1)", "adapt q rank 4 init gaussian(sigma=1)"),
        ("adapt @atention| rank 4", "adapt @attention rank 4"),
        ("let rate = 3\nadapt q rank rat|", "let rate = 3\nadapt q rank rate"),
        ("adapt q rank 4 dropout |.05", "adapt q rank 4 dropout 0.05"),
        ("adapt |“q” rank 4", None),
        ("adapt q |rank 0", None),
        ("adapt q rank 4", None),
        ("|adapt q\n", "adapt q rank 16\n"),
        ("adapt layers[7..|0].q rank 4", "adapt layers[0..7].q rank 4"),
        ("let t = [q]\nadapt q rank 4 init gaussian(|sigma=1) alpha 7", None),
        ("adapt q, rank |4", "adapt q rank 4"),
        ("adapt q k|v rank 4", "adapt q,kv rank 4"),
        ("adapt q rank 4 quant nf4(dou|ble)", "adapt q rank 4 quant nf4 double"),
        ("adapt q rank 4 quant nf4(dou|ble=true)", "adapt q rank 4 quant nf4 double"),
        ("adapt q rank 4 quant nf4 paged do|uble", "adapt q rank 4 quant nf4 double paged"),
        ("adapt q rank 4 quant n|one", "adapt q rank 4"),
        ("adapt q |r 8 paged", "adapt q rank 8 paged"),
        ("adapt q lo|ra_r=16", "adapt q rank 16"),
        ("adapt q rank 8 use_rs|lora true", "adapt q rank 8 scaling rslora"),
        ("adapt q rank 8 lo|ad_in_4bit", "adapt q rank 8 quant nf4 double"),
        ("adapt q rank 8 quant 4|bit", "adapt q rank 8 quant nf4 double"),
        ("adapt q rank|=16", "adapt q rank 16"),
        ("adapt all-lin|ear rank 8", "adapt @linear rank 8"),
        ("quantize nf4 double |@linear", "quantize @linear nf4 double"),
        ("step batch 2 compute f|p8", "step batch 2 compute bf16"),
        # what it leaves unused is no new error
        ("let t = |[q\n", "let t = [q]\n"),
        ("let u|nused = 4\nadapt q rank 4", "adapt q rank 4"),
    ],
)
async def test_what_was_meant_is_a_quick_fix(editor: Editor, text: str, result: str | None) -> None:
    assert await fixes(editor, text) == ([result] if result is not None else [])


async def test_all_that_is_sure_is_done_at_once(editor: Editor) -> None:
    text = "|adapt q rnak 4\nadapt v rank 4 quant nf5\nadapt w\nadapt k rank 4 init gausian(sigma=1)"
    (fixed,) = await fixes(editor, text, types.CodeActionKind.SourceFixAll)
    assert fixed == "adapt q rank 4\nadapt v rank 4 quant nf4\nadapt w\nadapt k rank 4 init gaussian(sigma=1)"
    assert await fixes(editor, "|adapt q rank 4", types.CodeActionKind.SourceFixAll) == []


async def test_the_folder_of_an_include_stays(editor: Editor) -> None:
    (editor.folder / "parts").mkdir()
    (editor.folder / "parts" / "norms.lora").write_text("")
    assert await fixes(editor, 'include "parts/nrms|.lora"') == ['include "parts/norms.lora"']
