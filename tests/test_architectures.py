"""Every architecture, plain and quantized: both ways with PEFT, merging, and training.

The short form takes each step of each architecture in fp32, and on one of the two quantized bases in turn: with --slow
it is taken on both.
`LORAKIT_UPDATE=1` writes the table of what holds where to data/architectures.md; otherwise it is compared.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import lorakit
from architectures import ARCHITECTURES, Inputs, loss_of, output_of
from helpers import bitsandbytes_weight, randomize

TABLE = Path(__file__).parent / "data" / "architectures.md"
TOLERANCE = 1e-5
MERGED = 1e-4
# a merged weight in bfloat16 is rounded to 8 bits; two layers deep that shows in the fifth bit of the logits
MERGED_BFLOAT16 = 2**-4
# PEFT rounds B·A·x to bfloat16 before it adds it, lorakit rounds the sum once
ROUNDED = 2**-5
WEIGHTS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2**-9},
}
RANK = 4

# what PEFT says where it does what FAILURES says, and of a Conv1D that came back from quantizing as a Linear
pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set",
    "ignore:Found missing adapter keys",
    "ignore:The following (rank|alpha)_pattern keys",
)


class DifferentError(AssertionError):
    """Two models that should say the same do not."""


@dataclass(frozen=True)
class Column:
    """What a model is before it is adapted, and what the spec says of its layers."""

    dtype: torch.dtype
    quant: str = ""
    adapter_dtype: str = ""

    @property
    def clauses(self) -> str:
        return " ".join(filter(None, [self.quant and f"quant {self.quant}", self.adapter_dtype]))


COLUMNS = {
    "fp32": Column(torch.float32),
    "nf4 on fp32": Column(torch.float32, "nf4 double", "dtype fp32"),
    "nf4 on bf16": Column(torch.bfloat16, "nf4 double"),
}


@dataclass(frozen=True)
class Failure:
    """Some steps that do not hold for the whole of `@linear`: they raise `error` with a message that has `match`.

    `without` are the ends of the paths of the modules that are to blame; None where no choice of modules helps.
    """

    steps: str
    reason: str
    without: tuple[str, ...] | None
    error: type[Exception] = DifferentError
    match: str | None = None


OUT_PROJ = Failure(
    "ab",
    "PEFT refuses Mamba's out_proj, whose weight a fused kernel reads",
    without=("out_proj",),
    error=ValueError,
    match="incompatible with Mamba-based models",
)
DT_PROJ = Failure(
    "ab",
    "the mixer multiplies with dt_proj.weight, which under PEFT is the weight without the adapter",
    without=("dt_proj",),
)
ROUTER = Failure(
    "b",
    "PEFT takes in the router, a Linear that returns two tensors, and fails in its forward",
    without=("router",),
    error=AttributeError,
    match="'tuple' object has no attribute 'dtype'",
)
RESCALED = Failure(
    "ab",
    "for evaluation the model divides the weights of these layers in place, which under PEFT reaches no adapter",
    without=("attention.output", "feed_forward.value"),
)
FAILURES: dict[str, tuple[Failure, ...]] = {
    "llama4": (ROUTER,),
    "mamba": (OUT_PROJ, DT_PROJ),
    "jamba": (DT_PROJ,),
    "falcon_h1": (OUT_PROJ,),
    "rwkv": (RESCALED,),
}


@dataclass(frozen=True)
class Case:
    """One cell: an architecture in a column, its `@linear` modules or those `without` some of them."""

    name: str
    column: Column
    without: tuple[str, ...] | None
    folder: Path

    @property
    def excepted(self) -> str:
        return f"except {', '.join(self.without)}" if self.without else ""

    def base(self) -> PreTrainedModel:
        return copy.deepcopy(built(self.name, self.column.dtype))

    def adapted(self) -> nn.Module:
        """Return the model as lorakit adapts it; what is excepted stays plain."""
        spec = f"adapt @linear {self.excepted} rank {RANK} {self.column.clauses}\nquantize @linear none"
        return lorakit.apply(spec, self.base())

    def randomized(self) -> nn.Module:
        """Return the adapted model with adapters that change what it says."""
        model = self.adapted()
        randomize(model)
        return model.eval()

    def plain(self) -> nn.Module:
        """Return a plain model with the frozen weights of the adapted one, dequantized where they are quantized."""
        if not self.column.quant:
            return self.base()
        return lorakit.merge(lorakit.apply(f"quantize @linear {self.column.quant} {self.excepted}", self.base()))

    def paths(self) -> list[str]:
        """Return the paths of the modules that are adapted."""
        return linear_paths(self.name, self.excepted)

    def inputs(self) -> Inputs:
        """Return the architecture's inputs, their floats in the base's dtype."""
        return {
            name: value.to(self.column.dtype) if value.is_floating_point() else value
            for name, value in ARCHITECTURES[self.name].inputs().items()
        }


@functools.cache
def built(name: str, dtype: torch.dtype) -> PreTrainedModel:
    model: Any = ARCHITECTURES[name].build()
    return model.to(dtype)


def class_name(name: str) -> str:
    return type(built(name, torch.float32)).__name__


@functools.cache
def linear_paths(name: str, excepted: str = "") -> list[str]:
    plan = lorakit.plan(f"adapt @linear {excepted} rank {RANK}", built(name, torch.float32))
    return [entry.path for entry in plan.entries]


@functools.cache
def expert_paths(name: str) -> list[str]:
    return [entry.path for entry in lorakit.plan("train @experts optional", built(name, torch.float32)).entries]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # matrices as small as these are slower on two threads, by far where another process wants one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    built.cache_clear()


def agree(one: Tensor, two: Tensor, tolerance: float) -> None:
    """Raise DifferentError unless two tensors are the same within a tolerance, and finite."""
    difference = float((one.float() - two.float()).abs().max())
    if not difference <= tolerance:
        raise DifferentError(f"differ by {difference:.2e}, more than {tolerance:.0e}")


def differ(one: Tensor, two: Tensor) -> bool:
    """Whether an adapter does something: one that changes nothing would pass every comparison."""
    return float((one - two).abs().max()) > 100 * TOLERANCE


def exchanged(case: Case, said: Tensor) -> float:
    """Return how far apart lorakit and PEFT may be with one adapter."""
    return ROUNDED * float(said.abs().max()) if case.column.dtype == torch.bfloat16 else TOLERANCE


def ours_in_peft(case: Case) -> None:
    """What lorakit saves, PEFT loads onto plain weights, and says the same."""
    ours = case.randomized()
    lorakit.save(ours, case.folder)
    theirs = PeftModel.from_pretrained(case.plain(), str(case.folder), autocast_adapter_dtype=False)
    said = output_of(ours, case.inputs())
    agree(said, output_of(theirs, case.inputs()), exchanged(case, said))
    assert differ(said, output_of(case.plain(), case.inputs()))


def peft_in_ours(case: Case) -> None:
    """What PEFT saves, lorakit loads onto the same base, in bitsandbytes' layers where it is quantized.

    PEFT gets the same weights plain: bitsandbytes 0.50 dequantizes rows that are no whole blocks wrongly on some
    processors.
    """

    def base() -> PreTrainedModel:
        return in_bitsandbytes(case.base(), case.paths()) if case.column.quant else case.base()

    def weights() -> PreTrainedModel:
        """Return the base as plain weights: those that bitsandbytes quantized, dequantized."""
        model: Any = base()
        for path, layer in list(model.named_modules()):
            if isinstance(layer, bnb.nn.Linear4bit):
                stored: Any = layer.weight
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight = nn.Parameter(bitsandbytes_weight(stored.data, stored.quant_state))
                plain.bias = layer.bias
                model.set_submodule(path, plain)
        return model.eval()

    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules="all-linear" if case.without is None else case.paths(),
        task_type="SEQ_CLS" if class_name(case.name).endswith("ForSequenceClassification") else None,
    )
    plain = weights()
    # A is the same whatever cells came before: in bf16 another could send a token to another expert
    torch.manual_seed(1)
    theirs = get_peft_model(plain, config, autocast_adapter_dtype=False).eval()
    randomize(theirs)
    theirs.save_pretrained(str(case.folder))
    ours = lorakit.load(case.folder, base())
    said = output_of(theirs, case.inputs())
    agree(output_of(ours, case.inputs()), said, exchanged(case, said))
    assert differ(said, output_of(weights(), case.inputs()))


def merged(case: Case) -> None:
    """Merging gives W₀ + BA, a model that says what the adapted one says, and holds no class of lorakit."""
    ours, by_hand = case.randomized(), case.plain()
    add_by_hand(by_hand, ours)
    said = output_of(ours, case.inputs())
    by_hand_said = output_of(copy.deepcopy(by_hand), case.inputs())
    plain = lorakit.merge(ours)
    for path in case.paths():
        found, expected = (model.get_parameter(f"{path}.weight").float() for model in (plain, by_hand))
        torch.testing.assert_close(found, expected, **WEIGHTS[case.column.dtype])
    tolerance = MERGED if case.column.dtype == torch.float32 else MERGED_BFLOAT16 * float(said.abs().max())
    # in bf16 the last bit of a weight can send a token to another expert
    if case.column.dtype == torch.float32 or not expert_paths(case.name):
        agree(said, by_hand_said, tolerance)
        agree(output_of(plain, case.inputs()), said, tolerance)
    assert not [module for module in plain.modules() if type(module).__module__.startswith("lorakit")]
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in case.base().named_parameters()]


def trained(case: Case) -> None:
    """Three steps lower the loss; every A and B gets a gradient, and nothing else changes."""
    model = case.adapted().train()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    optimizer = lorakit.optimizer(model, lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, case.inputs())
        loss.backward()
        losses.append(float(loss.detach()))
        without = {
            name
            for name, value in model.named_parameters()
            if value.requires_grad and (value.grad is None or not bool(value.grad.any()))
        }
        optimizer.step()
    idle = ARCHITECTURES[case.name].idle
    assert without == {
        name for name, value in model.named_parameters() if value.requires_grad and name.startswith(idle)
    }
    losses.append(float(loss_of(model, case.inputs()).detach()))
    assert losses[-1] < losses[0], losses
    after = model.state_dict()
    assert [name for name, value in frozen.items() if not torch.equal(after[name], value)] == []


STEPS: dict[str, Callable[[Case], None]] = {"a": ours_in_peft, "b": peft_in_ours, "c": merged, "d": trained}
TITLES = {"a": "lorakit → PEFT", "b": "PEFT → lorakit", "c": "merge", "d": "train"}


def in_bitsandbytes(model: Any, paths: list[str]) -> PreTrainedModel:
    """Return the model with these layers as transformers loads them in four bits; it leaves heads and some others."""
    left = model._keep_in_fp32_modules or ()
    for path in paths:
        segments = path.split(".")
        if segments[-1] in left or not any(segment.isdigit() for segment in segments):
            continue
        layer: Any = model.get_submodule(path)
        weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
        packed: Any = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], compute_dtype=weight.dtype)
        packed.weight = bnb.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        packed.bias = layer.bias
        # else an evaluation pass repacks the weight, wrongly for some shapes
        packed.support_avx512bf16_for_cpu = False
        model.set_submodule(path, packed.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


def add_by_hand(plain: nn.Module, adapted: nn.Module) -> None:
    """Add B·A to the weights of a plain model; alpha is the rank, so the scale is 1."""
    with torch.no_grad():
        for name, lora_A in adapted.named_parameters():
            path, _, matrix = name.rpartition(".")
            if matrix != "lora_A":
                continue
            layer: Any = plain.get_submodule(path)
            delta = adapted.get_parameter(f"{path}.lora_B").float() @ lora_A.float()
            layer.weight.add_((delta.T if isinstance(layer, Conv1D) else delta).to(layer.weight.dtype))


def names(failures: Iterable[Failure]) -> tuple[str, ...]:
    return tuple(name for failure in failures for name in failure.without or ())


def cells() -> Iterator[Any]:
    """Yield every cell; of two that differ in what the base was before it was quantized, one takes its time."""
    for row, name in enumerate(ARCHITECTURES):
        for place, column in enumerate(COLUMNS):
            for number, step in enumerate(STEPS):
                turn = not COLUMNS[column].quant or (row + place + number) % 2 == 0
                yield pytest.param(name, column, step, marks=[] if turn else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "column", "step"), cells())
def test_cell(name: str, column: str, step: str, tmp_path: Path) -> None:
    failures = [failure for failure in FAILURES.get(name, ()) if step in failure.steps]
    for number, failure in enumerate(failures):
        others = names(other for other in failures if other is not failure)
        if column == "fp32" or failure.without is None:
            with pytest.raises(failure.error, match=failure.match):
                STEPS[step](Case(name, COLUMNS[column], others or None, tmp_path / str(number)))
    if all(failure.without is not None for failure in failures):
        without = names(failures) if failures else None
        STEPS[step](Case(name, COLUMNS[column], without, tmp_path / "adapter"))


def table() -> str:
    """Return what holds where; the cells of this table are what test_cell proves."""
    notes = list(dict.fromkeys((failure.reason, failure.without) for all_ in FAILURES.values() for failure in all_))
    lines = [
        "# Architectures",
        "",
        "Tiny random models of each architecture, rank 4 on `@linear`, as tests/test_architectures.py proves it with",
        "--slow: plain in fp32, and with `quant nf4 double` on a base in fp32 and in bf16. A note says what does not",
        "hold, and why.",
        "On a base in bf16 PEFT rounds what it adds once more than lorakit does, and agrees to that.",
        "",
        f"| architecture | class | modules | {' | '.join(TITLES.values())} |",
        f"|---|---|---|{'---|' * len(TITLES)}",
    ]
    for name in ARCHITECTURES:
        cells = [
            _cell([failure for failure in FAILURES.get(name, ()) if step in failure.steps], notes) for step in STEPS
        ]
        lines.append(f"| {name} | {class_name(name)} | {len(linear_paths(name))} | {' | '.join(cells)} |")
    lines.append("")
    for number, (reason, without) in enumerate(notes, 1):
        rest = (
            f"; all but {', '.join(without)} holds"
            if without
            else "; holds for modules given by name" * (without == ())
        )
        lines.append(f"{number}. {reason}{rest}")
    return "\n".join(lines) + "\n"


def _cell(failures: list[Failure], notes: list[tuple[str, tuple[str, ...] | None]]) -> str:
    holds = "no" if any(failure.without is None for failure in failures) else "in part" if failures else "yes"
    numbers = ", ".join(str(notes.index((failure.reason, failure.without)) + 1) for failure in failures)
    return f"{holds} ({numbers})" if failures else holds


def test_the_table_says_what_holds() -> None:
    assert FAILURES.keys() <= ARCHITECTURES.keys()
    if os.environ.get("LORAKIT_UPDATE"):
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(), encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table()
