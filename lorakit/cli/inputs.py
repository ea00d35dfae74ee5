"""What commands are given: specs, plans made elsewhere, and models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.terminal import measured, working

if TYPE_CHECKING:
    from torch import nn

    from lorakit.language.spec import Spec
    from lorakit.planning.plan import Plan
    from lorakit.values import ModelReference


def read_spec(path: str, variables: Sequence[str]) -> Spec | Plan:
    """Return the Spec in a file, or the Plan in a `.json` one. Raises: SpecError, PlanError."""
    if path.endswith(".json"):
        return _read_plan(Path(path))
    from lorakit.api import parse
    from lorakit.language.settings import variables_of

    return parse(Path(path), variables_of(variables))


def decide(
    spec: Spec | Plan,
    model: nn.Module,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    recompute: bool | None = None,
) -> Plan:
    """Return what a spec makes of a model; a plan keeps its decisions, and is counted again. Raises: PlanError."""
    import lorakit

    return lorakit.plan(spec, model, batch=batch, tokens=tokens, recompute=recompute)


def load_model(
    text: str,
    *,
    with_weights: bool,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dtype: str | None = None,
) -> nn.Module:
    """Return the model that a reference names, in its own dtype or this one. Raises: ModelError."""
    from lorakit.values import ModelReference

    with working(f"reading {text}"):
        return _load(ModelReference(text, None, with_weights, trust_remote_code, allow_pickle, dtype))


def load_planned(
    text: str, plan: Plan, *, device: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> nn.Module:
    """Return the model that a reference names, quantized as the plan says while it is read. Raises: ModelError."""
    from lorakit.values import ModelReference

    with measured(f"reading {text}") as progress:
        return _load(
            ModelReference(
                text, None, True, trust_remote_code, allow_pickle, plan=plan, device=device, progress=progress
            )
        )


def _load(reference: ModelReference) -> nn.Module:
    from lorakit.plugins import default_plugins

    return default_plugins().load_model(reference)


def device_words() -> str:
    """Say where the work runs."""
    import torch

    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name()}"
    return "no accelerator found: running on the CPU"


def _read_plan(path: Path) -> Plan:
    from lorakit.errors import PlanError
    from lorakit.planning.plan import Plan

    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the plan {path}: {error}") from error
