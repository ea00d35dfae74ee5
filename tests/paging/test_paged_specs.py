"""`paged` in a spec, from the plan to the optimizer of a run, in loops of one's own and in trainers."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forked import Nursery
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

import lorakit
from helpers import make_llama
from lorakit.builtin.optimizers import AdamW8bit
from lorakit.hooks import hookimpl
from lorakit.paging import Paged
from lorakit.plugins import load_plugins
from lorakit.testing import optimizer_checks

TOKENS = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def learn(model: nn.Module, optimizer: Any, count: int = 3) -> list[torch.Tensor]:
    for _ in range(count):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "sgd(momentum=0.9)", "sgd"])
def test_a_paged_run_has_the_bits_of_an_unpaged_one(name: str) -> None:
    spec = f"adapt q_proj,v_proj rank 4 dtype fp32\noptimizer {name} lr 1e-2"
    plain = lorakit.apply(spec, make_llama())
    wanted = learn(plain, lorakit.optimizer(plain))
    model = lorakit.apply(f"{spec} paged", make_llama())
    optimizer = lorakit.optimizer(model)
    assert isinstance(optimizer, Paged)
    learned = learn(model, optimizer, 2)
    optimizer.page_out()
    learned = learn(model, optimizer, 1)
    assert all(map(torch.equal, learned, wanted))


def test_one_rule_pages_and_no_other() -> None:
    spec = "adapt q_proj rank 4 paged\nadapt v_proj rank 4"
    plan = lorakit.plan(spec, make_llama())
    model = lorakit.apply(spec, make_llama())
    optimizer: Any = lorakit.optimizer(model)
    learn(model, optimizer)
    where = {
        name: {value.untyped_storage().nbytes() == value.nbytes for value in optimizer.state[parameter].values()}
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert len(where) == 8
    assert all(own == {"v_proj" in name} for name, own in where.items())
    state = [
        value.nbytes
        for name, parameter in model.named_parameters() if "q_proj.lora" in name
        for value in optimizer.state[parameter].values()
    ]  # fmt: skip
    assert sum(state) == plan.memory.paged < plan.memory.optimizer


@pytest.mark.parametrize("paged", ["", " paged"])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "sgd(momentum=0.9)"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_forecast_is_what_a_run_keeps_to_the_byte(name: str, dtype: str, paged: str) -> None:
    # 64 · 64 values are as many as bitsandbytes keeps in eight bits, and a norm has fewer
    spec = f"adapt q_proj,gate_proj rank 64 dtype {dtype}\ntrain @norm\noptimizer {name}{paged}"
    model = lorakit.apply(spec, make_llama())
    optimizer = lorakit.optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    values = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    held = {id(value): value.nbytes for value in values}
    memory = lorakit.plan(spec, make_llama()).memory
    assert sum(held.values()) == memory.optimizer
    tables = 2048 if name == "adamw8bit" else 0
    assert memory.paged == (memory.optimizer - tables if paged else 0)
    told = lorakit.summary(model)
    assert (told.optimizer_bytes, told.paged_bytes) == (memory.optimizer, memory.paged)


@pytest.mark.parametrize(("first", "second"), [(" paged", ""), ("", " paged"), (" paged", " paged")])
def test_a_trainer_resumes_from_a_checkpoint_of_either_kind(first: str, second: str, tmp_path: Path) -> None:
    spec = "adapt q_proj,v_proj rank 4 dtype fp32\noptimizer adamw lr 1e-2"
    rows = [{"input_ids": row, "labels": row} for row in TOKENS.repeat(8, 1)]

    def train(paged: str, folder: Path, steps: int, **resume: Any) -> list[torch.Tensor]:
        model = lorakit.apply(f"{spec}{paged}", make_llama())
        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, save_steps=3, report_to="none",
            disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant", max_grad_norm=1.0,
        )  # fmt: skip
        optimizer = lorakit.optimizer(model)
        trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
        trainer.train(**resume)
        assert not paged or isinstance(optimizer, Paged)
        return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]

    whole = train("", tmp_path / "whole", 6)
    train(first, tmp_path / "parts", 3)
    last = lorakit.last_checkpoint(str(tmp_path / "parts"))
    resumed = train(second, tmp_path / "parts", 6, resume_from_checkpoint=last)
    assert all(map(torch.equal, resumed, whole))


NET = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))

def pairs():
    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    return [(x, x.flip(0)) for x in inputs]
"""


