"""What commands are given: specs, plans made elsewhere, and models."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lorakit.language.analysis import Analysis
    from lorakit.language.spec import Spec
    from lorakit.language.statements import Step
    from lorakit.planning.plan import Plan


def read_spec(path: str, variables: Sequence[str]) -> Spec | Plan:
    """Return the Spec in a file, or on standard input for `-`, or the Plan in a `.json` file.

    Raises: SpecError, PlanError.
    """
    if path.endswith(".json"):
        return _read_plan(Path(path))
    from lorakit.errors import SpecError
    from lorakit.language.render import render_text
    from lorakit.language.settings import variables_of

    analysis = analysis_of(path, variables_of(variables))
    if analysis.spec is None:
        raise SpecError(analysis.diagnostics, render_text(analysis.diagnostics, analysis.sources))
    return analysis.spec


def analysis_of(path: str, variables: Mapping[str, object]) -> Analysis:
    """Return what the spec in a file means or what is wrong with it; `-` is standard input."""
    from lorakit.language.analysis import analyse

    with _uncollected():
        if path == "-":
            return analyse(sys.stdin.buffer.read(), variables, name="<stdin>")
        return analyse(Path(path), variables)


def step_of(spec: Spec | Plan) -> Step:
    """Return what a spec says of how a step runs; a plan made elsewhere says it of its forecast alone."""
    from lorakit.language.spec import Spec
    from lorakit.language.statements import Step

    return (spec.step if isinstance(spec, Spec) else None) or Step()


def decide(
    spec: Spec | Plan,
    model: nn.Module,
    **step: Any,
) -> Plan:
    """Return what a spec makes of a model, for a step that `pipeline.decide` knows; a plan keeps its decisions.

    Raises: PlanError.
    """
    from lorakit import pipeline
    from lorakit.plugins import default_plugins

    return pipeline.decide(spec, model, default_plugins(), **step)


def decider(model: nn.Module, **step: Any) -> Callable[[Spec], Plan]:
    """Return what makes plans of specs for a model, which is looked at once."""
    from lorakit import pipeline
    from lorakit.plugins import default_plugins

    plugins = default_plugins()
    inventory = pipeline.inventory_of(model, plugins)
    return lambda spec: pipeline.decide(spec, model, plugins, inventory=inventory, **step)


def load_model(
    text: str,
    *,
    with_weights: bool,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dtype: str | None = None,
    fresh: tuple[str, ...] = (),
) -> nn.Module:
    """Return the model that a reference names, in its own dtype or this one. Raises: ModelError.

    Modules that `fresh` names may be without weights in the files.
    """
    from lorakit.cli.terminal import reporter
    from lorakit.pipeline import read_model, read_structure
    from lorakit.plugins import default_plugins
    from lorakit.values import ModelReference

    reference = ModelReference(text, None, with_weights, trust_remote_code, allow_pickle, dtype)
    if not with_weights:
        with _uncollected():
            return read_structure(reference, default_plugins(), reporter())
    return read_model(reference, default_plugins(), reporter(), fresh=fresh)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage for a while, nor ever in what is made meanwhile: as libraries load, nearly all of it stays.

    Only for what reads no weights, of which garbage could hold some.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _read_plan(path: Path) -> Plan:
    from lorakit.artifacts.json_files import MAX_PLAN_BYTES, read_text
    from lorakit.errors import PlanError
    from lorakit.language.other_formats import other_format
    from lorakit.planning.plan import Plan

    text = read_text(path, PlanError, MAX_PLAN_BYTES)
    try:
        return Plan.from_json(text)
    except PlanError as error:
        if (other := other_format(text)) is not None and other.is_read:
            advice = f"`lorakit init --from {path}` writes the spec that means the same"
            raise PlanError(f"{path}: this is {other.kind}, and no plan; {advice}") from error
        raise PlanError(f"{path}: {error}", error.diagnostics) from error
