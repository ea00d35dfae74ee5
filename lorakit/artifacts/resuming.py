"""Go on with an adapter from where a checkpoint of the same plan left it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.application.sharding import fill
from lorakit.application.state import Adapted, NamedAdapter
from lorakit.artifacts.loading import planned_files
from lorakit.artifacts.peft_names import adapter_tensors
from lorakit.artifacts.reading import read_plan
from lorakit.errors import AdapterError
from lorakit.planning.difference import difference
from lorakit.planning.plan import Plan

logger = logging.getLogger("lorakit")
# what may be another when a run goes on: nothing of it is in what the model computes
FREE = {"lr", "lr_ratio", "paged"}
# what another machine's decomposition of the same weight may differ by
SAME_START = 1e-3


def resume(model: nn.Module, state: Adapted, name: str, folder: Path) -> None:
    """Copy a checkpoint's tensors into the adapter that it is of, bit for bit.

    Raises: AdapterError naming the first thing in which their plans differ; nothing is changed then.
    """
    adapter = state.get(name)
    saved = read_plan(folder)
    if saved is None:
        raise AdapterError(f"{folder} has no plan.json: what it was trained as cannot be held against `{name}`")
    check_same(saved, adapter, str(folder))
    files, _ = planned_files(folder, state.inventory, model, state.plugins)
    check_start(files.taken, adapter, str(folder))
    with torch.no_grad():
        for one in adapter_tensors(model, adapter):
            fill(one.tensor, files.tensors[one.file_name])


def check_same(saved: Plan, adapter: NamedAdapter, where: str) -> None:
    """Raise AdapterError if an adapter is not of a saved plan, and say in what else the two differ."""
    if found := first_difference(saved, adapter.plan):
        raise AdapterError(
            f"{where} is of another run than `{adapter.name}`: {found}; write the spec as it was then, or begin anew"
        )
    if others := ", ".join(dict.fromkeys(_free_differences(saved, adapter.plan))):
        logger.warning(
            "%s was trained by another optimizer than `%s` names now: %s; a trainer that brings the optimizer's state "
            "back goes on with the rates of then",
            where, adapter.name, others,
        )  # fmt: skip


def check_start(taken: Mapping[str, tuple[Tensor, Tensor]], adapter: NamedAdapter, where: str) -> None:
    """Raise AdapterError if the start of an adapter took something else from the base weights than that of a saved one.

    With another seed, or of another base, the base that is left is another.
    """
    for path, here in adapter.taken.items():
        if path not in taken or _apart(taken[path], here) > SAME_START:
            raise AdapterError(
                f"{where} is of another run than `{adapter.name}`: its start took something else from the base weight "
                f"of `{path}`; apply the spec with the seed of then, to the base of then, or begin anew"
            )


def _apart(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return how far two products of A (rank, inputs) and B (outputs, rank) are apart, relative to the second."""
    first, second = ([each.double().cpu() for each in pair] for pair in (one, other))
    if any(mine.shape[axis] != theirs.shape[axis] for mine, theirs, axis in zip(first, second, (1, 0), strict=True)):
        return math.inf
    # ‖X · Y‖² is the trace of XᵀX · YYᵀ, which no rank makes large
    wide, tall = torch.cat((first[0], second[0])), torch.cat((first[1], -second[1]), 1)
    norms = [float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()) for a, b in ((wide, tall), second)]
    return norms[0] / norms[1] if norms[1] else norms[0]


def _free_differences(before: Plan, after: Plan) -> Iterable[str]:
    found = difference(before, after)
    fields = [*found.totals, *(field for change in found.changes for field in change.fields if field[0] in FREE)]
    for name, was, will in fields:
        if name in {"optimizer", *FREE}:
            yield f"{name} {was or 'none'} → {will or 'none'}"


def first_difference(before: Plan, after: Plan) -> str:
    """Return in what two plans of a model compute something else first, in words; nothing if they do not."""
    for change in difference(before, after).changes:
        if change.kind != "change":
            return f"`{change.path}` is decided by {'it' if change.kind == 'remove' else 'the other'} alone"
        for name, was, will in change.fields:
            if name not in FREE:
                return f"`{change.path}` had {f'{name} {was}' if was else f'no {name}'}, and has {will or 'none'} now"
    return ""
