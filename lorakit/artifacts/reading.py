"""Read an adapter folder, lorakit's or PEFT's, without trusting it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lorakit.artifacts.adapter_folder import CONFIG, PLAN, START, WEIGHTS
from lorakit.artifacts.peft_config import ON_CHANGED_BASE
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.plan import Plan

PICKLED = "adapter_model.bin"

# what decides the scale of an adapter and what else trained; the modules and ranks follow from the tensors themselves
READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias",
    "modules_to_save", "target_modules", "target_parameters", "layers_to_transform", "layers_pattern",
    "exclude_modules",
}  # fmt: skip
# what says where the adapter came from and how it started, and changes nothing in what it computes
INERT = {
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "lora_ga_config", "runtime_config", "megatron_core",
    "ensure_weight_tying", "qalora_group_size",
}  # fmt: skip
# starts that leave the base weight as it is; any other may have changed it, and the adapter folder does not hold it
STARTS_BESIDE_BASE = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder as read: its config, its tensors by PEFT's names, and the plan if lorakit wrote it.

    `taken` are lora_A and lora_B, by path, that the adapter's start took from the base weights.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    plan: Plan | None
    taken: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def read_adapter(folder: Path, allow_pickle: bool = False) -> AdapterFiles:
    """Return what an adapter folder holds. Raises: AdapterError for anything missing, damaged, unsafe or not known."""
    if not folder.is_dir():
        raise AdapterError(f"no such adapter folder: {folder}")
    plan = read_plan(folder)
    config, taken = _config(folder, has_plan=plan is not None), read_taken(folder)
    if not taken and str(config.get("peft_type")).endswith(ON_CHANGED_BASE):
        raise AdapterError(f"{folder} starts from a part of the base weights, and its {START} is missing")
    return AdapterFiles(folder, config, _tensors(folder, allow_pickle), plan, taken)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return an adapter folder's config as it is written. Raises: AdapterError."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise AdapterError(f"no such adapter folder: {folder}")
    if not path.is_file():
        raise AdapterError(f"{folder} is no adapter: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is no adapter config: it is a JSON {type(config).__name__}")
    return config


def _config(folder: Path, has_plan: bool) -> Mapping[str, Any]:
    path, config = folder / CONFIG, read_config(folder)
    if has_plan:
        # lorakit wrote it, and holds it against the plan
        return config
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is of PEFT type {config.get('peft_type')!r}; lorakit reads LORA")
    check_fields(path, config)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS_BESIDE_BASE:
        raise AdapterError(
            f"{path} says init_lora_weights={start!r}: this adapter belongs to a base weight that its start may have "
            "changed; "
            "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…) first"
        )
    return config


def check_fields(path: Path, config: Mapping[str, Any], known: Iterable[str] = ()) -> None:
    """Raise AdapterError for a field that changes what an adapter computes and is not known here.

    PEFT writes every field that it knows; one that is off changes nothing.
    """
    for name, value in config.items():
        if value and name not in {*READ, *INERT, *known}:
            raise AdapterError(f"{path} sets `{name}` to {value!r}, which lorakit cannot honour")


def read_taken(folder: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return lora_A and lora_B, by path, that an adapter's start took from the base weights. Raises: AdapterError."""
    path = folder / START
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
        paths = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return {path: (tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]) for path in paths}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise AdapterError(f"{path} is damaged or cut short: {error}") from error


def _tensors(folder: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    path = folder / WEIGHTS
    if path.is_file():
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise AdapterError(f"{path} is damaged or cut short: {error}") from error
    elif (folder / PICKLED).is_file():
        if not allow_pickle:
            raise AdapterError(
                f"{folder} holds its adapter as pickle ({PICKLED}), which can run code; --allow-pickle reads it"
            )
        tensors = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    else:
        raise AdapterError(f"{folder} is no adapter: it has no {WEIGHTS}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{path}: `{name}` holds NaN or infinite values")
    return tensors


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in an adapter folder; None if there is none. Raises: AdapterError."""
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (PlanError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: {error}") from error
