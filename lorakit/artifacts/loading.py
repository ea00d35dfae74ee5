"""Put an adapter folder on a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.application.apply import apply_plan
from lorakit.application.observing import watched
from lorakit.application.snapshot import unchanged_on_failure
from lorakit.application.starting import Started, Starter
from lorakit.application.state import DEFAULT, adapted_state, adapter_of
from lorakit.artifacts.adapter_folder import CONFIG, PLAN, START
from lorakit.artifacts.foreign import plan_of_files
from lorakit.artifacts.peft_config import disagreement, method_fields
from lorakit.artifacts.peft_names import PREFIX, adapter_tensors, file_names, full_name
from lorakit.artifacts.reading import AdapterFiles, check_fields, read_adapter, read_config, read_plan, read_taken
from lorakit.artifacts.ties import check_ties, ties_of
from lorakit.dtypes import name_of
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.planning.computing import compute_again
from lorakit.planning.entries import UnfitError, completed, unlike
from lorakit.planning.hardware import Hardware
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Plan
from lorakit.planning.reading import read_inventory
from lorakit.quoting import named


def load_adapter(
    folder: Path,
    model: nn.Module,
    plugins: Plugins,
    *,
    name: str = DEFAULT,
    quantize: bool = True,
    allow_missing: bool = False,
    allow_pickle: bool = False,
    started: Mapping[str, Started] | None = None,
    hardware: Hardware | None = None,
) -> nn.Module:
    """Return the model with the folder's adapter on it, in evaluation mode; the model is unchanged if anything fails.

    The base is quantized again as plan.json says, unless `quantize` is False. Where the model has adapters already, the
    new one alone is in use. It computes in what the hardware is quick in, wherever the adapter was trained; on none in
    particular it keeps its own dtypes. `started` is what `starter_of` the folder stored while the model was read.
    Raises: AdapterError, ModelError.
    """
    state = adapted_state(model)
    inventory = state.inventory if state else read_inventory(model, plugins)
    files, plan = planned_files(
        folder, inventory, model, plugins,
        quantize=quantize, allow_missing=allow_missing, allow_pickle=allow_pickle,
    )  # fmt: skip
    if wanting := watched(plan, model, plugins, initialize=False):
        raise AdapterError(
            f"{files.folder} sits on a base that {wanting[0].name} quantized for its calibration data, which cannot be "
            "done again here: give the base that --with-base saved, or quantize=False for an unquantized one"
        )
    plan = replace(plan, compute=compute_again(plan, inventory, hardware) if hardware else None)
    with unchanged_on_failure(model):
        apply_plan(
            plan, model, plugins, name=name, inventory=inventory, initialize=allow_missing,
            taken=files.taken, started=started,
        )  # fmt: skip
        restore_tensors(model, files.tensors)
        model.eval()
        plugins.after_load(model, folder)
    return model


def starter_of(folder: Path, plugins: Plugins, *, initialize: bool = False) -> Starter | None:
    """Return what stores the base weights of a folder's adapter while they are read; None if lorakit did not write it.

    With `initialize` adapters start anew, for tensors that may be missing. Raises: AdapterError.
    """
    plan = read_plan(folder)
    if plan is None:
        return None
    taken = read_taken(folder)
    _check_taken(folder, plan, taken)
    return Starter(_completed(folder, plan, plugins), plugins, initialize=initialize, taken=taken)


def trained_in(folder: Path) -> tuple[str, ...]:
    """Return the modules that an adapter folder holds whole, by path or by how it ends: a base may lack their weights.

    Raises: AdapterError.
    """
    if (plan := read_plan(folder)) is not None:
        return tuple(entry.path for entry in plan.entries if entry.is_whole)
    named = read_config(folder).get("modules_to_save")
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()


def planned_files(
    folder: Path,
    inventory: Inventory,
    model: nn.Module,
    plugins: Plugins,
    *,
    quantize: bool = True,
    allow_missing: bool = False,
    allow_pickle: bool = False,
) -> tuple[AdapterFiles, Plan]:
    """Return an adapter folder's files and the plan that they follow on this model, every shape checked.

    The model may live on meta tensors.

    Without `quantize` the plan leaves out what would only be quantized. Raises: AdapterError.
    """
    files = read_adapter(folder, allow_pickle)
    if files.plan:
        plan = _own_plan(files, plugins)
    else:
        files, plan = plan_of_files(files, inventory, model, plugins)
    if not quantize:
        plan = replace(plan, entries=tuple(replace(entry, quant=None) for entry in plan.entries))
        plan = replace(plan, entries=tuple(entry for entry in plan.entries if entry.adapter or entry.is_whole))
    _check_model(plan, inventory, files)
    _check_taken(files.folder, plan, files.taken)
    ends = ties_of(plan, inventory)
    _check_tensors(
        _expected_shapes(plan, inventory), files, allow_missing, [end for tie in ends for end in tie.others], inventory
    )
    check_ties(ends, files)
    _check_numbers(plan, inventory, files)
    return files, plan


def _own_plan(files: AdapterFiles, plugins: Plugins) -> Plan:
    """Return the plan that lorakit wrote, held against the config that it wrote beside it. Raises: AdapterError."""
    assert files.plan is not None
    plan, path = _completed(files.folder, files.plan, plugins), files.folder / CONFIG
    changes_base = bool(files.taken)
    if fault := disagreement(plan, files.config, plugins, changes_base=changes_base):
        raise AdapterError(f"{path} {fault}: one of the two was changed by hand; mend it, or leave {PLAN} out")
    check_fields(path, files.config, method_fields(plan, plugins, changes_base=changes_base))
    return plan


def _completed(folder: Path, plan: Plan, plugins: Plugins) -> Plan:
    try:
        return completed(plan, plugins)
    except UnfitError as error:
        raise AdapterError(f"{folder}: {error}") from error


def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors, by PEFT's names, into the adapter that is in use; what is not among them stays."""
    with torch.no_grad():
        for one in adapter_tensors(model, adapter_of(model)):
            if one.file_name in tensors:
                one.tensor.copy_(tensors[one.file_name])


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
        # what is held in full has tensors of its own shape, which may be that of a vocabulary resized since
        if (entry.adapter or entry.quant) and (difference := unlike(entry, module)):
            raise AdapterError(f"{files.folder} is for another model: {difference}")
        has_bias = any(parameter.name == "bias" for parameter in module.parameters)
        if entry.adapter and entry.adapter.bias_parameters and not (has_bias and entry.adapter.bias == "adapter"):
            raise AdapterError(
                f"{files.folder} trains the bias of `{entry.path}`, which its plan or this model has not"
            )


