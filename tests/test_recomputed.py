"""`step memory`: as many blocks are computed again as it takes, to the same bits, and no more is held."""

from __future__ import annotations

import copy
import io
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live import Live
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import lorakit
from helpers import make_gpt2, make_llama, randomize
from lorakit.language.spec import Spec
from lorakit.pipeline import decide
from lorakit.planning.inventory import Inventory
from lorakit.planning.plan import Memory, Plan
from lorakit.planning.reading import read_inventory
from lorakit.plugins import default_plugins

SPEC = "adapt @linear rank 4 dtype fp32"
STEP = "step batch 4 tokens 64"
BATCH = {"input_ids": torch.randint(128, (4, 64), generator=torch.Generator().manual_seed(0))}
BATCH["labels"] = BATCH["input_ids"]


def make_deep(**changes: Any) -> Any:
    return make_llama(num_hidden_layers=4, **changes)


class Blocks(nn.Module):
    """A plain net of numbered blocks, with dropout in them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = lambda: nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Dropout(0.3), nn.Linear(96, 32))  # noqa: E731
        self.blocks = nn.ModuleList(make() for _ in range(4))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x)
        return result


def memory_of(model: nn.Module, size: str = "", spec: str = SPEC) -> Memory:
    return lorakit.plan(f"{spec}\n{STEP} {size}", model).memory


def tight(model: nn.Module, count: int, spec: str = SPEC) -> str:
    """Return a `memory` clause with which so many blocks are computed again."""

    def fewer(kibibytes: int) -> int:
        return -len(decided(parsed, model, inventory, limit=kibibytes * 1024).memory.recomputed)

    parsed = lorakit.parse(f"{spec}\n{STEP}")
    inventory = read_inventory(model, default_plugins())
    sizes = range(decided(parsed, model, inventory).memory.peak // 1024)
    # the largest with which it is so many
    return f"memory {bisect_right(sizes, -count, key=fewer) - 1}KiB"


def decided(spec: Spec, model: nn.Module, inventory: Inventory, **step: int) -> Plan:
    return decide(spec, model, default_plugins(), inventory=inventory, **step)  # type: ignore[arg-type]


def learned(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(1)
    model.train()
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_no_more_blocks_than_it_takes() -> None:
    model = make_deep()
    whole = memory_of(model)
    assert whole.recomputed == () and whole.blocks == 4
    assert memory_of(model, f"memory {whole.peak}B").recomputed == ()
    peaks = [whole.peak]
    for count in range(1, 5):
        size = tight(model, count)
        found = memory_of(model, size)
        assert found.recomputed == tuple(f"model.layers.{index}" for index in range(count))
        assert found.peak <= found.limit < peaks[-1]
        peaks.append(found.peak)
    assert lorakit.plan(f"{SPEC}\n{STEP}", model, recompute=True).memory.peak == peaks[-1]


def test_what_does_not_fit_is_refused_with_what_to_write() -> None:
    with pytest.raises(
        lorakit.PlanError, match=r"error\[L109\]: a step of 4 × 64 holds .* with 4 of 4 blocks"
    ) as error:
        lorakit.plan(f"{SPEC}\n{STEP} memory 1MiB", make_deep())
    assert "quant nf4 double" in str(error.value) and "`memory` is 1.0 MiB" in str(error.value)


def test_paged_state_may_leave() -> None:
    model = make_deep()
    spec = "adapt @linear rank 32 dtype fp32 paged"
    least = lorakit.plan(f"{spec}\n{STEP}", model, recompute=True).memory
    size = f"memory {least.peak - least.paged // 2}B"
    assert len(memory_of(model, size, spec).recomputed) == 4
    with pytest.raises(lorakit.PlanError, match="L109"):
        memory_of(model, size, spec.removesuffix(" paged"))


@pytest.mark.parametrize("make", [make_deep, make_gpt2])
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_bits(make: Callable[[], nn.Module], count: int) -> None:
    batch = {name: value[:, :32] for name, value in BATCH.items()}
    model = make()
    size = tight(model, count)
    models = [lorakit.apply(f"{SPEC}\n{STEP} {clause}", make()) for clause in ("", size)]
    for one in models:
        randomize(one)
    (loss, gradients), (again, others) = (learned(one, batch) for one in models)
    assert again == loss and gradients.keys() == others.keys()
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())
    assert memory_of(model, size).recomputed == tuple(
        name for name, module in models[1].named_modules() if vars(module).get("gradient_checkpointing")
    )


def test_plain_blocks_and_their_dropout() -> None:
    spec = "adapt blocks.{n}.0 rank 4 dtype fp32".replace("{n}", "*")
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    size = "memory 980KiB"
    found = []
    for clause in ("", size):
        plan = lorakit.plan(f"{spec}\nstep batch 256 tokens 1 {clause}", Blocks(), example=x)
        assert len(plan.memory.recomputed) == (2 if clause else 0)
        model: Any = randomized(lorakit.apply(plan, Blocks())).train()
        calls = [0]
        model.blocks[0].register_forward_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        model.blocks[0][1].register_forward_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 10))
        torch.manual_seed(2)
        model(x).square().mean().backward()
        found.append(([one.grad for one in model.parameters() if one.grad is not None], calls[0]))
    (gradients, calls_kept), (others, calls_again) = found
    assert all(map(torch.equal, gradients, others))
    # a block is called once, and what is in it once more in the backward pass
    assert (calls_kept, calls_again) == (11, 21)


def randomized(model: nn.Module) -> nn.Module:
    randomize(model)
    return model


def test_no_more_is_held() -> None:
    """The forecast is the run, in tensors that exist: within 3 %, but for gradients that are not there yet."""
    for count in (0, 2, 3):
        model = make_deep(hidden_size=128, intermediate_size=384)
        size = tight(model, count) if count else ""
        plan = lorakit.plan(f"{SPEC}\n{STEP} {size}", model)
        lorakit.apply(plan, model).train()
        optimizer = lorakit.optimizer(model)
        step = lorakit.Step(model, optimizer)
        step(BATCH)
        state = (one for held in optimizer.state.values() for one in held.values() if isinstance(one, Tensor))
        with Live((*model.parameters(), *model.buffers(), *state)) as live:
            step(BATCH)
        # those of the step before go first
        assert live.most == pytest.approx(plan.memory.peak - plan.memory.gradients, rel=0.03), count
        assert len(plan.memory.recomputed) == count


def test_evaluation_is_as_ever() -> None:
    model = lorakit.apply(f"{SPEC}\n{STEP} {tight(make_deep(), 4)}", make_deep()).eval()
    with torch.no_grad():
        cached = model(BATCH["input_ids"][:, :8], use_cache=True).past_key_values
    assert cached.get_seq_length() == 8


def test_copies_pickles_and_merging() -> None:
    example = torch.randn(256, 32)
    text = "adapt blocks.*.0 rank 4 dtype fp32\nstep batch 256 tokens 1 memory 900KiB"
    plan = lorakit.plan(text, Blocks(), example=example)
    assert plan.memory.recomputed
    model: Any = lorakit.apply(plan, Blocks())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        model.eval(), other.eval()
        assert torch.equal(model(example), other(example))
        assert other.blocks[0].forward._block is other.blocks[0]
    merged = lorakit.merge(model)
    assert all("forward" not in vars(module) for module in merged.modules())
    llama = lorakit.merge(lorakit.apply(f"{SPEC}\n{STEP} {tight(make_deep(), 2)}", make_deep()))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in llama.modules())


@pytest.mark.parametrize("switched", [False, True])
def test_trainers_switch(tmp_path: Path, switched: bool) -> None:
    """A trainer's own flag stands beside it, and changes nothing but what is kept."""
    found = []
    for clause in ("", tight(make_deep(), 2)):
        model = lorakit.apply(f"{SPEC}\n{STEP} {clause}", make_deep())
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
            save_strategy="no", gradient_checkpointing=switched,
        )  # fmt: skip
        rows = [{name: value[index] for name, value in BATCH.items()} for index in range(4)]
        trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(lorakit.optimizer(model), None))
        trainer.train()
        found.append([one.detach() for one in model.parameters() if one.requires_grad])
    assert all(map(torch.equal, *found))


def test_plans_keep_their_limit() -> None:
    model = make_deep()
    plan = lorakit.plan(f"{SPEC}\n{STEP} {tight(model, 2)}", model)
    again = Plan.from_json(plan.to_json())
    assert again.memory == plan.memory
    assert lorakit.plan(again, model).memory == plan.memory
