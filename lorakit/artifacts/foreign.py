"""A plan for an adapter that PEFT saved: the modules and ranks that its tensors speak of, scaled as its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lorakit.artifacts.base_tensors import BaseTensors, base_tensors
from lorakit.artifacts.chosen import Chosen
from lorakit.artifacts.moved_names import Moved, moved
from lorakit.artifacts.peft_names import BASE, FIRST, LORA, PREFIX, file_names
from lorakit.artifacts.reading import AdapterFiles
from lorakit.artifacts.scales import Scales
from lorakit.dtypes import SHORT, name_of
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.language.statements import Adapt, Train
from lorakit.planning.cascade import Decisions
from lorakit.planning.entries import EntryMaker
from lorakit.planning.figures import finished
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan
from lorakit.planning.planner import plan_decisions
from lorakit.values import LayerShape

# the parameter of a MultiheadAttention that stands for its three projections
IN_PROJECTION = "in_proj_weight"


def plan_of_files(
    files: AdapterFiles, inventory: Inventory, model: nn.Module, plugins: Plugins
) -> tuple[AdapterFiles, Plan]:
    """Return the files by the names of this model, and the plan that gives it the modules which they hold tensors for.

    Raises: AdapterError naming the first tensor that no module of this model takes.
    """
    here = moved(files, inventory, model, plugins)
    base = base_tensors(here.files, inventory, model)
    files = replace(here.files, tensors=base.others)
    plan, problems = plan_decisions(_decisions(files, here, base, inventory), inventory, plugins)
    if problems:
        raise AdapterError(f"{files.folder} does not fit this {inventory.model_class}: {problems[0].message}")
    plan = finished(_carrying(plan, base, inventory, plugins), inventory, plugins)
    return replace(files, tensors=_as_planned(files, plan) | base.tensors), plan


def _decisions(files: AdapterFiles, here: Moved, base: BaseTensors, inventory: Inventory) -> Decisions:
    """Return the rules that would have made this adapter, each for one module."""
    adapt: dict[str, Adapt] = {}
    train: dict[str, Train] = {}
    scales, chosen = Scales(files.folder, files.config), Chosen(files.folder, files.config)
    for name, tensor in files.tensors.items():
        inner = name.removeprefix(PREFIX)
        if found := LORA.fullmatch(inner):
            path = _target(found["path"], inventory, files)
            _known(path, name, inventory, files)
            module = inventory.modules[path]
            if module.shape is None:
                raise AdapterError(f"{files.folder} adapts `{path}`, a {module.class_name}, which no adapter here fits")
            if found["matrix"] in FIRST:
                dtype = SHORT.get(name_of(tensor.dtype), "fp32")
                where = _decided_at(path, inventory, files)
                where = found["path"] if where == f"{found['path']}.weight" else where
                alpha, rank = here.alphas.get(path), _rank(name, tensor, module.shape, files)
                if alpha is None:
                    called = here.former.get(found["path"], where)
                    alpha = scales.alpha(called)
                    chosen.check((found["path"], called))
                    _check_rank(path, rank, scales.rank(called), files)
                adapt[path] = _rule(rank, alpha, dtype, files.config)
                if where != path and path.endswith(".out_proj"):
                    # PEFT adds the change of this one twice, as it merges (peft 0.21, MultiheadAttention.merge)
                    adapt[path] = replace(adapt[path], alpha=2 * alpha)
            continue
        place = Place(inner, is_parameter=True)
        path, parameter = place.holder, place.leaf
        if parameter == "bias" and path.endswith(BASE):
            continue
        _known(path, name, inventory, files)
        if parameter not in {
            own.name for own in (*inventory.modules[path].parameters, *inventory.modules[path].buffers)
        }:
            raise AdapterError(f"{files.folder} holds tensors that nothing here takes, first {name}")
        if parameter == "bias" and files.config.get("bias") == "all":
            _whole(path, inventory, files)
        train[path] = Train(targets=())
    if not (adapt or train or base.is_any):
        raise AdapterError(f"{files.folder} holds no LoRA tensors")
    return Decisions(adapt, {}, train)


def _carrying(plan: Plan, base: BaseTensors, inventory: Inventory, plugins: Plugins) -> Plan:
    """Return the plan with the base weights that come with the adapter."""
    if not base.paths:
        return plan
    make = EntryMaker(plugins)
    entries = {entry.path: entry for entry in plan.entries}
    for path in base.paths:
        entry = entries.get(path) or make.entry(inventory.modules[path], None, None, None)
        entries[path] = replace(entry, carried=True)
    ordered = tuple(entries[path] for path in inventory.modules if path in entries)
    return replace(plan, entries=ordered)


def _as_planned(files: AdapterFiles, plan: Plan) -> dict[str, Tensor]:
    """Return the tensors by the names that PEFT has for a plan's, which for a parameter hang on those beside it."""
    names = file_names(plan)
    wanted: dict[str, str] = {}
    for entry in plan.entries:
        if entry.adapter is not None and entry.is_parameter:
            own = {one.name: one.file_name for one in entry.adapter.parameters}
            wanted |= {f"{PREFIX}{entry.path}.{own[name]}": file for name, file in names(entry).items()}
    return {wanted.get(name, name): tensor for name, tensor in files.tensors.items()}


