"""Models that FSDP2 shards in two processes, by lorakit and by accelerate's Trainer: what one process learns."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from together import WORLD, Check, expect_none
from together import run as run_together
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import lorakit
from helpers import make_llama
from lorakit.layers.quantized_linear import QuantizedLinear

SPEC = "adapt q_proj,v_proj rank 4 dtype fp32 quant {}\noptimizer adamw lr 5e-3\n"
QUANTIZERS = ("nf4 double", "int8")
UNITS = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
MIXED = "adapt q_proj rank 4 dtype fp32\nadapt v_proj rank 4 dtype bf16"
STEPS, BATCH = 4, 4


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random rows of tokens."""

    def __init__(self) -> None:
        self.rows = torch.randint(0, 128, (STEPS * BATCH, 10), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def adapted(spec: str) -> Any:
    return lorakit.apply(spec, make_llama()).train()


def trainer(model: nn.Module, folder: Path, shards: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return transformers' Trainer; with `shards` under FSDP2, which accelerate by itself turns off on a CPU."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Sharding(Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if shards is not None:
                state: Any = self.accelerator.state
                PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
                state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **UNITS, **shards)
                self.is_fsdp_enabled = True

    count = dist.get_world_size() if dist.is_initialized() else 1
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH // count, report_to="none",
        disable_tqdm=True, use_cpu=True, logging_steps=1, lr_scheduler_type="constant",
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    # Trainer's types know classes of optimizers alone
    factory: Any = lorakit.optimizer
    made = Sharding(model=model, args=arguments, train_dataset=Rows(), optimizer_cls_and_kwargs=(factory, {}))
    made.remove_callback(PrinterCallback)
    return made


def losses(made: Any) -> list[float]:
    return [record["loss"] for record in made.state.log_history if "loss" in record]


def learned(model: nn.Module, count: int = STEPS) -> list[float]:
    """Return the losses of a loop over rows of which each process takes its share."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    optimizer, rows, found = lorakit.optimizer(model), Rows().rows, []
    for step in range(count):
        own = rows[step * BATCH : (step + 1) * BATCH].tensor_split(world)[rank]
        loss = model(input_ids=own, labels=own).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone() / world
        if world > 1:
            dist.all_reduce(mean)
        found.append(float(mean))
    return found


def held(model: nn.Module) -> int:
    """Return the bytes of a model's parameters that lie in this process."""
    return local(model.parameters())


def local(tensors: Any) -> int:
    """Return the bytes of tensors that lie in this process."""
    parts = (one.to_local() if hasattr(one, "to_local") else one for one in tensors)
    return sum(part.numel() * part.element_size() for part in parts)


def check_trainer(quant: str, folder: Path) -> None:
    name = quant.replace(" ", "-")
    model = adapted(SPEC.format(quant))
    whole = held(model)
    made = trainer(
        model, folder / f"{name}-run", {"cpu_ram_efficient_loading": True, "state_dict_type": "FULL_STATE_DICT"}
    )
    made.train()
    assert losses(made) == pytest.approx(torch.load(folder / f"{name}.pt"), abs=1e-5)
    assert held(model) <= whole / WORLD * 1.1
    # the first process alone is handed what all gathered
    made.save_model(str(folder / f"{name}-handed"))
    lorakit.save(model, folder / f"{name}-saved")
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    assert all("lora_" in one for one in get_model_state_dict(model, options=options))


def check_view(folder: Path) -> None:
    """Trainer's checkpoints of the view hold what trains alone, in shards, and the run goes on from them."""
    shards = {"state_dict_type": "SHARDED_STATE_DICT"}
    made = trainer(
        lorakit.peft(adapted(SPEC.format("nf4 double"))), folder / "view", shards, save_strategy="steps", save_steps=2
    )
    made.train()
    again = trainer(lorakit.peft(adapted(SPEC.format("nf4 double"))), folder / "view-2", shards)
    again.train(resume_from_checkpoint=str(folder / "view" / "checkpoint-2"))
    assert losses(again) == losses(made)
    written = sum(path.stat().st_size for path in (folder / "view" / "checkpoint-2" / "pytorch_model_fsdp_0").iterdir())
    assert written < held(again.model.base_model.model)


def check_view_gathered(folder: Path) -> None:
    view, shards = lorakit.peft(adapted(SPEC.format("nf4 double"))), {"state_dict_type": "FULL_STATE_DICT"}
    made = trainer(view, folder / "full", shards)
    made.train()
    made.save_model(str(folder / "view-handed"))


def awaited(spec: str) -> Any:
    """Return a model that is adapted in both processes, and loaded in the first alone; its buffers are computed."""
    model = make_llama()
    if dist.get_rank():
        for module in model.modules():
            for name, held in module._parameters.items():
                if held is not None:
                    module._parameters[name] = nn.Parameter(held.to("meta"))
    return lorakit.apply(spec, model).train()


def check_waiting_trainer(quant: str, folder: Path) -> None:
    name = quant.replace(" ", "-")
    model = awaited(SPEC.format(quant))
    made = trainer(model, folder / "awaited", {"cpu_ram_efficient_loading": True})
    made.train()
    assert losses(made) == pytest.approx(torch.load(folder / f"{name}.pt"), abs=1e-5)
    lorakit.save(model, folder / f"{name}-awaited")


def check_waiting_shard(frozen: Any, folder: Path) -> None:
    spec = SPEC.format("nf4 double") + "train model.norm\n"
    alone, model = adapted(spec), lorakit.shard(awaited(spec), frozen=frozen)
    rows = Rows().rows[:2]

    def answers(one: nn.Module) -> torch.Tensor:
        with torch.no_grad(), lorakit.adapters(one).disabled():
            return one(input_ids=rows).logits

    torch.testing.assert_close(answers(model), answers(alone), rtol=0, atol=1e-5)
    for name, value in model.named_parameters():
        one = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(one.detach(), alone.get_parameter(name).detach()), name
    assert len(set(learned(model, 2))) == 2
    torch.testing.assert_close(answers(model), answers(alone), rtol=0, atol=1e-5)


def check_waiting_refused(folder: Path) -> None:
    if not dist.get_rank():
        return
    taking = "adapt q_proj rank 2 init pissa(iterations=1)"
    with pytest.raises(lorakit.ModelError, match="`pissa` takes a part from the weight of .*cpu_ram_efficient_loading"):
        awaited(taking)
    rows = Rows().rows[:1]
    with pytest.raises(lorakit.TrainingError, match="holds no values of the LlamaForCausalLM.*`lorakit.shard`"):
        awaited("adapt q_proj rank 2")(input_ids=rows)


def check_fresh_head(folder: Path) -> None:
    """Weights that no file holds are drawn in the first process alone, where transformers is told of FSDP."""
    from transformers import AutoModelForSequenceClassification

    told = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with mock.patch.dict(os.environ, told):
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "llama", num_labels=2, pad_token_id=0)
    assert model.score.weight.is_meta == bool(dist.get_rank())
    model = lorakit.shard(lorakit.apply("adapt q_proj rank 2 dtype fp32\ntrain score", model))
    heads = [torch.zeros(2, 64) for _ in range(WORLD)]
    dist.all_gather(heads, model.score.weight.full_tensor().detach())
    assert heads[0].any() and torch.equal(*heads)
    assert model(input_ids=Rows().rows[:2], labels=torch.tensor([0, 1])).loss.isfinite()