def test_the_plain_loop_resumes_from_a_checkpoint_of_either_kind(tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "net.py").write_text(NET)
    net, pairs = (f"{tmp_path / 'net.py'}:{name}" for name in ("net", "pairs"))

    def train(paged: str, *more: str) -> dict[str, torch.Tensor]:
        (tmp_path / "spec.lora").write_text(f"adapt 0,2 rank 4\noptimizer adamw lr 2e-2{paged}\n")
        words = ["-o", tmp_path / "out", "--steps", 8, "--save-every", 4, "--schedule", "constant", *more]
        done = nursery.run("train", tmp_path / "spec.lora", net, pairs, *words)
        assert done.returncode == 0, done.stderr
        return load_file(tmp_path / "out" / "adapter_model.safetensors")

    whole = train("")
    for paged, more in ((" paged", ("--resume",)), (" paged", ()), ("", ("--resume",))):
        again = train(paged, "--force", *more)
        assert all(torch.equal(value, again[name]) for name, value in whole.items()), (paged, more)


def test_accelerate_schedulers_and_scalers_take_it_for_an_optimizer() -> None:
    runs = []
    for paged in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        wrapped = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optimizer: Any = lorakit.paged(wrapped) if paged else wrapped
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        accelerator = Accelerator(cpu=True)
        model, prepared, scheduler = accelerator.prepare(model, optimizer, scheduler)
        seen: list[str] = []
        optimizer.register_step_pre_hook(lambda *_, seen=seen: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append("after"))
        for number in range(6):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
            if number < 3:
                accelerator.backward(model(x).square().mean())
                prepared.step()
            else:
                scaler.scale(model(x).square().mean() * (torch.inf if number == 4 else 1.0)).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            scheduler.step()
            prepared.zero_grad()
        assert seen == ["before", "after"] * 5
        runs.append([*(parameter.detach() for parameter in model.parameters()), torch.tensor(scheduler.get_last_lr())])
    assert all(map(torch.equal, *runs))


def test_hooks_from_before_run_once_a_step() -> None:
    model = nn.Linear(4, 4)
    wrapped = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[Any] = []
    wrapped.register_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    wrapped.register_state_dict_post_hook(lambda _, made: {**made, "extra": 1})
    wrapped.register_load_state_dict_pre_hook(lambda _, given: {k: v for k, v in given.items() if k != "extra"})
    optimizer = lorakit.paged(wrapped)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == [optimizer]
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)


class Together(torch.optim.SGD):
    """Clips by the norm of all gradients."""

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1e-3)
        return super().step(closure)


class Clipping:
    """A factory of an optimizer that takes parameters together."""

    name = "clipping"
    default_lr = 1e-2

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return Together(groups, lr=self.default_lr, momentum=0.9)

    def state(self, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"momentum_buffer": (shape, dtype)}


@pytest.mark.parametrize("declared", [False, True])
def test_an_optimizer_that_takes_parameters_together_is_refused(declared: bool) -> None:
    factory: Any = dataclasses.dataclass(frozen=True)(
        type("Factory", (Clipping,), {"couples_parameters": declared, "__doc__": "Clips."})
    )
    plugin: Any = types.ModuleType("clipping")
    plugin.lorakit_optimizers = hookimpl(lambda: [factory])
    plugin.lorakit_optimizers.__name__ = "lorakit_optimizers"
    plugins = load_plugins(modules={"clipping 1.0": plugin})
    spec = lorakit.parse("adapt q_proj rank 4 dtype fp32 paged\noptimizer clipping", plugins=plugins)
    if declared:
        with pytest.raises(
            lorakit.PlanError, match="`clipping` takes parameters together in a step.*leave out `paged`"
        ):
            lorakit.plan(spec, make_llama(), plugins=plugins)
    else:
        model = lorakit.apply(spec, make_llama(), plugins=plugins)
        with pytest.raises(lorakit.ModelError, match="Together takes its parameters together"):
            lorakit.optimizer(model)
        check, *_ = (check for check in optimizer_checks(factory) if check.id.startswith("pages"))
        with pytest.raises(AssertionError, match="couples_parameters: ClassVar"):
            check()


