"""A Plan as notebooks show it: its modules and its memory, with a bar for bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from lorakit.dtypes import short_name
from lorakit.language.printer import call_text
from lorakit.planning.report import decided_by, grouped, memory_rows, memory_title, show_bytes

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan, PlanEntry

STYLE = "text-align: left; padding: 2px 12px 2px 0"
BAR = "display: inline-block; height: 0.7em; background: {color}; width: {width:.1f}px"
WIDTH = 160.0


def plan_html(plan: Plan) -> str:
    """Return a plan as HTML without scripts, classes or anything fetched."""
    title = f"<p><b>{escape(plan.model_class)}</b>: {plan.model_parameters:,} parameters + {plan.added:,} added, "
    title += f"{plan.trainable:,} trainable ({plan.trainable_share:.2%})"
    title += f", {escape(plan.compute.words)}</p>" if plan.compute and plan.compute.words else "</p>"
    notes = "".join(f"<div><small>note: {escape(note)}</small></div>" for note in plan.notes)
    return title + _modules(plan) + "<br>" + _memory(plan) + notes


def _modules(plan: Plan) -> str:
    rows = grouped(plan.entries, every_module=False)
    largest = max((row.entries[0].bytes.weight_before for row in rows), default=1)
    lines = []
    for row in rows:
        entry = row.entries[0]
        weight = short_name(entry.dtype)
        lines.append(
            (
                escape(row.pattern),
                str(len(row.entries)),
                str(entry.shape or ""),
                escape(f"{weight} → {call_text(entry.quant)}" if entry.quant else weight),
                _what(entry),
                f"{entry.added:,}" if entry.added else "",
                _bars(entry.bytes.weight_before, entry.bytes.weight_after, largest),
                escape(decided_by(entry, plan)),
            )
        )
    return _table(("module", "count", "out × in", "weight", "adapter", "added each", "bytes each", "decided by"), lines)


def _memory(plan: Plan) -> str:
    memory = plan.memory
    rows = [
        (escape(name), show_bytes(count), _bar(count, memory.peak, "#4c78a8"), escape(remark))
        for name, count, remark in memory_rows(memory)
    ]
    rows.append(("<b>peak</b>", f"<b>{show_bytes(memory.peak)}</b>", "", ""))
    return _table((escape(memory_title(memory)), "", "", ""), rows)


def _bars(before: int, after: int, largest: int) -> str:
    """Return the bytes of a weight before and after, as two bars on top of each other where they differ."""
    if before == after:
        return f"{_bar(before, largest, '#bab0ac')} {show_bytes(before)}"
    return (
        f"{_bar(before, largest, '#bab0ac')} {show_bytes(before)}<br>"
        f"{_bar(after, largest, '#4c78a8')} {show_bytes(after)}"
    )


def _bar(count: int, largest: int, color: str) -> str:
    width = WIDTH * count / largest if largest else 0.0
    return f'<span style="{BAR.format(color=color, width=width)}"></span>'


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th style="{STYLE}">{header}</th>' for header in headers)
    body = "".join("<tr>" + "".join(f'<td style="{STYLE}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _what(entry: PlanEntry) -> str:
    if entry.adapter is None:
        return "trains" * entry.train
    rank = entry.adapter.settings.rank
    return f"rank {rank}" if rank else entry.adapter.method.name
