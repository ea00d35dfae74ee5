"""Read an adapter folder, lorakit's or PEFT's, without trusting it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorakit.artifacts.adapter_folder import CONFIG, PLAN, START, WEIGHTS
from lorakit.artifacts.foreign_names import plain_names
from lorakit.artifacts.json_files import MAX_PLAN_BYTES, read_object, read_text
from lorakit.artifacts.peft_config import ON_CHANGED_BASE
from lorakit.artifacts.peft_fields import INERT, READ, check_types
from lorakit.dtypes import name_of
from lorakit.errors import AdapterError, PlanError
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan
from lorakit.quoting import named, shown

PICKLED = "adapter_model.bin"
# twice what an adapter on every expert of the largest models holds; a name is a path in a model
MAX_TENSORS, MAX_NAME = 300_000, 1_000
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# of what batch norms and the like count
COUNTS = torch.int64

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
    if not _stands(folder, Path.is_dir):
        raise AdapterError(f"no such adapter folder: {folder}")
    plan = read_plan(folder)
    config, taken = _config(folder, has_plan=plan is not None), read_taken(folder)
    if not taken and str(config.get("peft_type")).endswith(ON_CHANGED_BASE):
        raise AdapterError(f"{folder} starts from a part of the base weights, and its {START} is missing")
    tensors = _tensors(folder, allow_pickle)
    # names of lorakit's own are those that it wrote
    return AdapterFiles(folder, config, tensors if plan else plain_names(tensors, folder), plan, taken)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return an adapter folder's config as it is written. Raises: AdapterError."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise AdapterError(f"no such adapter folder: {folder}")
    if not _stands(path):
        raise AdapterError(f"{folder} is no adapter: it has no {CONFIG}")
    config = read_object(path, "adapter config", AdapterError)
    check_types(path, config)
    return config


def _config(folder: Path, has_plan: bool) -> Mapping[str, Any]:
    path, config = folder / CONFIG, read_config(folder)
    if has_plan:
        # lorakit wrote it, and holds it against the plan
        return config
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is of PEFT type {shown(config.get('peft_type'))}; lorakit reads LORA")
    check_fields(path, config)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS_BESIDE_BASE:
        raise AdapterError(
            f"{path} says init_lora_weights={shown(start)}: this adapter belongs to a base weight that its start may "
            "have changed; "
            "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…) first"
        )
    return config


def check_fields(path: Path, config: Mapping[str, Any], known: Iterable[str] = ()) -> None:
    """Raise AdapterError for a field that changes what an adapter computes and is not known here.

    PEFT writes every field that it knows; one that is off changes nothing.
    """
    for name, value in config.items():
        if value and name not in {*READ, *INERT, *known}:
            raise AdapterError(f"{path} sets {named(name)} to {shown(value)}, which lorakit cannot honour")


def read_taken(folder: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return lora_A and lora_B, by path, that an adapter's start took from the base weights. Raises: AdapterError."""
    path = folder / START
    if not _stands(path):
        return {}
    return pairs_of(_stored(path), str(path))


def pairs_of(tensors: Mapping[str, Tensor], where: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return lora_A and lora_B by path from tensors that are named behind their paths. Raises: AdapterError."""
    paths = dict.fromkeys(Place(name).holder for name in tensors)
    try:
        return {path: (tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]) for path in paths}
    except KeyError as error:
        raise AdapterError(f"{where} is damaged: it lacks {shown(error.args[0])}") from error


def _tensors(folder: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    if _stands(folder / WEIGHTS):
        return _stored(folder / WEIGHTS, COUNTS)
    path = folder / PICKLED
    if not _stands(path):
        raise AdapterError(f"{folder} is no adapter: it has no {WEIGHTS}")
    if not allow_pickle:
        raise AdapterError(
            f"{folder} holds its adapter as pickle ({PICKLED}), which can run code; --allow-pickle reads it"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    # a pickle is a program: it can fail in every way that there is
    except Exception as error:
        raise AdapterError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(tensors, dict):
        raise AdapterError(f"{path} holds no tensors by name, but a {type(tensors).__name__}")
    _check_names(path, tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise AdapterError(f"{path}: {named(name)} is no plain tensor")
        _check_values(path, name, tensor, (*FLOATS, COUNTS))
    return tensors


def _stored(path: Path, *more: torch.dtype) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file, each of finite values. Raises: AdapterError."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            _check_names(path, names)
            tensors = {name: file.get_tensor(name) for name in names}
    # TypeError, RuntimeError and AttributeError: a dtype that this torch has not, or an impossible shape
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged or cut short: {error}") from error
    for name, tensor in tensors.items():
        _check_values(path, name, tensor, (*FLOATS, *more))
    return tensors


def _check_names(path: Path, names: Collection[Any]) -> None:
    if len(names) > MAX_TENSORS:
        raise AdapterError(f"{path} holds {len(names):,} tensors; at most {MAX_TENSORS:,} are read")
    for name in names:
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise AdapterError(
                f"{path} holds a tensor called {shown(name)}; a name has {MAX_NAME:,} characters at most"
            )


def _check_values(path: Path, name: str, tensor: Tensor, dtypes: Collection[torch.dtype]) -> None:
    if tensor.dtype not in dtypes:
        raise AdapterError(
            f"{path}: {named(name)} is {name_of(tensor.dtype)}; an adapter is {', '.join(map(name_of, FLOATS))}"
        )
    if not tensor.numel():
        raise AdapterError(
            f"{path}: {named(name)} is {tuple(tensor.shape)}, which has no elements; a model whose parts lie on "
            "several devices (ZeRO-3, FSDP) has to gather them before its adapter is saved"
        )
    # float64 becomes float32 in the model
    values = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not bool(torch.isfinite(values).all()):
        raise AdapterError(f"{path}: {named(name)} holds NaN or infinite values")


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in an adapter folder; None if there is none. Raises: AdapterError."""
    path = folder / PLAN
    if not _stands(path):
        return None
    try:
        return Plan.from_json(read_text(path, AdapterError, MAX_PLAN_BYTES))
    except PlanError as error:
        raise AdapterError(f"{path}: {error}") from error


def _stands(path: Path, check: Callable[[Path], bool] = Path.is_file) -> bool:
    try:
        return check(path)
    # a name that is too long, a folder that may not be looked into
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
