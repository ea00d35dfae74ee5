"""Checks of a method in training: where gradients go, what a step changes, and what the clauses of a rule do."""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import lorakit
from lorakit.artifacts.peft_config import FOREIGN_TYPE
from lorakit.testing.cases import TOLERANCE, Case, adapted
from lorakit.testing.checks import Check, CheckError, expect, variants_of
from lorakit.testing.layers import Sample
from lorakit.testing.slopes import expect_input_gradient, expect_parameter_gradients
from lorakit.testing.subjects import Subject, relative_error, same_bits

# inputs of a single row; a model in bfloat16, and one in float32 that computes in it; what that may cost a gradient
ONE_ROW, CAST, AUTOCAST = "one-row", "bf16", "autocast"
ROUNDED = 0.05
# rows of one input, by which chance is told from a rule
DRAWS = 400


def training_checks(subject: Subject, each: Mapping[str, tuple[Sample]]) -> Iterator[Check]:
    """Yield the checks of one layer of every kind."""
    modes = {f"{kind}{'-training' * mode}": (*one, mode) for kind, one in each.items() for mode in (False, True)}
    floating = {kind: one for kind, one in modes.items() if one[0].inputs(3).is_floating_point()}
    ways = {kind: (sample, "training" if training else "") for kind, (sample, training) in floating.items()}
    low = {
        f"{kind}-{way}": (*one, way)
        for kind, one in each.items()
        for way in (ONE_ROW, CAST, AUTOCAST)
        if kind.startswith("linear")
    }
    yield from variants_of(input_gradient, subject, {**ways, **low})
    yield from variants_of(parameter_gradients, subject, modes)
    yield from variants_of(training_step, subject, each)
    yield from variants_of(half_strength, subject, each)
    yield from variants_of(generator, subject, each)
    yield from variants_of(base_untouched, subject, each)
    yield from variants_of(peft, subject, each)
    first = dict(list(each.items())[:1])
    stored = {f"{kind}-nf4": (*one, "quant nf4") for kind, one in first.items() if kind == "linear"}
    for clause in (alpha, scaling):
        if clause.__name__ in subject.plugin.clauses:
            yield from variants_of(clause, subject, {**{kind: (*one, "") for kind, one in each.items()}, **stored})
    if "dropout" in subject.plugin.clauses:
        dropping = {kind: (*one, "") for kind, one in each.items() if _can_drop(*one)}
        yield from variants_of(dropout, subject, {**dropping, **stored})
    if "init" in subject.plugin.clauses:
        yield from variants_of(init, subject, first)
    if "lr_ratio" in subject.plugin.clauses:
        yield from variants_of(learning_rates, subject, first)


def input_gradient(subject: Subject, sample: Sample, way: str) -> None:
    """The gradient of the inputs is the one that the outputs show, so that layers below learn from the whole change.

    In bfloat16, and under autocast, it is that of float32 but for its rounding.
    """
    case = Case(subject, sample)
    case.randomize()
    if way not in (CAST, AUTOCAST):
        x = sample.inputs(3)[: 1 if way == ONE_ROW else None]
        expect_input_gradient(case.model.train(way == "training"), x)
        return
    model, x = case.model.eval(), sample.inputs(3).requires_grad_()
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    if way == CAST:
        model, x = model.to(torch.bfloat16), x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == AUTOCAST):
        outputs = model(x)
    (found,) = torch.autograd.grad(outputs.float().square().sum(), x)
    error = relative_error(found.float(), wanted)
    where = "in bfloat16" if way == CAST else "under autocast"
    expect(error < ROUNDED, f"{where} the gradient of the inputs is off by {error:.2g} from that of float32")


def parameter_gradients(subject: Subject, sample: Sample, training: bool) -> None:
    """The gradient of every parameter that trains is what the outputs show; `partial_gradients` owns another."""
    case = Case(subject, sample)
    case.randomize()
    trained = {name: parameter for name, parameter in case.own.items() if parameter.requires_grad}
    partial = getattr(subject.plugin, "partial_gradients", False)
    expect_parameter_gradients(case.model.train(training), sample.inputs(3), trained, partial=partial)