def check_refused(spec: str, told: str, folder: Path) -> None:
    made = trainer(adapted(spec), folder / "refused", {})
    with pytest.raises(lorakit.ModelError, match=told):
        made.train()
    assert made.state.global_step == 0


def check_shard(quant: str, frozen: Any, folder: Path) -> None:
    model = adapted(SPEC.format(quant))
    whole, base = held(model), sum(layer_bytes(one) for one in layers(model).values())
    model = lorakit.shard(model, frozen=frozen)
    found = learned(model)
    assert found == pytest.approx(torch.load(folder / f"{quant.replace(' ', '-')}-loop.pt"), abs=1e-5)
    if frozen == "shard":
        assert held(model) <= whole / WORLD * 1.1
    else:
        assert held(model) > base
        assert all(hasattr(one, "to_local") == one.requires_grad for one in model.parameters())
    # no hook is left to be called
    assert not any(one._forward_pre_hooks for one in layers(model).values())
    lorakit.save(model, folder / f"{quant.replace(' ', '-')}-{frozen}")


PLANNED = {
    # what is stored in four bits has scales of odd numbers
    f"{SPEC.format('nf4 double')}train model.norm\n": 0.01,
    "adapt q_proj,v_proj rank 3 dtype fp32\noptimizer adamw lr 5e-3\n": 0.0,
    "adapt @linear rank 4 dtype fp32\ntrain lm_head\noptimizer sgd lr 1e-2\n": 0.0,
}


