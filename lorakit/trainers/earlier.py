"""An adapter as it was, under a name of its own: its values alone, for the time in which they stand in its place.

That is the reference of a preference loss where training goes on from a trained adapter. No layer comes for it, so that
it answers to the bit as the adapter did, whatever method, start or base the adapter has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.sharding import fill
from lorakit.application.state import state_of
from lorakit.artifacts.peft_names import adapter_tensors
from lorakit.artifacts.resuming import resume
from lorakit.errors import AdapterError


class Earlier:
    """The values that an adapter had when this was made; `own` holds the adapter's while these stand in its place."""

    def __init__(self, model: nn.Module, of: str) -> None:
        self.of = of
        self.values = self._live(model)
        self.own: dict[str, Tensor] | None = None

    def stand(self, model: nn.Module) -> None:
        """Let these values stand where the adapter has its own."""
        if self.own is None:
            self.own = self._live(model)
            self._put(model, self.values)

    def leave(self, model: nn.Module) -> None:
        """Bring the adapter's own values back."""
        if self.own is not None:
            self._put(model, self.own)
            self.own = None

    def load(self, model: nn.Module, folder: Path) -> None:
        """Take the values that a checkpoint holds. Raises: AdapterError if its plan is not the adapter's."""
        now = self._live(model)
        resume(model, state_of(model), self.of, folder)
        self.values = self._live(model)
        self._put(model, now)

    def fitting(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a checkpoint's values as they can stand here. Raises: AdapterError if they cannot."""
        if values.keys() != self.values.keys() or any(
            values[name].shape != one.shape for name, one in self.values.items()
        ):
            raise AdapterError(
                f"this checkpoint holds `{self.of}` as it was, and with other tensors than it has here; write the spec "
                "as it was then, or begin anew"
            )
        return {name: value.to(self.values[name], copy=True) for name, value in values.items()}

    def _put(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Copy values into the adapter's tensors, unseen by a backward pass on its way: they come back before it."""
        with torch.no_grad():
            for one in adapter_tensors(model, state_of(model).get(self.of)):
                fill(one.tensor, values[one.file_name])

    def _live(self, model: nn.Module) -> dict[str, Tensor]:
        tensors = adapter_tensors(model, state_of(model).get(self.of))
        return {one.file_name: one.tensor.detach().clone() for one in tensors}
