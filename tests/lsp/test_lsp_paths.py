"""Files and models in an editor: what `# model:` and `include` can name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lsp_helpers import FACTORY, Editor, marked
from lsprotocol import types
from test_lsp_models import MODEL, eventually, modeled  # noqa: F401

from lorakit.lsp import model_names
from lorakit.lsp.model import Unreadable, stamp_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def near(editor: Editor) -> Editor:
    """An editor whose folder has a model, a factory and specs."""
    (editor.folder / "tiny").mkdir()
    (editor.folder / "tiny" / "config.json").write_text("{}")
    (editor.folder / "net.py").write_text(f"{FACTORY}\ndef sized(width):\n    pass\n")
    (editor.folder / "tool.py").write_text("def unrelated(): pass\n")
    (editor.folder / "parts").mkdir()
    (editor.folder / "parts" / "norms.lora").write_text("train @norm\n")
    return editor


async def test_the_models_nearby_are_offered(near: Editor) -> None:
    words = set(await near.words("# model: |\nadapt q rank 4"))
    assert {"tiny", "net.py:tiny", "net.py:broken"} <= words
    assert not {"net.py:sized", "tool.py:unrelated"} & words
    (item,) = [item for item in await near.complete("# model: net.p|") if item.label == "net.py:tiny"]
    assert isinstance(item.text_edit, types.TextEdit) and item.text_edit.range.start.character == len("# model: ")
    assert await near.words("# a comment |") == []


async def test_specs_are_offered_to_include(near: Editor) -> None:
    assert "parts/norms.lora" in await near.words('include "|"')
    assert "../" + near.folder.name + "/parts/norms.lora" in await near.words(f'include "../{near.folder.name}/|"')
    assert await near.words('let s = "|"') == []


async def test_a_misspelled_model_is_said_once_with_what_was_meant(near: Editor) -> None:
    text, position = marked("# model: tin|i\nadapt q rank 4\n")
    uri = near.open(text)
    (found,) = await near.diagnostics(uri, bool)
    assert found.message.count("did you mean `tiny`?") == 1
    assert near.client.published[uri].empty()
    assert await near.hover_at(uri, position) == ""
    context = types.CodeActionContext([found])
    asked = types.CodeActionParams(types.TextDocumentIdentifier(uri), types.Range(position, position), context)
    (action,) = await near.client.text_document_code_action_async(asked) or ()
    assert isinstance(action, types.CodeAction) and action.title == "Replace with `tiny`"


async def test_model_errors_stay_beside_errors_of_syntax(modeled: Editor) -> None:  # noqa: F811
    uri = modeled.open(f"{MODEL}adapt v_prj rank 2\nadapt q_proj rank 2 aplha 4\n")
    found = await modeled.diagnostics(uri, lambda found: len(found) == 2)
    assert {(one.code, one.range.start.line) for one in found} == {("L003", 2), ("L101", 1)}


async def test_a_fault_of_a_whole_line_is_not_repeated_for_its_words(modeled: Editor) -> None:  # noqa: F811
    text = f"{MODEL}adapt q_proj rank 2\nadapt q_proj rank 4\n"
    uri = modeled.open(text)
    (found,) = await modeled.diagnostics(uri, bool)
    assert found.code == "L104"
    assert "L104" not in await modeled.hover_at(uri, types.Position(1, 14))


async def test_hub_ids_are_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--net" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({}))
    (tmp_path / "models--no--config" / "snapshots").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert list(model_names.cached_ids()) == ["some/net"]
    assert stamp_of("some/net", tmp_path) == (snapshot / "config.json").stat().st_mtime_ns
    missing = stamp_of("some/nte", tmp_path)
    assert isinstance(missing, Unreadable)
    assert missing.near == "some/net" and "hf download some/nte" in missing.problem
