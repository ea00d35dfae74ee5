"""Checks of a method on whole models: beside other adapters, compiled, from Hugging Face, and on several devices."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lorakit
from lorakit.application.state import adapter_of
from lorakit.testing.cases import TOLERANCE, Case, adapted, moved
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.companions import COMPANIONS
from lorakit.testing.layers import Sample, small_llama
from lorakit.testing.subjects import Subject, relative_error, same_bits

# three shapes of layers, so that what they share has to fit them all
TARGETS = "q_proj,v_proj,down_proj"
TOKENS = torch.arange(12).reshape(2, 6) % 7


def model_checks(
    subject: Subject, each: Mapping[str, tuple[Sample]], linear: Mapping[str, tuple[Sample]]
) -> Iterator[Check]:
    """Yield the checks of whole models, for a method that fits linear layers."""
    others = ("method lora rank 2", *(f"method {one.name}{' rank 2' * ('rank' in one.clauses)}" for one in COMPANIONS))
    neighbours = {
        f"{kind}-{other.split()[1]}": (*one, other) for kind, one in list(linear.items())[:1] for other in others
    }
    yield from variants_of(on_an_adapter, subject, neighbours)
    yield from variants_of(under_an_adapter, subject, neighbours)
    yield from variants_of(compiled, subject, {kind: one for kind, one in each.items() if not one[0].is_parameter})
    if "linear" in linear:
        for function in (
            hugging_face,
            every_tensor_saved,
            trainer_resumes,
            deep_copies,
            data_parallel,
            sharded,
        ):
            yield from variants_of(function, subject)


def on_an_adapter(subject: Subject, sample: Sample, other: str) -> None:
    """An adapter around another adapter computes, on its outputs, what it would on a layer with that one merged in."""
    plugins = subject.plugins(*COMPANIONS)
    model = _with(sample.model(), sample.path, other, plugins, "below")
    expected = lorakit.merge(copy.deepcopy(model))
    adapted(subject, model, sample.path, plugins, name="mine")
    adapted(subject, expected, sample.path, plugins, name="mine")
    own, same = _own(model, "mine"), _own(expected, "mine")
    moved(own.values())
    with torch.no_grad():
        for name, parameter in same.items():
            parameter.copy_(own[name])
    lorakit.adapters(model).use({"below": 1.0, "mine": 1.0})
    x = sample.inputs(3)
    found = model.eval()(x)
    error = relative_error(found, expected.eval()(x))
    expect(
        error < 1e-3,
        f"around another adapter the outputs are off by {error:.2g}: call `base_layer`, read no weight of it",
    )
    _expect_gradients(model, "mine", x)
    _expect_merges(model, "mine", found, x)


def under_an_adapter(subject: Subject, sample: Sample, other: str) -> None:
    """Another adapter around this one sees what it changes; each is put out of use and back without the other."""
    plugins = subject.plugins(*COMPANIONS)
    model = adapted(subject, sample.model(), sample.path, plugins, name="mine")
    moved(_own(model, "mine").values())
    x = sample.inputs(3)
    alone = model.eval()(x)
    _with(model, sample.path, other, plugins, "above", move=False)
    adapters = lorakit.adapters(model)
    adapters.use({"mine": 1.0, "above": 1.0})
    error = relative_error(model.eval()(x), alone)
    expect(error < TOLERANCE, f"a fresh adapter around this one moves the outputs by {error:.2g}")
    moved(_own(model, "above").values(), seed=8)
    both = model(x)
    adapters.use("above")
    expect(
        relative_error(model(x), both) > TOLERANCE, "taken out of use under another adapter, it still has its effect"
    )
    with adapters.disabled():
        error = relative_error(model(x), sample.model()(x))
        expect(error < TOLERANCE, f"with all adapters out of use the outputs are off by {error:.2g} from the base's")
    adapters.use({"mine": 1.0, "above": 1.0})
    _expect_gradients(model, "mine", x)
    _expect_merges(model, "mine", both, x)


def compiled(subject: Subject, sample: Sample) -> None:
    """A forward compiles as one graph: no branch on the values of tensors, no constant made, no attribute set."""
    case = Case(subject, sample)
    case.randomize()
    x = sample.inputs(3)
    for mode in (False, True):
        case.model.train(mode)
        torch._dynamo.reset()
        run = torch.compile(case.model, fullgraph=True, backend="eager")
        error = relative_error(run(x), case.model(x))
        expect(error < TOLERANCE, f"the compiled forward is off by {error:.2g}")


def hugging_face(subject: Subject) -> None:
    """On a Hugging Face model a fresh adapter changes nothing; it trains, saves, loads to the same bits, and merges."""
    plugins, model = subject.plugins(), small_llama()
    with torch.no_grad():
        before = model(TOKENS).logits
    adapted(subject, model, TARGETS, plugins)
    error = relative_error(model(TOKENS).logits, before)
    expect(error < TOLERANCE, f"a fresh adapter moves the logits by {error:.2g} of their norm")
    moved(_distinct(model))
    model.train()(TOKENS, labels=TOKENS).loss.backward()
    still = [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    expect(not still, f"{', '.join(still)} got no gradient")
    with torch.no_grad():
        wanted = model.eval()(TOKENS).logits
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(Path(place, "adapter"))  # type: ignore[operator]
            loaded = lorakit.load(Path(place, "adapter"), small_llama(), plugins=plugins)
        expect(same_bits(loaded(TOKENS).logits, wanted), "what save_pretrained wrote loads as something else")
        if all(hasattr(one, "exact_weight") for one in adapter_of(model).modules.values()):
            error = relative_error(lorakit.merge(model)(TOKENS).logits, wanted)
            expect(error < 1e-3, f"merging moved the logits by {error:.2g} of their norm")


def every_tensor_saved(subject: Subject) -> None:
    """A file holds every tensor of an adapter on layers of several shapes, what they share once, each under a name."""
    plugins = subject.plugins()
    model = adapted(subject, small_llama(), TARGETS, plugins)
    with tempfile.TemporaryDirectory() as place:
        written = load_file(lorakit.save(model, Path(place, "adapter")) / "adapter_model.safetensors")
    held = {id(parameter) for parameter in _distinct(model)}
    expect(
        len(written) == len(held),
        f"the adapter has {len(held)} tensors and its file {len(written)}: two that layers share need two `file_name`s",
    )


def trainer_resumes(subject: Subject) -> None:
    """A run of transformers' Trainer that goes on from a checkpoint ends as one that was never stopped."""
    plugins = subject.plugins()
    with tempfile.TemporaryDirectory() as place:
        whole = _trained(adapted(subject, small_llama(), TARGETS, plugins), place)
        again = _trained(adapted(subject, small_llama(), TARGETS, plugins, seed=1), place, f"{place}/checkpoint-1")
    error = max(relative_error(b, a) for a, b in zip(_distinct(whole), _distinct(again), strict=True))
    expect(error < 1e-4, f"after going on from a checkpoint a parameter is off by {error:.2g}")
    with torch.no_grad():
        error = relative_error(again.eval()(TOKENS).logits, whole.eval()(TOKENS).logits)
    expect(error < 1e-4, f"after going on from a checkpoint the logits are off by {error:.2g}")


