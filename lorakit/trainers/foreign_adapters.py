"""PEFT's own adapters on a model that lorakit adapted: each would take the other's layers for the base model's."""

from __future__ import annotations

import functools
from typing import Any

from lorakit.application.state import adapted_state
from lorakit.errors import ModelError


def refuse(module: Any) -> None:
    """Have PEFT's tuners, which its module holds, look at the model that they are to adapt first."""
    own = module.BaseTuner.__init__

    @functools.wraps(own)
    def make(self: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        _check(model, peft_config)
        own(self, model, peft_config, *args, **kwargs)

    module.BaseTuner.__init__ = make


def _check(model: Any, peft_config: Any) -> None:
    """Raise ModelError if a model has adapters of lorakit's."""
    states = (state for one in model.modules() if (state := adapted_state(one)) is not None)
    for state in states:
        configs = peft_config.values() if isinstance(peft_config, dict) else (peft_config,)
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in configs))
        raise ModelError(
            f"PEFT is to put adapters of its own, a {kinds}, on a {type(model).__name__} that lorakit has adapted "
            f"({', '.join(f'`{name}`' for name in state.named)}): leave one of the two out. A trainer's `peft_config` "
            "takes lorakit.peft_config(SPEC), for a model that is not adapted yet; `lorakit init --from "
            "adapter_config.json` writes the spec that says what a config does"
        )