def check_planned(folder: Path) -> None:
    """What each device holds is what the plan says of it; the first has what cannot be halved."""
    frozens: tuple[Any, ...] = ("shard", "replicate")
    for spec, tolerance in PLANNED.items():
        for frozen in frozens:
            memory = lorakit.plan(spec, make_llama(), devices=WORLD, frozen=frozen).memory
            model = lorakit.shard(adapted(spec), frozen=frozen)
            optimizer = lorakit.optimizer(model)
            rows = Rows().rows[:1]
            model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            gradients = [one.grad for one in model.parameters() if one.grad is not None]
            moments = [one for state in optimizer.state.values() for one in state.values()]
            found = torch.tensor([held(model), local(gradients), local(moments)])
            every = [torch.empty_like(found) for _ in range(WORLD)]
            dist.all_gather(every, found)
            weights, trained, kept = torch.stack(every).amax(0).tolist()
            assert weights == pytest.approx(memory.weights + memory.adapters, rel=tolerance)
            assert trained == memory.gradients
            # counters of steps are in no shard
            assert kept == pytest.approx(memory.optimizer, rel=0.01)


def layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: one for name, one in model.named_modules() if isinstance(one, QuantizedLinear)}


def layer_bytes(layer: QuantizedLinear) -> int:
    return sum(one.numel() * one.element_size() for one in layer.tensors.values())


