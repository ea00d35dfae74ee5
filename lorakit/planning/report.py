"""The printed form of a Plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from lorakit.dtypes import short_name
from lorakit.language.printer import call_text
from lorakit.language.words import NONE
from lorakit.planning.sheet import Sheet

if TYPE_CHECKING:
    from lorakit.planning.plan import Memory, Plan, PlanEntry


def show_bytes(count: float) -> str:
    """Return a number of bytes in the largest binary unit that keeps it at 1 or more."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def show_change(before: int, after: int) -> str:
    """Return two numbers of bytes as one where they are equal, and in one unit where both have it."""
    first, second = show_bytes(before), show_bytes(after)
    if first == second:
        return first
    number, _, unit = first.partition(" ")
    return f"{number} → {second}" if second.endswith(f" {unit}") else f"{first} → {second}"


def layers_alike(path: str) -> str:
    """Return a path with `*` for every layer number, so that equal modules of all layers read the same."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def plan_view(plan: Plan, *, every_module: bool = False) -> RenderableType:
    """Return a plan as tables: rules, modules (grouped over layers unless asked), parameters, memory and notes."""
    parts: list[RenderableType] = []
    for part in _parts(plan, every_module):
        parts += [part, Text()]
    notes = [Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in _notes(plan)]
    return Group(*parts, *notes) if notes else Group(*parts[:-1])


def plan_markdown(plan: Plan, *, every_module: bool = False) -> str:
    """Return the same as Markdown, as for a comment on a pull request."""
    parts = [
        part.markdown() if isinstance(part, Sheet) else "\n\n".join(map(str.strip, part.plain.split("\n")))
        for part in _parts(plan, every_module)
    ]
    notes = "\n".join(f"- {note}" for note in _notes(plan))
    return "\n\n".join([*parts, notes] if notes else parts)


def _parts(plan: Plan, every_module: bool) -> Iterator[Text | Sheet]:
    yield Text.assemble(
        "plan for ",
        (plan.model_class, "bold"),
        f": {plan.model_parameters:,} parameters, {show_bytes(plan.memory.weights_before)} of weights",
    )
    yield _rules(plan)
    yield _modules(plan, every_module)
    yield _parameters(plan)
    yield _memory(plan)


def _notes(plan: Plan) -> list[str]:
    return [f"note: {_by_line(note, plan)}" for note in plan.notes]


def _by_line(text: str, plan: Plan) -> str:
    """Return a text with `line N` for `file:N`, where all rules stand in one file."""
    files = {rule.place.rpartition(":")[0] for rule in plan.rules}
    return re.sub(rf"{re.escape(files.pop())}:(\d+)", r"line \1", text) if len(files) == 1 else text


def _rules(plan: Plan) -> Sheet:
    table = Sheet(("decided by", "left"), ("rule", "prose"), ("modules", "right"), ("what", "prose"))
    for rule in plan.rules:
        entry = next((entry for entry in plan.entries if rule.decides(entry)), None)
        counts = ", ".join(f"{one.selector} {one.matched}" for one in rule.selectors) if len(rule.selectors) > 1 else ""
        nothing = "stay as they are" if rule.quant == NONE and rule.modules else "nothing"
        what = _describe(entry, rule.keyword) if entry else nothing
        place = _by_line(rule.place, plan)
        words = [rule.keyword, rule.targets, *[rule.quant] * bool(rule.quant), *[f"(as {place} has it)"] * rule.reached]
        table.add_row(
            place,
            " ".join(words),
            f"{rule.modules}",
            f"{what}{f'; {counts}' if counts else ''}",
        )
    return table


def _describe(entry: PlanEntry, keyword: str) -> str:
    if keyword == "train":
        return "trains in full" + (f", lr {entry.train_lr:g}" if entry.train_lr else "")
    words = []
    if keyword == "adapt" and entry.adapter:
        adapter = entry.adapter
        words.append(call_text(adapter.method) + (f" rank {adapter.settings.rank}" if adapter.settings.rank else ""))
        settings = adapter.settings
        words += [f"alpha {settings.alpha:g} (update × {settings.factor:g})"] if settings.alpha is not None else []
        words += [f"init {call_text(settings.init)}"] if settings.init else []
        words.append(f"adapters {short_name(adapter.dtype)}")
        words += [f"dropout {settings.dropout:g}"] if settings.dropout else []
        words += ["biases train"] if adapter.bias == "adapter" else []
        words += [f"lr {adapter.lr:g}"] if adapter.lr else []
        words += [f"lr of B × {settings.lr_ratio:g}"] if settings.lr_ratio else []
        words += ["optimizer state paged"] if adapter.paged else []
    if entry.quant:
        words.append(f"base weight {call_text(entry.quant)}")
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Row:
    """Modules that differ in layer numbers alone."""

    pattern: str
    entries: Sequence[PlanEntry]


def grouped(entries: Iterable[PlanEntry], every_module: bool) -> list[Row]:
    """Return entries by kind: those that differ in layer numbers alone together, unless every module is asked for."""
    groups: dict[object, list[PlanEntry]] = {}
    for entry in entries:
        pattern = entry.path if every_module else layers_alike(entry.path)
        key = (
            pattern,
            entry.shape,
            entry.quant,
            entry.adapter,
            entry.train,
            entry.decided_by,
        )
        groups.setdefault(key, []).append(entry)
    # one alone is called by its name
    return [
        Row(str(key[0]) if len(members) > 1 else members[0].path, members)  # type: ignore[index]
        for key, members in groups.items()
    ]


def _modules(plan: Plan, every_module: bool) -> Sheet:
    table = Sheet(
        ("module", "left"), ("count", "right"), ("out × in", "right"), ("weight", "left"), ("bytes each", "right"),
        ("added each", "right"), ("", "right"), ("decided by", "left"),
    )  # fmt: skip
    for row in grouped(plan.entries, every_module):
        entry = row.entries[0]
        before, after = entry.bytes.weight_before, entry.bytes.weight_after
        weight = short_name(entry.dtype)
        table.add_row(
            row.pattern,
            str(len(row.entries)),
            str(entry.shape or ""),
            f"{weight} → {call_text(entry.quant)}" if entry.quant else f"{weight}{', trains' if entry.train else ''}",
            show_change(before, after),
            f"{entry.added:,}" if entry.added else "",
            f"{entry.added / entry.parameters:.2%}" if entry.added else "",
            _by_line(decided_by(entry, plan), plan),
        )
    return table


def decided_by(entry: PlanEntry, plan: Plan) -> str:
    """Return where the rules stand that decide an entry, or the rule whose `quant` reaches it."""
    reached = any(rule.reached and rule.decides(entry) for rule in plan.rules)
    return "as " * reached + ", ".join(entry.decided_by)


def _parameters(plan: Plan) -> Text:
    share = plan.added / plan.model_parameters if plan.model_parameters else 0
    return Text.assemble(
        " parameters: ", f"{plan.model_parameters:,}", (f" + {plan.added:,} added ({share:.2%})", "bold"),
        f", {plan.trainable:,} trainable ({plan.trainable_share:.2%})\n",
        f" optimizer: {call_text(plan.optimizer.call)}, lr {plan.optimizer.lr:g}",
        ", paged" if plan.optimizer.paged else "",
        f"\n {plan.compute.words}" if plan.compute and plan.compute.words else "",
    )  # fmt: skip


def _memory(plan: Plan) -> Sheet:
    memory = plan.memory
    table = Sheet((memory_title(memory), "left"), ("", "right"), ("", "prose"))
    for name, count, remark in memory_rows(memory):
        table.add_row(name, show_bytes(count), remark)
    table.add_section()
    table.add_row("peak", show_bytes(memory.peak), "", style="bold")
    return table


def memory_title(memory: Memory) -> str:
    """Say of what and where the forecast is."""
    title = "memory of a training step"
    if memory.devices == 1:
        return title
    how = "sharded" if memory.frozen == "shard" else "on each"
    return f"{title}, each of {memory.devices} devices, frozen weights {how}"


def memory_rows(memory: Memory) -> Iterable[tuple[str, int, str]]:
    """Yield (name, bytes, remark) of everything that a training step holds."""
    saved = memory.weights_before - memory.weights
    yield "weights", memory.weights, f"{show_bytes(memory.weights_before)} before" if saved else ""
    yield "adapters", memory.adapters, ""
    yield "gradients", memory.gradients, ""
    paged = "all of it" if memory.paged == memory.optimizer else f"{show_bytes(memory.paged)} of it"
    yield "optimizer state", memory.optimizer, f"{paged} pages" if memory.paged else ""
    count = len(memory.recomputed)
    policy = f"{count} of {memory.blocks} blocks recomputed" if count else "none recomputed"
    rows = f"{memory.batch} × {memory.tokens} tokens" if memory.of_tokens else f"{memory.batch * memory.tokens:,} rows"
    yield "activations", memory.activations, f"estimate for {rows}, {policy}"
    yield (
        "workspace",
        memory.workspace,
        "for a moment: logits, or gradients beside a dequantized weight" if memory.workspace else "",
    )
    if memory.devices > 1:
        yield "gathered", memory.gathered, "for a moment: the parts of other devices, two blocks at a time"
