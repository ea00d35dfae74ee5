"""The public functions. Each imports what it needs when it is called, so that reading a spec stays quick."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lorakit.errors import ModelError, PlanError
from lorakit.hooks.manager import Plugins
from lorakit.language.spec import Spec
from lorakit.plugins import default_plugins
from lorakit.values import ModelReference

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import Trainer

    from lorakit.application.layout import Frozen
    from lorakit.application.summary import Summary
    from lorakit.named_adapters import Adapters
    from lorakit.paging import Paged
    from lorakit.planning.hardware import Hardware
    from lorakit.planning.plan import Plan
    from lorakit.trainers.surviving import Survivor

logger = logging.getLogger("lorakit")


def parse(text_or_path: str | Path, variables: Mapping[str, str] | None = None, plugins: Plugins | None = None) -> Spec:
    """Return the Spec of a program: text, or a file where given a Path or a string that ends in `.lora`.

    `variables` replace the values of `let` names. Raises: SpecError, holding every diagnostic.
    """
    from lorakit import language

    return language.parse(text_or_path, variables or {}, plugins or default_plugins())


def plan(
    spec: Spec | Plan | str | Path,
    model: Any,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    recompute: bool | None = None,
    devices: int | None = None,
    frozen: Frozen | None = None,
    example: Any = None,
    hardware: Hardware | None = None,
    trust_remote_code: bool = False,
    plugins: Plugins | None = None,
) -> Plan:
    """Return what a spec makes of a model: an nn.Module (meta tensors are fine), a Hugging Face config, or a reference.

    No weight is read. The memory forecast is for a step on batch × tokens, else the spec's, or 1 × 512; `recompute`
    computes blocks again in its backward pass (gradient checkpointing). Of several `devices` it is what each holds,
    with rows of its own, once `shard` has spread the model over them with `frozen` as it is given there. A plan made
    elsewhere keeps its decisions and, where nothing else is said, its step; its figures are counted again. `example` is
    what a plain PyTorch model's forward takes, a dict of arguments by name, a tuple, or one tensor: it shows which
    layers read the same tensor. `hardware` decides what the model computes in where the spec does not say it; without
    one it is this machine's accelerator, or else its CPU.
    Raises: SpecError, PlanError, ModelError.
    """
    from lorakit.pipeline import decide, read_structure

    plugins = plugins or default_plugins()
    structure = read_structure(_source(model, trust_remote_code), plugins)
    return decide(
        _decisions(spec, plugins), structure, plugins,
        batch=batch, tokens=tokens, recompute=recompute, devices=devices, frozen=frozen, example=example,
        hardware=hardware,
    )  # fmt: skip


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
    from lorakit.pipeline import decide, inventory_of, read_first, read_started

    plugins = plugins or default_plugins()
    source = _with_weights(model, trust_remote_code)
    first = read_first(source, plugins)
    inventory = inventory_of(first, plugins)
    decided = decide(_decisions(spec_or_plan, plugins), first, plugins, hardware=hardware, inventory=inventory)
    module, starter = read_started(source, first, decided, plugins, seed=seed)
    return apply_plan(
        starter.plan,
        module,
        plugins,
        seed=seed,
        name=name,
        inventory=inventory if module is first else None,
        calibration=calibration,
        started=starter.started,
    )


@overload
def optimizer(model: nn.Module, lr: float | None = None) -> torch.optim.Optimizer: ...


@overload
def optimizer(model: None = None, lr: float | None = None) -> Callable[..., torch.optim.Optimizer]: ...


def optimizer(
    model: nn.Module | None = None, lr: float | None = None
) -> torch.optim.Optimizer | Callable[..., torch.optim.Optimizer]:
    """Return the optimizer that the spec names, with its groups, over everything that trains.

    Without a model it is what a trainer calls with one when the time has come, as transformers' Trainer has to under
    FSDP: `optimizer_cls_and_kwargs=(lorakit.optimizer, {})`.
    Raises: ModelError, also where the optimizer cannot step what is sharded, or is going to be.
    """
    if model is None:
        return functools.partial(optimizer, lr=lr)
    from lorakit.application.optimizer import build_optimizer

    return build_optimizer(model, lr)


def shard(model: nn.Module, mesh: DeviceMesh | None = None, *, frozen: Frozen = "shard") -> nn.Module:
    """Spread an adapted model over the processes of a mesh, by default all of them, by torch's FSDP2, and return it.

    With `frozen="shard"` everything is spread, and each block is gathered as its turn comes. With
    `frozen="replicate"`, for a base that fits, what is frozen stays whole on every device; what trains is spread with
    its gradients and its optimizer state. Make the optimizer afterwards; `save`, `disabled` and `merged` work on both,
    called in every process. In the first step quantized weights are held against what they were before.
    Raises: ModelError if no process group is there, or one piece trains several dtypes; TrainingError, in the first
    step, where bytes came back changed.
    """
    from lorakit.application.layout import shard_model

    return shard_model(model, mesh, frozen=frozen)


def paged(optimizer: torch.optim.Optimizer, budget: int | None = None) -> Paged:
    """Return an optimizer that steps as this one does, to the bit, with its state in pages that come and go.

    What pages is near, on the parameters' device, while a step needs it; the least recently used pages leave for pinned
    CPU memory when more than `budget` bytes would be near on a device, when an allocation fails, or when `page_out` is
    called. On a CPU they leave for a memory-mapped file. A state dict is the given optimizer's own.
    Raises: ModelError for an optimizer that takes its parameters together, such as LBFGS, or too small a budget;
    WriteError where what must leave finds no room.
    """
    from lorakit.paging import Paged

    return Paged(optimizer, budget)


def save(
    model: nn.Module,
    folder: str | Path,
    with_base: bool = False,
    *,
    name: str | None = None,
) -> Path:
    """Write the adapter as a folder that PEFT and lorakit load, replacing whole the adapter that it may hold.

    Of several adapters it is the one in use, or that of the name. `with_base` adds the quantized base as a model folder
    `base` in it, for transformers to read where it can.
    Raises: ModelError, OutputError if the folder holds anything but an adapter, WriteError if the disk fails.
    """
    from lorakit.application.state import state_of
    from lorakit.artifacts.adapter_folder import save_adapter
    from lorakit.huggingface.quantized_base import BASE, write_base

    plugins = state_of(model).plugins
    if not with_base:
        return save_adapter(model, Path(folder), plugins, name=name)

    def add_base(aside: Path) -> None:
        logger.info("the base is %s", write_base(model, aside / BASE, plugins))

    return save_adapter(model, Path(folder), plugins, name=name, beside=add_base, also=(BASE,))


def last_checkpoint(folder: str | Path, *, before: int | None = None) -> str | None:
    """Return the last whole checkpoint that a run of transformers' Trainer left, for its `resume_from_checkpoint`.

    None if there is none: Trainer then starts anew. What a kill left half written is passed over. `before` leaves out
    checkpoints of this step and later ones: Trainer goes a step beyond its `max_steps` where it resumes from that step.
    """
    from lorakit.trainers.checkpoints import last_whole

    found = last_whole(Path(folder), before)
    return str(found) if found else None


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
    from lorakit.artifacts.loading import load_adapter, starter_of, trained_in
    from lorakit.pipeline import read_model

    plugins = plugins or default_plugins()
    source = _with_weights(model_or_ref, trust_remote_code)
    streams = quantize and isinstance(source, ModelReference)
    starter = starter_of(Path(folder), plugins, initialize=allow_missing) if streams else None
    module = read_model(source, plugins, starter=starter, fresh=trained_in(Path(folder)))
    return load_adapter(
        Path(folder),
        module,
        plugins,
        name=name,
        quantize=quantize,
        allow_missing=allow_missing,
        allow_pickle=allow_pickle,
        started=starter.started if starter else None,
        hardware=hardware or here.hardware(),
    )


def merge(model: nn.Module, *, requantize: bool = False) -> nn.Module:
    """Return the model, in evaluation mode, with the adapters in use folded into its weights and no adapter left.

    A quantized weight comes back dequantized, in the dtype that it computes in, and no class of lorakit is left; with
    `requantize` it is quantized again as it was. What the rounding cost is logged.
    Raises: ModelError, AdapterError; the model is untouched then.
    """
    from lorakit.artifacts.merge import merge_model

    merged, report = merge_model(model, requantize=requantize)
    logger.info(
        "merged %d modules; %s cost %.3g at most, %.3g relative",
        report.modules,
        "quantizing again" if requantize else "rounding",
        report.max_error,
        report.relative_error,
    )
    return merged


def adapters(model: nn.Module) -> Adapters:
    """Return the adapters of a model by name: which are in use, and how far. Raises: ModelError if it has none."""
    from lorakit.named_adapters import Adapters

    return Adapters(model)


def summary(model: nn.Module) -> Summary:
    """Return what an adapted model really holds: counts, bytes, and a row for every module that was decided."""
    from lorakit.application.summary import summarize

    return summarize(model)


def survive(trainer: Trainer, *, longest_first: bool = True) -> Survivor:
    """Have transformers' Trainer, or one made of it, finish the steps in which memory runs out, and return what does.

    Forward and backward are computed again in ways that need less, with the same bits, and with the batch split where
    nothing else helps and its loss can be; clipping and the optimizer's step go on where they stood. Its `climbs` say
    what was needed. With `longest_first` the longest rows are tried before the first step, and undone, so that what
    will not fit fails at once. Where a trainer has it already it is given back, with `longest_first` as it is now.
    """
    from lorakit.trainers.surviving import survive as stand_around

    return stand_around(trainer, longest_first=longest_first)


def capture(trainer: Trainer) -> None:
    """Have transformers' Trainer, or one made of it, compute forward and backward of its steps as CUDA graphs.

    Each form of a batch is captured when it first comes: the rows of text are padded to one of a few lengths. What
    cannot be captured is said once and runs one operation after the other, and hooks of modules and gradients run at
    the capture alone. After `survive`, where both are wanted. Raises: ModelError where the model is not on a CUDA
    device, or the trainer's loss is one of its own.
    """
    from lorakit.trainers.capturing import capture as stand_around

    stand_around(trainer)


def compile_blocks(model: nn.Module, *, kept: float = 1.0, send: bool = False) -> int:
    """Compile the blocks of an adapted model with torch.compile, in place for its training; return how many there are.

    Projections that read one input become one product, with their adapters inside the weights that it multiplies with,
    whatever model the block is of. `kept` is the share of products and attention that is kept for the backward pass, by
    bytes; the rest, and what lies between, is computed again. Of blocks that a plan (`step memory SIZE`) or gradient
    checkpointing has computed again, what enters them alone is kept. With `send` what is kept waits in pinned CPU
    memory. The first steps take longer, while code is made; evaluation and generation run as ever. Before `capture`,
    where both are wanted. On newer GPUs attention is cuDNN's, whose gradients may differ in bits from run to run unless
    `torch.use_deterministic_algorithms(True)` was called. Raises: ModelError where there are no blocks, or the model is
    sharded.
    """
    from lorakit.compiling.blocks import compile_blocks as in_place

    return in_place(model, kept=kept, send=send)


def generate(model: nn.Module, inputs: Any = None, **settings: Any) -> Any:
    """Return what transformers' `model.generate(inputs, **settings)` returns, with or without adapters on the model.

    On a CUDA device each token after the prompt is one CUDA graph over a static cache, where nothing in `settings` asks
    for a cache or a search of its own. What a token computes between its products is compiled by Inductor when tokens
    of its form first come, which takes seconds; `disable_compile=True` leaves that out. Graphs and caches are kept for
    the next call. What cannot be captured or compiled is logged once and computed as ever.
    """
    from lorakit.generating.generate import generate as captured

    return captured(model, inputs, **settings)


def _decisions(spec: Spec | Plan | str | Path, plugins: Plugins) -> Spec | Plan:
    from lorakit.planning.plan import Plan

    if isinstance(spec, str | Path):
        return parse(spec, plugins=plugins)
    if not isinstance(spec, Spec | Plan):
        raise PlanError(f"a spec is text, a path, a Spec or a Plan, not a {type(spec).__name__}")
    return spec


def _source(model: Any, trust_remote_code: bool) -> nn.Module | ModelReference:
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str | Path):
        return ModelReference(str(model), trust_remote_code=trust_remote_code)
    if hasattr(model, "to_dict") and hasattr(model, "model_type"):
        return ModelReference(type(model).__name__, model, trust_remote_code=trust_remote_code)
    raise ModelError(f"a model is an nn.Module, a Hugging Face config or a reference, not a {type(model).__name__}")


def _with_weights(model: Any, trust_remote_code: bool) -> nn.Module | ModelReference:
    source = _source(model, trust_remote_code)
    if isinstance(source, ModelReference) and source.config is not None:
        raise ModelError("a config has no weights; give the model itself, or its folder or hub id")
    return source