@dataclasses.dataclass(frozen=True)
class Unshared(AdamW8bit):
    """Does not own that its tables are one for all."""

    shared_state = ()


def test_what_parameters_share_has_to_be_named() -> None:
    check, *_ = (check for check in optimizer_checks(Unshared) if check.id == "state[10000-float32]")
    with pytest.raises(AssertionError, match=r"names \[\], and parameters share \['qmap1', 'qmap2'\]"):
        check()


def test_what_is_not_the_wrapped_optimizers_is_not_there() -> None:
    optimizer = lorakit.paged(torch.optim.AdamW([nn.Parameter(torch.ones(3))]))
    assert not hasattr(optimizer, "train") and not hasattr(optimizer, "nothing")
    assert "AdamW" in repr(optimizer) and optimizer.defaults["betas"] == (0.9, 0.999)
    assert inspect.signature(optimizer.step).parameters["closure"].default is None
    with pytest.raises(AttributeError):
        Paged.__new__(Paged).nothing  # noqa: B018


def test_a_copy_is_an_optimizer_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = lorakit.paged(torch.optim.AdamW(model.parameters(), lr=1e-2), budget=1 << 20)

    def step(one: Any, number: int) -> None:
        for group in one.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, float(number))
        one.step()

    step(optimizer, 1)
    twin = copy.deepcopy(optimizer)
    assert isinstance(twin, Paged)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(twin, 2)
    assert all(map(torch.equal, model.parameters(), before))
    step(optimizer, 2)
    assert all(map(torch.equal, model.parameters(), twin.param_groups[0]["params"]))


SHARDED = """
import tempfile, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
import lorakit
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for optimizer in ("adamw paged", "adamw8bit", "adamw"):
        model = lorakit.apply(f"adapt 0 rank 64\\noptimizer {optimizer}", nn.Sequential(nn.Linear(64, 64)))
        fully_shard(model, mesh=mesh)
        try:
            made = lorakit.optimizer(model)
        except lorakit.ModelError as error:
            print(error)
        else:
            step = lorakit.Step(model, made, nn.functional.mse_loss)
            print(type(step.optimizer).__name__, bool(step((torch.ones(2, 64), torch.ones(2, 64))) > 0))
    dist.destroy_process_group()
"""


def test_what_cannot_step_shards_is_refused_before_any_step(nursery: Nursery) -> None:
    child = nursery.start(SHARDED)
    assert child.wait() == 0, child.err
    paged, eight, plain = child.out.splitlines()
    assert paged == "paged: FSDP shards what trains, and no page holds the state of a shard; leave out `paged`"
    assert eight.startswith("`adamw8bit` cannot step what is sharded over processes: ") and eight.endswith("as adamw")
    assert plain == "AdamW True"


def test_paging_under_fsdp_is_refused_where_the_launcher_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = lorakit.apply("adapt q_proj rank 4 paged", make_llama())
    with pytest.raises(lorakit.ModelError, match="FSDP shards what trains, and no page holds.*leave out `paged`"):
        lorakit.optimizer(model)
    assert lorakit.optimizer(lorakit.apply("adapt q_proj rank 4", make_llama()))


def test_parameters_that_take_the_place_of_others_are_no_silent_end_of_training() -> None:
    model = nn.Linear(4, 4)
    optimizer = lorakit.paged(torch.optim.AdamW(model.parameters()))
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(4))]
    with pytest.raises(lorakit.ModelError, match="came into this optimizer's groups otherwise"):
        optimizer.step()


def test_several_processes_are_known_from_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit.trainers.planned import shortage_words

    spec, llama = "adapt q_proj rank 4", make_llama()
    assert "done again" in shortage_words(llama, lorakit.plan(spec, llama), is_text=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "nothing is tried again, for several processes" in shortage_words(
        llama, lorakit.plan(spec, llama), is_text=True
    )
    model = lorakit.apply(spec, llama)
    optimizer = lorakit.optimizer(model)
    assert lorakit.Step(model, optimizer).optimizer is optimizer
