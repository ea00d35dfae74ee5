"""Checks of a method: the adapters that it puts around layers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import lorakit
from lorakit.dtypes import dtype_of
from lorakit.planning.plan import Settings
from lorakit.testing.cases import TOLERANCE, Case, fitting
from lorakit.testing.causes import require_all, staged
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.configured import configured_checks
from lorakit.testing.layers import SAMPLES, Sample
from lorakit.testing.method_models import model_checks
from lorakit.testing.method_training import training_checks
from lorakit.testing.slopes import expect_input_gradient, expect_parameter_gradients
from lorakit.testing.subjects import Subject, on_devices, relative_error, same_bits, subject_of

# each takes for granted what those before it ask
STAGES = (
    ("kinds",),
    ("parameters",),
    ("file-names", "determinism", "learning-rates"),
    ("generator", "base-untouched"),
    ("start", "init"),
    ("training-step",),
    ("gradients", "strength", "batches", "alpha"),
    ("input-gradient", "parameter-gradients", "merged", "scaling"),
    ("half-strength", "saved", "dropout", "shown-weight"),
    ("quantized-base", "peft"),
    ("on-an-adapter",),
    ("under-an-adapter", "compiled", "every-tensor-saved", "hugging-face", "deep-copies", "data-parallel", "sharded"),
    ("trainer-resumes",),
)


def method_checks(method_class: type, **options: Any) -> list[Check]:
    """Return every check of a method, configured with these options; each has an `id` and is called.

    Every kind of layer is tried for which `parameters` names parameters.
    """
    subject = subject_of(method_class, "method", options)
    return staged([*configured_checks(subject), *_adapter_checks(subject)], STAGES)


def check_method(method_class: type, **options: Any) -> None:
    """Run every check of a method. Raises: CheckError naming each that failed."""
    require_all(f"method {method_class.__name__}", method_checks(method_class, **options))


def _adapter_checks(subject: Subject) -> Iterator[Check]:
    yield from variants_of(kinds, subject)
    known = fitting(subject)
    each = {kind: (sample,) for kind, sample in known.items()}
    anywhere = on_devices(each)
    linear = {kind: (sample,) for kind, sample in known.items() if kind.startswith("linear")}
    if not each:
        return
    dtypes = {
        f"{kind}-{dtype}": (sample, dtype) for kind, sample in known.items() for dtype in ("fp32", "bf16", "fp16")
    }
    yield from variants_of(parameters, subject, dtypes)
    yield from variants_of(start, subject, anywhere)
    yield from variants_of(gradients, subject, anywhere)
    yield from variants_of(merged, subject, anywhere)
    held = {kind: (*one, "") for kind, one in each.items() if not one[0].is_parameter}
    stored = {f"{kind}-nf4": (*one, "quant nf4") for kind, one in linear.items()}
    yield from variants_of(shown_weight, subject, {**held, **stored})
    yield from variants_of(strength, subject, each)
    yield from variants_of(file_names, subject, each)
    yield from variants_of(saved, subject, each)
    yield from variants_of(determinism, subject, each)
    if linear:
        yield from variants_of(batches, subject, linear)
        yield from variants_of(quantized_base, subject, on_devices(linear))
    yield from training_checks(subject, each)
    if linear:
        yield from model_checks(subject, each, linear)


def kinds(subject: Subject) -> None:
    """`clauses` are clauses of `adapt`, and `parameters` names parameters for one kind of layer at least."""
    known = {field.name for field in dataclasses.fields(Settings)}
    clauses = getattr(subject.plugin, "clauses", None)
    expect(
        isinstance(clauses, frozenset) and clauses <= known,
        f"`clauses` is {clauses!r}; write `clauses: ClassVar[frozenset[str]] = frozenset(…)` with any of "
        f"{', '.join(sorted(known))}",
    )
    expect(bool(fitting(subject)), f"`parameters` names no parameter for any of {', '.join(SAMPLES)}")


def parameters(subject: Subject, sample: Sample, dtype: str) -> None:
    """The adapter holds the parameters that `parameters` promised, in the planned dtype, around its layer."""
    case = Case(subject, sample, dtype)
    promised = case.shapes
    own = case.own
    found = {name: tuple(parameter.shape) for name, parameter in own.items()}
    expect(found == promised, f"the adapter holds {found}, and `parameters` promised {promised}")
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    given = {one.name: dtype_of(one.dtype) if one.dtype else wanted for one in case.table}
    others = [f"{name} {parameter.dtype}" for name, parameter in own.items() if parameter.dtype != given[name]]
    expect(not others, f"the plan says {given}, and the adapter holds {', '.join(others)}")
    trains = {one.name: one.trains for one in case.table}
    frozen = [name for name, parameter in own.items() if parameter.requires_grad != trains[name]]
    expect(not frozen, f"{', '.join(frozen)} do not train as the table says")
    if not sample.is_parameter:
        expect(
            getattr(case.adapter, "base_layer", None) is case.layer,
            "the adapter does not hold the very layer that it was given as `base_layer`",
        )


def start(subject: Subject, sample: Sample, device: str) -> None:
    """A fresh adapter changes nothing, in training and in evaluation mode."""
    case = Case(subject, sample, "fp32", device)
    x = sample.inputs(3).to(device)
    exact = sample.model().to(device)(x)
    for mode in (True, False):
        error = relative_error(case.model.train(mode)(x), exact)
        expect(error < TOLERANCE, f"a fresh adapter moves the outputs by {error:.2g} of their norm")


def gradients(subject: Subject, sample: Sample, device: str) -> None:
    """A fresh adapter can learn, later every parameter that trains gets a gradient, and the base layer never does."""
    case = Case(subject, sample, "fp32", device)
    x = sample.inputs(3).to(device)
    case.model.train()
    for fresh in (True, False):
        case.model.zero_grad()
        case.model(x).square().sum().backward()
        trained = {name: parameter for name, parameter in case.own.items() if parameter.requires_grad}
        still = [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
        expect(len(still) < len(trained), "no parameter of a fresh adapter gets a gradient: it would never learn")
        lost = [name for name, p in case.own.items() if p.grad is not None and not p.grad.isfinite().all()]
        expect(not lost, f"the gradient of {', '.join(lost)} is not finite")
        expect(fresh or not still, f"{', '.join(still)} got no gradient although the adapter is not fresh any more")
        base = [name for name, p in case.model.named_parameters() if not p.requires_grad and p.grad is not None]
        expect(not base, f"{', '.join(base)} of the frozen base got a gradient")
        case.randomize()


def merged(subject: Subject, sample: Sample, device: str) -> None:
    """The merged layer computes what the adapter does; a method that cannot be merged has no `exact_weight`."""
    case = Case(subject, sample, "fp32", device)
    if not sample.is_parameter and not hasattr(case.adapter, "exact_weight"):
        return
    case.randomize()
    x = sample.inputs(3).to(device)
    before = case.model.eval()(x).detach()
    fresh = sample.model().to(device)(x)
    expect(relative_error(before, fresh) > TOLERANCE, "with random values in its parameters the adapter does nothing")
    after = lorakit.merge(case.model)(x)
    error = relative_error(after, before)
    expect(error < TOLERANCE, f"merging moved the outputs by {error:.2g} of their norm")


def shown_weight(subject: Subject, sample: Sample, stored: str) -> None:
    """An adapter that shows a `weight`, and a `bias`, shows what it computes with, as its base layer holds its own."""
    case = Case(subject, sample, clauses=stored)
    if not hasattr(type(case.adapter), "weight"):
        return
    case.randomize()
    shown: Any = case.adapter
    x, twin = sample.inputs(3), sample.model()
    layer: Any = twin.get_submodule("layer")
    with torch.no_grad():
        wanted, weight, bias = case.model.eval()(x), shown.weight, getattr(shown, "bias", None)
        if stored and weight.shape != layer.weight.shape:
            # a quantized layer holds (out_features, in_features)
            weight = weight.T
        layer.weight = torch.nn.Parameter(weight)
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias)
        error = relative_error(twin(x), wanted)
    expect(
        error < TOLERANCE,
        f"what `weight` and `bias` show computes something that is off by {error:.2g}: parents such as "
        "nn.MultiheadAttention multiply with it themselves",
    )


def strength(subject: Subject, sample: Sample) -> None:
    """The adapter's attribute `strength` puts it out of use at 0.0, weights its change, and gives each row its own."""
    case = Case(subject, sample, "fp32")
    adapter = case.adapter
    at_first: Any = getattr(adapter, "strength", None)
    expect(
        isinstance(at_first, float) and at_first == 1.0,
        f"the adapter's attribute `strength` is {at_first!r}, not 1.0. Set `self.strength = 1.0` when it is made, and "
        "multiply its change of the outputs by it: at 0.0 the base layer alone answers, a tensor (rows,) has a factor "
        "for each row",
    )
    case.randomize()
    case.model.eval()
    x = sample.inputs(3)
    with torch.no_grad():
        plain, full = sample.model()(x), case.model(x)
        adapter.strength = 0.0  # type: ignore[assignment]
        error = relative_error(case.model(x), plain)
        expect(error < TOLERANCE, f"with `strength` 0.0 the outputs are off by {error:.2g} from the base layer's")
        if sample.is_parameter or not case.shape.called:
            return
        on = torch.arange(x.shape[0]) % 2
        adapter.strength = on.float()
        mixed = case.model(x)
    for row, factor in enumerate(on.tolist()):
        error = relative_error(mixed[row], (full if factor else plain)[row])
        expect(error < TOLERANCE, f"a row whose `strength` is {factor} is off by {error:.2g}")


