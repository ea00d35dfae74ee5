"""What earlier releases of transformers called a model's weights, by its own tables."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl
from lorakit.values import LowRankPart, Renamed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform

# in a table's pattern: whichever of the modules that lie one by one
ANY = "*."


@hookimpl
def lorakit_former_names(model: nn.Module, weights: Collection[str]) -> TransformersNames | None:
    # a model that is none of transformers' is there without it
    if "transformers" not in sys.modules:
        return None
    from transformers import PreTrainedModel

    return TransformersNames(model, weights) if isinstance(model, PreTrainedModel) else None


class TransformersNames:
    """The former names of the weights of one of transformers' models."""

    def __init__(self, model: PreTrainedModel, weights: Collection[str]) -> None:
        self._model, self._held = model, dict.fromkeys(weights, True)

    def former(self, weight: str) -> str:
        """Return what a weight of today was called."""
        return _renamed(weight, self._backwards)

    def today(self, former: str) -> Renamed | None:
        """Return the weight of the model that was called so, or None where no table says."""
        from transformers.core_model_loading import rename_source_key

        renamings, converters = self._forwards
        if not (renamings or converters):
            return None
        prefix = self._model.base_model_prefix
        now, pattern = rename_source_key(former, renamings, converters, prefix, self._held)
        if pattern is None:
            return Renamed(now) if now in self._held else None
        place = re.search(pattern.replace(ANY, r"(?P<index>\d+)\."), _renamed(former, renamings))
        index = int(place["index"]) if place and "index" in place.re.groupindex else 0
        return Renamed(now, pattern, index)

    def joined(self, parts: Sequence[LowRankPart], stack: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the changes of today's weights that those of former ones make together, by the weights' names.

        Each is a pair A (rank, inputs) and B (outputs, rank), or for a stack of weights A (stack, rank, inputs) and
        B (stack, outputs, rank). Every part has columns of its own in B: what is done to the rows of the weights is
        done to those of B, and A stays.
        Raises: ValueError where transformers does something else to them than that.
        """
        name, first = parts[0].renamed.name, parts[0].renamed.pattern
        converter = copy.deepcopy(next(one for one in self._forwards[1] if first in one.source_patterns))
        patterns = list(converter.source_patterns)
        widths = [_widest(parts, pattern) for pattern in patterns]
        starts = dict(zip(patterns, (sum(widths[:place]) for place in range(len(widths))), strict=True))
        most = max(stack if ANY in pattern else 1 for pattern in patterns)
        count = max(most, 1 + max(part.renamed.index for part in parts))
        # a table may share one row of modules out to two stacks
        if count > 2 * most:
            raise ValueError(f"there are {most} of them here, and one has the number {count - 1}")
        rank, like = sum(widths), parts[0]
        lora_A = like.lora_A.new_zeros(count, rank, like.lora_A.shape[1])
        columns = {
            pattern: [like.lora_B.new_zeros(_rows(parts, pattern), rank) for _ in range(count)] for pattern in patterns
        }
        for part in parts:
            assert part.renamed.pattern is not None
            start, own = starts[part.renamed.pattern], part.lora_A.shape[0]
            lora_A[part.renamed.index, start : start + own] = part.lora_A
            columns[part.renamed.pattern][part.renamed.index][:, start : start + own] = part.lora_B
        for pattern, made in columns.items():
            for one in made:
                converter.add_tensor(name, name, pattern, one)  # type: ignore[arg-type]
        try:
            found: Mapping[str, Any] = converter.convert(name, model=self._model, config=self._model.config)
        # what a table does to weights may be impossible for two thin matrices
        except Exception as error:
            raise ValueError(str(error).partition("\n")[0]) from error
        joined = {name: value[0] if isinstance(value, list) else value for name, value in found.items()}
        return {name: (lora_A if value.ndim == 3 else lora_A[0], value) for name, value in joined.items()}

    @cached_property
    def _forwards(self) -> tuple[list[WeightRenaming], list[WeightConverter]]:
        """The tables that read former names: those of weights that were called otherwise, and those of parts."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(self._model)
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        return renamings, [one for one in transforms if isinstance(one, WeightConverter)]

    @cached_property
    def _backwards(self) -> list[WeightTransform]:
        """The tables that give former names."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        transforms = get_model_conversion_mapping(self._model, add_legacy=False)
        return [one.reverse_transform() for one in reversed(transforms) if isinstance(one, WeightRenaming)]


def _widest(parts: Iterable[LowRankPart], pattern: str) -> int:
    return max((part.lora_A.shape[0] for part in parts if part.renamed.pattern == pattern), default=0)


def _rows(parts: Sequence[LowRankPart], pattern: str) -> int:
    """Return how many outputs a former weight has; one without a change is like its neighbours."""
    return next((part for part in parts if part.renamed.pattern == pattern), parts[0]).lora_B.shape[0]


def _renamed(name: str, renamings: Iterable[WeightTransform]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name
