"""Printing and formatting: a Spec prints as text that means it, and the formatter changes only what text looks like."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from language_helpers import EXAMPLE, look, read
from strategies import SPECS, writings

from lorakit.errors import SpecError
from lorakit.language import parse
from lorakit.language.analysis import analyse
from lorakit.language.format import format_text
from lorakit.language.parser import parse_syntax
from lorakit.language.printer import to_text
from lorakit.language.source import SourceText
from lorakit.language.spec import Spec
from lorakit.language.statements import (
    Adapt,
    Number,
    Operation,
    Optimizer,
    PluginCall,
    Quantize,
    Require,
    Segment,
    Target,
)

# hundreds of texts take the paths that a few take, and a tracer nearly doubles their time
pytestmark = pytest.mark.no_cover

EXAMPLES = Path(__file__).parents[2] / "examples"
SLOW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def comments(text: str) -> list[str]:
    """Return the comments of a text, in order."""
    end, found = 0, []
    for word in parse_syntax(SourceText("", text)).tokens:
        found += re.findall(r"#[^\n]*", text[end : word.start])
        end = word.end
    return [comment.rstrip() for comment in found + re.findall(r"#[^\n]*", text[end:])]


@SLOW
@given(SPECS)
def test_a_spec_prints_as_text_that_means_it(spec: Spec) -> None:
    text = to_text(spec)
    analysis = look(text)
    assert analysis.spec == spec, (text, analysis.diagnostics)
    assert format_text(text) == text == str(spec)
    assert analysis.spec is not None and to_text(analysis.spec) == text


@SLOW
@given(st.data())
def test_the_formatter_changes_nothing_but_the_looks(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    text = data.draw(writings(to_text(spec)))
    assert look(text).spec == spec, (text, look(text).diagnostics)
    formatted = format_text(text)
    assert look(formatted).spec == spec, formatted
    assert format_text(formatted) == formatted
    assert comments(formatted) == comments(text)


@SLOW
@given(st.data())
def test_one_canonical_form(data: st.DataObject) -> None:
    text = to_text(data.draw(SPECS))
    assert format_text(data.draw(writings(text, plain=True))) == text


def test_the_formatter_on_an_example_of_everything() -> None:
    text = """

# head
let r   =  16 ; let t=[q_proj , k_proj, # foo
 # own
 v_proj,
]   # tail


adapt   @attention , layers[ 0 .. 7 , 9 ].@mlp rank (2 * r) {   # open
  rank   r; alpha 2 * rank
  # c

  init   gaussian(sigma = 0.02,) paged

  # last

}  # end
quantize q int8 { }
quantize  q  int8(  ) { # why
}
optimizer adamw(betas=(0.9 , 0.999),weight_decay=0) lr 2e-4 paged   #tight
require trainable<1% ; require - peak_memory <= 24GiB - 3*1B
train first_module_with_a_long_name,second_module_with_a_long_name,third_module_with_a_long_name,fourth lr 1
let long=[first_module_with_a_long_name,second_module_with_a_long_name,third_module_with_a_long_name,fourth]
train q, # why
   k # c2
let x = (1 + # one
2)


# eof
"""
    assert (
        format_text(text)
        == """\
# head
let r = 16
let t = [
  q_proj,
  k_proj,  # foo
  # own
  v_proj
]  # tail

adapt @attention,layers[0..7,9].@mlp rank (2*r) {  # open
  rank   r
  alpha  2*rank
  # c

  init   gaussian(sigma=0.02)
  paged

  # last
}  # end
quantize q int8 {}
quantize q int8() {  # why
}
optimizer adamw(betas=(0.9, 0.999), weight_decay=0) lr 2e-4 paged  #tight
require trainable < 1%
require -peak_memory <= 24GiB-3*1B
train first_module_with_a_long_name,second_module_with_a_long_name,third_module_with_a_long_name,
    fourth lr 1
let long = [
  first_module_with_a_long_name,
  second_module_with_a_long_name,
  third_module_with_a_long_name,
  fourth
]
train q,  # why
    k  # c2
let x = (
  1+  # one
  2
)

