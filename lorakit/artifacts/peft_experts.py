"""Layers whose names PEFT takes for experts of transformers 4, and how to name them so that it does not.

For models whose experts became stacks in transformers 5, PEFT 0.21 rewrites `target_modules`: a `gate_proj` to it is a
stack of experts, in a dense layer as well (`_convert_peft_config_moe` in its transformers_weight_conversion). It leaves
`target_parameters` alone, and an adapter on the parameter `mlp.gate_proj.weight` has the same tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from torch import nn

from lorakit.planning.place import Place

# PEFT's own table, by the family to whose conversion transformers counts a model
OLD_NAMES = {
    "mixtral": {"gate", "w1", "w2", "w3"},
    "qwen2_moe": {"gate", "gate_proj", "up_proj", "down_proj"},
}


def misread_by_peft(paths: Iterable[str], model: nn.Module) -> frozenset[str]:
    """Return the modules among these whose names in `target_modules` would make PEFT adapt experts instead."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        return frozenset()
    conversions = importlib.import_module("transformers.conversion_mapping")
    families = {"mixtral": "mixtral", **getattr(conversions, "_MODEL_TO_CONVERSION_PATTERN", {})}
    old = OLD_NAMES.get(families.get(model_type, ""), set())
    return frozenset(path for path in paths if Place(path).leaf in old)