def check_corrupted(way: str, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    model = adapted(SPEC.format("nf4 double"))
    if way == "shard":
        model = lorakit.shard(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    path = "model.layers.1.mlp.up_proj"
    if dist.get_rank() == 1:
        model.get_submodule(path).weight_packed.to_local()[3] ^= 16
    with pytest.raises(lorakit.TrainingError, match=f"`{path}` came out of FSDP with other bytes.*`packed`"):
        learned(model, 1)


def check_pieces(folder: Path) -> None:
    with pytest.raises(lorakit.ModelError, match="takes one dtype there, not fp32 .*q_proj.* and bf16 .*v_proj"):
        lorakit.shard(adapted(MIXED))
    model = lorakit.shard(adapted("adapt q_proj rank 4 dtype bf16\ntrain model.norm"))
    with pytest.raises(lorakit.ModelError, match="is sharded already"):
        lorakit.shard(model)


def check_one_writes(folder: Path) -> None:
    model = adapted(SPEC.format("nf4 double"))
    parallel = nn.parallel.DistributedDataParallel(model)
    rows = Rows().rows[:2]
    parallel(input_ids=rows, labels=rows).loss.backward()
    for number in range(5):
        lorakit.save(model if number % 2 else parallel, folder / f"ddp{dist.get_rank()}")
    dist.barrier()
    assert os.listdir(folder / "ddp0") and not (folder / "ddp1").exists()


CHECKS: dict[str, Check] = {
    **{f"trainer {quant}": functools.partial(check_trainer, quant) for quant in QUANTIZERS},
    "view": check_view,
    "view gathered": check_view_gathered,
    "dtypes": functools.partial(check_refused, MIXED, "takes one dtype there, not fp32.*write one `dtype`"),
    "8 bits": functools.partial(
        check_refused, "adapt q_proj rank 64\noptimizer adamw8bit", "`adamw8bit` cannot step what is sharded.*as adamw"
    ),
    "paged": functools.partial(check_refused, "adapt q_proj rank 4 paged", "no page holds the state of a shard"),
    **{
        f"{frozen} {quant}": functools.partial(check_shard, quant, frozen)
        for quant in QUANTIZERS
        for frozen in ("shard", "replicate")
    },
    **{f"waiting trainer {quant}": functools.partial(check_waiting_trainer, quant) for quant in QUANTIZERS},
    **{f"waiting {frozen}": functools.partial(check_waiting_shard, frozen) for frozen in ("shard", "replicate")},
    "waiting refused": check_waiting_refused,
    "fresh head": check_fresh_head,
    **{f"corrupted {way}": functools.partial(check_corrupted, way) for way in ("shard", "fully_shard")},
    "planned": check_planned,
    "pieces": check_pieces,
    "one writes": check_one_writes,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharded")
    for quant in QUANTIZERS:
        name = quant.replace(" ", "-")
        alone = trainer(adapted(SPEC.format(quant)), made / "alone")
        alone.train()
        torch.save(losses(alone), made / f"{name}.pt")
        model = adapted(SPEC.format(quant))
        torch.save(learned(model), made / f"{name}-loop.pt")
        lorakit.save(model, made / f"{name}-loop")
    make_llama().save_pretrained(made / "llama")
    return made


@pytest.fixture(scope="module")
def failures(folder: Path) -> Iterator[dict[str, str]]:
    yield run_together(CHECKS, folder)


def values(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def expect_near(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = values(one), values(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_trainer_learns_under_fsdp_as_in_one_process(quant: str, folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures[f"trainer {quant}"])
    name = quant.replace(" ", "-")
    expect_near(folder / f"{name}-handed", folder / f"{name}-saved", 0.0)
    lorakit.load(folder / f"{name}-saved", make_llama())


def test_the_view_is_saved_without_its_base_and_goes_on(folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures["view"] or failures["view gathered"])
    expect_near(folder / "view-handed", folder / "nf4-double-saved", 0.0)


@pytest.mark.parametrize("what", ["dtypes", "8 bits", "paged"])
def test_what_cannot_be_sharded_is_refused_before_the_first_step(what: str, failures: dict[str, str]) -> None:
    expect_none(failures[what])


@pytest.mark.parametrize("quant", QUANTIZERS)
@pytest.mark.parametrize("frozen", ["shard", "replicate"])
def test_both_layouts_learn_as_one_process(frozen: str, quant: str, folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures[f"{frozen} {quant}"])
    name = quant.replace(" ", "-")
    expect_near(folder / f"{name}-{frozen}", folder / f"{name}-loop", 1e-5)


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_trainer_learns_where_one_process_loads(quant: str, folder: Path, failures: dict[str, str]) -> None:
    expect_none(failures[f"waiting trainer {quant}"])
    name = quant.replace(" ", "-")
    expect_near(folder / f"{name}-awaited", folder / f"{name}-saved", 1e-5)


@pytest.mark.parametrize("frozen", ["shard", "replicate"])
def test_sharding_gives_all_what_one_process_loads(frozen: str, failures: dict[str, str]) -> None:
    expect_none(failures[f"waiting {frozen}"])


def test_a_fresh_head_is_one_for_all(failures: dict[str, str]) -> None:
    expect_none(failures["fresh head"])


def test_what_needs_weights_is_refused_where_there_are_none(failures: dict[str, str]) -> None:
    pytest.importorskip("lorakit_methods")
    expect_none(failures["waiting refused"])


@pytest.mark.parametrize("way", ["shard", "fully_shard"])
def test_a_changed_byte_is_told_by_the_weight_it_is_of(way: str, failures: dict[str, str]) -> None:
    expect_none(failures[f"corrupted {way}"])


def test_a_device_holds_what_the_plan_says_of_it(failures: dict[str, str]) -> None:
    expect_none(failures["planned"])


def test_what_trains_in_one_piece_has_one_dtype(failures: dict[str, str]) -> None:
    expect_none(failures["pieces"])


def test_of_replicas_the_first_process_writes(failures: dict[str, str]) -> None:
    expect_none(failures["one writes"])


def test_without_other_processes_nothing_is_sharded() -> None:
    with pytest.raises(lorakit.ModelError, match="start them by torchrun"):
        lorakit.shard(adapted("adapt q_proj rank 4"))
