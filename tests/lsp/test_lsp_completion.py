"""Completion in an editor: the words that fit a place, and no others."""

from __future__ import annotations

import pytest
from lsp_helpers import Editor
from lsprotocol import types

from lorakit.language.words import STATEMENTS, clauses_of
from lorakit.plugins import default_plugins

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLUGINS = default_plugins()
ROLES = sorted(f"@{name}" for name in PLUGINS.roles)
QUANTIZERS, INITIALIZERS = sorted(PLUGINS.quantizers), sorted(PLUGINS.initializers)
OPTIMIZERS, METHODS = sorted(PLUGINS.optimizers), sorted(PLUGINS.methods)
RULE = ["except", "layers", "optional"]


def without(*words: str) -> list[str]:
    return sorted(clauses_of("adapt").keys() - set(words))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("|", sorted(STATEMENTS)),
        ("ad|", sorted(STATEMENTS)),
        ("adapt q rank 4\n\n|\nadapt v rank 4", sorted(STATEMENTS)),
        ("adapt q rank 4; |", sorted(STATEMENTS)),
        ("adapt |", ROLES),
        ("adapt q,|", ROLES),
        ("adapt q,\n  |", ROLES),
        ("adapt @|", ROLES),
        ("adapt layers[0..3].@m|", ROLES),
        ("adapt q rank 4 except |", ROLES),
        ("let t = [|", ROLES),
        ("adapt q |", without()),
        ("adapt q ra|", without()),
        ("adapt q rank|", without()),
        ("adapt q rank 4 |", without("rank")),
        ("adapt q | rank 4", without("rank")),
        ("adapt q {\n  rank 4\n  |\n}\nadapt v rank 4", without("rank")),
        ("adapt q {\n  rank 4\n  |", without("rank")),
        ("adapt q { rank 4; lr| }", without("rank")),
        ("train q |", ["except", "layers", "lr", "optional"]),
        ("quantize q nf4 |", ["double", *RULE]),
        ("optimizer sgd |", ["lr", "paged"]),
        ("step |", ["batch", "capture", "compute", "memory", "tokens"]),
        ("step tokens 8 { batch 2\n|", ["capture", "compute", "memory"]),
        ("step compute |", ["bf16", "fp16", "fp32"]),
        ("adapt q rank 4 quant |", QUANTIZERS),
        ("adapt q rank 4 quant n|", QUANTIZERS),
        ("quantize @linear |", sorted([*QUANTIZERS, "none"])),
        ("quantize @linear none |", RULE),
        ("adapt q rank 4 quant nf4 |", sorted([*without("rank", "quant"), "double"])),
        ("adapt q rank 4 quant int8 |", without("rank", "quant")),
        ("adapt q rank 4 init |", INITIALIZERS),
        ("adapt q rank 4 method |", METHODS),
        ("optimizer |", OPTIMIZERS),
        ("adapt q rank 4 quant nf4(|", ["blocksize="]),
        ("adapt q rank 4 quant nf4(|) paged", ["blocksize="]),
        ("adapt q rank 4 quant nf4(blocksize=64, |)", []),
        ("optimizer adamw(betas=(0.9, 0.99), |)", ["eps=", "weight_decay="]),
        ("optimizer sgd(nesterov=|)", ["false", "true"]),
        ("optimizer sgd(momentum=|)", []),
        ("adapt q rank 4 scaling |", ["rslora", "standard"]),
        ("adapt q rank 4 dtype |", ["bf16", "fp16", "fp32"]),
        ("adapt q rank 4 bias |", ["adapter", "none"]),
        ('let r = 4\nlet s = "x"\nlet t = [q]\nadapt q rank |', ["r"]),
        ("let r = 4\nadapt q rank 4 alpha 2*|", ["r", "rank"]),
        ("let r = 4\nlet s = 2*|\nlet u = 5", ["r"]),
        ("let t = [q]\nlet r = 4\nadapt |", [*ROLES, "t"]),
        ("require |", ["peak_memory", "trainable"]),
        ("let most = 1%\nrequire trainable < |", ["most", "peak_memory", "trainable"]),
        ("adapt q rnak 4 quant |", QUANTIZERS),
        ("adapt q {\n  rnak 4\n  init |\n}\nadapt v rank 4", INITIALIZERS),
        ("adapt rank ra|", without()),
    ],
)
async def test_what_fits_is_offered(editor: Editor, text: str, words: list[str]) -> None:
    assert sorted(await editor.words(text)) == words


@pytest.mark.parametrize(
    "text",
    [
        "# |", "#|", "adapt q rank 4 # |", "adapt q, # |", "adapt q { # |\n}", 'include "|"', 'include "a|',
        'let s = "rank |', "adapt /q|/ rank 4", "let |", "let r |", "adapt layers[0|", "adapt q]|", "]|",
        "adapt q layers |", "adapt q rank 1|", "adapt q dropout 0.|", "adpat q |", "require trainable < 1% |",
    ],
)  # fmt: skip
async def test_nothing_is_offered_where_nothing_fits(editor: Editor, text: str) -> None:
    assert await editor.words(text) == []


async def test_installed_distributions_are_offered(editor: Editor) -> None:
    assert set(await editor.words("use |")) == {name for name, _ in default_plugins().distributions()}


async def test_a_name_of_an_included_file_is_offered(editor: Editor) -> None:
    (editor.folder / "names.lora").write_text("let width = 24\n")
    assert await editor.words('include "names.lora"\nadapt q rank |') == ["width"]
    assert await editor.words('adapt q rank |\ninclude "names.lora"') == []


async def test_an_offer_replaces_what_was_typed(editor: Editor) -> None:
    item = next(item for item in await editor.complete("adapt layers[0..3].@at|") if item.label == "@attention")
    assert item.text_edit == types.TextEdit(types.Range(types.Position(0, 19), types.Position(0, 22)), "@attention")
    item = next(item for item in await editor.complete("adapt q rank 4 quant nf4(bl|)"))
    assert item.text_edit == types.TextEdit(types.Range(types.Position(0, 25), types.Position(0, 27)), "blocksize=")


async def test_an_offer_says_what_it_is(editor: Editor) -> None:
    item = next(item for item in await editor.complete("adapt q quant |") if item.label == "nf4")
    assert item.kind == types.CompletionItemKind.Function
    assert "NormalFloat" in (item.detail or "")
    assert isinstance(item.documentation, types.MarkupContent)
    assert "`blocksize`" in item.documentation.value


async def test_the_values_that_an_option_takes_are_offered(editor: Editor) -> None:
    assert (await editor.words("quantize q nf4(blocksize=|)"))[:3] == ["32", "64", "128"]


async def test_columns_are_in_units_of_utf16(editor: Editor) -> None:
    uri = editor.open('let s = "🦙ｆ"; adapt q rank 4 quant n')
    items = await editor.complete_at(uri, types.Position(0, 37))
    assert [item.label for item in items] == QUANTIZERS
    assert isinstance(items[0].text_edit, types.TextEdit)
    assert items[0].text_edit.range == types.Range(types.Position(0, 36), types.Position(0, 37))
