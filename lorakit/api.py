"""The public functions. Each imports what it needs when it is called, so that reading a spec stays quick."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.language.spec import Spec
from lorakit.plugins import default_plugins
from lorakit.values import ModelReference

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.application.summary import Summary
    from lorakit.named_adapters import Adapters
    from lorakit.planning.hardware import Hardware
    from lorakit.planning.plan import Plan

logger = logging.getLogger("lorakit")


def parse(text_or_path: str | Path, variables: Mapping[str, str] | None = None, plugins: Plugins | None = None) -> Spec:
    """Return the Spec of a program: text, or a file where given a Path or a string that ends in `.lora`.

    `variables` replace the values of `let` names. Raises: SpecError, holding every diagnostic.
    """
    from lorakit import language

    return language.parse(text_or_path, variables or {}, plugins or default_plugins())


def plan(
    spec: Spec | str | Path,
    model: Any,
    *,
    batch: int = 1,
    tokens: int = 512,
    hardware: Hardware | None = None,
    trust_remote_code: bool = False,
    plugins: Plugins | None = None,
) -> Plan:
    """Return what a spec makes of a model: an nn.Module (meta tensors are fine), a Hugging Face config, or a reference.

    No weight is read. batch × tokens is the step that the memory forecast is for. `hardware` decides what the model
    computes in where the spec does not say it; without one it is this machine's accelerator, or else its CPU.
    Raises: SpecError, PlanError, ModelError.
    """
    from lorakit.application import hardware as here
    from lorakit.application.state import adapted_state
    from lorakit.planning.inventory import read_inventory
    from lorakit.planning.planner import make_plan

    plugins = plugins or default_plugins()
    module = _module(model, plugins, with_weights=False, trust_remote_code=trust_remote_code)
    parsed = spec if isinstance(spec, Spec) else parse(spec, plugins=plugins)
    # a further adapter is planned for the layers that lie under those before it
    state = adapted_state(module)
    inventory = state.inventory if state else read_inventory(module, plugins)
    return make_plan(parsed, inventory, plugins, batch=batch, tokens=tokens, hardware=hardware or here.hardware())


def apply(
    spec_or_plan: Spec | Plan | str | Path,
    model: Any,
    seed: int = 0,
    *,
    name: str = "default",
    calibration: Iterable[Any] | None = None,
    hardware: Hardware | None = None,
    trust_remote_code: bool = False,
    plugins: Plugins | None = None,
) -> nn.Module:
    """Return the model adapted as a spec or a plan says: in place for an nn.Module, loaded first for a reference.

    A Hugging Face model is quantized while it is read, a tensor at a time. The same plan, weights and seed give the
    same bits. A model takes several adapters, each under a `name` of its own; the last one applied is in use until
    `lorakit.adapters(model)` says otherwise. `calibration` is needed by quantizers that see a layer's inputs first:
    batches of what the model's forward takes, each a dict of arguments by name, a tuple, or one tensor. `hardware` is
    as for `lorakit.plan`.
    Raises: SpecError, PlanError, ModelError, DataError; the model is untouched then.
    """
    from lorakit.application.apply import apply_plan
    from lorakit.planning.plan import Plan

    plugins = plugins or default_plugins()

    def decide(structure: nn.Module) -> Plan:
        if isinstance(spec_or_plan, Plan):
            return spec_or_plan
        return plan(spec_or_plan, structure, hardware=hardware, plugins=plugins)

    module, decided = _with_plan(model, decide, plugins, trust_remote_code=trust_remote_code)
    return apply_plan(decided, module, plugins, seed=seed, name=name, calibration=calibration)


def optimizer(model: nn.Module, lr: float | None = None, *, plugins: Plugins | None = None) -> torch.optim.Optimizer:
    """Return the optimizer that the spec names, with its groups, over everything that trains. Raises: ModelError."""
    from lorakit.application.optimizer import build_optimizer

    return build_optimizer(model, plugins or default_plugins(), lr)


def save(
    model: nn.Module,
    folder: str | Path,
    with_base: bool = False,
    *,
    name: str | None = None,
    plugins: Plugins | None = None,
) -> Path:
    """Write the adapter as a folder that PEFT and lorakit load, replacing whole the adapter that it may hold.

    Of several adapters it is the one in use, or that of the name. `with_base` adds the quantized base as a model folder
    `base` in it, for transformers to read where it can.
    Raises: ModelError, OutputError if the folder holds anything but an adapter, WriteError if the disk fails.
    """
    from lorakit.artifacts.adapter_folder import save_adapter
    from lorakit.huggingface.quantized_base import BASE, write_base

    plugins = plugins or default_plugins()
    if not with_base:
        return save_adapter(model, Path(folder), plugins, name=name)

    def add_base(aside: Path) -> None:
        logger.info("the base is %s", write_base(model, aside / BASE, plugins))

    return save_adapter(model, Path(folder), plugins, name=name, beside=add_base, also=(BASE,))


def load(
    folder: str | Path,
    model_or_ref: Any,
    *,
    name: str = "default",
    quantize: bool = True,
    allow_missing: bool = False,
    allow_pickle: bool = False,
    hardware: Hardware | None = None,
    trust_remote_code: bool = False,
    plugins: Plugins | None = None,
) -> nn.Module:
    """Return the model with a saved adapter on it, lorakit's or PEFT's, in evaluation mode (`model.train()` trains on).

    The base is quantized again as the adapter's plan.json says, unless `quantize` is False. `hardware` is as for
    `lorakit.plan`: the model computes in what is quick here, wherever the adapter was trained.
    Raises: AdapterError, ModelError; the model is untouched then.
    """
    from lorakit.application import hardware as here
    from lorakit.artifacts.loading import load_adapter
    from lorakit.artifacts.reading import read_plan

    plugins = plugins or default_plugins()
    saved = read_plan(Path(folder)) if quantize else None
    module = _module(model_or_ref, plugins, with_weights=True, trust_remote_code=trust_remote_code, plan=saved)
    return load_adapter(
        Path(folder),
        module,
        plugins,
        name=name,
        quantize=quantize,
        allow_missing=allow_missing,
        allow_pickle=allow_pickle,
        hardware=hardware or here.hardware(),
    )


def merge(model: nn.Module, *, requantize: bool = False, plugins: Plugins | None = None) -> nn.Module:
    """Return the model, in evaluation mode, with the adapters in use folded into its weights and no adapter left.

    A quantized weight comes back dequantized, in the dtype that it computes in, and no class of lorakit is left; with
    `requantize` it is quantized again as it was. What the rounding cost is logged.
    Raises: ModelError, AdapterError; the model is untouched then.
    """
    from lorakit.artifacts.merge import merge_model

    merged, report = merge_model(model, plugins or default_plugins(), requantize=requantize)
    logger.info(
        "merged %d modules; %s cost %.3g at most, %.3g relative",
        report.modules,
        "quantizing again" if requantize else "rounding",
        report.max_error,
        report.relative_error,
    )
    return merged


def adapters(model: nn.Module, *, plugins: Plugins | None = None) -> Adapters:
    """Return the adapters of a model by name: which are in use, and how far. Raises: ModelError if it has none."""
    from lorakit.named_adapters import Adapters

    return Adapters(model, plugins or default_plugins())


def summary(model: nn.Module) -> Summary:
    """Return what an adapted model really holds: counts, bytes, and a row for every module that was decided."""
    from lorakit.application.summary import summarize

    return summarize(model)


def _with_plan(
    model: Any, decide: Callable[[nn.Module], Plan], plugins: Plugins, *, trust_remote_code: bool
) -> tuple[nn.Module, Plan]:
    """Return a model and its plan, which for a stored one is made first, so that it is quantized while it is read."""
    is_stored = isinstance(model, str | Path) and not ModelReference(str(model)).is_factory
    first = _module(model, plugins, with_weights=not is_stored, trust_remote_code=trust_remote_code)
    decided = decide(first)
    if not is_stored:
        return first, decided
    return _module(model, plugins, with_weights=True, trust_remote_code=trust_remote_code, plan=decided), decided


def _module(
    model: Any, plugins: Plugins, *, with_weights: bool, trust_remote_code: bool, plan: Plan | None = None
) -> nn.Module:
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str | Path):
        reference = ModelReference(str(model), None, with_weights, trust_remote_code, plan=plan)
    elif hasattr(model, "to_dict") and hasattr(model, "model_type"):
        if with_weights:
            raise ModelError("a config has no weights; give the model itself, or its folder or hub id")
        reference = ModelReference(type(model).__name__, model, False, trust_remote_code)
    else:
        raise ModelError(f"a model is an nn.Module, a Hugging Face config or a reference, not a {type(model).__name__}")
    return plugins.load_model(reference)
