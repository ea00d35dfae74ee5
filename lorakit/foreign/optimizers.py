"""The optimizers that transformers' TrainingArguments name, as lorakit has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Counterpart:
    """An optimizer of lorakit's, whether its state pages, and the plugin that has it, if one has."""

    name: str
    paged: bool = False
    plugin: str = ""


_ADAMW, _ADAMW8BIT = Counterpart("adamw"), Counterpart("adamw8bit")

OPTIMIZERS: Mapping[str, Counterpart] = MappingProxyType({
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), _ADAMW),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), _ADAMW8BIT),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), Counterpart("adamw", paged=True)),
    "paged_adamw_8bit": Counterpart("adamw8bit", paged=True),
    "sgd": Counterpart("sgd"),
    "schedule_free_adamw": Counterpart("schedulefree", plugin="lorakit-schedulefree"),
})  # fmt: skip
# what takes AdamW's options
WITH_MOMENTS = frozenset({"adamw", "adamw8bit"})
