"""adapter_config.json: a Plan as PEFT's config, each method's fields as the method gives them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lorakit.application.places import full_parameters, module_at, other_ends
from lorakit.application.sharding import own_class
from lorakit.artifacts.peft_experts import misread_by_peft
from lorakit.hooks.manager import Plugins
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.planning.wrappers import plain_modules

# PEFT knows no type of such a name, and says so instead of computing something else
FOREIGN_TYPE, ON_CHANGED_BASE = "LORAKIT_", "_ON_CHANGED_BASE"
# where a layer is named by its weight, among `target_parameters`
WEIGHT = r"(\.weight)?"
# PEFT looks a pattern up at the end of a path, and with this in all of it
START = "^"


def peft_config(plan: Plan, model: nn.Module, plugins: Plugins, *, changes_base: bool = False) -> dict[str, Any]:
    """Return the config with which PEFT computes what the plan's adapters compute.

    Where it cannot, `peft_type` is one that PEFT refuses by name: a method that it does not know, several methods in
    one adapter, or a start that was taken from the base weight.
    """
    adapted = [entry for entry in plan.entries if entry.adapter is not None]
    task = _task(model)
    common = {
        "task_type": task,
        "auto_mapping": None if task else _origin(model),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
    }
    modules = [entry.path for entry in adapted if not entry.is_parameter]
    misread = misread_by_peft(modules, model)
    ambiguous = _ambiguous([entry.path for entry in adapted], model)
    fields = method_fields(plan, plugins, changes_base=changes_base)
    if misread and not _is_plain_lora(fields):
        # PEFT takes these layers for parameters, which it adapts by plain LoRA alone
        fields = {"peft_type": _foreign(adapted, changes_base)}
    if any(_is_passed_by(path, model) for path in modules):
        fields = {"peft_type": _foreign(adapted, changes_base)}
    if str(fields["peft_type"]).startswith(FOREIGN_TYPE):
        return {**fields, **common}
    parameters = [entry.path for entry in adapted if entry.is_parameter]
    parameters += [f"{path}.weight" for path in modules if path in misread]
    config = {
        **common,
        **{name: _written(name, value, misread, ambiguous) for name, value in fields.items()},
        "target_modules": _targets([path for path in modules if path not in misread], model),
        "modules_to_save": _whole_modules(plan, model) or None,
    }
    if fields["peft_type"] == "LORA":
        config["target_parameters"] = parameters or None
        config["bias"] = "lora_only" if _trains_biases(adapted) else "none"
    return config


def _is_passed_by(path: str, model: nn.Module) -> bool:
    """Whether PEFT's adapter of a layer would never be heard: a MultiheadAttention takes the weight of its out_proj."""
    return isinstance(module_at(model, Place(path).holder), nn.MultiheadAttention)


def _whole_modules(plan: Plan, model: nn.Module) -> list[str]:
    """Return the modules that train in full, and those that share a weight with them."""
    found: dict[str, None] = {}
    for entry in plan.entries:
        if entry.train:
            found[entry.path] = None
            for name, held in full_parameters(model, entry).items():
                ends = other_ends(model, held, Place(entry.path).inside(name))
                found.update(dict.fromkeys(Place(end).holder for end in ends))
    return list(found)


def method_fields(plan: Plan, plugins: Plugins, *, changes_base: bool = False) -> Mapping[str, Any]:
    """Return `peft_type`, and where PEFT can compute a plan's adapters what else of its config says how."""
    adapted = [entry for entry in plan.entries if entry.adapter is not None]
    fields = None if changes_base else _fields(adapted, plugins)
    if fields is not None:
        # PEFT adapts parameters by plain LoRA alone, and the biases beside an adapter by what is LoRA to it
        fits = _is_plain_lora(fields) or not any(entry.is_parameter for entry in adapted)
        if fits and (fields["peft_type"] == "LORA" or not _trains_biases(adapted)):
            return fields
    return {"peft_type": _foreign(adapted, changes_base)}


def _is_plain_lora(fields: Mapping[str, Any]) -> bool:
    return fields["peft_type"] == "LORA" and not fields.get("use_dora")


def _trains_biases(adapted: Iterable[PlanEntry]) -> bool:
    return any(entry.adapter is not None and entry.adapter.bias == "adapter" for entry in adapted)


