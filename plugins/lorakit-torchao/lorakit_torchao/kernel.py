"""The kernel of torchao's formats: compilers do not look into torchao's tensor subclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorakit.hooks import Linear, Storage
from lorakit_torchao.weight_only import WeightOnly


@dataclass(frozen=True)
class Untraced:
    """Dequantizes by torchao for each product, as one op to torch.compile."""

    name: ClassVar[str] = "torchao"

    def linear(self, storage: Storage) -> Linear | None:
        """Return what multiplies with a weight of one of torchao's formats."""
        if not isinstance(storage.quantizer, WeightOnly):
            return None
        from lorakit.layers.kernels.untraced import untraced

        return untraced(storage)