def file_names(subject: Subject, sample: Sample) -> None:
    """Every parameter has a name in files, no two alike, so that a file holds them all."""
    names = [one.file_name for one in Case(subject, sample, "fp32").table]
    expect(len(set(names)) == len(names), f"the table gives one `file_name` twice: {', '.join(names)}")
    bad = [name for name in names if not isinstance(name, str) or not name.strip(".")]
    expect(not bad, f"the table holds the file names {bad}, which are no names")


def saved(subject: Subject, sample: Sample) -> None:
    """A saved adapter, loaded on a fresh model, gives the same bits."""
    case = Case(subject, sample, "fp32")
    case.randomize()
    x = sample.inputs(3)
    wanted = case.model.eval()(x)
    with tempfile.TemporaryDirectory() as folder:
        lorakit.save(case.model, Path(folder, "adapter"))
        loaded = lorakit.load(Path(folder, "adapter"), sample.model(), plugins=case.plugins)
    expect(same_bits(loaded(x), wanted), "the loaded adapter computes something else than the one that was saved")


def determinism(subject: Subject, sample: Sample) -> None:
    """The same seed gives the same adapter, whatever the global random generators were seeded with."""
    torch.manual_seed(1)
    first = Case(subject, sample, "fp32")
    torch.manual_seed(2)
    second = Case(subject, sample, "fp32")
    differing = [name for name, parameter in first.own.items() if not same_bits(parameter, second.own[name])]
    expect(not differing, f"{', '.join(differing)} start with other values the second time")


