"""What each field of an adapter_config.json may hold, where lorakit computes with it; anyone may have written it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorakit.errors import AdapterError
from lorakit.quoting import shown

# what PEFT takes an absent field or null for, lorakit does too
Check = Callable[[Any], bool]


def check_types(path: Path, config: Mapping[str, Any]) -> None:
    """Raise AdapterError for a field that holds something else than PEFT writes there."""
    for name, (fits, what) in FIELDS.items():
        value = config.get(name)
        if value is not None and not fits(value):
            found = f"{name}={shown(value)}"
            if isinstance(value, dict):
                found = next(
                    (f"{name}[{shown(key)}]={shown(one)}" for key, one in value.items() if not _number(one)), found
                )
            raise AdapterError(f"{path} says {found}; {name} is {what}")


def _number(value: Any) -> bool:
    """Return whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _indices(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _tokens(value: Any) -> bool:
    return _indices(value) or (isinstance(value, dict) and all(map(_indices, value.values())))


def _text(value: Any) -> bool:
    return isinstance(value, str)


FIELDS: Mapping[str, tuple[Check, str]] = {
    "peft_type": (_text, "the name of a method"),
    "r": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number above 0"),
    "lora_alpha": (_number, "a number"),
    "lora_dropout": (lambda value: _number(value) and 0 <= value < 1, "at least 0 and below 1"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (_numbers, "an object of numbers by pattern"),
    "alpha_pattern": (_numbers, "an object of numbers by pattern"),
    "modules_to_save": (_texts, "a list of names"),
    "trainable_token_indices": (_tokens, "a list of tokens, or an object of such by module"),
    "target_parameters": (_texts, "a list of names"),
    "base_model_name_or_path": (_text, "the name of a model"),
}