def training_step(subject: Subject, sample: Sample) -> None:
    """A step changes what the table says trains and nothing else, no base weight and no buffer; a file holds it all."""
    case = Case(subject, sample)
    case.randomize()
    case.model.train()
    trains = {f"{one.name}" for one in case.table if one.trains}
    before = {name: value.clone() for name, value in _everything(case.model).items()}
    optimizer = lorakit.optimizer(case.model, lr=0.1)
    for seed in (3, 4):
        optimizer.zero_grad()
        case.model(sample.inputs(seed)).square().sum().backward()
        optimizer.step()
    own = {id(parameter): name for name, parameter in case.own.items()}
    for name, value in _everything(case.model).items():
        named = own.get(id(value), "")
        if named in trains:
            expect(not same_bits(value, before[name]), f"the table says that `{named}` trains, and two steps left it")
        else:
            expect(same_bits(value, before[name]), f"two steps changed `{name}`, which the table does not say trains")
    x = sample.inputs(3)
    wanted = case.model.eval()(x)
    with tempfile.TemporaryDirectory() as folder:
        lorakit.save(case.model, Path(folder, "adapter"))
        loaded = lorakit.load(Path(folder, "adapter"), sample.model(), plugins=case.plugins)
    expect(
        same_bits(loaded(x), wanted), "after training the loaded adapter computes something else: what else changed?"
    )


def half_strength(subject: Subject, sample: Sample) -> None:
    """At half the strength the change of the outputs is half of it, in gradients and in a merge too."""
    case = Case(subject, sample)
    case.randomize()
    case.model.eval()
    x = sample.inputs(3)
    plain, full = sample.model()(x), case.model(x)
    lorakit.adapters(case.model).use({"default": 0.5})
    if x.is_floating_point():
        expect_input_gradient(case.model, x, " at half the strength")
    half = case.model(x)
    error = relative_error(half - plain, (full - plain) / 2)
    expect(error < 1e-3, f"with `strength` 0.5 the change of the outputs is off by {error:.2g} from half of it")
    if sample.is_parameter or hasattr(case.adapter, "exact_weight"):
        error = relative_error(lorakit.merge(case.model)(x), half)
        expect(
            error < TOLERANCE,
            f"merged at `strength` 0.5 the outputs are off by {error:.2g}: `exact_weight` counts it in",
        )


def generator(subject: Subject, sample: Sample) -> None:
    """What is drawn comes from `context.generator`: another seed draws other values, and no global generator moves."""
    state = torch.get_rng_state()
    first = Case(subject, sample)
    _ = first.model
    # the sample's own weights are drawn aside
    expect(torch.equal(torch.get_rng_state(), state), "`start` or `adapt` moved torch's global random generator")
    other = Case(subject, _reseeded(sample), seed=1)
    same = [
        name
        for name, parameter in first.own.items()
        if _looks_drawn(parameter) and same_bits(parameter, other.own[name])
    ]
    expect(
        not same,
        f"{', '.join(same)} start with the same numbers for another seed and another weight; draw with "
        "`generator=context.generator`",
    )


def base_untouched(subject: Subject, sample: Sample) -> None:
    """Starting and building an adapter leaves the base's weights as they are, bit for bit."""
    case = Case(subject, sample)
    model = sample.model()
    held = [value.detach().clone() for value in model.parameters()]
    # the very tensors stay in the model
    kept = list(model.parameters())
    adapted(subject, model, sample.path, case.plugins)
    expect(all(map(same_bits, kept, held)), "the base weight was changed: look at `context.weight()`, and leave it")


def peft(subject: Subject, sample: Sample) -> None:
    """Where `peft` claims a type of PEFT's, PEFT loads the saved adapter and computes the same."""
    if importlib.util.find_spec("peft") is None:
        return
    case = Case(subject, sample)
    case.randomize()
    x = sample.inputs(3)
    wanted = case.model.eval()(x)
    with tempfile.TemporaryDirectory() as place:
        folder = lorakit.save(case.model, Path(place, "adapter"))
        claimed = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
        if claimed.startswith(FOREIGN_TYPE):
            return
        from peft import PeftModel

        try:
            loaded = PeftModel.from_pretrained(sample.model(), str(folder))
        except Exception as raised:
            raise CheckError(f"`peft` claims {claimed}, and PEFT does not load it: {raised}; return None") from raised
    error = relative_error(loaded.eval()(x), wanted)
    expect(
        error < 1e-3,
        f"`peft` claims {claimed}, and what PEFT computes is off by {error:.2g} of the outputs; return None where PEFT "
        "cannot compute the same",
    )


