"""Hover in an editor: what the word under the mouse means, in its place."""

from __future__ import annotations

import pytest
from lsp_helpers import Editor
from lsprotocol import types

pytestmark = pytest.mark.asyncio(loop_scope="session")

NF4 = ("**nf4**", "quantizer", "`blocksize`", "default 64", "`nf4 double`")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("adapt q_proj rank 16 quant n|f4 double", NF4),
        ("adapt q_proj rank 16 quant nf4| double", NF4),
        ("quantize @linear nf|4", NF4),
        ("quantize @linear no|ne", ("These modules stay as they are",)),
        ("adapt q_proj rank 16 qu|ant nf4 double", ("the linear layers that no rule decides",)),
        ("adapt q rank 4 init gauss|ian(sigma=1)", ("**gaussian**", "initializer", "`sigma`: a number, optional")),
        ("adapt q rank 4 method lo|ra", ("**lora**", "method")),
        ("st|ep batch 2", ("step [batch N]", "one a program")),
        ("step comp|ute bf16", ("`compute bf16|fp16|fp32`", "fp16 on a GPU")),
        ("step compute fp|16", ("`compute fp16`", "float16")),
        ("optimizer |adamw", ("**adamw**", "optimizer", "`betas`: (a number, a number), default (0.9, 0.999)")),
        ("optimizer sgd(nes|terov=true, momentum=0.9)", ("`nesterov`: true or false, default false", "momentum")),
        ("adapt q rank 4 quant nf4(block|size=64)", ("one of 32, 64", "default 64", "absmax")),
        ("ad|apt q rank 4", ("adapt TARGETS", "adapter")),
        ("adapt q ran|k 4", ("rank N", "whole number")),
        ("adapt q rank 4 alpha 2*ra|nk", ("The rank of this rule",)),
        ("adapt q rank 4 scaling rs|lora", ("√rank",)),
        ("adapt q rank 4 quant nf4 dou|ble", ("scales",)),
        ("require train|able < 1%", ("share",)),
        ("adapt @atten|tion rank 4", ("`@attention`", "Linear-like", "# model: PATH")),
        ("adapt /.*q/| rank 4", ("regex",)),
        ("adapt :Lin|ear rank 4", ("class Linear",)),
        ("let r = 2*8 + 1%\nadapt q rank |r", ("`r = 1601%`", "line 1")),
        ("let b = 2*1KiB\nrequire peak_memory < |b", ("`b = 2KiB`",)),
        ('let s = "a"\nadapt q rank 1 init gaussian(sigma=|s)', ('`s = "a"`',)),
        ("let t = [q, @mlp]\nadapt |t rank 4", ("`t = [q, @mlp]`", "`@mlp`")),
        ("let |r = 3", ("`r = 3`",)),
        ("let r = 1/0\nadapt q rank |r", ("at fault",)),
        ("adapt q r|nak 16", ("L003", "unknown clause")),
        ("adapt q rnak 16 quant n|f4", NF4),
        ("adapt q rank |0", ("L043",)),
    ],
)
async def test_a_word_is_explained(editor: Editor, text: str, parts: tuple[str, ...]) -> None:
    found = await editor.hover(text)
    assert [part for part in parts if part not in found] == [], found


@pytest.mark.parametrize(
    "text",
    [
        "# ad|apt",
        'include "ra|nk.lora"',
        "adapt q  |  rank 4",
        "adapt q rank 4 quant no|ne",
        "|",
        "let r = 1|6",
        "adapt q|",
    ],
)
async def test_what_means_nothing_is_left_alone(editor: Editor, text: str) -> None:
    hint = await editor.hover(text)
    assert "`" not in hint.replace("`q`", "") or "# model" in hint or "L0" in hint


async def test_a_name_is_found_in_an_included_file(editor: Editor) -> None:
    (editor.folder / "names.lora").write_text("let width = 24\n")
    assert "`width = 24`" in await editor.hover('include "names.lora"\nadapt q rank |width')


async def test_the_words_that_are_meant_are_marked(editor: Editor) -> None:
    uri = editor.open("# 🦙\nadapt q_proj rank 16")
    asked = types.HoverParams(types.TextDocumentIdentifier(uri), types.Position(1, 14))
    hint = await editor.client.text_document_hover_async(asked)
    assert hint is not None
    assert hint.range == types.Range(types.Position(1, 13), types.Position(1, 17))
