"""Models in an editor: `# model: PATH` brings counts, module names and the errors of a plan."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from lsp_helpers import FACTORY, PATIENCE, SERVER, Client, Editor, marked
from lsprotocol import types

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "# model: tiny.py:tiny\n"


@pytest_asyncio.fixture(loop_scope="session")
async def modeled(editor: Editor, folder: Path) -> Editor:
    """An editor that works in the folder of a model that has been read."""
    editor.folder = folder
    uri = editor.open(f"{MODEL}adapt nowhere rank 2")
    await editor.diagnostics(uri, lambda found: any(one.code == "L101" for one in found))
    return editor


async def eventually(editor: Editor, text: str) -> Sequence[types.Diagnostic]:
    """Return the diagnostics of a text once there are some."""
    return await editor.diagnostics(editor.open(text), lambda found: bool(found))


async def test_a_target_says_how_many_modules_it_matches(modeled: Editor) -> None:
    hint = await modeled.hover(f"{MODEL}adapt q_p|roj rank 2")
    assert "matches 2 modules of Tiny:" in hint and "`layers.0.attention.q_proj`" in hint
    assert "matches 2 modules of Tiny" in await modeled.hover(f"{MODEL}adapt layers[1].@atten|tion rank 2")
    assert "matches nothing in Tiny" in await modeled.hover(f"{MODEL}adapt k_p|roj rank 2")
    assert "2 of which no adapter fits" in await modeled.hover(f"{MODEL}adapt layers.*.nor|m,q_proj rank 2")


async def test_quant_says_how_far_it_goes(modeled: Editor) -> None:
    hint = await modeled.hover(f"{MODEL}adapt q_proj rank 2 qu|ant nf4")
    assert "`quantize @linear nf4` (as line 2 has it): 4 modules more of Tiny" in hint, hint
    ended = await modeled.hover(f"{MODEL}adapt q_proj rank 2 qu|ant nf4\nquantize @linear none")
    assert "as line 2 has it" not in ended and "that no rule decides" in ended
    apart = await modeled.hover(f"{MODEL}adapt q_proj rank 2 qu|ant nf4\nadapt v_proj rank 2 quant int8")
    assert "name nf4 (line 2) and int8 (line 3)" in apart


async def test_the_comment_says_what_the_model_is(modeled: Editor) -> None:
    hint = await modeled.hover("# model: tiny.py:ti|ny\n")
    # 2 × (2 × (8 × 8 + 8) + 8 × 16 + 16 + 2 × 8) parameters
    assert "**Tiny**: 608 parameters, 13 modules, of which an adapter fits 6" in hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapt |", {"q_proj", "v_proj", "up", "layers", "attention", "norm", "@mlp"}),
        ("adapt q|", {"q_proj"}),
        ("adapt layers.|", {"0", "1"}),
        ("adapt layers.0.|", {"attention", "up", "norm", "@attention"}),
        ("adapt layers.*.attention.|", {"q_proj", "v_proj"}),
        ("adapt layers[0..1].|", {"attention", "up", "q_proj"}),
        ("adapt attention.q|", {"q_proj", "v_proj"}),
        ("train :|", {":Linear", ":LayerNorm", ":Block"}),
        ("adapt layers.*.:|", {":Linear", ":Attention"}),
        ("adapt q_proj rank 4 except layers.1.attention.|", {"q_proj", "v_proj"}),
    ],
)
async def test_its_modules_are_offered(modeled: Editor, text: str, words: set[str]) -> None:
    offered = set(await modeled.words(MODEL + text))
    assert words <= offered
    assert "" not in offered


async def test_only_what_stands_below_is_offered(modeled: Editor) -> None:
    assert await modeled.words(f"{MODEL}adapt layers.0.attention.q|") == ["q_proj", "v_proj"]
    assert await modeled.words(f"{MODEL}adapt q_proj.x|") == []
    assert await modeled.words(f"{MODEL}adapt @mlp.q|") == []


async def test_what_an_adapter_fits_comes_first(modeled: Editor) -> None:
    words = await modeled.words(f"{MODEL}adapt |")
    assert words.index("v_proj") < words.index("@linear") < words.index("norm")
    item = next(item for item in await modeled.complete(f"{MODEL}adapt |") if item.label == "q_proj")
    assert item.detail == "2 × Linear"


async def test_the_errors_of_the_plan_show(modeled: Editor) -> None:
    uri = modeled.open(f"{MODEL}adapt q_prj rank 2\n")
    (found,) = await modeled.diagnostics(uri, bool)
    assert "L101" in await modeled.hover_at(uri, types.Position(1, 8))
    assert (found.code, found.range.start, found.range.end) == ("L101", types.Position(1, 6), types.Position(1, 11))
    (found,) = await eventually(modeled, f"{MODEL}adapt q_proj rank 9\n")
    assert found.code == "L103"


async def test_those_of_an_included_file_show_at_the_include(modeled: Editor) -> None:
    (modeled.folder / "rules.lora").write_text("adapt q_prj rank 2\n")
    (found,) = await eventually(modeled, f'{MODEL}include "rules.lora"\n')
    assert found.code == "L101" and "rules.lora" in found.message
    assert (found.range.start, found.range.end) == (types.Position(1, 8), types.Position(1, 20))


async def test_they_go_when_the_line_changes_and_stay_when_another_does(modeled: Editor) -> None:
    text = f"{MODEL}adapt q_prj rank 2\n"
    uri = modeled.open(text)
    await modeled.diagnostics(uri, lambda found: bool(found))
    modeled.change(uri, f"{text}# more\n")
    assert [one.code for one in await modeled.diagnostics(uri)] == ["L101"]
    modeled.change(uri, f"{MODEL}adapt q_proj rank 2\n")
    assert await modeled.diagnostics(uri) == []


async def test_the_module_that_was_meant_is_a_quick_fix(modeled: Editor) -> None:
    text, position = marked(f"{MODEL}adapt attention.q_p|rj rank 2\n")
    uri = modeled.open(text)
    await modeled.diagnostics(uri, lambda found: bool(found))
    place = types.Range(position, position)
    asked = types.CodeActionParams(types.TextDocumentIdentifier(uri), place, types.CodeActionContext([]))
    actions = await modeled.client.text_document_code_action_async(asked)
    assert [action.title for action in actions or ()] == ["Replace with `attention.q_proj`"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere", "there is no such folder or file"),
        ("nowhere.py:tiny", "there is no such folder or file"),
        ("tiny.py:broken", "no weights today"),
        ("tiny.py:other", "has no `other`; it has: "),
        (".", "the folder has no config.json"),
        ("no_such_package:model", "no module named 'no_such_package'"),
    ],
)
async def test_a_model_that_cannot_be_read_is_a_warning_on_its_comment(
    modeled: Editor, reference: str, words: str
) -> None:
    (found,) = await eventually(modeled, f"# a test\n  # model: {reference} \nadapt q_proj rank 2\n")
    assert words in found.message
    assert found.severity == types.DiagnosticSeverity.Warning
    start = types.Position(1, len("  # model: "))
    assert found.range == types.Range(start, types.Position(1, start.character + len(reference)))
    # the editor shows the warning by itself
    assert await modeled.hover(f"# a test\n  # model: |{reference} \n") == ""


async def test_a_changed_model_is_read_anew(editor: Editor) -> None:
    path = editor.folder / "mine.py"
    path.write_text(FACTORY)
    text = "# model: mine.py:tiny\nadapt k_proj rank 2\n"
    uri = editor.open(text)
    assert [one.code for one in await editor.diagnostics(uri, bool)] == ["L101"]
    path.write_text(FACTORY.replace("v_proj", "k_proj"))
    os.utime(path, (1, 1))
    editor.client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri)))
    await editor.diagnostics(uri, lambda found: not found)


# What never ends says who it is
ENDLESS = "import os, time\ndef model():\n    open('reader', 'w').write(str(os.getpid()))\n    time.sleep(600)\n"


async def reader(editor: Editor) -> int:
    """Return the process that reads the endless model, once it does."""
    path = editor.folder / "reader"
    while not path.is_file() or not path.read_text():
        await asyncio.sleep(0.02)
    return int(path.read_text())


async def ended(process: int) -> None:
    """Return when a process is gone."""
    while is_running(process):
        await asyncio.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def test_typing_never_waits_for_a_model(editor: Editor) -> None:
    (editor.folder / "slow.py").write_text(ENDLESS)
    text = "# model: slow.py:model\nadapt q_proj rank 2"
    uri = editor.open(text)
    await editor.diagnostics(uri)
    await asyncio.wait_for(reader(editor), PATIENCE)
    editor.change(uri, f"{text} alpha")
    assert [one.code for one in await editor.diagnostics(uri)] == ["L004"]
    assert "being read" in await editor.hover_at(uri, types.Position(0, 12))


async def test_no_model_waits_for_one_that_never_ends(editor: Editor) -> None:
    (editor.folder / "slow.py").write_text(ENDLESS)
    (editor.folder / "tiny.py").write_text(FACTORY)
    editor.open("# model: slow.py:model\nadapt q_proj rank 2")
    process = await asyncio.wait_for(reader(editor), PATIENCE)
    assert [one.code for one in await eventually(editor, f"{MODEL}adapt nowhere rank 2")] == ["L101"]
    assert is_running(process)


@pytest.mark.parametrize("end", ["close", "change"])
async def test_reading_ends_when_no_document_names_the_model(editor: Editor, end: str) -> None:
    (editor.folder / "slow.py").write_text(ENDLESS)
    uri = editor.open("# model: slow.py:model\nadapt q_proj rank 2")
    process = await asyncio.wait_for(reader(editor), PATIENCE)
    if end == "close":
        editor.close(uri)
    else:
        editor.change(uri, "adapt q_proj rank 2")
    await asyncio.wait_for(ended(process), PATIENCE)


async def test_a_model_that_changes_while_it_is_read_is_read_anew(editor: Editor) -> None:
    path = editor.folder / "slow.py"
    path.write_text(ENDLESS)
    uri = editor.open("# model: slow.py:model\nadapt nowhere rank 2")
    process = await asyncio.wait_for(reader(editor), PATIENCE)
    path.write_text(FACTORY.replace("tiny()", "model()"))
    os.utime(path, (1, 1))
    editor.client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri)))
    assert [one.code for one in await editor.diagnostics(uri, bool)] == ["L101"]
    await asyncio.wait_for(ended(process), PATIENCE)


async def test_reading_ends_with_the_server(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(ENDLESS)
    client = Client()
    await client.start_io(*SERVER)
    await client.initialize_session(types.InitializeParams(types.ClientCapabilities()))
    editor = Editor(client, tmp_path)
    editor.open("# model: slow.py:model\nadapt q_proj rank 2")
    process = await asyncio.wait_for(reader(editor), PATIENCE)
    await client.shutdown_session()
    await client.stop()
    await asyncio.wait_for(ended(process), PATIENCE)