# eof
"""
    )


def test_the_formatter_on_little() -> None:
    for text in ("", "\n\n", " \t\n;;\n", "\ufeff"):
        assert format_text(text) == ""
    assert format_text("# a\r\n\r\n\r\n# b") == "# a\n\n# b\n"
    assert format_text("adapt q rank 4\r\nadapt k rank 4") == "adapt q rank 4\nadapt k rank 4\n"
    assert format_text("adapt q rank 4\n#c") == "adapt q rank 4\n#c\n"


def test_the_formatter_needs_only_syntax() -> None:
    assert format_text("adapt @nothing  rank x quant nowhere( a=1 )") == "adapt @nothing rank x quant nowhere(a=1)\n"
    with pytest.raises(SpecError) as raised:
        format_text("adapt q rnak 4\nadapt k rank", "a.lora")
    assert [(found.code, found.file) for found in raised.value.diagnostics] == [("L003", "a.lora"), ("L004", "a.lora")]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.lora")), ids=lambda path: path.name)
def test_the_examples_are_sound_and_in_canonical_form(path: Path) -> None:
    spec = parse(path)
    text = path.read_text("utf-8")
    assert spec.rules and format_text(text) == text
    assert parse(str(spec)) == spec


def test_the_examples_are_those_of_the_design() -> None:
    assert (EXAMPLES / "qlora.lora").read_text().splitlines()[1:] == [
        "adapt q_proj,v_proj rank 16 quant nf4 double paged"
    ]
    full, norms = parse(EXAMPLES / "full.lora"), parse(EXAMPLES / "norms.lora")
    example = read(EXAMPLE)
    assert full.rules == (*norms.rules, *example.rules)
    assert (full.optimizer, full.requires) == (example.optimizer, example.requires)


def deep(levels: int) -> Operation:
    node = Operation("+", Number(1), Number(1))
    for _ in range(levels):
        node = Operation("*", node, node.right)
    return node


Q = (Target((Segment("q"),)),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec((Quantize(Q, PluginCall("wide", (("label", "a\nb"),))),)), '`"a\nb"` cannot be written'),
        (Spec((Quantize(Q, PluginCall("wide", (("label", "\ud800\n"),))),)), "cannot be written"),
        (Spec((Quantize(Q, PluginCall("wide", (("scale", float("inf")),))),)), "`inf` cannot be written"),
        (Spec((Quantize(Q, PluginCall("a b")),)), "`a b` cannot be written"),
        (Spec((Quantize(Q, PluginCall("double")),)), "`double` cannot be written"),
        (Spec((Adapt((Target((Segment("q p"),)),), 4),)), "`q p` cannot be written"),
        (Spec((Adapt(Q, 4, lr=float("nan")),)), "`nan` cannot be written"),
        (Spec(optimizer=Optimizer(PluginCall("rank"))), "`rank` cannot be written"),
        (Spec(uses=(("a b", None),)), "`a b` cannot be written"),
        (Spec(requires=(Require(deep(200), "<", Number(1)),)), "nests deeper than 100 levels"),
    ],
)
def test_what_cannot_be_written(spec: Spec, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        to_text(spec)
    assert message in raised.value.diagnostics[0].message


def test_what_nests_as_deep_as_can_be_read_is_written() -> None:
    text = to_text(Spec(requires=(Require(deep(90), "<", Number(1)),)))
    assert to_text(read(text)) == text


def test_no_text_is_larger_than_the_limit(tmp_path: Path) -> None:
    line = "adapt q rank 4 # " + "x" * 1000 + "\n"
    large = line * (2**20 // len(line) + 1)
    (tmp_path / "large.lora").write_text(large)
    for read_it in (lambda: parse(large), lambda: parse(tmp_path / "large.lora"), lambda: format_text(large)):
        with pytest.raises(SpecError) as raised:
            read_it()
        assert [found.code for found in raised.value.diagnostics] == ["L016"]
    (tmp_path / "main.lora").write_text('include "large.lora"\n')
    (found,) = analyse(tmp_path / "main.lora").diagnostics
    assert found.code == "L016" and found.file == str(tmp_path / "large.lora") and "included at" in found.notes[0]
    assert len(parse(large[: 2**20 - len(line)].rpartition("\n")[0]).rules) > 1000