def deep_copies(subject: Subject) -> None:
    """A deep copy of an adapted model computes the same, and training it leaves the first as it was."""
    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(_distinct(model))
    with torch.no_grad():
        wanted = model.eval()(TOKENS).logits
        twin = copy.deepcopy(model)
        expect(same_bits(twin(TOKENS).logits, wanted), "a deep copy computes something else")
        moved(_distinct(twin), seed=8)
        expect(same_bits(model(TOKENS).logits, wanted), "moving the parameters of a deep copy moved the model's own")
        expect(
            relative_error(twin(TOKENS).logits, wanted) > TOLERANCE,
            "a deep copy does not compute with its own parameters",
        )


def data_parallel(subject: Subject) -> None:
    """Under DistributedDataParallel gradients are the same, and no large buffer is sent before every forward."""
    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(_distinct(model))
    for path, adapter in adapter_of(model).modules.items():
        inside = {id(value) for value in adapter.get_submodule("base_layer").buffers()}
        sent = sum(value.numel() for value in adapter.buffers() if id(value) not in inside)
        entry = next(one for one in adapter_of(model).plan.entries if one.path == path)
        assert entry.shape is not None
        expect(
            sent <= entry.shape.in_features + entry.shape.out_features,
            f"the adapter of `{path}` holds {sent} numbers in buffers, which DistributedDataParallel sends before each "
            "forward: declare what is large as a parameter that does not train",
        )
    wanted = _gradients(model)
    with _alone():
        parallel = nn.parallel.DistributedDataParallel(model)
        # a parameter that is not used is noticed in the second step
        for _ in range(2):
            found = _gradients(model, parallel)
    _expect_same(found, wanted, "DistributedDataParallel")


