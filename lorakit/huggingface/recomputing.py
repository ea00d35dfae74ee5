"""Reentrant checkpointing of models that read no tokens: what enters their blocks needs a gradient, or none passes.

transformers sees to it for token embeddings, whose output it makes require a gradient; for pixels and sounds it does so
only where PEFT's adapters are on the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from lorakit.planning.plan import Plan


@hookimpl
def lorakit_model_ready(model: nn.Module, plan: Plan) -> None:
    from lorakit.huggingface import marks

    if not marks.is_pretrained(model) or getattr(model, "main_input_name", "input_ids") == "input_ids":
        return
    embedding = _input_embedding(model)
    if embedding is not None and not any(isinstance(hook, _Enter) for hook in embedding._forward_hooks.values()):
        embedding.register_forward_hook(_Enter(model))


@hookimpl
def lorakit_model_merged(model: nn.Module) -> None:
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Enter):
                del module._forward_hooks[key]


def _input_embedding(model: Any) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if hasattr(found, "register_forward_hook") else None


class _Enter:
    """Lets what an embedding gives require a gradient while the blocks behind it are computed again."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        import torch

        if not torch.is_grad_enabled() or not isinstance(output, torch.Tensor) or output.requires_grad:
            return
        if any(getattr(one, "gradient_checkpointing", False) for one in self._model.modules()):
            output.requires_grad_(True)
