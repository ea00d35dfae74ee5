"""Every check of a method finds the fault that it is there for in what is planned, started and written; each once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from planted import failures, variant
from sound_method import Low, Sound, low, starting, table
from test_conformance_adapters import PLANTED as IN_ADAPTERS
from torch import Tensor

from lorakit.hooks import LayerShape, ParameterPlan, Settings, StartContext, low_rank_fields
from lorakit.testing import method_checks
from lorakit.testing.causes import Failure, causes
from lorakit.testing.companions import SharedMatrices, Vector


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


def without_a_ratio(self: Any, layer: LayerShape, settings: Settings) -> Any:
    return Low.parameters(self, layer, dataclasses.replace(settings, lr_ratio=None))


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
    "one name for two": ("file-names", low(parameters=table(file_name="lora_B.weight")), "one `file_name` twice"),
    "one file for two": ("saved", low(parameters=table(file_name="lora_B.weight")), ""),
    "draws from all": ("determinism", low(start=starting(lambda A, context: A.normal_())), "other values the second"),
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
    "init ignored": (
        "init", low(start=starting(lambda A, context: A.normal_(generator=context.generator))), "start alike",
    ),
    "lr_ratio ignored": ("learning-rates", low(parameters=without_a_ratio), "`lr_ratio 4`"),
    "flat models alone": ("hugging-face", low(start=starting(on_a_flat_model)), "failed to start"),
    "one name for all shapes": (
        "every-tensor-saved", variant(SharedMatrices, parameters=colliding), "two `file_name`s",
    ),
    "a number of no dimension": (
        "sharded", low(parameters=table(GATE), start=WEIGHTED["start"], adapter=type("Wrong", (Sound,), {
            "change": lambda self, x: self.gate * Sound.change(self, x),
        })), "every parameter has a dimension",
    ),
}  # fmt: skip
EVERYWHERE = {**IN_ADAPTERS, **PLANTED}
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
    name, method, words = EVERYWHERE[fault]
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
    assert {check.name for check in method_checks(low())} == SHARED | {name for name, _, _ in EVERYWHERE.values()}
