"""What a captured pass takes as given of a model: a pass is good as long as this is the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def model_state(model: nn.Module) -> tuple[Any, ...]:
    """Return modes, the strengths of adapters, and where every tensor lies that modules hold, parameters or not."""
    state: list[Any] = [torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")]
    for module in model.modules():
        state.append(module.training)
        for held in (module._parameters, module._buffers):
            state += [None if one is None else one.data_ptr() for one in held.values()]
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                state += [name, value.data_ptr(), value.shape]
            elif name == "strength":
                state.append(value)
    return tuple(state)


def why_not(model: nn.Module) -> str | None:
    """Return why no token of a model can be a graph, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return f"the model lies on {', '.join(sorted(map(str, devices))) or 'no device'}"
    for path, module in model.named_modules():
        # those of the model itself run around each pass, and lorakit's are for training
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values()) if path else ()
        if hasattr(module, "_hf_hook") or not all(map(_is_own, hooks)):
            return f"hooks watch {path or 'the model'}"
    return None


def _is_own(hook: Any) -> bool:
    name = getattr(hook, "__module__", None) or type(hook).__module__
    return str(name).startswith("lorakit.")
