"""A Linear whose frozen weight is quantized, held as frozen parameters that any state dict can carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from lorakit.layers.kernels.dequantized import dequantizing
from lorakit.layers.plain_calls import parameter
from lorakit.layers.plain_form import PlainForm
from lorakit.values import LowRank, QuantizedWeight, Storage

if TYPE_CHECKING:
    from lorakit.hooks.protocols import Kernel, Linear, Quantizer


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b with W (out_features, in_features) quantized: the quantizer stores it, a kernel multiplies with it.

    What is stored are parameters that never train, each in its own dtype: they shard, and nothing sends them around as
    it does buffers. `kernels` are asked in turn which one multiplies; without one that fits, the weight is dequantized
    for each product. `form` is that of the layer whose place it takes, a Linear's unless given.
    """

    def __init__(
        self,
        quantized: QuantizedWeight,
        quantizer: Quantizer,
        bias: Tensor | None,
        kernels: Sequence[Kernel] = (),
        form: PlainForm | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        self.dequantized_dtype = quantized.dtype
        self.quantizer = quantizer
        self.kernels = tuple(kernels)
        self.form = form
        # of what is stored, taken before it is sharded
        self.checksums: dict[str, Tensor] = {}
        # the prefix keeps a quantizer's names apart from a module's own attributes
        self._stored = {name: f"weight_{name}" for name in quantized.tensors}
        for name, tensor in quantized.tensors.items():
            self.register_parameter(self._stored[name], nn.Parameter(tensor.detach(), requires_grad=False))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self._linear = self._chosen()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What the quantizer stores, by its own names."""
        # a replica of DataParallel keeps its parameters elsewhere
        held: Mapping[str, Any] = self._parameters or self._former_parameters  # type: ignore[assignment]
        return {name: held[own] for name, own in self._stored.items()}

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight as the quantizer stores it."""
        return QuantizedWeight(self.tensors, (self.out_features, self.in_features), self.dequantized_dtype)

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features), dequantized anew at each call."""
        return self.quantizer.dequantize(self.quantized)

    @property
    def storage(self) -> Storage:
        """How and where the weight is stored."""
        device = next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))
        return Storage(self.quantizer, (self.out_features, self.in_features), self.dequantized_dtype, device)

    def forward(self, x: Tensor, low_rank: Sequence[LowRank] = ()) -> Tensor:
        """Return y (..., out_features) from x (..., in_features), and with it what adapters add."""
        return self._linear(x, self.tensors, parameter(self, "bias"), low_rank)

    def plain(self, weight: Tensor) -> nn.Module:
        """Return the layer whose place this one takes, with this weight (out_features, in_features), in its dtype."""
        form = self.form or PlainForm(nn.Linear(self.in_features, self.out_features, device="meta"))
        return form.filled(weight.detach(), None if self.bias is None else self.bias.detach().to(weight.dtype))

    def dequantize_to(self, dtype: torch.dtype) -> None:
        """Multiply in another dtype from now on; what is stored stays as it is."""
        self.dequantized_dtype = dtype
        self._linear = self._chosen()

    def _chosen(self) -> Linear:
        storage = self.storage
        for kernel in self.kernels:
            if (linear := kernel.linear(storage)) is not None:
                return linear
        return dequantizing(storage)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.half()` means the weight that comes out and must not round the scales that are stored: what is stored
        # follows to another device and never to another dtype
        self.dequantized_dtype = fn(torch.empty(0, dtype=self.dequantized_dtype)).dtype
        stored = {id(tensor) for tensor in self.tensors.values()}

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if id(tensor) in stored and result.dtype != tensor.dtype else result

        super()._apply(moved, recurse)
        self._linear = self._chosen()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # scalars were stored without a dimension once
        for own in self._stored.values():
            found = state_dict.get(prefix + own)
            if isinstance(found, Tensor) and found.ndim == 0:
                state_dict[prefix + own] = found.view(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # a kernel's function need not pickle: whoever reads the layer asks the kernels again
        return {name: value for name, value in self.__dict__.items() if name != "_linear"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._linear = self._chosen()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.quantizer.name}"
