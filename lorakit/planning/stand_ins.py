"""Stand-ins of a model's modules, of the same classes, with meta tensors in place of theirs."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.planning.wrappers import plain_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

# the paths of modules whose own code does not run: each answers with its inputs in so many features, or as many
Opaque = Mapping[str, "int | None"]


def stand_ins_of(model: nn.Module, opaque: Opaque) -> dict[str, nn.Module]:
    """Return a stand-in for every module of a model, by path: without its hooks, and in evaluation mode.

    Raises: ValueError if a module of the model has another forward than its class's.
    """
    made = _stand_ins(model)
    paths = {path: made[id(module)] for path, module in plain_modules(model.named_modules()).items()}
    for path, features in opaque.items():
        vars(paths[path])["forward"] = functools.partial(_answer, features)
    return paths


def _stand_ins(model: nn.Module) -> dict[int, nn.Module]:
    """Return the stand-ins by the ids of what they stand for."""
    from torch import nn

    made: dict[int, Any] = {}
    for module in model.modules():
        if "forward" in vars(module):
            raise ValueError("a forward was put in the place of the class's own")
        made[id(module)] = object.__new__(type(module))
    fresh = vars(nn.Module())
    for module in model.modules():
        state = {
            name: value if name in ("_parameters", "_buffers", "_modules", "training") else on_meta(value, made)
            for name, value in vars(module).items()
        }
        state |= {name: type(value)() for name, value in fresh.items() if name.endswith("_hooks") or "hooks_" in name}
        state["_modules"] = {
            name: child if child is None else made[id(child)] for name, child in module._modules.items()
        }
        for kind in ("_parameters", "_buffers"):
            state[kind] = {name: on_meta(value, made) for name, value in vars(module)[kind].items()}
        vars(made[id(module)]).update(state, training=False)
        if isinstance(module, nn.Embedding):
            # so that autograd sees what follows, and keeps what it keeps when adapters train
            trained = made[id(module)].weight
            trained.requires_grad_(trained.is_floating_point())
    return made


def on_meta(value: Any, made: dict[int, Any]) -> Any:
    """Return a value with meta tensors for its tensors, and stand-ins for its modules, one level of containers deep."""
    import torch
    from torch import nn

    if isinstance(value, torch.Tensor):
        if id(value) not in made:
            empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
            made[id(value)] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
        return made[id(value)]
    if isinstance(value, nn.Module):
        return made.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, made.get(id(value.__self__), value.__self__))
    if type(value) in (list, tuple, set):
        return type(value)(on_meta(item, made) for item in value)
    if isinstance(value, dict):
        copied = value.copy()
        copied.update({key: on_meta(item, made) for key, item in value.items()})
        return copied
    return value


def _answer(features: int | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return something of the right shape, for which autograd keeps nothing."""
    return x * 1 if features is None else x.sum(-1, keepdim=True).expand(*x.shape[:-1], features).clone()
