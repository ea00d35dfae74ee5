"""Merge into a checkpoint on disk, a tensor at a time: the model is never in memory."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.application.building import build_adapter
from lorakit.application.effective import effective
from lorakit.application.starting import say_if_other_base
from lorakit.application.storing import as_matrix, as_weight, canonical, layer_weight
from lorakit.artifacts.checkpoint import INDEX, MODEL_WEIGHTS
from lorakit.artifacts.merge_layout import Layout
from lorakit.artifacts.merge_pieces import Piece
from lorakit.artifacts.model_folder import COMPANIONS
from lorakit.artifacts.packed_weights import packed_layer
from lorakit.artifacts.rounding import Rounding
from lorakit.dtypes import name_of
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.place import Place
from lorakit.planning.plan import PlanEntry

Progress = Callable[[Sequence[Piece]], Iterable[Piece]]
# beside the tokenizer's files: what generation and a model of its own code need
BESIDE = ("generation_config.json", "*.py")


def write_merged(layout: Layout, folder: Path, plugins: Plugins, progress: Progress = iter) -> Rounding:
    """Write a merged model into a folder that exists, a shard at a time, and return what rounding cost.

    Raises: AdapterError naming the module whose merged weight is not finite; ModelError for a damaged file.
    """
    rounding = Rounding()
    shards = layout.shards
    last = {shard[-1].name: number for number, shard in enumerate(shards, start=1)}
    places: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    for piece in progress(layout.pieces):
        pending[piece.name] = _value(piece, layout, plugins, rounding)
        if number := last.get(piece.name):
            file = MODEL_WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file(pending, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(pending, file)
            pending.clear()
    if len(shards) > 1:
        index = {"metadata": {"total_size": layout.bytes}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_config(layout, folder)
    for pattern in (*COMPANIONS, *BESIDE):
        for path in layout.base.glob(pattern):
            shutil.copy2(path, folder / path.name)
    return rounding


def _value(piece: Piece, layout: Layout, plugins: Plugins, rounding: Rounding) -> Tensor:
    base: Tensor | QuantizedLinear
    if piece.trained is not None:
        base = layout.files.tensors[piece.trained]
    else:
        assert piece.source is not None
        base = layout.stored[piece.source][...] if not piece.parts else _packed(piece, layout, plugins)
    if piece.entry is None:
        plain = base if isinstance(base, Tensor) else _lying(base.weight.detach(), piece)
        if piece.bias_of is not None:
            plain = _changed_bias(plain, piece.bias_of, layout, plugins)
        plain = (plain.to(piece.dtype) if piece.dtype else plain).contiguous()
        # safetensors refuses what shares memory, and other ends of a tie are read from one stored tensor
        return plain if piece.name == piece.source else plain.clone()
    with torch.no_grad():
        exact = _merged(base, piece.entry, layout, plugins)
    exact = exact if isinstance(base, Tensor) else _lying(exact, piece)
    # what was read goes out of memory now
    del base
    rounded = exact.to(piece.dtype).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        raise AdapterError(
            f"merging `{piece.entry.path}` gives values that are not finite in {rounded.dtype}; nothing was written"
        )
    rounding.add(exact, rounded)
    return rounded


def _packed(piece: Piece, layout: Layout, plugins: Plugins) -> QuantizedLinear:
    assert piece.source is not None and piece.dtype is not None
    rows, columns = piece.shape if not piece.is_transposed else reversed(piece.shape)
    return packed_layer(piece.source, piece.parts, (rows, columns), piece.dtype, layout.stored, plugins)


def _lying(weight: Tensor, piece: Piece) -> Tensor:
    """Return a weight (out_features, in_features) as its layer holds it when it is not packed."""
    return weight.T if piece.is_transposed else weight


def _merged(base: Tensor | QuantizedLinear, entry: PlanEntry, layout: Layout, plugins: Plugins) -> Tensor:
    """Return the changed weight in float32, by the adapter's own merge."""
    assert entry.adapter is not None and entry.shape is not None
    place = Place.of(entry)
    layer: nn.Module
    if isinstance(base, Tensor):
        layer = _with_parameter(layout.model.get_submodule(place.module), place.parameter, base)
    else:
        layer = base
    adapter = _adapter(layer, entry, layout, plugins)
    if place.is_parameter:
        return effective([adapter], layer.get_parameter(place.parameter), entry)[0]
    weight = layer_weight(layer, entry.shape).float()
    if (pair := layout.files.taken.get(entry.path)) is not None:
        lora_A, lora_B = (one.float() for one in pair)
        change = entry.adapter.settings.factor * (lora_B @ lora_A)
        say_if_other_base(entry.path, layout.files.taken, change, as_matrix(weight, entry.shape))
        weight = weight - as_weight(change, entry.shape)
        weight = weight.to(layer_weight(layer, entry.shape).dtype)
    exact, _ = effective([adapter], weight, entry)
    return exact if isinstance(base, nn.Module) else canonical(exact, entry.shape)


def _changed_bias(bias: Tensor, entry: PlanEntry, layout: Layout, plugins: Plugins) -> Tensor:
    """Return the bias that goes with the changed weight, in its own dtype."""
    layer = _with_parameter(layout.model.get_submodule(entry.path), "bias", bias)
    layer._parameters["weight"] = None
    adapter: Any = _adapter(layer, entry, layout, plugins)
    if not hasattr(adapter, "exact_bias"):
        return bias
    with torch.no_grad():
        changed: Tensor = adapter.exact_bias(bias.float())
    return changed.to(bias.dtype)


def _adapter(layer: nn.Module, entry: PlanEntry, layout: Layout, plugins: Plugins) -> nn.Module:
    """Return an entry's adapter around a layer, with the values of its file in float32."""
    assert entry.adapter is not None
    files = layout.file_names(entry)
    values = {one.name: layout.files.tensors[files[one.name]].float() for one in entry.adapter.parameters}
    return build_adapter(layer, entry, values, {}, plugins)


def _with_parameter(module: nn.Module, name: str, value: Tensor) -> nn.Module:
    """Return a shallow copy of a layer without weights that has this one."""
    layer = copy.copy(module)
    layer._parameters = {**module._parameters, name: nn.Parameter(value, requires_grad=False)}
    return layer


def _write_config(layout: Layout, folder: Path) -> None:
    """Write the base's config as it stands, but for what the merge changed."""
    settings: dict[str, Any] = json.loads((layout.base / "config.json").read_text(encoding="utf-8"))
    if layout.is_packed or layout.wanted is not None:
        settings.pop("quantization_config", None)
        name = name_of(layout.dtype)
        _set(settings, ("dtype", "torch_dtype"), name)
        settings.setdefault("dtype", name)
    if layout.untied:
        settings |= _unmoved(settings)
        _set(settings, ("tie_word_embeddings",), False)
        settings["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _set(settings: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set these keys wherever a config, or one inside it, has them."""
    for key, held in settings.items():
        if isinstance(held, dict):
            _set(held, keys, value)
        elif key in keys:
            settings[key] = value


def _unmoved(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a config would derive otherwise from embeddings that are not tied, as it is now.

    T5 scales its decoder's output only where they are tied.
    """
    from transformers import CONFIG_MAPPING

    if (kind := str(settings.get("model_type"))) not in CONFIG_MAPPING:
        return {}
    make = CONFIG_MAPPING[kind].from_dict
    before, after = make(settings).to_dict(), make({**settings, "tie_word_embeddings": False}).to_dict()
    return {name: value for name, value in before.items() if after.get(name) != value}
