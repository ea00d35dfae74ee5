"""What differs between two plans for one model, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from lorakit.dtypes import short_name
from lorakit.language.printer import call_text
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.planning.report import layers_alike, show_bytes

# what a spec means where it says nothing
UNSAID = {"scaling": "standard", "dropout": "0", "bias": "none", "method": "lora"}
SIGNS = {"add": ("+", "green"), "remove": ("-", "red"), "change": ("~", "yellow")}


@dataclass(frozen=True, slots=True)
class Change:
    """One module that the two plans decide differently; `fields` holds (name, before, after), '' for nothing.

    `reason` names the rule whose `quant` reaches a module that none decides.
    """

    path: str
    kind: str
    fields: tuple[tuple[str, str, str], ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything in which the second plan differs from the first."""

    changes: tuple[Change, ...]
    totals: tuple[tuple[str, str, str], ...]

    def count(self, kind: str) -> int:
        """Return how many modules are of this kind of change: `add`, `remove` or `change`."""
        return sum(change.kind == kind for change in self.changes)


def difference(before: Plan, after: Plan) -> Difference:
    """Return what changes from one plan to another of the same model."""
    old = {entry.path: _words(entry, before) for entry in before.entries}
    new = {entry.path: _words(entry, after) for entry in after.entries}
    reasons = _reasons(before) | _reasons(after)
    changes = []
    for path in dict.fromkeys([*old, *new]):
        was, will = old.get(path, {}), new.get(path, {})
        kind = "remove" if not will else "add" if not was else "change"
        fields = tuple(
            (name, one, other)
            for name, one, other in _changed(was, will)
            if kind == "change" or UNSAID.get(name) != one + other
        )
        if fields:
            changes.append(Change(path, kind, fields, reasons.get(path, "")))
    return Difference(tuple(changes), tuple(_changed(_totals(before), _totals(after))))


def _reasons(plan: Plan) -> dict[str, str]:
    reached = [rule for rule in plan.rules if rule.reached]
    return {entry.path: f"as {rule.place} has it" for rule in reached for entry in plan.entries if rule.decides(entry)}


def _changed(was: Mapping[str, str], will: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for name in dict.fromkeys([*was, *will]):
        if was.get(name, "") != will.get(name, ""):
            yield name, was.get(name, ""), will.get(name, "")


def _words(entry: PlanEntry, plan: Plan) -> dict[str, str]:
    """Return what a spec can say of a module, in the spec's own words."""
    words = {"quant": call_text(entry.quant)} if entry.quant else {}
    if adapter := entry.adapter:
        settings = adapter.settings
        words |= {
            "method": call_text(adapter.method),
            "rank": str(settings.rank or ""),
            "alpha": _number(settings.alpha),
            "scaling": settings.scaling or "",
            "dropout": _number(settings.dropout),
            "init": call_text(settings.init) if settings.init else "",
            "dtype": short_name(adapter.dtype),
            "bias": adapter.bias,
            "lr": _number(adapter.lr),
            "lr_ratio": _number(settings.lr_ratio),
            # an optimizer that pages as a whole pages this state too
            "paged": "yes" if adapter.paged or plan.optimizer.paged else "",
        }
    if entry.train:
        words |= {"train": "in full", "lr": f"{entry.train_lr:g}" if entry.train_lr else ""}
    return words


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _totals(plan: Plan) -> dict[str, str]:
    optimizer = plan.optimizer
    return {
        "added parameters": f"{plan.added:,}",
        "trainable parameters": f"{plan.trainable:,} ({plan.trainable_share:.2%})",
        "weights": show_bytes(plan.memory.weights),
        "peak memory": show_bytes(plan.memory.peak),
        "computes in": short_name(plan.compute.dtype) if plan.compute else "",
        "optimizer": f"{call_text(optimizer.call)} lr {optimizer.lr:g}{' paged' if optimizer.paged else ''}",
    }


def difference_view(found: Difference, *, every_module: bool = False) -> RenderableType:
    """Return a difference as lines, `+ - ~` a module, layers of one kind together unless asked."""
    lines: list[Text] = []
    groups: dict[tuple[str, str, tuple[tuple[str, str, str], ...], str], list[Change]] = {}
    for change in found.changes:
        pattern = change.path if every_module else layers_alike(change.path)
        groups.setdefault((change.kind, pattern, change.fields, change.reason), []).append(change)
    for (kind, pattern, fields, reason), members in groups.items():
        sign, color = SIGNS[kind]
        count = f"  × {len(members)}" if len(members) > 1 else ""
        because = f"  {reason}" if reason else ""
        lines.append(Text.assemble((f"  {sign} {pattern}", color), (f"{count}{because}", "dim")))
        width = max(len(name) for name, _, _ in fields)
        lines += [Text(f"      {name:{width}}  {_arrow(was, will)}") for name, was, will in fields]
    if not lines:
        lines.append(Text("  no module changes"))
    lines.append(Text())
    lines.append(
        Text(f"{found.count('add')} to add, {found.count('change')} to change, {found.count('remove')} to remove")
    )
    width = max((len(name) for name, _, _ in found.totals), default=0)
    lines += [Text(f"  {name:{width}}  {_arrow(was, will)}") for name, was, will in found.totals]
    return Group(*lines)


def _arrow(was: str, will: str) -> str:
    if not was:
        return will
    return f"{was} → {will or 'nothing'}"
