"""Base weights that an adapter file holds beside its adapters, frozen: embeddings and heads, whole or some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.application.places import base_layer_of, module_at, stored_buffers
from lorakit.artifacts.foreign_names import ROWS
from lorakit.artifacts.peft_names import BASE, LORA, PREFIX
from lorakit.artifacts.reading import AdapterFiles
from lorakit.errors import AdapterError
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place


class WeightsNeededError(AdapterError):
    """An adapter that says what changes in a base weight, on a model whose weights are not at hand."""


@dataclass(frozen=True, slots=True)
class BaseTensors:
    """The base weights in a file: `tensors` are those that differ from the model's own, and `paths` their modules.

    `others` is the rest of the file; `is_any` says whether it held any base weight at all.
    """

    others: Mapping[str, Tensor]
    tensors: dict[str, Tensor]
    paths: tuple[str, ...]
    is_any: bool


def base_tensors(files: AdapterFiles, inventory: Inventory, model: nn.Module) -> BaseTensors:
    """Return the base weights of an adapter's files, apart from what trained.

    PEFT writes them for layers that it adapts at a model's ends, and for those that were resized; it reads them back.
    Raises: AdapterError where they cannot take the place of the model's own.
    """
    others: dict[str, Tensor] = {}
    held: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    adapted = {found["path"] for name in files.tensors if (found := LORA.fullmatch(name.removeprefix(PREFIX)))}
    for name, tensor in files.tensors.items():
        inner = name.removeprefix(PREFIX)
        place = Place(inner, is_parameter=True)
        path = _bare(place.holder)
        if inner.endswith(f".{ROWS}"):
            rows[inner.removesuffix(f".{ROWS}")] = tensor
        elif LORA.fullmatch(inner) or not _is_base(path, place, files, inventory, adapted):
            others[name] = tensor
        else:
            held.setdefault(path, {})[place.leaf] = tensor
    if files.config.get("trainable_token_indices") and not rows:
        raise AdapterError(f"{files.folder} trained some tokens (trainable_token_indices), and lacks their rows")
    _check_saved(files, inventory)
    carried: dict[str, Tensor] = {}
    for path in dict.fromkeys((*held, *rows)):
        now = _now(model, path, inventory)
        own = held.get(path, {})
        if path in rows:
            if _follows(path, rows, inventory, files):
                continue
            own = own | {"weight": _with_rows(path, rows[path], own.get("weight", now.get("weight")), files)}
        elif all(leaf in now and _equal(value, now[leaf]) for leaf, value in own.items()):
            continue
        shape = inventory.modules[path].shape
        if shape is not None and shape.quantizer is not None:
            raise AdapterError(
                f"{files.folder} holds the base weight of `{path}`, which here is stored as {shape.quantizer.name}: "
                "load it on a model in which this layer is not quantized"
            )
        names = f"{PREFIX}{path}{BASE * (path in adapted)}"
        carried |= {f"{names}.{leaf}": value for leaf, value in (now | own).items()}
    paths = tuple(dict.fromkeys(_bare(Place(name.removeprefix(PREFIX), is_parameter=True).holder) for name in carried))
    return BaseTensors(others, carried, paths, bool(held or rows))


def _check_saved(files: AdapterFiles, inventory: Inventory) -> None:
    """Refuse a file without the tensors of a module that its config says was trained in full."""
    if not files.config.get("modules_to_save"):
        return
    held = {_bare(Place(name.removeprefix(PREFIX), is_parameter=True).holder) for name in files.tensors}
    for path, module in inventory.modules.items():
        lacks = path not in held and not module.is_parameter and module.parameters
        if lacks and _is_trained(path, files.config):
            raise AdapterError(
                f"{files.folder} trained `{path}` in full (modules_to_save), and lacks its weights: leave it out of "
                "modules_to_save if it was not trained"
            )


def _bare(path: str) -> str:
    while path.endswith(BASE):
        path = path.removesuffix(BASE)
    return path


def _is_base(path: str, place: Place, files: AdapterFiles, inventory: Inventory, adapted: Iterable[str]) -> bool:
    """Whether a tensor is a module's own and was not trained."""
    module, biases = inventory.modules.get(path), files.config.get("bias")
    if module is None or module.is_parameter:
        return False
    own = {one.name for one in (*module.parameters, *module.buffers)}
    if place.leaf not in own:
        return False
    if path != place.holder:
        return place.leaf != "bias" or biases not in ("all", "lora_only")
    if biases == "all" and place.leaf == "bias":
        return all(f"{PREFIX}{path}.{name}" in files.tensors for name in own)
    return path not in adapted and not _is_trained(path, files.config)


