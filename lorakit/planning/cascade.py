"""The cascade: which rule decides each module. Rules compete only with later rules of their own keyword."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorakit.diagnostics import Code, Diagnostic, advised, diagnostic_at
from lorakit.hooks.protocols import Role
from lorakit.language.printer import call_text
from lorakit.language.regexes import RegexError
from lorakit.language.spec import Spec
from lorakit.language.statements import (
    Adapt,
    PluginCall,
    Quantize,
    Rule,
    Target,
    Train,
)
from lorakit.language.suggestions import nearest
from lorakit.language.words import NONE
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.place import Place
from lorakit.planning.plan import RuleSummary, SelectorCount
from lorakit.planning.ranges import out_of_range
from lorakit.planning.targets import Selection, container_counts, outermost_index

Kind = TypeVar("Kind", Adapt, Quantize, Train)


@dataclass(frozen=True)
class Decisions:
    """For each kind of rule, the rule that decides a module, by path in the model's order.

    What `quantize … none` leaves as it is stands nowhere but in the counts of `rules`, of which the written ones come
    first.
    """

    adapt: Mapping[str, Adapt]
    quantize: Mapping[str, Quantize]
    train: Mapping[str, Train]
    rules: tuple[RuleSummary, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()


def decide(spec: Spec, inventory: Inventory, roles: Mapping[str, Role]) -> Decisions:
    """Return which rule decides each module, and what is wrong with the rules that cannot be followed."""
    selection = Selection(inventory, roles)
    reach = [_Reach(rule, inventory, selection) for rule in spec.rules]
    decided: dict[type, dict[str, Rule]] = {Adapt: {}, Quantize: {}, Train: {}}
    for one in reach:
        decided[type(one.rule)].update(dict.fromkeys(one.paths, one.rule))
    for path in list(decided[Quantize]):
        if path in decided[Adapt] or path in decided[Train]:
            del decided[Quantize][path]
    findings = [finding for one in reach for finding in one.findings]
    for one in reach:
        if not one.findings and not one.rule.optional:
            findings += _shadowed(one, decided[type(one.rule)], decided)
    return Decisions(
        adapt=_ordered(decided[Adapt], Adapt, inventory),
        quantize={path: rule for path, rule in _ordered(decided[Quantize], Quantize, inventory).items() if rule.quant},
        train=_ordered(decided[Train], Train, inventory),
        rules=tuple(_summary(one, decided[type(one.rule)]) for one in reach),
        findings=tuple(findings),
    )


class _Reach:
    """What one rule would decide if it stood alone."""

    def __init__(self, rule: Rule, inventory: Inventory, selection: Selection) -> None:
        self.rule = rule
        self._kind = KINDS[type(rule)]
        self.findings = [] if rule.optional else list(out_of_range(rule, selection))
        self.selectors: list[SelectorCount] = []
        self._inventory = inventory
        # first: of what a rule leaves out it does not matter what it is
        self._excepted = self._taken_out(selection)
        found: dict[str, None] = {}
        left: dict[Target, str] = {}
        for target in rule.targets:
            matched = self._matched(target, selection)
            left.update((target, path) for path in matched[:1])
            found.update(dict.fromkeys(self._usable(target, matched, selection)))
        self.paths = tuple(found)
        if found or self.findings or rule.optional:
            return
        if not left:
            left_out = "`except`" if rule.excepts else "`layers`"
            self._complain(
                Code.MATCHES_NOTHING, f"nothing is left of this rule: {left_out} takes out all it matched", rule
            )
        for target, path in left.items():
            # a pattern passes over what does not fit, and one that fits nothing says what it met
            self._refuse(target, path)

    def _matched(self, target: Target, selection: Selection) -> tuple[str, ...]:
        """Return the paths that a target selects, without those that the rule leaves out."""
        matched = self._matches(target, selection)
        if matched is None:
            return ()
        if not matched and not self.rule.optional and not self._is_beyond(target):
            self._complain(
                Code.MATCHES_NOTHING,
                f"`{target}` matches no module of {self._inventory.model_class}",
                target,
                near=_near(target, self._inventory),
                note=_structure(self._inventory),
            )
        return tuple(path for path in matched if self._may_be_left(path, selection))

    def _is_beyond(self, target: Target) -> bool:
        """Whether a target may match nothing for its indices, which is reported."""
        return bool(self.findings) and any(segment.indices for segment in target.segments)

    def _usable(self, target: Target, matched: Sequence[str], selection: Selection) -> Iterable[str]:
        """Return what a target's paths decide, and refuse an outright one that does not fit."""
        usable = [path for path in matched if self._kind.usable(self._inventory.modules[path])]
        if target.is_outright and len(usable) < len(matched):
            self._refuse(target, next(path for path in matched if path not in usable))
        self.selectors.append(SelectorCount(str(target), len(matched), len(matched) - len(usable)))
        inside = [inner for path in usable for inner in self._kind.decides(path, self._inventory)]
        return [path for path in inside if self._is_left(path, selection)]

    def _is_left(self, path: str, selection: Selection) -> bool:
        """Whether neither `except` nor `layers` takes a module out."""
        layers = self.rule.layers
        return path not in self._excepted and (not layers or selection.in_layers(path, layers))

    def _may_be_left(self, path: str, selection: Selection) -> bool:
        """Whether a module, or anything inside it, is left: a container above the layers has no index itself."""
        above = self._inventory.modules[path].holds_modules and outermost_index(path) is None
        return self._is_left(path, selection) or (above and path not in self._excepted)

    def _matches(self, target: Target, selection: Selection) -> tuple[str, ...] | None:
        """Return the paths that a target selects, or None where its regex takes too long, which is reported."""
        try:
            return selection.matches(target)
        except RegexError as error:
            note = "repeat one thing at a time: `([a-z]+)+` can share a name out in very many ways, `[a-z]+` in one"
            self._complain(Code.BAD_REGEX, error.message, target, note=note)
            return None

    def _refuse(self, target: Target, path: str) -> None:
        message, note = self._kind.refusal(target, self._inventory.modules[path], self._inventory)
        self._complain(Code.NOT_ADAPTABLE, message, target, note=note)

    def _taken_out(self, selection: Selection) -> frozenset[str]:
        """Return what the `except` targets take out: the modules they match and everything inside those."""
        matched: set[str] = set()
        for target in self.rule.excepts:
            paths = self._matches(target, selection)
            if paths is None:
                continue
            if not paths and not self.rule.optional and not self._is_beyond(target):
                self._complain(
                    Code.MATCHES_NOTHING,
                    f"`except {target}` matches no module of {self._inventory.model_class}",
                    target,
                )
            matched.update(paths)
        if not matched:
            return frozenset()
        return frozenset(path for path in self._inventory.modules if any(above in matched for above in _lineage(path)))

    def _complain(
        self, code: Code, message: str, place: Target | Rule, near: str | None = None, note: str = ""
    ) -> None:
        suggestion, notes = advised(near, [note] if note else [])
        self.findings.append(diagnostic_at(code, message, place.span, suggestion=suggestion, notes=notes))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the rules of one keyword reach: `decides` the modules that a usable one stands for, `refusal` why it is not.

    A refusal is a message and a note.
    """

    usable: Callable[[ModuleInfo], bool]
    decides: Callable[[str, Inventory], Iterable[str]]
    refusal: Callable[[Target, ModuleInfo, Inventory], tuple[str, str]]


def _no_adapter(target: Target, module: ModuleInfo, inventory: Inventory) -> tuple[str, str]:
    why = f": {module.shape.refusal}" if module.shape else ""
    note = "a plugin adds one with the hooks lorakit_describe_module and lorakit_adapt_module" + _inside(target, module)
    if (weight := inventory.modules.get(Place(module.path).weight)) and weight.shape:
        note = f"its matrix alone is a target: `{target}.weight`"
    return f"no adapter fits `{module.path}`, a {module.class_name}{why}", note


def _no_matrix(target: Target, module: ModuleInfo, inventory: Inventory) -> tuple[str, str]:
    note = "a plugin adds its class with the hook lorakit_describe_module" + _inside(target, module)
    return f"`{module.path}`, a {module.class_name}, has no matrix to quantize", note


def _no_parameters(target: Target, module: ModuleInfo, inventory: Inventory) -> tuple[str, str]:
    return f"`{module.path}`, a {module.class_name}, has no parameters to train", ""


def _inside(target: Target, module: ModuleInfo) -> str:
    return f"; what is inside it is `{target}.*`" if module.holds_modules else ""


def _itself(path: str, inventory: Inventory) -> Iterable[str]:
    return (path,)


def _lineage(path: str) -> Iterable[str]:
    segments = path.split(".")
    return (".".join(segments[:length]) for length in range(1, len(segments) + 1))


def _holders_inside(path: str, inventory: Inventory) -> Iterable[str]:
    """Return the modules at and inside a path that hold parameters of their own."""
    if inventory.modules[path].parameters:
        yield path
    for child in inventory.children.get(path, ()):
        # what only an outright name reaches is among its module's parameters
        if (shape := inventory.modules[child].shape) and shape.outright:
            continue
        yield from _holders_inside(child, inventory)


KINDS: Mapping[type[Rule], _Kind] = {
    Adapt: _Kind(lambda module: module.shape is not None and not module.shape.refusal, _itself, _no_adapter),
    Quantize: _Kind(lambda module: module.shape is not None and module.shape.is_linear, _itself, _no_matrix),
    Train: _Kind(lambda module: bool(module.parameters) or module.holds_modules, _holders_inside, _no_parameters),
}


def _near(target: Target, inventory: Inventory) -> str | None:
    """Return the last segment of a module that is spelled nearly so."""
    return nearest(target.segments[-1].name, _layer_names(inventory)) if target.is_outright else None


def _structure(inventory: Inventory) -> str:
    names = _layer_names(inventory)
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"its layers are called {shown}" if names else "it has no layer that an adapter fits"


def _layer_names(inventory: Inventory) -> list[str]:
    names = (
        Place(path).leaf
        for path, module in inventory.modules.items()
        if module.shape is not None and not module.shape.outright
    )
    return list(dict.fromkeys(name for name in names if not name.isdigit()))


def _shadowed(
    one: _Reach, deciding: Mapping[str, Rule], decided: Mapping[type, Mapping[str, Rule]]
) -> Iterable[Diagnostic]:
    # `quantize` means everything that no other kind of rule decides, be it nothing
    left = isinstance(one.rule, Quantize)
    contested = [path for path in one.paths if not (left and (path in decided[Adapt] or path in decided[Train]))]
    if not contested or any(deciding.get(path) is one.rule for path in contested):
        return
    winners = {winner.span.line for path in contested if (winner := deciding.get(path)) and winner.span}
    lines = ", ".join(map(str, sorted(winners)))
    yield diagnostic_at(
        Code.SHADOWED,
        f"this rule decides nothing: {'lines' if len(winners) > 1 else 'line'} {lines} replaced it everywhere",
        one.rule.span,
        suggestion="remove it, move it below, or add `optional`",
    )


def _summary(one: _Reach, deciding: Mapping[str, Rule]) -> RuleSummary:
    paths = [path for path in one.paths if deciding.get(path) is one.rule]
    return RuleSummary(
        place=place(one.rule),
        keyword=type(one.rule).__name__.lower(),
        targets=", ".join(map(str, one.rule.targets)),
        modules=len(paths),
        selectors=tuple(one.selectors),
        containers=container_counts(paths),
        quant=stored_as(one.rule.quant) if isinstance(one.rule, Quantize) else "",
    )


def stored_as(quant: PluginCall | None) -> str:
    """Return what `quantize` says behind its targets."""
    return call_text(quant) if quant else NONE


def place(rule: Rule) -> str:
    """Return where a rule stands, as `file:line`."""
    return f"{rule.span.file}:{rule.span.line}" if rule.span else ""


def _ordered(decided: Mapping[str, Rule], kind: type[Kind], inventory: Inventory) -> dict[str, Kind]:
    rules = ((path, decided.get(path)) for path in inventory.modules)
    return {path: rule for path, rule in rules if isinstance(rule, kind)}
