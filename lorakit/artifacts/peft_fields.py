"""What each field of an adapter_config.json may hold, where lorakit computes with it; anyone may have written it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorakit.errors import AdapterError
from lorakit.quoting import shown

# what decides the scale of an adapter and what else trained; the modules and ranks follow from the tensors themselves
READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias",
    "modules_to_save", "target_modules", "target_parameters", "layers_to_transform", "layers_pattern",
    "exclude_modules", "trainable_token_indices",
}  # fmt: skip
# what says where the adapter came from and how it started, and changes nothing in what it computes
INERT = {
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "lora_ga_config", "runtime_config", "megatron_core",
    "ensure_weight_tying", "qalora_group_size",
}  # fmt: skip
# what PEFT takes an absent field or null for, lorakit does too
Check = Callable[[Any], bool]


def check_types(
    path: Path,
    config: Mapping[str, Any],
    fields: Mapping[str, tuple[Check, str]] | None = None,
    called: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise AdapterError for a field that holds something else than PEFT writes there.

    `fields` replaces PEFT's own table, and `called` is what a file calls some of them.
    """
    for field, (fits, what) in (FIELDS if fields is None else fields).items():
        value, name = config.get(field), called.get(field, field)
        if value is not None and not fits(value):
            found = f"{name}={shown(value)}"
            if isinstance(value, dict):
                found = next(
                    (f"{name}[{shown(key)}]={shown(one)}" for key, one in value.items() if not is_number(one)), found
                )
            raise AdapterError(f"{path} says {found}; {name} is {what}")


def is_number(value: Any) -> bool:
    """Return whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _names(value: Any) -> bool:
    return is_text(value) or is_texts(value)


def is_indices(value: Any) -> bool:
    """Return whether a value is a list of indices that a 32-bit integer holds."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _layers(value: Any) -> bool:
    return is_indices([value]) or is_indices(value)


def _tokens(value: Any) -> bool:
    return is_indices(value) or (isinstance(value, dict) and all(map(is_indices, value.values())))


def is_text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


FIELDS: Mapping[str, tuple[Check, str]] = {
    "peft_type": (is_text, "the name of a method"),
    "r": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number above 0"),
    "lora_alpha": (is_number, "a number"),
    "lora_dropout": (lambda value: is_number(value) and 0 <= value < 1, "at least 0 and below 1"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (_numbers, "an object of numbers by pattern"),
    "alpha_pattern": (_numbers, "an object of numbers by pattern"),
    "modules_to_save": (is_texts, "a list of names"),
    "target_modules": (_names, "a list of names, or an expression"),
    "exclude_modules": (_names, "a list of names, or an expression"),
    "layers_to_transform": (_layers, "a number of a layer, or a list of such"),
    "layers_pattern": (_names, "a name, or a list of such"),
    "trainable_token_indices": (_tokens, "a list of tokens, or an object of such by module"),
    "target_parameters": (is_texts, "a list of names"),
    "base_model_name_or_path": (is_text, "the name of a model"),
}