def _is_trained(path: str, config: Mapping[str, Any]) -> bool:
    """Whether a path is that of a module which PEFT trained in full, or inside one: it goes by how a path ends."""
    saved = tuple(name for name in config.get("modules_to_save") or () if isinstance(name, str))
    segments = path.split(".")
    return any(".".join(segments[:length]).endswith(saved) for length in range(1, len(segments) + 1))


def _now(model: nn.Module, path: str, inventory: Inventory) -> dict[str, Tensor]:
    """Return a module's own tensors, none where their values are not at hand."""
    layer = base_layer_of(module_at(model, path))
    own = {name: value for name, value in layer._parameters.items() if value is not None} | dict(stored_buffers(layer))
    names = {one.name for one in (*inventory.modules[path].parameters, *inventory.modules[path].buffers)}
    return {name: value.detach() for name, value in own.items() if name in names and not value.is_meta}


def _equal(stored: Tensor, now: Tensor) -> bool:
    """Whether a stored tensor is the model's own, which may be held in another dtype."""
    if stored.shape != now.shape:
        return False
    stored = stored.to(now.device)
    return torch.equal(stored.to(now.dtype), now) or torch.equal(now.to(stored.dtype), stored)


def _follows(path: str, rows: Mapping[str, Tensor], inventory: Inventory, files: AdapterFiles) -> bool:
    """Whether the rows of a tied end are those of the embeddings, which PEFT may write with them.

    Raises: AdapterError for rows of their own, which one tensor cannot hold.
    """
    weight = inventory.modules[path].weight
    ends = inventory.owners[weight.weight_id] if weight else ()
    if len(ends) < 2 or path == inventory.input_path:
        return False
    leading = rows.get(inventory.input_path or "")
    if leading is not None and leading.shape == rows[path].shape and torch.equal(leading, rows[path]):
        return True
    other = next(end for end in ends if end != Place(path).inside("weight"))
    raise AdapterError(
        f"{files.folder} trained some rows of `{path}` alone, and this model holds it and `{other}` as one tensor: "
        "untie them first (tie_word_embeddings=False, with a copy of the weight)"
    )


def _with_rows(path: str, rows: Tensor, weight: Tensor | None, files: AdapterFiles) -> Tensor:
    """Return a weight (tokens, width) in which the rows that trained, (trained tokens, width), stand."""
    said = files.config.get("trainable_token_indices")
    indices = next((one for name, one in said.items() if path.endswith(name)), None) if isinstance(said, dict) else said
    if indices is None or rows.ndim != 2 or len(indices) != rows.shape[0]:
        raise AdapterError(
            f"{files.folder} holds {tuple(rows.shape)} for tokens of `{path}`, and its trainable_token_indices name "
            f"{len(indices or ())} of them"
        )
    if weight is None:
        raise WeightsNeededError(f"{files.folder} trained some rows of `{path}`, and the others are not at hand here")
    if weight.ndim != 2 or weight.shape[1] != rows.shape[1] or max(indices) >= weight.shape[0]:
        raise AdapterError(
            f"{files.folder} trained tokens up to {max(indices)} of `{path}` in rows of {rows.shape[1]}, and here it "
            f"is {tuple(weight.shape)}; if the vocabulary was resized, call "
            f"`model.resize_token_embeddings({max(indices) + 1})` or more first"
        )
    place = torch.tensor(indices, device=weight.device)
    return weight.index_copy(0, place, rows.to(weight))
