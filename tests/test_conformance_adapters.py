"""Every check of an adapter finds the fault that it is there for, in a method that is sound but for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted import failures
from sound_method import Sound, built, low, table
from torch import Tensor, nn
from torch.nn import functional

from lorakit.testing import method_checks


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


def strength_of(self: Any, x: Tensor) -> Any:
    strength = self.strength
    return strength.view(-1, *(1 for _ in x.shape[1:])) if isinstance(strength, Tensor) else strength


def moving_its_inputs(self: Any, x: Tensor) -> Tensor:
    x.data.add_(self.lora_B.detach().sum())
    return Sound.forward(self, x)


def counting(self: Any, x: Tensor) -> Tensor:
    self.passes = getattr(self, "passes", 0) + self.training
    return (1 + 0.1 * self.passes) * Sound.change(self, x)


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


# the check that finds it, the faulty method, and what is said of it
PLANTED: dict[str, tuple[str, type, str]] = {
    "another shape": ("parameters", built(named_parameters=lambda self: iter(())), "promised"),
    "moves the outputs": ("start", built(forward=lambda self, x: 3 * self.base_layer(x)), "moves the outputs by 2"),
    "no gradient": ("gradients", built(change=lambda self, x: 0 * Sound.change(self, x)), "would never learn"),
    "merges the base alone": ("merged", built(exact_weight=lambda self, weight: weight), "merging moved the outputs"),
    "strength ignored": ("strength", built(forward=lambda self, x: self.base_layer(x) + self.change(x)), "`strength`"),
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
    "looks through adapters": (
        "on-an-adapter", built(forward=weighing_its_base, strength_of=strength_of), "around another adapter",
    ),
    "merges past adapters": ("on-an-adapter", built(exact_weight=merging_past_adapters), ""),
    "moves its inputs": ("under-an-adapter", built(forward=moving_its_inputs), "moves the outputs"),
    "branches on values": ("compiled", built(change=when_there_is_one), "as one graph"),
    "forgets when it goes on": ("trainer-resumes", built(change=counting), "from a checkpoint"),
    "holds on to its parameters": ("deep-copies", built(__init__=with_a_closure), "copy"),
    "sends its product": ("data-parallel", built(__init__=with_its_product), "numbers in buffers"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    name, method, words = PLANTED[fault]
    found = failures(method_checks(method), name, enough=1)
    assert found and words in found[0], found
