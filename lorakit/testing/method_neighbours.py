"""Checks of a method beside other adapters: around one, and under one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from lorakit.application.state import adapter_of
from lorakit.testing.cases import TOLERANCE, adapted, moved, own_tensors
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.companions import COMPANIONS
from lorakit.testing.layers import Sample
from lorakit.testing.slopes import expect_input_gradient, expect_parameter_gradients
from lorakit.testing.subjects import Subject, relative_error


def neighbour_checks(subject: Subject, linear: Mapping[str, tuple[Sample]]) -> Iterator[Check]:
    """Yield the checks of adapters of one layer, around each other, for a method that fits linear layers."""
    others = ("method lora rank 2", *(f"method {one.name}{' rank 2' * ('rank' in one.clauses)}" for one in COMPANIONS))
    neighbours = {
        f"{kind}-{other.split()[1]}": (*one, other) for kind, one in list(linear.items())[:1] for other in others
    }
    yield from variants_of(on_an_adapter, subject, neighbours)
    yield from variants_of(under_an_adapter, subject, neighbours)


def on_an_adapter(subject: Subject, sample: Sample, other: str) -> None:
    """An adapter around another adapter computes, on its outputs, what it would on a layer with that one merged in."""
    plugins = subject.plugins(*COMPANIONS)
    model = _with(sample.model(), sample.path, other, plugins, "below")
    expected = lorakit.merge(copy.deepcopy(model))
    adapted(subject, model, sample.path, plugins, name="mine")
    adapted(subject, expected, sample.path, plugins, name="mine")
    own, same = own_tensors(model, "mine"), own_tensors(expected, "mine")
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
    _expect_gradients(subject, model, x, " around another adapter")
    _expect_merges(model, "mine", found, x)


def under_an_adapter(subject: Subject, sample: Sample, other: str) -> None:
    """Another adapter around this one sees what it changes; each is put out of use and back without the other."""
    plugins = subject.plugins(*COMPANIONS)
    model = adapted(subject, sample.model(), sample.path, plugins, name="mine")
    moved(own_tensors(model, "mine").values())
    x = sample.inputs(3)
    alone = model.eval()(x)
    _with(model, sample.path, other, plugins, "above", move=False)
    adapters = lorakit.adapters(model)
    adapters.use({"mine": 1.0, "above": 1.0})
    error = relative_error(model.eval()(x), alone)
    expect(error < TOLERANCE, f"a fresh adapter around this one moves the outputs by {error:.2g}")
    moved(own_tensors(model, "above").values(), seed=8)
    both = model(x)
    adapters.use("above")
    expect(
        relative_error(model(x), both) > TOLERANCE, "taken out of use under another adapter, it still has its effect"
    )
    with adapters.disabled():
        error = relative_error(model(x), sample.model()(x))
        expect(error < TOLERANCE, f"with all adapters out of use the outputs are off by {error:.2g} from the base's")
    adapters.use({"mine": 1.0, "above": 1.0})
    _expect_gradients(subject, model, x, " under another adapter")
    _expect_merges(model, "mine", both, x)


def _with(model: nn.Module, path: str, other: str, plugins: Any, name: str, *, move: bool = True) -> nn.Module:
    spec = lorakit.parse(f"adapt {path} dtype fp32 {other}", plugins=plugins)
    lorakit.apply(spec, model, name=name, plugins=plugins)
    if move:
        moved(own_tensors(model, name).values(), seed=7)
    return model


def _expect_gradients(subject: Subject, model: nn.Module, x: Tensor, where: str) -> None:
    trained = {n: one for n, one in own_tensors(model, "mine").items() if one.requires_grad}
    partial = getattr(subject.plugin, "partial_gradients", False)
    for mode in (True, False):
        expect_input_gradient(model.train(mode), x, where)
        expect_parameter_gradients(model, x, trained, where, partial=partial)


def _expect_merges(model: nn.Module, name: str, wanted: Tensor, x: Tensor) -> None:
    if all(hasattr(module, "exact_weight") for module in adapter_of(model, name).modules.values()):
        error = relative_error(lorakit.merge(model)(x), wanted)
        expect(error < 1e-3, f"merging it with another adapter moved the outputs by {error:.2g}")
