"""LoRA around a lookup of rows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lorakit.layers.kernels.low_rank import add_wide
from lorakit.layers.lora_layer import LoRALayer


class LoRAEmbedding(LoRALayer):
    """h = W₀[i] + scaling · (B · A)[:, i] for a token i; dropout does not apply to tokens.

    Shapes: lora_A (rank, num_embeddings); lora_B (embedding_dim, rank); i (...); h (..., embedding_dim).
    """

    @property
    def _scale(self) -> float | Tensor:
        # some models multiply what they look up inside their embedding class (Gemma: by the root of the width)
        return getattr(self.bare_layer, "embed_scale", 1.0)

    @property
    def _padding(self) -> int | None:
        # the row that stands for no token learns nothing
        padding: int | None = getattr(self.bare_layer, "padding_idx", None)
        return padding

    def change(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """Return the change of the weight (num_embeddings, embedding_dim)."""
        return self.scaling * (lora_B @ lora_A).T

    @property
    def bias(self) -> None:
        """A lookup has no bias."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return h (..., embedding_dim) from tokens (...), in the base layer's dtype."""
        result: Tensor = self.base_layer(tokens)
        if self.is_off:
            return result
        rows = (functional.embedding(tokens, self.lora_A.T, self._padding) * self._scale).to(result.dtype)
        return add_wide(result, rows, self.lora_B, self.scaling_of(rows))