def _foreign(adapted: Iterable[PlanEntry], changes_base: bool) -> str:
    """Return a type that PEFT refuses by name, which is that of the methods."""
    names = dict.fromkeys(entry.adapter.method.name for entry in adapted if entry.adapter is not None)
    return f"{FOREIGN_TYPE}{'_'.join(names).upper()}{ON_CHANGED_BASE * changes_base}"


def disagreement(plan: Plan, config: Mapping[str, Any], plugins: Plugins, *, changes_base: bool) -> str:
    """Return in which field a plan and a config do not say the same, in words; nothing if they agree."""
    fields = method_fields(plan, plugins, changes_base=changes_base)
    if config.get("peft_type") == _foreign([entry for entry in plan.entries if entry.adapter], changes_base):
        return ""
    if config.get("peft_type") != fields["peft_type"]:
        return f"is of PEFT type {config.get('peft_type')!r}, and the plan beside it of {fields['peft_type']!r}"
    for name, value in fields.items():
        written = config.get(name)
        if name.endswith("_pattern") and isinstance(value, Mapping) and isinstance(written, Mapping):
            value = {_pattern(path, ()): one for path, one in value.items()}
            written = {str(path).removeprefix(START).removesuffix(WEIGHT): one for path, one in written.items()}
        if not name.endswith("_modules") and written != value:
            return f"says {name}={config.get(name)!r}, and the plan beside it {value!r}"
    return ""


def _fields(adapted: Sequence[PlanEntry], plugins: Plugins) -> Mapping[str, Any] | None:
    """Return the fields of the one method that all of these have; without any, those of a LoRA of no layer."""
    calls = {entry.adapter.method.name: entry.adapter.method for entry in adapted if entry.adapter is not None}
    if len(calls) > 1:
        return None
    if not calls:
        from lorakit.hooks.low_rank import low_rank_fields

        return low_rank_fields(())
    return plugins.method(calls.popitem()[1]).peft(adapted)


def _written(name: str, value: Any, misread: Collection[str], ambiguous: Collection[str]) -> Any:
    """Return a method's field as PEFT writes it: patterns by path as regexes."""
    if name.endswith("_pattern") and isinstance(value, Mapping):
        return {START * (path in ambiguous) + _pattern(path, misread): one for path, one in value.items()}
    return value


def _pattern(path: str, misread: Collection[str]) -> str:
    return re.escape(path) + WEIGHT * (path in misread)


def _task(model: nn.Module) -> str | None:
    """Return PEFT's task type where its wrapper only forwards what it is given.

    For classifiers PEFT would ask the file for a head that nobody trained, and it takes every sequence-to-sequence
    model to read tokens: without a task it adds nothing and asks for nothing.
    """
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", lambda: False)()
    if config is None or not generates or getattr(model, "main_input_name", "") != "input_ids":
        return None
    return "SEQ_2_SEQ_LM" if getattr(config, "is_encoder_decoder", False) else "CAUSAL_LM"


def _origin(model: nn.Module) -> dict[str, str] | None:
    """Return where the class of a model is from, by which PEFT's `AutoPeftModel` makes one where there is no task."""
    if not hasattr(model, "from_pretrained"):
        return None
    kind = own_class(model)
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _ambiguous(paths: Iterable[str], model: nn.Module) -> frozenset[str]:
    """Return the paths that those of other modules end with, for which PEFT would take these too."""
    ends = {path: f".{path}" for path in paths}
    every = tuple(plain_modules(model.named_modules()))
    return frozenset(path for path, end in ends.items() if any(other.endswith(end) for other in every))


def _targets(paths: list[str], model: nn.Module) -> list[str] | str:
    """Return names for PEFT to find modules by; where whole paths are no clear names, an expression for all of them."""
    names, wanted = _short_names(paths, model), set(paths)
    every = tuple(plain_modules(model.named_modules()))
    found = {path for path in every if any(f".{path}".endswith(f".{name}") for name in names)}
    return names if found == wanted else "|".join(map(re.escape, paths))


def _short_names(paths: list[str], model: nn.Module) -> list[str]:
    """Return last names where they select just these modules, and whole paths otherwise."""
    by_name: Mapping[str, set[str]] = _by_last_name(plain_modules(model.named_modules()))
    chosen = _by_last_name(paths)
    return sorted(
        target
        for name, selected in chosen.items()
        for target in ([name] if by_name[name] == selected else sorted(selected))
    )


def _by_last_name(paths: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in paths:
        found.setdefault(Place(path).leaf, set()).add(path)
    return found
