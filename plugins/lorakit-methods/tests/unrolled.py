"""Convolutions and lookups as products with a matrix: for what PEFT knows of linear layers alone."""

from __future__ import annotations

from typing import Any

from peft_twin import model_of
from torch import Tensor, nn
from torch.nn import functional


class Unrolled(nn.Module):
    """The model of one kind whose `layer` is a Linear: over the patches of an image, or over one-hot tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        model = model_of(kind)
        self.kind, self.after = kind, model.get_submodule("after")
        layer: Any = model.get_submodule("layer")
        matrix = layer.weight.detach().T if kind == "embedding" else layer.weight.detach().flatten(1)
        self.layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=getattr(layer, "bias", None) is not None)
        self.layer.weight = nn.Parameter(matrix.clone())
        if self.layer.bias is not None:
            self.layer.bias = nn.Parameter(layer.bias.detach().clone())
        self.patches = {name: getattr(layer, name, None) for name in ("kernel_size", "stride", "padding")}

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model of this kind returns."""
        if self.kind == "embedding":
            tokens = functional.one_hot(x, self.layer.in_features)
            return self.after(self.layer(tokens.float()))
        patches = functional.unfold(x, **self.patches)  # type: ignore[arg-type]
        side = round(patches.shape[-1] ** 0.5)
        return self.after(self.layer(patches.mT).mT.unflatten(-1, (side, side)))


def as_linear(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an adapter file as those of the unrolled layer."""
    renamed = {name.replace("lora_embedding_A", "lora_A.weight"): value for name, value in tensors.items()}
    renamed = {name.replace("lora_embedding_B", "lora_B.weight"): value for name, value in renamed.items()}
    return {name: value.flatten(1) for name, value in renamed.items()}
