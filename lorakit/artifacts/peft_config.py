"""adapter_config.json: a Plan as PEFT's LoraConfig."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lorakit.artifacts.peft_experts import misread_by_peft
from lorakit.planning.plan import AdapterPlan, Plan, PlanEntry


def peft_config(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """Return the LoraConfig with which PEFT computes what the plan's adapters compute.

    PEFT knows one scaling rule for the whole adapter: where rules differ, rsLoRA goes in as the alpha that equals it.
    """
    adapted = [entry for entry in plan.entries if entry.adapter is not None]
    adapters = {entry.path: entry.adapter for entry in adapted if entry.adapter is not None}
    parameters = [entry.path for entry in adapted if entry.shape is not None and entry.shape.is_parameter]
    modules = [path for path in adapters if path not in parameters]
    misread = misread_by_peft(modules, model)
    parameters += [f"{path}.weight" for path in modules if path in misread]
    rslora = bool(adapters) and all(adapter.scaling == "rslora" for adapter in adapters.values())
    alphas = {path: _alpha(adapter, rslora) for path, adapter in adapters.items()}
    ranks = {path: adapter.rank or 0 for path, adapter in adapters.items()}
    rank, alpha = _commonest(ranks.values(), 8), _commonest(alphas.values(), 8.0)
    return {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        # with a dropout PEFT refuses to load adapters of parameters; plan.json keeps it
        "lora_dropout": 0.0 if parameters else _commonest((adapter.dropout for adapter in adapters.values()), 0.0),
        "use_rslora": rslora,
        "target_modules": _short_names([path for path in modules if path not in misread], model),
        "target_parameters": parameters or None,
        "rank_pattern": {_pattern(path, misread): value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {_pattern(path, misread): value for path, value in alphas.items() if value != alpha},
        "bias": "lora_only" if any(adapter.bias == "adapter" for adapter in adapters.values()) else "none",
        "fan_in_fan_out": {entry.shape.kind for entry in adapted if entry.shape} == {"linear_transposed"},
        "modules_to_save": _trained(plan.entries) or None,
        "init_lora_weights": True,
    }


def _pattern(path: str, misread: Collection[str]) -> str:
    return re.escape(path) + r"(\.weight)?" * (path in misread)


def _alpha(adapter: AdapterPlan, rslora: bool) -> float:
    value = adapter.alpha if rslora else adapter.factor * (adapter.rank or 1)
    return int(value) if float(value).is_integer() else value


def _commonest(values: Iterable[Any], default: Any) -> Any:
    counted = collections.Counter(values).most_common(1)
    return counted[0][0] if counted else default


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


def _trained(entries: Sequence[PlanEntry]) -> list[str]:
    return [entry.path for entry in entries if entry.train]


def _short_names(paths: list[str], model: nn.Module) -> list[str]:
    """Return last names where they select just these modules, and whole paths otherwise."""
    by_name: Mapping[str, set[str]] = _by_last_name(path for path, _ in model.named_modules())
    chosen = _by_last_name(paths)
    return sorted(
        target
        for name, selected in chosen.items()
        for target in ([name] if by_name[name] == selected else sorted(selected))
    )


def _by_last_name(paths: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in paths:
        found.setdefault(path.rpartition(".")[2], set()).add(path)
    return found
