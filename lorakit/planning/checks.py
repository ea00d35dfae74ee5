"""What makes the decision for a module impossible: one small function a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lorakit.diagnostics import Code, Diagnostic, diagnostic_at
from lorakit.dtypes import FLOATS
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import call_of
from lorakit.language.printer import call_text
from lorakit.language.statements import Adapt, PluginCall, Quantize, Train
from lorakit.planning.cascade import Decisions
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.place import Place
from lorakit.quoting import shown


@dataclass(frozen=True, slots=True)
class Decided:
    """A module and the rules that decide it."""

    module: ModuleInfo
    adapt: Adapt | None
    quantize: Quantize | None
    train: Train | None

    @property
    def quant(self) -> PluginCall | None:
        """What the module's weight is to be quantized by."""
        return self.adapt.quant if self.adapt else self.quantize.quant if self.quantize else None

    def at_quant(self, message: str, suggestion: str) -> Diagnostic:
        """Return a complaint about the quantizer, at its place in the spec."""
        rule = self.adapt or self.quantize
        span = (self.quant.span if self.quant else None) or (rule.span if rule else None)
        return diagnostic_at(Code.NOT_QUANTIZABLE, message, span, suggestion=suggestion)


Check = Callable[[Decided, Inventory, Plugins], Iterable[Diagnostic]]


def problems_of(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    """Yield everything that makes a module's decision impossible."""
    for check in CHECKS:
        yield from check(decided, inventory, plugins)


def _rank(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, rule = decided.module, decided.adapt
    if rule and rule.rank is not None and module.shape and rule.rank > (largest := module.shape.largest_rank):
        yield diagnostic_at(
            Code.RANK_TOO_LARGE,
            f"rank {shown(rule.rank)} is larger than `{module.path}` allows: {module.shape} has rank {largest} at most",
            rule.rank_span or rule.span,
            suggestion=f"write rank {largest} or less, or leave the module out with `except {module.path}`",
        )


def _dropout(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, rule = decided.module, decided.adapt
    if not (rule and rule.dropout and module.shape):
        return
    if module.shape.kind == "embedding":
        why = "is a lookup: tokens enter it, on which dropout cannot act"
    elif module.shape.is_parameter:
        why = "is a parameter, whose adapter changes the weight itself, where dropout cannot act"
    elif not module.shape.called:
        why = "is not always called: its parent computes with its weight, where dropout cannot act"
    else:
        return
    yield diagnostic_at(
        Code.NOT_POSSIBLE_HERE,
        f"`{module.path}` {why}",
        rule.span,
        suggestion=f"leave out `dropout` for it, or the module with `except {module.path}`",
    )


def _matrix(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module = decided.module
    if decided.quant and module.shape and not module.shape.is_linear:
        yield decided.at_quant(
            f"`{module.path}`, a {module.class_name}, is no linear layer: quantizers take matrices",
            f"leave out `quant` for it, or the module with `except {module.path}`",
        )


def _quantized_already(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, weight = decided.module, decided.module.weight
    if not decided.quant or not weight or not _is_linear(module):
        return
    stored = module.shape.quantizer if module.shape else None
    if weight.dtype not in FLOATS and stored != (wanted := plugins.quantizer(decided.quant)):
        how = call_text(call_of(stored)) if stored else weight.dtype
        yield decided.at_quant(
            f"`{module.path}` holds its weight as {how}: it is quantized already, "
            f"and this asks for {call_text(call_of(wanted))}",
            "leave out `quant` for it, an adapter works on it as it is; or start from plain weights",
        )


def _tied(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, weight = decided.module, decided.module.weight
    if not decided.quant or not weight or not _is_linear(module):
        return
    ends = inventory.owners[weight.weight_id]
    if len(ends) > 1:
        others = ", ".join(f"`{end}`" for end in ends if not end.startswith(f"{module.path}."))
        yield decided.at_quant(
            f"`{module.path}` shares its weight with {others}: quantizing one end would keep both copies",
            f"leave it as it is: `except {module.path}`",
        )


def _not_taken(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, shape = decided.module, decided.module.shape
    if not decided.quant or shape is None or not shape.is_linear:
        return
    try:
        plugins.quantizer(decided.quant).bits_per_weight((shape.out_features, shape.in_features))
    # of a plugin, whose reason is whatever it raises
    except Exception as error:
        yield decided.at_quant(
            f"`{decided.quant.name}` does not take `{module.path}`, which is {shape}: {error}",
            f"leave out `quant` for it, or the module with `except {module.path}`",
        )


def _trains_quantized(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    module, rule = decided.module, decided.train
    if rule and module.shape and module.shape.quantizer:
        yield diagnostic_at(
            Code.NOT_POSSIBLE_HERE,
            f"`{module.path}` is stored as {call_text(call_of(module.shape.quantizer))}, and cannot train in full",
            rule.span,
            suggestion=f"leave it out with `except {module.path}`, or start from unquantized weights",
        )


def _adapted_and_trained(decided: Decided, inventory: Inventory, plugins: Plugins) -> Iterable[Diagnostic]:
    path, adapt, train = decided.module.path, decided.adapt, decided.train
    if adapt and train:
        yield diagnostic_at(
            Code.NOT_POSSIBLE_HERE,
            f"`{path}` is adapted by line {adapt.span.line if adapt.span else '?'} and trained in full here",
            train.span,
            suggestion=f"keep one of the two, for example with `except {path}`",
        )


def tied_apart(decisions: Decisions, inventory: Inventory) -> Iterable[Diagnostic]:
    """Find the ties of which one end is adapted and the other trained in full."""
    for path, train in decisions.train.items():
        for parameter in inventory.modules[path].parameters:
            for end in inventory.owners[parameter.weight_id]:
                other = Place(end).holder
                if other != path and (adapt := decisions.adapt.get(other)) is not None:
                    yield diagnostic_at(
                        Code.NOT_POSSIBLE_HERE,
                        f"`{path}` is trained in full and shares its weight with `{other}`, which line "
                        f"{adapt.span.line if adapt.span else '?'} adapts: no adapter file can say so",
                        train.span,
                        suggestion=f"keep one of the two, for example with `except {path}`",
                    )


def _is_linear(module: ModuleInfo) -> bool:
    return module.shape is None or module.shape.is_linear


CHECKS: tuple[Check, ...] = (
    _rank, _dropout, _matrix, _quantized_already, _tied, _not_taken, _trains_quantized, _adapted_and_trained,
)  # fmt: skip


def without_bias(decisions: Decisions, inventory: Inventory) -> Iterable[Diagnostic]:
    """Find the rules that train biases where no module has one."""
    asked: dict[Adapt, bool] = {}
    for path, rule in decisions.adapt.items():
        if rule.bias == "adapter":
            has_one = any(parameter.name == "bias" for parameter in inventory.modules[path].parameters)
            asked[rule] = asked.get(rule, False) or has_one
    for rule, found in asked.items():
        if not found:
            yield diagnostic_at(
                Code.NOT_POSSIBLE_HERE,
                "`bias adapter` trains the biases of the adapted modules, and none of them has one",
                rule.span,
                suggestion="leave out `bias adapter`",
            )