def sharded(subject: Subject) -> None:
    """Under `fully_shard` gradients are the same: every parameter has a dimension, and one dtype."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(_distinct(model))
    wanted = _gradients(model)
    with _alone():
        mesh = init_device_mesh("cpu", (1,))
        # what layers share belongs to one group: the whole model is sharded as one then
        for layer in [] if adapter_of(model).plan.shared else model.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        found = {name: value.full_tensor() for name, value in _gradients(model).items()}  # type: ignore[attr-defined]
    _expect_same(found, wanted, "fully_shard")


def _with(model: nn.Module, path: str, other: str, plugins: Any, name: str, *, move: bool = True) -> nn.Module:
    spec = lorakit.parse(f"adapt {path} dtype fp32 {other}", plugins=plugins)
    lorakit.apply(spec, model, name=name, plugins=plugins)
    if move:
        moved(_own(model, name).values(), seed=7)
    return model


def _own(model: nn.Module, name: str) -> dict[str, Tensor]:
    adapter = adapter_of(model, name)
    return {
        f"{entry.path}.{one.name}": module.get_parameter(one.name)
        for entry, module in adapter.entries()
        for one in (entry.adapter.parameters if entry.adapter else ())
    }


def _distinct(model: nn.Module) -> list[Tensor]:
    """Return every tensor of the adapter in use, shared ones once."""
    return list({id(value): value for value in _own(model, adapter_of(model).name).values()}.values())


def _expect_gradients(model: nn.Module, name: str, x: Tensor) -> None:
    model.zero_grad()
    model(x).square().sum().backward()
    still = [n for n, one in _own(model, name).items() if one.requires_grad and one.grad is None]
    expect(not still, f"beside another adapter {', '.join(still)} got no gradient")


def _expect_merges(model: nn.Module, name: str, wanted: Tensor, x: Tensor) -> None:
    if all(hasattr(module, "exact_weight") for module in adapter_of(model, name).modules.values()):
        error = relative_error(lorakit.merge(model)(x), wanted)
        expect(error < 1e-3, f"merging it with another adapter moved the outputs by {error:.2g}")


def _gradients(model: nn.Module, called: nn.Module | None = None) -> dict[str, Tensor]:
    model.eval().zero_grad()
    (called or model)(TOKENS, labels=TOKENS).loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def _expect_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    expect(found.keys() == wanted.keys(), f"under {what} other parameters got gradients")
    for name, gradient in wanted.items():
        error = relative_error(found[name], gradient)
        expect(error < 1e-3, f"under {what} the gradient of `{name}` is off by {error:.2g}")


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of one process, unless there is a group already."""
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _trained(model: nn.Module, place: str, checkpoint: str | None = None) -> nn.Module:
    """Return the model after two steps of transformers' Trainer, or the second alone."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in TOKENS.repeat(2, 1)]
    arguments = TrainingArguments(
        place, max_steps=2, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, lr_scheduler_type="constant", logging_strategy="no",
    )  # fmt: skip
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(model=model, args=arguments, train_dataset=rows)
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        logging.getLogger("transformers").setLevel(level)
    return model
