"""`dora`: LoRA for the direction of each row of the weight, and a length of its own for each.

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.hooks import LayerShape, low_rank_fields, low_rank_table, start_low_rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.hooks import ParameterPlan, PlanEntry, Settings, StartContext


@dataclass(frozen=True)
class DoRA:
    """Weight-decomposed adaptation: W = m · V / ‖V‖ by row, V = W₀ + (alpha / rank) · B · A.

    The magnitudes m start as the lengths of the rows. The norm takes no part in the gradient (section 4.3).
    """

    name: ClassVar[str] = "dora"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})
    # the norm under the magnitude counts as constant
    partial_gradients: ClassVar[bool] = True

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        """Return lora_A and lora_B, as LoRA has them, and the magnitude of every output; none for a parameter."""
        from lorakit.hooks import ParameterPlan

        if layer.is_parameter:
            return []
        shape = (1, layer.out_features, *(1 for _ in layer.kernel)) if layer.kernel else (layer.out_features,)
        # in 16 bits the magnitudes would not be the lengths, and a fresh adapter would change the weight
        magnitude = ParameterPlan("magnitude", shape, file_name="lora_magnitude_vector", dtype="float32")
        return [*low_rank_table(layer, settings), magnitude]

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        """Fill lora_A and lora_B as the rule's `init` says; the magnitudes are the lengths of what is stored then."""
        start_low_rank(parameters, context)
        lora_A, lora_B = parameters["lora_A"].flatten(1), parameters["lora_B"].flatten(1)
        weight = context.stored_weight()
        weight = weight + (context.scaling * (lora_B @ lora_A)).to(weight.device)
        parameters["magnitude"].copy_(weight.norm(dim=1).view_as(parameters["magnitude"]))

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        """Return the adapter of this kind of layer; None for a kind that it does not know."""
        from lorakit_methods.dora_layers import DoRAConv, DoRAEmbedding, DoRALinear

        assert entry.shape is not None and entry.adapter is not None
        kinds = {"linear": DoRALinear, "linear_transposed": DoRALinear, "embedding": DoRAEmbedding}
        made = DoRAConv if entry.shape.kernel else kinds.get(entry.shape.kind)
        if made is None:
            return None
        settings = entry.adapter.settings
        return made(layer, entry.shape, parameters, scaling=settings.factor, dropout=settings.dropout or 0.0)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any]:
        """Return the fields of PEFT's LoraConfig."""
        return {**low_rank_fields(entries), "use_dora": True}
