"""Checks of a method on whole models: compiled, from Hugging Face, in files, and copied."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import lorakit
from lorakit.application.state import adapter_of
from lorakit.testing.cases import TOLERANCE, Case, adapted, distinct_tensors, moved
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.layers import TARGETS, TOKENS, Sample, small_llama
from lorakit.testing.method_distributed import data_parallel, sharded
from lorakit.testing.method_neighbours import neighbour_checks
from lorakit.testing.subjects import Subject, relative_error, same_bits


def model_checks(
    subject: Subject, each: Mapping[str, tuple[Sample]], linear: Mapping[str, tuple[Sample]]
) -> Iterator[Check]:
    """Yield the checks of whole models, for a method that fits linear layers."""
    yield from neighbour_checks(subject, linear)
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
    moved(distinct_tensors(model))
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
    held = {id(parameter) for parameter in distinct_tensors(model)}
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
    error = max(relative_error(b, a) for a, b in zip(distinct_tensors(whole), distinct_tensors(again), strict=True))
    expect(error < 1e-4, f"after going on from a checkpoint a parameter is off by {error:.2g}")
    with torch.no_grad():
        error = relative_error(again.eval()(TOKENS).logits, whole.eval()(TOKENS).logits)
    expect(error < 1e-4, f"after going on from a checkpoint the logits are off by {error:.2g}")


def deep_copies(subject: Subject) -> None:
    """A deep copy of an adapted model computes the same, and training it leaves the first as it was."""
    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(distinct_tensors(model))
    with torch.no_grad():
        wanted = model.eval()(TOKENS).logits
        twin = copy.deepcopy(model)
        expect(same_bits(twin(TOKENS).logits, wanted), "a deep copy computes something else")
        moved(distinct_tensors(twin), seed=8)
        expect(same_bits(model(TOKENS).logits, wanted), "moving the parameters of a deep copy moved the model's own")
        expect(
            relative_error(twin(TOKENS).logits, wanted) > TOLERANCE,
            "a deep copy does not compute with its own parameters",
        )


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