def _rank(name: str, lora_A: Tensor, shape: LayerShape, files: AdapterFiles) -> int:
    """Return the rank that a lora_A (rank, …), for a stack (stack · rank, …), gives."""
    stack = shape.stack or 1
    if lora_A.ndim < 2 or not lora_A.shape[0] or lora_A.shape[0] % stack:
        raise AdapterError(f"{files.folder}: `{name}` is {tuple(lora_A.shape)}, which is no lora_A of any rank")
    return lora_A.shape[0] // stack


def _check_rank(path: str, rank: int, said: int, files: AdapterFiles) -> None:
    """Refuse a rank that is not the config's, by which the update would be scaled to another size."""
    if rank != said:
        raise AdapterError(
            f"{files.folder} holds an adapter of rank {rank} for `{path}`, and its config says {said} (r, "
            "rank_pattern): one of the two was changed by hand"
        )


def _target(path: str, inventory: Inventory, files: AdapterFiles) -> str:
    """Return the target of a tensor: for a parameter of a module, PEFT writes the module's path and `base_layer`s."""
    if path not in inventory.modules and (inner := path.replace(f"{BASE}.", ".")) in inventory.modules:
        # a module around it was wrapped
        return inner
    if f"{path}.{IN_PROJECTION}" in inventory.modules and not files.config.get("target_parameters"):
        # what PEFT's adapter of a whole MultiheadAttention has besides that of its out_proj
        return f"{path}.{IN_PROJECTION}"
    outer = path
    while outer.endswith(BASE):
        outer = outer.removesuffix(BASE)
    wanted = tuple(f".{name}" for name in files.config.get("target_parameters") or ())
    own = [
        child
        for child in inventory.children.get(outer, ())
        if inventory.modules[child].is_parameter and f".{child}".endswith(wanted)
    ]
    depth = path.count(BASE)
    if depth < len(own):
        return own[len(own) - 1 - depth]
    module, weight = inventory.modules.get(path), f"{path}.weight"
    # a router was a Linear in transformers 4, and is a parameter now
    return weight if module and module.shape is None and weight in inventory.modules else path


def _decided_at(path: str, inventory: Inventory, files: AdapterFiles) -> str:
    """Return the path that PEFT looks up in its patterns: a MultiheadAttention is one module to it."""
    holder = Place(path).holder
    whole = f"{holder}.{IN_PROJECTION}" in inventory.modules and not files.config.get("target_parameters")
    return holder if whole and f"{PREFIX}{holder}.lora_A.weight" in files.tensors else path


def _whole(path: str, inventory: Inventory, files: AdapterFiles) -> None:
    """Refuse the bias of a layer that has no adapter, unless the layer was trained in full."""
    if any(f"{PREFIX}{path}.{own.name}" not in files.tensors for own in inventory.modules[path].parameters):
        raise AdapterError(
            f'{files.folder} was trained with bias="all" and holds the bias of `{path}`, which has no adapter; lorakit '
            'reads bias="lora_only", so fold this one in with PEFT\'s merge_and_unload'
        )


def _known(path: str, name: str, inventory: Inventory, files: AdapterFiles) -> None:
    if path not in inventory.modules:
        raise AdapterError(
            f"{files.folder} is for another model: it holds `{name}`, and this {inventory.model_class} has no `{path}`"
        )


def _rule(rank: int, alpha: float, dtype: str, config: Mapping[str, Any]) -> Adapt:
    return Adapt(
        targets=(),
        rank=rank,
        alpha=alpha,
        scaling="rslora" if config.get("use_rslora") else "standard",
        dropout=float(config.get("lora_dropout") or 0.0),
        dtype=dtype,
        bias="adapter" if config.get("bias") in ("lora_only", "all") else "none",
    )
