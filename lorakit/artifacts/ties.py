"""Tied tensors that an adapter's folder holds whole, under the name of each of their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorakit.artifacts.peft_names import PREFIX, full_name
from lorakit.artifacts.reading import AdapterFiles
from lorakit.errors import AdapterError
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Tie:
    """A tied tensor by its name in the file, with those of its other ends, and whether it trained."""

    name: str
    others: tuple[str, ...]
    trained: bool


def ties_of(plan: Plan, inventory: Inventory) -> list[Tie]:
    """Return the tied tensors that a folder holds whole."""
    ties = []
    for entry in plan.entries:
        for parameter in inventory.modules[entry.path].parameters if entry.is_whole else ():
            own = Place(entry.path).inside(parameter.name)
            others = tuple(f"{PREFIX}{end}" for end in inventory.owners[parameter.weight_id] if end != own)
            if others:
                ties.append(Tie(full_name(entry, parameter.name), others, entry.train))
    return ties


def check_ties(ties: Sequence[Tie], files: AdapterFiles) -> None:
    """Refuse what gave the ends of a tie values of their own, which one tensor cannot hold."""
    for tie in ties:
        for other in tie.others:
            here, there = files.tensors.get(tie.name), files.tensors.get(other)
            # lorakit trains both ends at once, and PEFT where it ensures ties; what is frozen is that of both
            apart = files.plan is None and not files.config.get("ensure_weight_tying")
            alone = there is None and apart and tie.trained
            if alone or (here is not None and there is not None and not torch.equal(here, there)):
                what = f"`{other}` as it was" if alone else f"other values for `{other}`"
                raise AdapterError(
                    f"{files.folder} has {what} beside `{tie.name}`, and this model holds both as one tensor: untie "
                    "them first (tie_word_embeddings=False, with a copy of the weight)"
                )
