"""Put an adapter folder on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.application.apply import apply_plan
from lorakit.application.calibration import calibrated
from lorakit.application.state import DEFAULT, adapted_state, adapter_of
from lorakit.artifacts.foreign import plan_of_files
from lorakit.artifacts.peft_names import PREFIX, adapter_tensors, file_names
from lorakit.artifacts.reading import AdapterFiles, read_adapter
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.planning.computing import compute_again
from lorakit.planning.hardware import Hardware
from lorakit.planning.inventory import Inventory, read_inventory
from lorakit.planning.plan import Plan


def load_adapter(
    folder: Path,
    model: nn.Module,
    plugins: Plugins,
    *,
    name: str = DEFAULT,
    quantize: bool = True,
    allow_missing: bool = False,
    allow_pickle: bool = False,
    hardware: Hardware | None = None,
) -> nn.Module:
    """Return the model with the folder's adapter on it, in evaluation mode; the model is unchanged if anything fails.

    The base is quantized again as plan.json says, unless `quantize` is False. It computes in what the hardware is
    quick in, wherever the adapter was trained; on none in particular it keeps its own dtypes. Where the model has
    adapters already, the new one alone is in use. Raises: AdapterError, ModelError.
    """
    state = adapted_state(model)
    inventory = state.inventory if state else read_inventory(model, plugins)
    files, plan = planned_files(
        folder, inventory, plugins, quantize=quantize, allow_missing=allow_missing, allow_pickle=allow_pickle
    )
    if wanting := calibrated(plan, model, plugins):
        quantizer = next(iter(wanting.values())).name
        raise AdapterError(
            f"{files.folder} sits on a base that {quantizer} quantized for its calibration data, which cannot be done "
            "again here: give the base that --with-base saved, or quantize=False for an unquantized one"
        )
    plan = replace(plan, compute=compute_again(plan, inventory, hardware) if hardware else None)
    apply_plan(plan, model, plugins, name=name, inventory=inventory, initialize=allow_missing)
    restore_tensors(model, files.tensors, plugins)
    model.eval()
    plugins.after_load(model, folder)
    return model


def planned_files(
    folder: Path,
    inventory: Inventory,
    plugins: Plugins,
    *,
    quantize: bool = True,
    allow_missing: bool = False,
    allow_pickle: bool = False,
) -> tuple[AdapterFiles, Plan]:
    """Return an adapter folder's files and the plan that they follow on this model, every shape checked.

    Without `quantize` the plan leaves out what would only be quantized. Raises: AdapterError.
    """
    files = read_adapter(folder, allow_pickle)
    plan = files.plan or plan_of_files(files, inventory, plugins)
    if not quantize:
        plan = replace(plan, entries=tuple(replace(entry, quant=None) for entry in plan.entries))
        plan = replace(plan, entries=tuple(entry for entry in plan.entries if entry.adapter or entry.train))
    _check_model(plan, inventory, files)
    _check_tensors(_expected_shapes(plan, inventory, plugins), files, allow_missing)
    return files, plan


def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor], plugins: Plugins) -> None:
    """Put saved tensors, by PEFT's names, into the adapter that is in use; what is not among them stays."""
    with torch.no_grad():
        for name, _, parameter in adapter_tensors(model, adapter_of(model), plugins):
            if name in tensors:
                parameter.copy_(tensors[name])


def _check_model(plan: Plan, inventory: Inventory, files: AdapterFiles) -> None:
    """Compare the plan's layers with the model's before anything is touched."""
    for entry in plan.entries:
        module = inventory.modules.get(entry.path)
        if module is None:
            raise AdapterError(
                f"{files.folder} is for another model ({plan.model_class}): "
                f"this {inventory.model_class} has no `{entry.path}`"
            )
        if entry.adapter and module.shape is None:
            raise AdapterError(f"{files.folder} adapts `{entry.path}`, which here is a {module.class_name}")
        if str(module.shape) != str(entry.shape):
            raise AdapterError(
                f"{files.folder} is for another model: `{entry.path}` is {entry.shape} there and {module.shape} here"
            )
        if entry.shape and module.shape and entry.shape.kind != module.shape.kind and not module.shape.stored:
            raise AdapterError(
                f"{files.folder} is for another model: `{entry.path}` is a {entry.class_name} there and a "
                f"{module.class_name} here"
            )


def _expected_shapes(plan: Plan, inventory: Inventory, plugins: Plugins) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the folder must hold, by PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in plan.entries:
        module = inventory.modules[entry.path]
        parameters = {parameter.name: parameter.shape for parameter in module.parameters}
        if entry.adapter is not None and entry.shape is not None:
            names = file_names(plan, entry, plugins)
            method = plugins.method(entry.adapter.method)
            for name, shape in method.parameter_shapes(entry.shape, entry.adapter.rank).items():
                shapes[names[name]] = shape
            if entry.adapter.bias_parameters:
                shapes[f"{PREFIX}{entry.path}.base_layer.bias"] = parameters["bias"]
        if entry.train:
            shapes |= {f"{PREFIX}{entry.path}.{name}".rstrip("."): shape for name, shape in parameters.items()}
    return shapes


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], files: AdapterFiles, allow_missing: bool) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in files.tensors.items()}
    for name, shape in shapes.items():
        if name in found and found[name] != shape:
            raise AdapterError(
                f"{files.folder} is for another model: `{name}` is {found[name]} and this model takes {shape}"
            )
    missing = [name for name in shapes if name not in found]
    if missing and not allow_missing:
        raise AdapterError(
            f"{files.folder} lacks {len(missing)} tensors, first {', '.join(missing[:3])}; "
            "--allow-missing leaves them as new"
        )
    if extra := [name for name in found if name not in shapes]:
        raise AdapterError(
            f"{files.folder} holds {len(extra)} tensors that nothing here takes, first {', '.join(extra[:3])}"
        )
