"""Broken texts: an editor holds one most of the time, and nothing may fail on it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lsp_helpers import Editor
from lsprotocol import types

from lorakit.language.files import read_file
from lorakit.lsp.actions import fixes
from lorakit.lsp.completion import complete
from lorakit.lsp.definition import definition
from lorakit.lsp.diagnostics import published
from lorakit.lsp.document import read_document
from lorakit.lsp.hover import hover
from lorakit.lsp.symbols import symbols
from lorakit.plugins import default_plugins

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.lora"))

PIECES = (
    "adapt", "quantize", "train", "optimizer", "step", "let", "include", "require", "use", "rank", "alpha", "quant",
    "nf4", "double", "init", "gaussian", "sigma", "layers", "except", "q_proj", "@mlp", ":Linear", "/a/", "x",
    "16", "2e-4", "1%", "24GiB", '"a.lora"', '"', "(", ")", "[", "]", "{", "}", ",", ".", "..", "=", "<", "*", "-",
    "/", "#", ";", "\n", "\r\n", " ", "🦙", "\ufeff", "\x00", "\u2028",
)  # fmt: skip


def look_everywhere(text: str, offset: int) -> None:
    """Ask a text everything at an offset."""
    document = read_document("file:///spec.lora", Path("/spec.lora"), 1, text, "utf-16", default_plugins(), read_file)
    place = document.positions.offset(document.positions.position(min(offset, len(document.source.text))))
    hover(document, None, document.analysis.diagnostics, place)
    complete(document, None, place)
    definition(document, place)
    published(document.analysis.diagnostics, document)
    list(symbols(document))
    list(fixes(document.analysis.diagnostics[:3], document, place, place))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_beginning_of_a_program_can_be_looked_at(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for end in range(len(text) + 1):
        look_everywhere(text[:end], end)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_program_with_any_word_missing_can_be_looked_at(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for start in range(0, len(text), 3):
        look_everywhere(text[:start] + text[start + 7 :], start)


@example((["adapt", "."], 7))
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=30).flatmap(lambda words: st.tuples(st.just(words), st.integers(0, 200)))
)
def test_any_text_can_be_looked_at(made: tuple[list[str], int]) -> None:
    words, offset = made
    look_everywhere("".join(words), offset)
    look_everywhere(" ".join(words), offset)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000 + " b",
        "# model: x" + " " * 100_000 + "y",
        "adapt " + "[" * 50_000,
        "adapt " + "a[0]." * 20_000,
        "]" * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_a_long_line_keeps_nobody_waiting(text: str) -> None:
    start = time.process_time()
    look_everywhere(text, len(text) - 1)
    assert time.process_time() - start < 2


@pytest.mark.asyncio(loop_scope="session")
async def test_a_server_answers_at_every_stage_of_typing(editor: Editor) -> None:
    text = "let r = 4\nadapt @mlp,q_proj {\n  rank r\n  quant nf4(blocksize=64) double\n}\nrequire trainable < 1%\n"
    uri = editor.open("")
    for end in range(0, len(text) + 1, 5):
        editor.change(uri, text[:end])
        line, column = text[:end].count("\n"), len(text[:end].rpartition("\n")[2])
        await editor.hover_at(uri, types.Position(line, max(0, column - 1)))
        await editor.complete_at(uri, types.Position(line, column))
    # positions beyond the text are what a client asks for that is ahead of its server
    assert await editor.complete_at(uri, types.Position(99, 99))
    assert not [message for message in editor.client.messages if message.type == types.MessageType.Error]
