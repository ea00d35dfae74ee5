"""The way of every run: a model's structure, its plan, the model quantized as it is read, the adapters on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from lorakit.language.spec import Spec
from lorakit.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from torch import nn

    from lorakit.application.layout import Frozen
    from lorakit.application.starting import Starter
    from lorakit.hooks.manager import Plugins
    from lorakit.planning.hardware import Hardware
    from lorakit.planning.inventory import Inventory
    from lorakit.planning.plan import Plan
    from lorakit.values import ModelReference

CALIBRATION_ROWS = 128
# of an accelerator's free memory: its allocator holds some that lies in no tensor, and a forecast is one
KEPT_SHARE = 0.9


class Calibrating(Protocol):
    """Data that a model can run over."""

    def calibration(self, count: int) -> Sequence[Any]:
        """Return the first rows as what the model's forward takes, each a batch of its own."""


def read_structure(model: nn.Module | ModelReference, plugins: Plugins, reporter: Reporter = SILENT) -> nn.Module:
    """Return a model on meta tensors, or the model itself where one is given. Raises: ModelError."""
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    with reporter.working(f"reading {model.text}"):
        return plugins.load_model(replace(model, with_weights=False))


def read_first(model: nn.Module | ModelReference, plugins: Plugins, reporter: Reporter = SILENT) -> nn.Module:
    """Return what a plan is made from: the structure, but of code that makes a model its only make, weights and all.

    Raises: ModelError.
    """
    from torch import nn

    if isinstance(model, nn.Module) or not model.is_factory:
        return read_structure(model, plugins, reporter)
    return read_model(model, plugins, reporter)


def inventory_of(model: nn.Module, plugins: Plugins, example: Any = None) -> Inventory:
    """Return what a model holds; a further adapter is planned for the layers that lie under those before it."""
    from lorakit.application.state import adapted_state
    from lorakit.planning.reading import read_inventory

    state = adapted_state(model)
    return state.inventory if state else read_inventory(model, plugins, example)


def decide(
    spec: Spec | Plan,
    structure: nn.Module,
    plugins: Plugins,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    recompute: bool | None = None,
    limit: int | None = None,
    devices: int | None = None,
    frozen: Frozen | None = None,
    example: Any = None,
    hardware: Hardware | None = None,
    inventory: Inventory | None = None,
) -> Plan:
    """Return what a spec makes of a model, for the step that is given, or the spec's own, or 1 × 512 that keep all.

    A plan made elsewhere keeps its decisions, and its step where nothing is said; its figures are counted again.
    A step holds at most `limit` bytes, or what the spec says, if blocks that are computed again can do it. Of several
    `devices` the figures are those of each, with `frozen` weights sharded or replicated.
    `example` is what a plain model's forward takes, to see which layers read the same tensor; an `inventory` that was
    read before spares reading it again. `hardware` is what a spec
    decides the computing dtype for: this machine's unless given.
    Raises: PlanError.
    """
    from lorakit.application import hardware as here
    from lorakit.planning.figures import finished
    from lorakit.planning.planner import make_plan

    inventory = inventory or inventory_of(structure, plugins, example)
    asked = {
        "batch": batch, "tokens": tokens, "recompute": recompute, "limit": limit, "devices": devices, "frozen": frozen
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(spec, Spec):
        return finished(replace(spec, memory=replace(spec.memory, **given)), inventory, plugins)
    if spec.step is not None:
        said = {"batch": spec.step.batch, "tokens": spec.step.tokens, "limit": spec.step.limit}
        given = {name: value for name, value in said.items() if value is not None} | given
    return make_plan(spec, inventory, plugins, hardware=hardware or here.hardware(), **given)


def read_model(
    model: nn.Module | ModelReference,
    plugins: Plugins,
    reporter: Reporter = SILENT,
    *,
    starter: Starter | None = None,
    device: str | None = None,
    fresh: Sequence[str] = (),
) -> nn.Module:
    """Return a model with its weights, started and quantized on `device` while they are read, if a starter is given.

    Modules that `fresh` names, or the starter's plan trains in full, may be without weights in the files.
    Raises: ModelError.
    """
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    what = f"reading {model.text}"
    if starter is None:
        with reporter.working(what):
            return plugins.load_model(replace(model, with_weights=True, fresh=tuple(fresh)))
    fresh = (*fresh, *(entry.path for entry in starter.plan.entries if entry.train))
    with reporter.measured(what) as progress:
        return plugins.load_model(
            replace(
                model,
                with_weights=True,
                plan=starter.plan,
                starter=starter,
                device=device,
                progress=progress,
                fresh=fresh,
            )
        )


def read_started(
    model: nn.Module | ModelReference,
    first: nn.Module,
    plan: Plan,
    plugins: Plugins,
    reporter: Reporter = SILENT,
    *,
    seed: int = 0,
    device: str | None = None,
) -> tuple[nn.Module, Starter]:
    """Return the model that a plan was made for, after `read_first` gave `first`, and what has started of the plan.

    Raises: ModelError.
    """
    from torch import nn

    from lorakit.application.starting import Starter
    from lorakit.planning.entries import completed

    starter = Starter(completed(plan, plugins), plugins, seed)
    if isinstance(model, nn.Module) or model.is_factory:
        return first, starter
    return read_model(model, plugins, reporter, starter=starter, device=device), starter


def calibration_batches(
    plan: Plan,
    model: nn.Module,
    plugins: Plugins,
    data: Calibrating | None,
    reporter: Reporter = SILENT,
    *,
    named: str | None = None,
    rows: int = CALIBRATION_ROWS,
) -> Iterable[Any] | None:
    """Return what the model shall run over; None where nothing needs it or there is no data.

    `named` is the data that the user named for it, if any: without it, `data` is what the run trains on.
    """
    from lorakit.application.observing import watched

    wanting = sorted({one.name for one in watched(plan, model, plugins)})
    if named is not None and not wanting:
        reporter.say(f"{named} is left alone: nothing in this plan needs calibration data")
    if data is None or not wanting:
        return None
    batches = data.calibration(rows)
    reporter.say(f"calibrating {', '.join(wanting)} on {len(batches)} rows of {named or 'the training data'}")
    return reporter.tracked(batches, "calibrating")


def accelerator() -> str | None:
    """Return the device to work on, None for the CPU."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else None


def device_limit() -> int | None:
    """Return the bytes that a step may hold on the accelerator, where all that fits is kept; None for the CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free * KEPT_SHARE)


def device_words() -> str:
    """Say where the work runs."""
    import torch

    if torch.cuda.is_available():
        return f"running on {torch.cuda.get_device_name()}"
    return "no accelerator found: running on the CPU"