def batches(subject: Subject, sample: Sample) -> None:
    """An adapter around a Linear takes inputs of any batch shape."""
    case = Case(subject, sample, "fp32")
    for batch in ((), (2,), (2, 3), (0,)):
        y = case.model(torch.ones(*batch, case.shape.in_features))
        wanted = (*batch, case.shape.out_features)
        expect(tuple(y.shape) == wanted, f"a batch of {batch} gave outputs of {tuple(y.shape)}; expected {wanted}")


def quantized_base(subject: Subject, sample: Sample, device: str) -> None:
    """A quantized base layer is adapted like a plain one: no change at the start, gradients, and it merges."""
    case = Case(subject, sample, "fp32", device, clauses="quant nf4")
    x = sample.inputs(3).to(device)
    error = relative_error(case.model(x), case.adapter.get_submodule("base_layer")(x))
    expect(error < TOLERANCE, f"a fresh adapter on a quantized layer moves the outputs by {error:.2g} of their norm")
    case.randomize()
    trained = {name: parameter for name, parameter in case.own.items() if parameter.requires_grad}
    for mode in (True, False):
        case.model.train(mode)
        expect_input_gradient(case.model, x, " on a quantized layer")
        partial = getattr(subject.plugin, "partial_gradients", False)
        expect_parameter_gradients(case.model, x, trained, " on a quantized layer", partial=partial)
    before = case.model(x)
    if hasattr(case.adapter, "exact_weight"):
        error = relative_error(lorakit.merge(case.model)(x), before)
        expect(error < TOLERANCE, f"merging with a quantized layer moved the outputs by {error:.2g} of their norm")