def alpha(subject: Subject, sample: Sample, stored: str) -> None:
    """`alpha` has an effect on what a trained adapter computes."""
    _expect_effect(subject, sample, stored, "alpha", "alpha 2", "alpha 8")


def scaling(subject: Subject, sample: Sample, stored: str) -> None:
    """`scaling` has an effect on what a trained adapter computes: rsLoRA divides alpha by the root of the rank."""
    ways = (f"rank 3 alpha 3 scaling {name}" for name in ("standard", "rslora"))
    _expect_effect(subject, sample, stored, "scaling", *ways)


def dropout(subject: Subject, sample: Sample, stored: str) -> None:
    """`dropout` drops in training alone, by chance, as much as the rule says, and leaves the mean as it is."""
    spreads = {}
    for rate in (0.5, 0.25):
        case = Case(subject, sample, clauses=f"dropout {rate} {stored}")
        case.randomize()
        # one input many times over
        x = sample.inputs(3)[:1].repeat(DRAWS, *(1 for _ in sample.inputs(3).shape[1:]))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            drawn, again = (case.model.train()(x).double() for _ in range(2))
            exact = case.model.eval()(x).double()
            change = float((exact - case.adapter.get_submodule("base_layer")(x)).norm())
        expect(
            not torch.equal(drawn, again) and not torch.equal(drawn, drawn[:1].expand_as(drawn)),
            f"with `dropout {rate}` two forwards in training mode, or all rows, are the same: use it, or take "
            "`dropout` out of `clauses`",
        )
        expect(torch.equal(case.model(x).double(), exact), f"with `dropout {rate}` two forwards in evaluation differ")
        shift = float((drawn.mean(dim=0) - exact[0]).norm()) * math.sqrt(DRAWS) / change
        expect(
            shift < 0.35,
            f"with `dropout {rate}` the mean of {DRAWS} forwards is off by {shift:.2g} of the change: divide what "
            "stays by 1 - dropout",
        )
        spreads[rate] = float((drawn - drawn.mean(dim=0)).square().sum())
    ratio = spreads[0.5] / spreads[0.25]
    # p / (1 - p)
    expect(2 < ratio < 4.4, f"`dropout 0.5` spreads {ratio:.2g} times as much as `dropout 0.25`, and 3 is right")


def init(subject: Subject, sample: Sample) -> None:
    """The initializer that a rule names decides the start values."""
    first, second = (Case(subject, sample, clauses=f"init {name}") for name in ("gaussian", "kaiming"))
    same = all(same_bits(parameter, second.own[name]) for name, parameter in first.own.items())
    expect(not same, "`init gaussian` and `init kaiming` start alike: call `context.initialize(lora_A, lora_B)`")


def learning_rates(subject: Subject, sample: Sample) -> None:
    """`lr_ratio` gives some parameter a rate of its own."""
    plain, ratio = (Case(subject, sample, clauses=clauses).table for clauses in ("", "lr_ratio 4"))
    rates = [(one.name, one.rate) for one in ratio]
    expect(rates != [(one.name, one.rate) for one in plain], "`lr_ratio 4` changes no `rate` of the table")


def _everything(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _expect_effect(subject: Subject, sample: Sample, stored: str, clause: str, *values: str) -> None:
    found = []
    for clauses in values:
        case = Case(subject, sample, clauses=f"{clauses} {stored}")
        drawn = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in case.own.values():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=drawn))
        found.append(case.model.eval()(sample.inputs(3)))
    both = " and ".join(f"`{one}`" for one in values)
    expect(
        relative_error(found[0], found[1]) > TOLERANCE,
        f"{both} compute the same: use it, or take `{clause}` out of `clauses`",
    )


def _can_drop(sample: Sample) -> bool:
    """Whether there are features to drop in training: tokens have none, and a parameter sees no inputs."""
    return not sample.is_parameter and sample.inputs(3).is_floating_point()


def _looks_drawn(parameter: Tensor) -> bool:
    """Whether values look random: most of them differ."""
    return parameter.numel() > 8 and parameter.detach().unique().numel() > parameter.numel() // 2


def _reseeded(sample: Sample) -> Sample:
    """Return a sample whose weights are drawn from another seed."""

    class Other(Sample):
        def model(self, seed: int = 1) -> nn.Module:
            return super().model(1)

    return Other(sample.path, sample.layer, sample.inputs)
