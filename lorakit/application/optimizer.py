"""The optimizer of an adapted model: the spec's groups, each with its learning rate and whether its state pages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorakit.application.layers import adapter_at, trained_parameters
from lorakit.application.state import plan_of, unwrapped
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins


def build_optimizer(model: nn.Module, plugins: Plugins, lr: float | None = None) -> torch.optim.Optimizer:
    """Return the optimizer that the plan names, over everything that trains.

    `lr` replaces the optimizer's own learning rate; a rule's `lr` stays, and `lr_ratio` multiplies that of lora_B
    (LoRA+, Hayou et al. 2024, arXiv:2402.12354). Raises: ModelError if the model is not adapted.
    """
    plan = plan_of(model)
    return plugins.optimizer(plan.optimizer.call).build(parameter_groups(model, lr))


def keeps_lr(model: nn.Module, plugins: Plugins) -> bool:
    """Return whether the plan's optimizer asks for a learning rate that does not fall."""
    return bool(getattr(plugins.optimizer(plan_of(model).optimizer.call), "constant_lr", False))


def parameter_groups(model: nn.Module, lr: float | None = None) -> list[dict[str, Any]]:
    """Return parameter groups with `params`, `lr` and `paged`, one for each pair of the latter two."""
    plan = plan_of(model)
    model = unwrapped(model)
    default = lr if lr is not None else plan.optimizer.lr
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for entry in plan.entries:
        adapter = entry.adapter
        rate = (adapter.lr if adapter else entry.train_lr) or default
        paged = plan.optimizer.paged or bool(adapter and adapter.paged)
        adapted = adapter_at(model, entry).named_parameters() if adapter else trained_parameters(model, entry).items()
        for name, parameter in adapted:
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            ratio = adapter.lr_ratio if adapter and adapter.lr_ratio and name == "lora_B" else 1.0
            groups.setdefault((rate * ratio, paged), []).append(parameter)
    if not groups:
        raise ModelError("nothing in this model trains: the plan only quantizes")
    return [{"params": parameters, "lr": rate, "paged": paged} for (rate, paged), parameters in groups.items()]
