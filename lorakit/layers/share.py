"""How far an adapter is in use: a factor on its change, one for all or one for each row of a batch.

Every module that a method's `adapt` returns has an attribute `share`, 1.0 at first. At 0.0 it answers as its base layer
does; a tensor (rows,) holds a factor for every row of the next batches.
"""

from __future__ import annotations

from torch import Tensor, nn

from lorakit.errors import ModelError

Share = float | Tensor


class RowsError(ModelError):
    """A layer does not see the rows of the batch one by one; `layer` is its adapter."""

    def __init__(self, layer: nn.Module, message: str) -> None:
        super().__init__(message)
        self.layer = layer


def is_off(share: Share) -> bool:
    """Return whether the adapter changes nothing; never looks at a tensor's values."""
    return not isinstance(share, Tensor) and share == 0.0


def factor(layer: nn.Module, share: Share, update: Tensor) -> float | Tensor:
    """Return what an update (rows, ...) is multiplied by: a number, or a tensor (rows, 1, ...).

    Raises: RowsError where the first dimension of the update is not that of the batch.
    """
    if not isinstance(share, Tensor):
        return share
    if update.ndim < 2 or update.shape[0] != share.shape[0]:
        raise RowsError(
            layer, f"it sees {tuple(update.shape)}, and the batch has {share.shape[0]} rows: they are not apart here"
        )
    return share.to(update.dtype).view(-1, *(1 for _ in update.shape[1:]))


def one_factor(layer: nn.Module, share: Share) -> float:
    """Return the factor of a change of the weight itself, which all rows see. Raises: RowsError for one a row."""
    if isinstance(share, Tensor):
        raise RowsError(layer, "its weight serves all rows at once")
    return share
