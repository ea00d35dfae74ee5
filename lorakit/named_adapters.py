"""`lorakit.adapters(model)`: the adapters of a model by name, and what can be done with them while they stay on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lorakit.application import switching
from lorakit.application.removal import remove
from lorakit.application.state import Adapted, state_of, unwrapped
from lorakit.artifacts.merge import MergeReport, merge_for_now, unmerge
from lorakit.artifacts.swapping import swap

if TYPE_CHECKING:
    from lorakit.layers.strength import Strength
    from lorakit.planning.plan import Plan


class Adapters:
    """The adapters of one model. Nothing here loads a base weight or trains."""

    def __init__(self, model: nn.Module) -> None:
        """Raises: ModelError if the model has no adapters."""
        self._state: Adapted = state_of(model)
        self._model = unwrapped(model)

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter's name, in the order in which they were applied or loaded."""
        return tuple(self._state.named)

    @property
    def used(self) -> Mapping[str, Strength]:
        """The adapters in use and their factors; inside `rows` a tensor with a factor for each row."""
        return {adapter.name: adapter.strength for adapter in self._state.used}

    def plan(self, name: str) -> Plan:
        """Return the plan that made an adapter. Raises: ModelError."""
        return self._state.get(name).plan

    def use(self, name: str | Mapping[str, float]) -> None:
        """Use one adapter, or several, each change multiplied by its factor; the others rest and do not train.

        Raises: ModelError for an unknown name, or two adapters that trained the same module in full.
        """
        switching.use(self._model, self._state, {name: 1.0} if isinstance(name, str) else name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the base model alone answer inside the block; what was in use before is so again afterwards."""
        with switching.disabled(self._model, self._state):
            yield

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Give every row of the batches inside the block the adapter named for it; None leaves a row to the base.

        Raises: ModelError for an unknown name, and naming a module that does not see rows apart.
        """
        with switching.rows(self._model, self._state, names):
            yield

    def swap(self, name: str, folder: str | Path, *, allow_pickle: bool = False) -> None:
        """Put the tensors of a saved adapter into the place of one that is there.

        No module changes, so that nothing compiles again. Ranks may be smaller than those in place; a scaling that
        differs goes into lora_B.
        Raises: AdapterError if the folder adapts other modules, or has a larger rank; nothing is changed then.
        """
        swap(self._model, self._state, name, Path(folder), self._state.plugins, allow_pickle=allow_pickle)

    def remove(self, name: str) -> None:
        """Take an adapter off the model. Raises: ModelError if it is the only one: `lorakit.merge` ends that."""
        remove(self._model, self._state, name)

    def merge(self) -> MergeReport:
        """Fold the adapters in use into plain weights beside the base's own, for faster answers until `unmerge`.

        Needs the memory of the adapted weights once more, in the dtype that they compute in. Raises: ModelError,
        AdapterError if a merged weight is not finite; the model is unchanged then.
        """
        return merge_for_now(self._model, self._state)

    def unmerge(self) -> None:
        """Bring back the base's own weights, bit for bit, with the adapters beside them. Raises: ModelError."""
        unmerge(self._model, self._state)

    @contextmanager
    def merged(self) -> Iterator[MergeReport]:
        """Merge for the time of the block."""
        report = self.merge()
        try:
            yield report
        finally:
            self.unmerge()
