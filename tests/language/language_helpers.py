"""What the tests of the language share: plugins with every kind of option, and short ways to look at diagnostics."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, Literal

from lorakit.errors import SpecError
from lorakit.hooks import LayerShape, Plugins, QuantizedWeight, StartContext, hookimpl
from lorakit.language.analysis import Analysis, analyse
from lorakit.language.format import format_text
from lorakit.language.printer import to_text
from lorakit.language.render import render_github, render_json, render_text
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt
from lorakit.plugins import load_plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings

EXAMPLE = """\
let r = 16

adapt @attention {
  rank   r
  alpha  2*rank
  init   gaussian(sigma=0.02)
  quant  nf4 double
}
adapt layers[0..7].@mlp rank r/2 quant nf4 double
quantize @linear nf4 double            # everything else that is linear
optimizer adamw(betas=(0.9, 0.999), weight_decay=0) lr 2e-4 paged
step batch 2 tokens 2048 compute bf16
require trainable < 2%
require peak_memory <= 24GiB"""


class Halves:
    """Stores a weight in 16 bits."""

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        return QuantizedWeight({"half": weight.half()}, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["half"].to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 16.0

    def linear(self, x: Tensor, quantized: QuantizedWeight, bias: Tensor | None) -> Tensor:
        product = x @ self.dequantize(quantized).T
        return product if bias is None else product + bias


@dataclass(frozen=True)
class Wide(Halves):
    """A quantizer with an option of every type."""

    name: ClassVar[str] = "wide"
    count: int = 1
    scale: float = 1.0
    label: str = ""
    flag: bool = False
    pair: tuple[float, float] = (0.0, 0.0)
    many: tuple[int, ...] = (1, 2)
    kind: Literal["even", "odd"] = "even"
    share: float = field(default=0.5, metadata={"unit": "%"})
    room: int = field(default=0, metadata={"unit": "B"})
    double: bool = False


@dataclass(frozen=True)
class Strict:
    """An initializer that must be told something, and refuses most of it."""

    name: ClassVar[str] = "strict"
    level: int

    def __post_init__(self) -> None:
        if self.level > 9:
            raise ValueError("level must be below 10")

    def initialize(self, lora_A: Tensor, lora_B: Tensor, context: StartContext) -> None:
        lora_A.fill_(self.level)
        lora_B.zero_()


@dataclass(frozen=True)
class Rankless:
    """A method without matrices of a rank."""

    name: ClassVar[str] = "rankless"
    clauses: ClassVar[frozenset[str]] = frozenset({"dropout"})

    def parameters(self, layer: LayerShape, settings: Settings) -> tuple[ParameterPlan, ...]:
        return ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """There is nothing to start."""

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> None:
        return None

    def peft(self, entries: Sequence[PlanEntry]) -> None:
        return None


@functools.cache
def plugins() -> Plugins:
    """Return the built-in plugins and the ones above."""
    module = SimpleNamespace(
        lorakit_quantizers=hookimpl(lambda: [Wide], specname="lorakit_quantizers"),
        lorakit_initializers=hookimpl(lambda: [Strict], specname="lorakit_initializers"),
        lorakit_methods=hookimpl(lambda: [Rankless], specname="lorakit_methods"),
    )
    return load_plugins(modules={"tests": module})


def look(text: str, **variables: object) -> Analysis:
    """Analyse a text with all plugins of the tests."""
    return analyse(text, variables, plugins())


def read(text: str, **variables: object) -> Spec:
    """Return the Spec of a sound text."""
    analysis = look(text, **variables)
    assert analysis.spec is not None, analysis.diagnostics
    return analysis.spec


def rule(text: str, **variables: object) -> Adapt:
    """Return the last rule of a sound text."""
    last = read(text, **variables).rules[-1]
    assert isinstance(last, Adapt)
    return last


def codes(text: str, **variables: object) -> list[str]:
    """Return the codes of a text's diagnostics."""
    return [found.code for found in look(text, **variables).diagnostics]


def marked(text: str, **variables: object) -> list[tuple[str, str]]:
    """Return the code of each diagnostic with the words under its carets."""
    lines = text.split("\n")
    return [
        (found.code, lines[found.line - 1][found.column - 1 : found.end_column - 1])
        for found in look(text, **variables).diagnostics
    ]


def only(text: str, **variables: object) -> str:
    """Return the one message of a text, with its suggestion and notes."""
    (found,) = look(text, **variables).diagnostics
    return " | ".join([found.message, *([found.suggestion] if found.suggestion else []), *found.notes])


def survive(data: str | bytes) -> None:
    """Take an input through everything that reads specs.

    Only a SpecError may come out, every span lies in the text, and what is sound prints and formats without a change of
    meaning.
    """
    analysis = analyse(data, {"r": "8"}, plugins(), name="<fuzz>", read=_no_file)
    assert (analysis.spec is None) == bool(analysis.errors)
    for found in analysis.diagnostics:
        lines = analysis.sources[found.file].split("\n")
        assert 1 <= found.line <= found.end_line <= len(lines)
        assert 1 <= found.column <= len(lines[found.line - 1]) + 1
        assert found.end_column <= len(lines[found.end_line - 1]) + 1
        assert (found.line, found.column) <= (found.end_line, found.end_column)
    render_text(analysis.diagnostics, analysis.sources)
    render_json(analysis.diagnostics)
    render_github(analysis.diagnostics)
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    try:
        formatted = format_text(text)
    except SpecError:
        assert analysis.spec is None
        return
    assert format_text(formatted) == formatted
    if analysis.spec is not None:
        assert analyse(formatted, {"r": "8"}, plugins(), read=_no_file).spec == analysis.spec
        assert look(to_text(analysis.spec)).spec == analysis.spec


def _no_file(path: Path) -> bytes:
    raise FileNotFoundError(2, "No such file or directory")
