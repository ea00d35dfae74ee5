"""Quantized bases as model folders: such as transformers reads by itself where a quantizer can, else lorakit's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorakit.application.compute import own_dtypes
from lorakit.application.sharding import gathered, is_sharded, own_class, whole, writes
from lorakit.application.state import Adapted, state_of, unwrapped
from lorakit.artifacts.model_folder import copy_companions, without_bars
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import Checkpointed
from lorakit.huggingface import marks
from lorakit.huggingface.base_manifest import manifest
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.planning.place import Place
from lorakit.planning.reading import read_inventory
from lorakit.values import ModelReference

BASE = "base"
# a shard on its way from an accelerator is in memory whole
SHARD_SIZE = "2GB"
PARAMETRIZATIONS = "parametrizations"


def write_base(model: nn.Module, folder: Path, plugins: Plugins) -> str:
    """Write the quantized base of an adapted model into a new folder and return what form it has, in words.

    What `train` keeps trainable has its present values. Raises: ModelError if there is no quantized base to write.
    """
    state = state_of(model)
    state.check_apart()
    if any(adapter.taken for adapter in state.named.values()):
        raise ModelError(
            "this adapter's start was taken from the base weights: a base without that part is no model of its own; "
            "save the adapter alone, or merge"
        )
    model = unwrapped(model)
    with own_dtypes(model, state):
        return _write(model, state, folder, plugins)


def _write(model: nn.Module, state: Adapted, folder: Path, plugins: Plugins) -> str:
    adapters = {module for adapter in state.named.values() for module in adapter.modules.values()}
    modules = dict(_base_modules(model, adapters))
    layers = {path: module for path, module in modules.items() if isinstance(module, QuantizedLinear)}
    if not marks.is_pretrained(model):
        raise ModelError(
            f"a base is saved as a Hugging Face folder, and this {type(model).__name__} is a plain PyTorch model: "
            "keep what makes it, and save the adapter alone"
        )
    if not layers:
        raise ModelError("nothing in this model is quantized: its base is the model that you started from")
    own = {
        path: {name: _kept(value, model) for name, value in _own_tensors(module, adapters)}
        for path, module in modules.items()
        if path not in layers
    }
    held = (value.dtype for tensors in own.values() for value in tensors.values() if value.is_floating_point())
    dtype = next(held, torch.get_default_dtype())
    config: Any = copy.deepcopy(model.config)
    config.architectures, config.dtype = [own_class(model).__name__], dtype
    reason = _use_checkpoint(config, modules, layers, dtype, plugins)
    if reason:
        config.quantization_config = manifest(layers)
    for path, layer in layers.items():
        with gathered(layer):
            stored = layer.state_dict() if reason else _checkpoint(layer)
        own[path] = {name: _kept(value, model) for name, value in stored.items()}
    tensors = {Place(path).inside(name): own[path][name] for path in modules for name in own[path]}
    if writes(model):
        _save(model, folder, config, tensors, original_names=not reason)
        copy_companions(Path(str(getattr(model, "name_or_path", ""))), folder)
    return f"in lorakit's own form: {reason}" if reason else "a checkpoint that transformers reads by itself"


def _kept(tensor: Tensor, model: nn.Module) -> Tensor:
    """Return a tensor for the file; one that is gathered goes to the CPU, and away where another process writes."""
    if not is_sharded(model):
        return tensor
    full = whole(tensor)
    return full.cpu() if writes(model) else full.to("meta")


def _base_modules(module: nn.Module, adapters: Set[nn.Module], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model as it was before it was adapted, each with its path there."""
    while module in adapters:
        module = module.get_submodule("base_layer")
    yield path, module
    for name, child in module.named_children():
        if name != PARAMETRIZATIONS:
            yield from _base_modules(child, adapters, Place(path).inside(name))


def _own_tensors(module: nn.Module, adapters: Set[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module itself puts into a state dict; a parameter that an adapter changes as it was before."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter.detach()
    if parametrize.is_parametrized(module):
        yield from _parametrized(module.get_submodule(PARAMETRIZATIONS), adapters)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def _parametrized(changes: nn.Module, adapters: Set[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for name, change in changes.named_children():
        if change.get_submodule("0") in adapters:
            yield name, change.get_parameter("original").detach()
        else:
            yield from ((f"{PARAMETRIZATIONS}.{name}.{key}", value) for key, value in change.state_dict().items())


def _checkpoint(layer: QuantizedLinear) -> Mapping[str, Tensor]:
    assert isinstance(layer.quantizer, Checkpointed)
    bias = {} if layer.bias is None else {"bias": layer.bias.detach()}
    return {**layer.quantizer.checkpoint_tensors(layer.quantized), **bias}


def _use_checkpoint(
    config: Any, modules: Mapping[str, nn.Module], layers: Mapping[str, QuantizedLinear], dtype: Any, plugins: Plugins
) -> str:
    """Set the config's `quantization_config` to the quantizer's; where that would not be read back, say why."""
    quantizers = {layer.quantizer for layer in layers.values()}
    quantizer = next(iter(quantizers))
    if len(quantizers) > 1:
        return f"its layers are stored in {len(quantizers)} ways"
    if not isinstance(quantizer, Checkpointed):
        return f"transformers has no form for `{quantizer.name}`"
    shapes = {path: plugins.describe_module(module) for path, module in modules.items()}
    unquantized = [path for path, shape in shapes.items() if shape and shape.is_linear and path not in layers]
    try:
        config.quantization_config = dict(quantizer.checkpoint_config(unquantized, dtype))
    except ValueError as error:
        return str(error)
    reference = ModelReference("the base", config, with_weights=False)
    expected = read_inventory(plugins.load_model(reference), plugins)
    found = {
        path: info.shape.quantizer for path, info in expected.modules.items() if info.shape and info.shape.quantizer
    }
    if found != {path: layer.quantizer for path, layer in layers.items()}:
        return f"transformers would look for `{quantizer.name}` in other layers"
    return ""


def _save(model: nn.Module, folder: Path, config: Any, tensors: dict[str, Tensor], original_names: bool) -> None:
    # a twin has a config of its own, and nothing of what an adapted model carries to have only its adapter saved
    kind = own_class(model)
    twin = kind.__new__(kind)
    vars(twin).update(vars(model))
    marks.clear_saving(twin)
    marks.set_plain(twin)
    if marks.stored_quantized(model) is not None:
        marks.forget_reading(twin)
    twin.config, dtype = config, config.dtype
    with without_bars():
        twin.save_pretrained(  # type: ignore[operator]
            folder, state_dict=tensors, max_shard_size=SHARD_SIZE, save_original_format=original_names
        )
    # transformers wrote the dtype of the first parameter, which may be an adapter's
    config.dtype = dtype
    config.save_pretrained(folder)
