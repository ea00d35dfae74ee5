"""The shape of a document in an editor: folding, tokens, links, signatures, ranges, symbols of the workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_lsp
from lsp_helpers import SERVER, Client, Editor, changed, marked
from lsprotocol import types
from pytest_lsp import ClientServerConfig
from test_lsp_models import MODEL, modeled  # noqa: F401

from lorakit.lsp.tokens import TYPES

pytestmark = pytest.mark.asyncio(loop_scope="session")

BLOCK = "# one\n# two\nadapt q {\n  rank 4\n  alpha 8\n}\n"


def whole(uri: str) -> types.TextDocumentIdentifier:
    return types.TextDocumentIdentifier(uri)


async def test_blocks_comments_and_includes_fold(editor: Editor) -> None:
    uri = editor.open(f'{BLOCK}include "a.lora"\ninclude "b.lora"\nadapt v rank 4\n')
    found = await editor.client.text_document_folding_range_async(types.FoldingRangeParams(whole(uri))) or ()
    assert {(one.start_line, one.end_line, one.kind) for one in found} == {
        (2, 4, "region"), (0, 1, "comment"), (6, 7, "imports"),
    }  # fmt: skip


async def test_every_word_has_the_type_that_the_parser_gives_it(editor: Editor) -> None:
    text = "let t = [q] # 🦙\nadapt t,layers[0..3].@mlp {\n  init gaussian(sigma=2)\n}\nrequire trainable < 1%\n"
    uri = editor.open(text)
    packed = await editor.client.text_document_semantic_tokens_full_async(types.SemanticTokensParams(whole(uri)))
    assert packed is not None
    lines, words, line, column = text.split("\n"), [], 0, 0
    for place in range(0, len(packed.data), 5):
        down, right, length, kind, _ = packed.data[place : place + 5]
        line, column = line + down, right + (0 if down else column)
        units = lines[line].encode("utf-16-le")
        words.append((units[2 * column : 2 * (column + length)].decode("utf-16-le"), TYPES[kind]))
    assert words == [
        ("let", "keyword"), ("t", "variable"), ("=", "operator"), ("q", "property"), ("# 🦙", "comment"),
        ("adapt", "keyword"), ("t", "variable"), ("layers", "property"), ("0", "number"), ("..", "operator"),
        ("3", "number"), ("@mlp", "decorator"), ("init", "keyword"), ("gaussian", "function"), ("sigma", "parameter"),
        ("=", "operator"), ("2", "number"), ("require", "keyword"), ("trainable", "variable"), ("<", "operator"),
        ("1%", "number"),
    ]  # fmt: skip


async def test_includes_and_models_are_links(editor: Editor) -> None:
    (editor.folder / "part.lora").write_text("")
    (editor.folder / "net.py").write_text("")
    for comment, target in (("net.py:f", (editor.folder / "net.py").as_uri()), ("a/b", "https://huggingface.co/a/b")):
        uri = editor.open(f'# model: {comment}\ninclude "part.lora"\ninclude "missing.lora"\n')
        found = await editor.client.text_document_document_link_async(types.DocumentLinkParams(whole(uri))) or ()
        assert [one.target for one in found] == [(editor.folder / "part.lora").as_uri(), target]


@pytest.mark.parametrize(
    ("text", "active"),
    [
        ("adapt q rank 4 quant nf4(|", None),
        ("adapt q rank 4 quant nf4(blocksize=|64)", "blocksize: one of 32, 64"),
        ("optimizer adamw(betas=(0.9, |", "betas: (a number, a number)"),
        ("optimizer adamw(weight_d|", "weight_decay: a number"),
    ],
)
async def test_a_plugin_shows_its_options(editor: Editor, text: str, active: str | None) -> None:
    text, position = marked(text)
    asked = types.SignatureHelpParams(whole(editor.open(text)), position)
    found = await editor.client.text_document_signature_help_async(asked)
    assert found is not None
    (one,) = found.signatures
    labels = [str(parameter.label) for parameter in one.parameters or ()]
    assert one.label == f"{text.split('(')[0].split()[-1]}({', '.join(labels)})"
    if active is None:
        assert found.active_parameter == len(labels)
    else:
        assert labels[found.active_parameter or 0].startswith(active)


@pytest.mark.parametrize("text", ["adapt q rank |4", "adapt q rank (|4)", "adapt q rank 4 quant nf9(|"])
async def test_outside_of_a_plugin_there_is_no_signature(editor: Editor, text: str) -> None:
    text, position = marked(text)
    asked = types.SignatureHelpParams(whole(editor.open(text)), position)
    assert await editor.client.text_document_signature_help_async(asked) is None


async def test_a_range_is_formatted_whatever_is_wrong_elsewhere(editor: Editor) -> None:
    text = "adapt  q   rank 4\nadapt   v {rank 4\n alpha 8}\nadapt  w  rnak 4\n"
    uri, options = editor.open(text), types.FormattingOptions(4, True)

    async def formatted(first: int, last: int) -> str:
        asked = types.DocumentRangeFormattingParams(
            whole(uri), types.Range(types.Position(first, 0), types.Position(last, 3)), options
        )
        return changed(text, list(await editor.client.text_document_range_formatting_async(asked) or ()))

    assert await formatted(0, 0) == text.replace("adapt  q   rank 4", "adapt q rank 4")
    assert (await formatted(2, 2)).startswith("adapt  q   rank 4\nadapt v {\n  rank   4\n  alpha  8\n}\n")
    assert await formatted(3, 3) == text


async def test_names_are_found_in_every_document(editor: Editor) -> None:
    uri = editor.open("let very_wide = 4\nadapt q rank very_wide\n")
    found = await editor.client.workspace_symbol_async(types.WorkspaceSymbolParams("let VERY")) or ()
    assert [(one.name, one.location.uri) for one in found] == [("let very_wide = 4", uri)]


async def test_targets_show_how_many_modules_they_match(modeled: Editor) -> None:  # noqa: F811
    uri = modeled.open(f"{MODEL}let t = [up, norm]\nadapt q_proj,t rank 2 except layers[0].q_proj\n")
    place = types.Range(types.Position(0, 0), types.Position(9, 0))
    found = await modeled.client.text_document_inlay_hint_async(types.InlayHintParams(whole(uri), place)) or ()
    assert [(one.position.line, one.position.character, one.label) for one in found] == [
        (1, 11, "2 modules"), (1, 17, "2 modules"), (2, 12, "2 modules"), (2, 14, "4 modules"), (2, 45, "1 module"),
    ]  # fmt: skip


@pytest_lsp.fixture(config=ClientServerConfig(SERVER, Client), scope="session")  # type: ignore[untyped-decorator]
async def pulling(lsp_client: Client):  # type: ignore[no-untyped-def]
    asks = types.TextDocumentClientCapabilities(diagnostic=types.DiagnosticClientCapabilities())
    await lsp_client.initialize_session(types.InitializeParams(types.ClientCapabilities(text_document=asks)))
    yield
    await lsp_client.shutdown_session()


async def test_diagnostics_are_there_for_the_asking_and_then_not_sent(pulling: Client, tmp_path: Path) -> None:
    editor = Editor(pulling, tmp_path)
    uri = editor.open("let r = 4\nadapt q rnak 4\n")
    report = await pulling.text_document_diagnostic_async(types.DocumentDiagnosticParams(whole(uri)))
    assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)
    assert [one.code for one in report.items] == ["L003"]
    editor.change(uri, "let r = 4\nadapt q rank 4\n")
    report = await pulling.text_document_diagnostic_async(types.DocumentDiagnosticParams(whole(uri)))
    assert isinstance(report, types.RelatedFullDocumentDiagnosticReport)
    (found,) = report.items
    assert (found.code, found.severity) == ("L026", types.DiagnosticSeverity.Warning)
    assert list(found.tags or ()) == [types.DiagnosticTag.Unnecessary]
    assert found.code_description is not None
    page = Path(found.code_description.href.removeprefix("file://")).read_text("utf-8")
    assert page.startswith("# L026: a name that nothing uses")
    assert pulling.published[uri].empty()
