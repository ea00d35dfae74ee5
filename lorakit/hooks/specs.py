"""The hooks of lorakit: this file reads as the plugin manual.

A distribution takes part by an entry point in the group `lorakit` that names a module or object with functions marked
`@lorakit.hookimpl`. Registries are asked once, when the plugins load. Moments are called as a run goes by; where a
moment says 'first result', the plugins are asked in turn, the last registered first and the built-ins last, until one
answers with something other than None. A function names those of a hook's arguments that it needs; `plugins` are those
of the run. A plugin that raises, or answers with something else than is said here, stops the run with its name and
version.

A module may state the protocol that it was written for, `lorakit_protocol = 2`; one that states none is taken to speak
this one. A distribution that does not import, states another protocol, has a hook or an argument that is not here,
adds a name or a file's suffix of a built-in, or a class that lacks what `lorakit.hooks.protocols` asks for, is left out
whole: `lorakit plugins` says why, and so does a spec that misses what it would have added. A name that two
distributions add belongs to neither.
`lorakit.testing` checks what a plugin does, and `lorakit plugins new` writes one to start from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from lorakit.hooks.protocols import (
    DataFormat,
    DataShape,
    FormerNames,
    Initializer,
    Kernel,
    Method,
    OptimizerFactory,
    Quantizer,
    Role,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.hooks.manager import Plugins
    from lorakit.planning.plan import Plan, PlanEntry
    from lorakit.values import LayerShape, ModelReference

PROJECT = "lorakit"
# what this lorakit asks of plugins; it goes up when a plugin written before would no longer work
PROTOCOL = 2
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Registries: what the words of a spec can name, and what computes behind them


@hookspec
def lorakit_quantizers() -> Sequence[type[Quantizer]]:  # type: ignore[empty-body]
    """Return quantizers, for `quant NAME` and `quantize TARGETS NAME`."""


@hookspec
def lorakit_initializers() -> Sequence[type[Initializer]]:  # type: ignore[empty-body]
    """Return initializers, for `init NAME`."""


@hookspec
def lorakit_optimizers() -> Sequence[type[OptimizerFactory]]:  # type: ignore[empty-body]
    """Return optimizers, for `optimizer NAME`."""


@hookspec
def lorakit_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """Return adapter methods, for `method NAME`."""


@hookspec
def lorakit_roles() -> Sequence[Role]:  # type: ignore[empty-body]
    """Return roles, for targets such as `@attention`."""


@hookspec
def lorakit_kernels() -> Sequence[Kernel]:  # type: ignore[empty-body]
    """Return kernels, which multiply with quantized weights; no spec names them.

    A layer asks them when it is built, the last registered first and the built-ins last, until one fits.
    """


@hookspec
def lorakit_data_formats() -> Sequence[DataFormat]:  # type: ignore[empty-body]
    """Return kinds of files that DATA may be, told by the end of a name or by a file in a folder."""


@hookspec
def lorakit_data_shapes() -> Sequence[DataShape]:  # type: ignore[empty-body]
    """Return forms that records may have, told by their columns; `--columns` takes their names.

    A record is of the first whose columns it has: the last registered is asked first and the built-ins last.
    """


# Moments: before a model changes


@hookspec(firstresult=True)
def lorakit_load_model(reference: ModelReference, plugins: Plugins) -> nn.Module | None:
    """Return the model that this reference names, or None if another plugin should try. First result."""


@hookspec(firstresult=True)
def lorakit_describe_module(module: nn.Module, plugins: Plugins) -> LayerShape | None:
    """Return the shape of a layer that `lorakit_adapt_module` can adapt, or None for any other module. First result.

    Called for every module when a model is read, on meta tensors too: look at shapes and classes, never at values.
    """


@hookspec(firstresult=True)
def lorakit_describe_parameter(module: nn.Module, name: str, plugins: Plugins) -> LayerShape | None:
    """Return the shape of a parameter that an adapter fits although it is no layer of its own, or None. First result.

    Called for the parameters of two and three dimensions of every module that `lorakit_describe_module` does not know.
    What is described becomes a target by its path, such as `experts.down_proj`.
    """


@hookspec(firstresult=True)
def lorakit_former_names(model: nn.Module, weights: Collection[str], plugins: Plugins) -> FormerNames | None:
    """Return what earlier releases of the model's library called its weights, or None. First result.

    Called when a model is read, on meta tensors too, and when an adapter is put on it that PEFT saved; `weights` are
    the names of the model's parameters as a plan has them, without wrappers, quantized or not.
    """


@hookspec
def lorakit_plan_ready(plan: Plan, plugins: Plugins) -> Plan | None:
    """Return a changed plan, or None to leave it. Every plugin is asked, with the plan that the one before gave."""


@hookspec
def lorakit_estimate_memory(entry: PlanEntry, plugins: Plugins) -> int | None:
    """Return bytes that this entry will hold on the accelerator beyond what the plan counts, or None."""


# Moments: while and after a model changes


@hookspec
def lorakit_before_apply(model: nn.Module, plan: Plan, plugins: Plugins) -> None:
    """Called before anything of the model is read: bring it into a form that adapters fit, or raise a LorakitError.

    The work may fail after this: what the model computes must stay the same.
    """


@hookspec(firstresult=True)
def lorakit_convert_module(module: nn.Module, dtype: torch.dtype, plugins: Plugins) -> nn.Module | None:
    """Return lorakit's own layer for one that another library holds quantized, or None. First result.

    Called for every module with parameters; the packed weights are handed over as they are, never quantized anew.
    `dtype` is the model's, for a storage that does not say which one its weights had.
    """


@hookspec(firstresult=True)
def lorakit_adapt_module(
    module: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter], plugins: Plugins
) -> nn.Module | None:
    """Return the adapter that takes the module's place and holds it as `base_layer`, or None. First result.

    Where every plugin answers None, the entry's method builds it, and the same holds for both: see `Method.adapt` and
    `Adapter`. The module is already quantized where the entry says so. The model itself is changed only after all of
    its adapters were built.
    """


@hookspec
def lorakit_model_ready(model: nn.Module, plan: Plan, plugins: Plugins) -> None:
    """Called once after every adapter is in place and everything else is frozen."""


@hookspec
def lorakit_model_merged(model: nn.Module, plugins: Plugins) -> None:
    """Called once after every adapter was folded in: undo here what `lorakit_model_ready` did to the model."""


# Moments: around files


@hookspec
def lorakit_before_save(model: nn.Module, folder: Path, plugins: Plugins) -> None:
    """Called with the folder in the making, after lorakit wrote its files and before it takes its final name."""


@hookspec
def lorakit_after_load(model: nn.Module, folder: Path, plugins: Plugins) -> None:
    """Called when an adapter folder has been put on the model."""