def _check_taken(folder: Path, plan: Plan, taken: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Hold what a start took from the base, A (rank, inputs) and B (outputs, rank), against the plan's layers."""
    if not taken:
        return
    shapes = {entry.path: entry.shape for entry in plan.entries if entry.adapter is not None}
    for path, (lora_A, lora_B) in taken.items():
        shape = shapes.get(path)
        if shape is None:
            raise AdapterError(f"{folder / START} holds a start of {named(path)}, which the plan does not adapt")
        found = (*lora_A.shape, *lora_B.shape)
        rank = found[0] if found else 0
        if found != (rank, shape.inputs, shape.out_features, rank):
            raise AdapterError(
                f"{folder / START}: the start of `{path}` is {tuple(lora_A.shape)} and {tuple(lora_B.shape)}, which "
                f"are no two matrices on {shape}"
            )


def _expected_shapes(plan: Plan, inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the folder must hold, by PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    file_names_of = file_names(plan)
    for entry in plan.entries:
        module = inventory.modules[entry.path]
        parameters = {parameter.name: parameter.shape for parameter in module.parameters}
        if entry.adapter is not None:
            names = file_names_of(entry)
            shapes |= {names[one.name]: one.shape for one in entry.adapter.parameters}
            if entry.adapter.bias_parameters:
                shapes[full_name(entry, "bias")] = parameters["bias"]
        if entry.is_whole:
            shapes |= {full_name(entry, name): shape for name, shape in parameters.items()}
            shapes |= {full_name(entry, buffer.name): buffer.shape for buffer in module.buffers}
    return shapes


def _check_numbers(plan: Plan, inventory: Inventory, files: AdapterFiles) -> None:
    """Refuse whole numbers where weights are due: packed weights are no weights, and rounding them gives nothing."""
    counts = {
        full_name(entry, buffer.name) for entry in plan.entries if entry.is_whole
        for buffer in inventory.modules[entry.path].buffers
    }  # fmt: skip
    for name, tensor in files.tensors.items():
        if not tensor.is_floating_point() and name not in counts:
            raise AdapterError(f"{files.folder}: `{name}` holds {name_of(tensor.dtype)}, which is no weight's dtype")


def _check_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    files: AdapterFiles,
    allow_missing: bool,
    known: Collection[str],
    inventory: Inventory,
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in files.tensors.items()}
    for name, shape in shapes.items():
        if name in found and found[name] != shape:
            raise AdapterError(
                f"{files.folder} is for another model: `{name}` is {found[name]} and this model takes {shape}"
                + _resized(name, found[name], shape, inventory)
            )
    missing = [name for name in shapes if name not in found]
    if missing and not allow_missing:
        raise AdapterError(
            f"{files.folder} lacks {len(missing)} tensors, first {', '.join(missing[:3])}; "
            "--allow-missing leaves them as new"
        )
    if extra := [name for name in found if name not in shapes and name not in known]:
        raise AdapterError(
            f"{files.folder} holds {len(extra)} tensors that nothing here takes, first {', '.join(extra[:3])}"
        )


def _resized(name: str, found: Sequence[int], wanted: Sequence[int], inventory: Inventory) -> str:
    """Return what to do where a tensor at an end of the model differs in one size alone, its vocabulary's."""
    ends = [path for path in (inventory.input_path, *inventory.head_paths) if path]
    if len(found) != len(wanted) or not any(name.startswith(f"{PREFIX}{path}.") for path in ends):
        return ""
    differing = [there for there, here in zip(found, wanted, strict=True) if there != here]
    if len(differing) != 1:
        return ""
    return (
        f": its vocabulary was resized to {differing[0]} tokens, so call "
        f"`model.resize_token_embeddings({differing[0]})` before `lorakit.load`, or save the base so and load on that"
    )
