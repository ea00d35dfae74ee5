"""What each field that a spec has a counterpart for may hold, by the common names; anyone may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.artifacts.peft_fields import FIELDS as PEFT_FIELDS
from lorakit.artifacts.peft_fields import Check, is_indices, is_number, is_text, is_texts


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return is_number(value) and value == int(value) and value >= 1


def _patterns(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(one) and one > 0 for one in value.values())


def _ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(_count(one) for one in value.values())


_NAMES = (lambda value: is_text(value) or is_texts(value), "a list of names, or a regex")
_RATE = (lambda value: is_number(value) and value > 0, "a number above 0")
_FLAG = (_flag, "true or false")

FIELDS: Mapping[str, tuple[Check, str]] = {
    **PEFT_FIELDS,
    "lora_alpha": _RATE,
    "rank_pattern": (_ranks, "an object of whole numbers above 0, by pattern"),
    "alpha_pattern": (_patterns, "an object of numbers above 0, by pattern"),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "layers_to_transform": (
        lambda value: is_indices(value if isinstance(value, list) else [value]),
        "an index, or a list of such",
    ),
    "init_lora_weights": (lambda value: isinstance(value, bool | str), "true, false or the name of a start"),
    "lr_ratio": _RATE,
    "learning_rate": _RATE,
    "optim": (is_text, "the name of an optimizer"),
    "weight_decay": (lambda value: is_number(value) and value >= 0, "a number, 0 or more"),
    "bnb_4bit_quant_type": (lambda value: value in ("nf4", "fp4"), "nf4 or fp4"),
    "base_model": (is_text, "the name of a model"),
    **dict.fromkeys(("per_device_train_batch_size", "max_length"), (_count, "a whole number above 0")),
    **dict.fromkeys(("use_dora", "load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"), _FLAG),
}
