"""The reference model of a preference loss: a trainer that is given none loads the base once more, unquantized.

TRL does so for all but a `PeftModel`. A trainer that is about to is stopped before it.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback

from lorakit.application.state import adapted_state
from lorakit.errors import ModelError


class NoSecondModel(TrainerCallback):
    """Stops a trainer whose model lorakit adapted, and which would load that model again to compare with."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # a view of an adapted model is not adapted itself
        if not isinstance(model, PreTrainedModel) or adapted_state(model) is None:
            return
        trainer = being_made()
        if trainer is not None and _would_load(args, trainer):
            raise ModelError(
                f"{type(trainer['self']).__name__} would load a second model, without this one's adapters and as its "
                "files hold it, to be the reference: give it `lorakit.peft(model)`, whose reference is this model with "
                "its adapters as they are now, or as `ref_model` what you want to compare with"
            )


def being_made() -> dict[str, Any] | None:
    """Return what the constructor of the trainer that is being made was given; TRL shows it nowhere else by then."""
    frame, found = sys._getframe(), None
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), Trainer):
            # the outermost is that of the class itself
            found = frame.f_locals
    return found


def _would_load(args: Any, given: dict[str, Any]) -> bool:
    """Whether a trainer compares with a model, is given none, and does not compute all answers of it beforehand."""
    if getattr(args, "precompute_ref_log_probs", False):
        return False
    if "ref_model" in given:
        return given["ref_model"] is None
    # of GRPO and RLOO, which take none
    return hasattr(args, "num_generations") and getattr(args, "beta", 0.0) != 0.0
