"""What earlier releases of transformers called a model's weights, by its own tables."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

# in a table's pattern: whichever of the modules that lie one by one
ANY = "*."


@dataclass(frozen=True, slots=True)
class Renamed:
    """A weight's name today; `pattern` is what its former name fits where several weights became one, or one several.

    `index` is its place among modules that lay one by one.
    """

    name: str
    pattern: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """The change B·A of one former weight, A (rank, inputs) and B (outputs, rank), and what its former name fits."""

    renamed: Renamed
    lora_A: Tensor
    lora_B: Tensor


class FormerNames:
    """Finds the names of today for those of earlier releases; of any model that is not transformers' own, none."""

    def __init__(self, model: nn.Module, weights: Collection[str]) -> None:
        self._model, self._held = model, dict.fromkeys(weights, True)
        transforms = get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._prefix = getattr(model, "base_model_prefix", "") if transforms else None

    def of(self, name: str) -> Renamed | None:
        """Return what a weight is called today, or None where no table says so."""
        if self._prefix is None:
            return None
        now, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)
        if pattern is None:
            return Renamed(now) if now in self._held else None
        place = re.search(pattern.replace(ANY, r"(?P<index>\d+)\."), _renamed(name, self._renamings))
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
        converter = copy.deepcopy(next(one for one in self._converters if first in one.source_patterns))
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


def _widest(parts: Iterable[LowRankPart], pattern: str) -> int:
    return max((part.lora_A.shape[0] for part in parts if part.renamed.pattern == pattern), default=0)


def _rows(parts: Sequence[LowRankPart], pattern: str) -> int:
    """Return how many outputs a former weight has; one without a change is like its neighbours."""
    return next((part for part in parts if part.renamed.pattern == pattern), parts[0]).lora_B.shape[0]


def former_paths(model: nn.Module, paths: Iterable[str]) -> Mapping[str, str]:
    """Return what modules were called in earlier releases, by their paths, where it was something else."""
    if not isinstance(model, PreTrainedModel):
        return {}
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [one.reverse_transform() for one in reversed(transforms) if isinstance(one, WeightRenaming)]
    if not renamings:
        return {}
    # tables speak of weights, and what is at the end of a path may be cut off at a dot
    former = {path: _renamed(f"{path}.weight", renamings).removesuffix(".weight") for path in paths if path}
    return {path: name for path, name in former.items() if name != path}


def _renamed(name: str, renamings: Iterable[WeightTransform]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name
