"""Every kind of check of a method finds the fault that it is there for, in methods that are sound but for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from planted import failures, variant
from torch import Tensor, nn
from torch.nn import functional

from lorakit.hooks import (
    LayerShape,
    ParameterPlan,
    PlanEntry,
    Settings,
    StartContext,
    low_rank_fields,
    low_rank_table,
    start_low_rank,
)
from lorakit.testing import method_checks
from lorakit.testing.causes import Failure, causes
from lorakit.testing.companions import SharedMatrices, Vector


class Sound(nn.Module):
    """h = W₀x + strength · scaling · B · A · dropout(x)."""

    def __init__(self, base_layer: nn.Module, scaling: float, dropout: float, **parameters: nn.Parameter) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength: float | Tensor = 1.0
        self.scaling, self.dropout = scaling, dropout
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def change(self, x: Tensor) -> Tensor:
        x = functional.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
        return x @ self.lora_A.T @ self.lora_B.T

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        change, strength = self.change(x), self.strength
        if isinstance(strength, Tensor):
            strength = strength.view(-1, *(1 for _ in change.shape[1:]))
        return result + (self.scaling * strength * change).to(result.dtype)

    def delta(self) -> Tensor:
        return self.scaling * self.lora_B.float() @ self.lora_A.float()

    def exact_weight(self, weight: Tensor) -> Tensor:
        return weight + self.strength * self.delta()


@dataclasses.dataclass(frozen=True)
class Low:
    """A low-rank method on linear layers."""

    name: ClassVar[str] = "low"
    clauses: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})
    adapter: ClassVar[type[Sound]] = Sound

    def parameters(self, layer: LayerShape, settings: Settings) -> Sequence[ParameterPlan]:
        return low_rank_table(layer, settings) if layer.kind == "linear" else ()

    def start(self, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        start_low_rank(parameters, context)

    def adapt(self, layer: nn.Module, entry: PlanEntry, parameters: Mapping[str, nn.Parameter]) -> nn.Module | None:
        assert entry.adapter is not None
        settings = entry.adapter.settings
        return self.adapter(layer, settings.factor, settings.dropout or 0.0, **parameters)

    def peft(self, entries: Sequence[PlanEntry]) -> Mapping[str, Any] | None:
        return low_rank_fields(entries)


def low(**changes: Any) -> type:
    """Return the method with these differences."""
    return variant(Low, **changes)


def built(**changes: Any) -> type:
    """Return the method with an adapter that has these differences."""
    return low(adapter=type("Wrong", (Sound,), changes))


def table(*more: ParameterPlan, **changes: Any) -> Callable[..., Any]:
    """Return a table with these parameters more, and others for lora_A."""

    def parameters(self: Any, layer: LayerShape, settings: Settings) -> Any:
        if layer.kind != "linear":
            return ()
        lora_A, lora_B = low_rank_table(layer, settings)
        return (dataclasses.replace(lora_A, **changes), lora_B, *more)

    return parameters


def starting(fill: Callable[[Tensor, StartContext], object]) -> Callable[..., None]:
    """Return a start that fills lora_A so, and nothing else."""

    def start(self: Any, parameters: Mapping[str, Tensor], context: StartContext) -> None:
        fill(parameters["lora_A"], context)
        for name in parameters.keys() - {"lora_A", "lora_B"}:
            parameters[name].fill_(1)

    return start


def from_one_seed(lora_A: Tensor, context: StartContext) -> None:
    lora_A.copy_(torch.randn(lora_A.shape, generator=torch.Generator().manual_seed(0)))


def seeding_all(lora_A: Tensor, context: StartContext) -> None:
    torch.manual_seed(int(torch.randint(1000, (1,), generator=context.generator)))
    lora_A.normal_()


def taking_from_the_weight(lora_A: Tensor, context: StartContext) -> None:
    lora_A.normal_(generator=context.generator)
    context.weight().mul_(1.00001)


def on_a_flat_model(lora_A: Tensor, context: StartContext) -> None:
    (_,) = context.path.split(".")
    lora_A.normal_(generator=context.generator)


def drifting(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.lora_A.data.mul_(1.01)
    return x @ self.lora_A.T @ self.lora_B.T


def with_a_mean(self: Any, *words: Any, **more: Any) -> None:
    Sound.__init__(self, *words, **more)
    self.register_buffer("mean", torch.zeros(1))


def centred(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean())
    return (x - self.mean) @ self.lora_A.T @ self.lora_B.T


def weighing_its_base(self: Any, x: Tensor) -> Tensor:
    layer = self.base_layer
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    result = functional.linear(x, layer.weight.to(x.dtype), layer.bias)
    return result + self.strength_of(x) * self.scaling * self.change(x)


def reading_a_parameter(self: Any, x: Tensor) -> Tensor:
    return Sound.forward(self, x) + 0 * self.base_layer._parameters["weight"].sum()


def merging_past_adapters(self: Any, weight: Tensor) -> Tensor:
    return self.base_layer.weight.float() + self.strength * self.delta()


def without_a_ratio(self: Any, layer: LayerShape, settings: Settings) -> Any:
    return Low.parameters(self, layer, dataclasses.replace(settings, lr_ratio=None))


def strength_of(self: Any, x: Tensor) -> Any:
    strength = self.strength
    return strength.view(-1, *(1 for _ in x.shape[1:])) if isinstance(strength, Tensor) else strength


def moving_its_inputs(self: Any, x: Tensor) -> Tensor:
    x.data.add_(self.lora_B.detach().sum())
    return Sound.forward(self, x)


def forgetting(self: Any, state_dict: Any, prefix: str, *rest: Any) -> None:
    Sound._load_from_state_dict(self, state_dict, prefix, *rest)
    if f"{prefix}base_layer.weight" not in state_dict:
        self.lora_B.data.zero_()


def with_its_product(self: Any, *words: Any, **more: Any) -> None:
    Sound.__init__(self, *words, **more)
    self.register_buffer("at_first", self.delta().detach(), persistent=False)


def with_a_closure(self: Any, *words: Any, lora_A: nn.Parameter, lora_B: nn.Parameter, **more: Any) -> None:
    Sound.__init__(self, *words, lora_A=lora_A, lora_B=lora_B, **more)
    self.change = lambda x: x.to(lora_A.dtype) @ lora_A.T @ lora_B.T


def detached_in_training(self: Any, x: Tensor) -> Tensor:
    return Sound.change(self, x.detach() if self.training else x)


def detached_on_packed(self: Any, x: Tensor) -> Tensor:
    return Sound.change(self, x if isinstance(self.base_layer, nn.Linear) else x.detach())


def detached_around_others(self: Any, x: Tensor) -> Tensor:
    return Sound.change(self, x.detach() if hasattr(self.base_layer, "base_layer") else x)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def with_half_a_base(self: Any, x: Tensor) -> Tensor:
    return self.base_layer(x.detach()) + self.strength_of(x) * self.scaling * self.change(x)


def on_small_layers(self: Any, x: Tensor) -> Tensor:
    return Sound.change(self, x) * (x.shape[-1] < 1000)


def on_a_few_rows(self: Any, x: Tensor) -> Tensor:
    change = Sound.change(self, x)
    return torch.cat([change[:100], 0 * change[100:]]) if x.ndim > 1 else change


def dropping(rate: Callable[[Any], float], *, scaled: bool = True, by_chance: bool = True) -> Callable[..., Tensor]:
    """Return a change whose dropout has a rate of its own, leaves the size as it is, or always drops the same."""

    def change(self: Any, x: Tensor) -> Tensor:
        found = rate(self)
        generator = None if by_chance else torch.Generator().manual_seed(0)
        kept = torch.rand(x.shape, generator=generator) >= found if found else torch.ones_like(x)
        x = x.to(self.lora_A.dtype) * kept / (1 - found if scaled else 1)
        return x @ self.lora_A.T @ self.lora_B.T

    return change


def with_a_count(self: Any, *words: Any, **more: Any) -> None:
    Sound.__init__(self, *words, **more)
    self.count = 0


def warming_up(self: Any, x: Tensor) -> Tensor:
    self.count += self.training
    return Sound.change(self, x) * min(1.0, (self.count + 1) / 3)


def with_a_hook(self: Any, *words: Any, **more: Any) -> None:
    Sound.__init__(self, *words, **more)
    self.register_buffer("seen", torch.ones(1))
    self.lora_B.register_hook(lambda gradient: self.seen.add_(gradient.abs().mean()) and None)


FORWARDS: dict[int, int] = {}


def counting_elsewhere(self: Any, x: Tensor) -> Tensor:
    FORWARDS[id(self)] = FORWARDS.get(id(self), 0) + self.training
    return Sound.change(self, x) * (1 + 0.1 * FORWARDS[id(self)])


def when_there_is_one(self: Any, x: Tensor) -> Tensor:
    return Sound.change(self, x) if self.lora_B.abs().sum() > 0 else 0 * Sound.change(self, x)


def weighted(self: Any, x: Tensor) -> Tensor:
    return (x.to(self.lora_A.dtype) @ self.lora_A.T * self.lora_E) @ self.lora_B.T


def colliding(self: Any, layer: LayerShape, settings: Settings) -> Any:
    found = SharedMatrices.parameters(self, layer, settings)
    return [
        dataclasses.replace(one, shared=f"{one.name}{layer.in_features}x{layer.out_features}", file_name=one.name)
        if one.shared
        else one
        for one in found
    ]


E = ParameterPlan("lora_E", (2,))
WEIGHTED = {"parameters": table(E), "start": starting(lambda A, context: A.normal_(generator=context.generator))}
GATE = ParameterPlan("gate", ())
# the check that finds it, the faulty method, and what is said of it
PLANTED: dict[str, tuple[str, type, str]] = {
    "no kind": ("kinds", low(parameters=lambda self, layer, settings: ()), "names no parameter for any of"),
    "unknown clauses": ("kinds", low(clauses=frozenset({"rnk"})), "`clauses` is"),
    "another shape": ("parameters", built(named_parameters=lambda self: iter(())), "promised"),
    "moves the outputs": ("start", built(forward=lambda self, x: 3 * self.base_layer(x)), "moves the outputs by 2"),
    "no gradient": ("gradients", built(change=lambda self, x: 0 * Sound.change(self, x)), "would never learn"),
    "merges the base alone": ("merged", built(exact_weight=lambda self, weight: weight), "merging moved the outputs"),
    "strength ignored": ("strength", built(forward=lambda self, x: self.base_layer(x) + self.change(x)), "`strength`"),
    "one name for two": ("file-names", low(parameters=table(file_name="lora_B.weight")), "one `file_name` twice"),
    "one file for two": ("saved", low(parameters=table(file_name="lora_B.weight")), ""),
    "draws from all": ("determinism", low(start=starting(lambda A, context: A.normal_())), "other values the second"),
    "a shape of its own": ("batches", built(forward=lambda self, x: Sound.forward(self, x)[None]), "a batch of ()"),
    "not on packed weights": ("quantized-base", built(forward=reading_a_parameter), "weight"),
    "half a gradient": ("input-gradient", built(change=lambda self, x: Sound.change(self, x.detach())), "the inputs"),
    "half a gradient in training": ("input-gradient", built(change=detached_in_training), "the inputs"),
    "half of the gradient": (
        "input-gradient", built(change=lambda self, x: Sound.change(self, Halved.apply(x))), "the inputs",
    ),
    "no gradient through the base": (
        "input-gradient", built(forward=with_half_a_base, strength_of=strength_of), "the inputs",
    ),
    "half a gradient on packed weights": (
        "quantized-base", built(change=detached_on_packed), "the inputs on a quantized layer",
    ),
    "half a gradient around an adapter": (
        "on-an-adapter", built(change=detached_around_others), "the inputs around another adapter",
    ),
    "small layers alone": ("gradients", built(change=on_small_layers), "would never learn"),
    "a few rows alone": ("merged", built(change=on_a_few_rows), "merging moved the outputs"),
    "shows its base's weight": (
        "shown-weight", built(weight=property(lambda self: self.base_layer.weight)), "what `weight` and `bias` show",
    ),
    "a gradient of A too small": (
        "parameter-gradients",
        built(change=lambda self, x: x @ (self.lora_A / 2 + self.lora_A.detach() / 2).T @ self.lora_B.T), "`lora_A`",
    ),
    "trains what is frozen": (
        "training-step", low(parameters=table(trains=False), adapter=type("Wrong", (Sound,), {"change": drifting})),
        "which the table does not say trains",
    ),
    "freezes what trains": (
        "parameter-gradients", built(change=lambda self, x: x @ self.lora_A.detach().T @ self.lora_B.T), "`lora_A`",
    ),
    "a mean that no file holds": ("training-step", built(__init__=with_a_mean, change=centred), "mean"),
    "counts its forwards": ("training-step", built(__init__=with_a_count, change=warming_up), "what else changed"),
    "counts them elsewhere": ("training-step", built(change=counting_elsewhere), "what else changed"),
    "a buffer that gradients change": (
        "training-step",
        built(__init__=with_a_hook, change=lambda self, x: Sound.change(self, x) * self.seen), "`layer.seen`",
    ),
    "strength forgotten in a merge": (
        "half-strength", built(exact_weight=lambda self, weight: weight + self.delta()), "merged at `strength` 0.5",
    ),
    "strength squared": (
        "half-strength", built(change=lambda self, x: self.strength * Sound.change(self, x)), "from half of it",
    ),
    "one seed for all": ("generator", low(start=starting(from_one_seed)), "the same numbers for another seed"),
    "seeds all": ("generator", low(start=starting(seeding_all)), "global random generator"),
    "changes the base": ("base-untouched", low(start=starting(taking_from_the_weight)), "base weight was changed"),
    "claims LoRA": (
        "peft", low(**WEIGHTED, adapter=type("Wrong", (Sound,), {"change": weighted})), "`peft` claims LORA",
    ),
    "claims LoRA without matrices": (
        "peft", variant(Vector, peft=lambda self, entries: low_rank_fields(entries)), "`peft` claims LORA",
    ),
    "claims what PEFT has not": ("peft", low(peft=lambda self, entries: {"peft_type": "LOHI"}), "does not load it"),
    "alpha ignored": (
        "alpha", low(adapt=lambda self, layer, entry, own: Sound(layer, 1.0, 0.0, **own)), "`alpha 8`",
    ),
    "alpha over the rank whatever the rule says": (
        "scaling", low(adapt=lambda self, layer, entry, own: Sound(
            layer, entry.adapter.settings.alpha / entry.adapter.settings.rank, 0.0, **own
        )), "scaling rslora",
    ),
    "alpha forgotten in a merge": (
        "merged",
        built(exact_weight=lambda self, weight: weight + self.strength * self.delta() / self.scaling), "merging",
    ),
    "dropout ignored": (
        "dropout", built(change=lambda self, x: x.to(self.lora_A) @ self.lora_A.T @ self.lora_B.T), "`dropout 0.5`",
    ),
    "dropout in evaluation": ("dropout", built(change=dropping(lambda self: self.dropout)), "in evaluation differ"),
    "dropout by a rule": (
        "dropout", built(change=dropping(lambda self: self.dropout * self.training, by_chance=False)), "are the same",
    ),
    "dropout that leaves less": (
        "dropout", built(change=dropping(lambda self: self.dropout * self.training, scaled=False)), "divide what stays",
    ),
    "dropout of another rate": (
        "dropout", built(change=dropping(lambda self: self.dropout**2 * self.training)), "and 3 is right",
    ),
    "dropout on plain layers alone": (
        "dropout", built(change=dropping(
            lambda self: self.dropout * (self.training and isinstance(self.base_layer, nn.Linear))
        )), "are the same",
    ),
    "init ignored": (
        "init", low(start=starting(lambda A, context: A.normal_(generator=context.generator))), "start alike",
    ),
    "lr_ratio ignored": ("learning-rates", low(parameters=without_a_ratio), "`lr_ratio 4`"),
    "looks through adapters": (
        "on-an-adapter", built(forward=weighing_its_base, strength_of=strength_of), "around another adapter",
    ),
    "merges past adapters": ("on-an-adapter", built(exact_weight=merging_past_adapters), ""),
    "moves its inputs": ("under-an-adapter", built(forward=moving_its_inputs), "moves the outputs"),
    "branches on values": ("compiled", built(change=when_there_is_one), "as one graph"),
    "flat models alone": ("hugging-face", low(start=starting(on_a_flat_model)), "failed to start"),
    "one name for all shapes": (
        "every-tensor-saved", variant(SharedMatrices, parameters=colliding), "two `file_name`s",
    ),
    "forgets when it goes on": ("trainer-resumes", built(_load_from_state_dict=forgetting), "from a checkpoint"),
    "holds on to its parameters": ("deep-copies", built(__init__=with_a_closure), "copy"),
    "sends its product": ("data-parallel", built(__init__=with_its_product), "numbers in buffers"),
    "a number of no dimension": (
        "sharded", low(parameters=table(GATE), start=WEIGHTED["start"], adapter=type("Wrong", (Sound,), {
            "change": lambda self, x: self.gate * Sound.change(self, x),
        })), "every parameter has a dimension",
    ),
}  # fmt: skip
# of whole models: not what a fault is to be read of first
SLOW = {"compiled", "trainer-resumes", "data-parallel", "sharded", "peft", "hugging-face", "deep-copies"}
# what every plugin of a spec is asked, and tests of other kinds see to fail
SHARED = {"name", "documentation", "options", "spec-round-trip", "import-without-torch", "copies"}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    name, method, words = PLANTED[fault]
    found = failures(method_checks(method), name, enough=1)
    assert found and words in found[0], found


# faults that many checks come upon
WIDE = [
    "half a gradient", "half a gradient on packed weights", "alpha ignored", "alpha forgotten in a merge",
    "counts its forwards", "merges the base alone", "changes the base", "draws from all",
]  # fmt: skip


@pytest.mark.parametrize("fault", WIDE)
def test_a_fault_that_many_checks_come_upon_is_told_once(fault: str) -> None:
    name, method, words = PLANTED[fault]
    failed = [
        Failure("method variant", check, reason)
        for check in method_checks(method)
        if check.name not in SHARED | SLOW and "-large" not in check.id
        for reason in failures([check], check.name)
    ]
    (text,) = causes(failed)
    assert text.count("failed: ") == 1 and text.startswith(f"failed: method variant, {name}") and words in text


def test_what_the_faults_are_planted_in_is_sound() -> None:
    for check in method_checks(low()):
        if check.name not in SHARED:
            check()


def test_every_check_of_methods_is_seen_to_fail() -> None:
    assert {check.name for check in method_checks(low())} == SHARED | {name for name, _, _ in PLANTED.values()}
