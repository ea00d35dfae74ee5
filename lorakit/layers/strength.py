"""How far an adapter is in use: a factor on its change, one for all or one for each row of a batch.

Every adapter has an attribute `strength`, 1.0 at first. At 0.0 it answers as its base layer
does; a tensor (rows,) holds a factor for every row of the next batches.
"""

from __future__ import annotations

from torch import Tensor, nn

from lorakit.errors import ModelError

Strength = float | Tensor


class RowsError(ModelError):
    """A layer does not see the rows of the batch one by one; `layer` is its adapter."""

    def __init__(self, layer: nn.Module, message: str) -> None:
        super().__init__(message)
        self.layer = layer


def is_off(strength: Strength) -> bool:
    """Return whether the adapter changes nothing; never looks at a tensor's values."""
    return not isinstance(strength, Tensor) and strength == 0.0


def factor(layer: nn.Module, strength: Strength, update: Tensor) -> float | Tensor:
    """Return what an update (rows, ...) is multiplied by: a number, or a tensor (rows, 1, ...).

    Raises: RowsError where the first dimension of the update is not that of the batch.
    """
    if not isinstance(strength, Tensor):
        return strength
    if update.ndim < 2 or update.shape[0] != strength.shape[0]:
        raise RowsError(
            layer, f"it sees {tuple(update.shape)}, and the batch has {strength.shape[0]} rows: they are not apart here"
        )
    return strength.to(update.dtype).view(-1, *(1 for _ in update.shape[1:]))


def one_factor(layer: nn.Module, strength: Strength) -> float:
    """Return the factor of a change of the weight itself, which all rows see. Raises: RowsError for one a row."""
    if isinstance(strength, Tensor):
        raise RowsError(layer, "its weight serves all rows at once")
    return strength
