"""Quantized weights in two processes: nothing of them is sent under DDP, and `fully_shard` shards them bit for bit."""

from __future__ import annotations

import copy
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import spawn
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

import lorakit
from helpers import make_llama
from lorakit.layers.quantized_linear import QuantizedLinear

WORLD = 2
QUANTIZERS = (
    "nf4", "nf4 double", "fp4 double", "int8", "int8(threshold=0)", "hqq", "gptq", "ao_int8", "ao_int4", "ao_float8",
    "ao_nvfp4",
)  # fmt: skip


class Two(nn.Module):
    """Two layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def made(quant: str) -> nn.Module:
    """Return the same adapted model every time, its adapters far from zero."""
    torch.manual_seed(0)
    data = [torch.randn(8, 64)]
    model = lorakit.apply(f"adapt first,second rank 4 alpha 8 quant {quant}", Two(), calibration=data)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def inputs() -> torch.Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for child in model.children():
        fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def layers_of(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def check_data_parallel(quant: str, folder: Path) -> None:
    model = made(quant)
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    wrapped = nn.parallel.DistributedDataParallel(model)
    sent: list[int] = []

    def hook(group, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations as objects
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    wrapped.register_comm_hook(None, hook)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        wrapped(inputs()).sum().backward()
    assert sum(sent) == trained, f"{sum(sent)} bytes were sent for {trained} bytes of gradients"
    broadcast = [event.name for event in profile.events() if "broadcast" in event.name.lower() and "c10d" in event.name]
    assert not broadcast, f"a step broadcasts: {broadcast}"
    assert not list(model.buffers()), "buffers are broadcast before every forward"


def check_sharded(quant: str, folder: Path) -> None:
    plain, model = made(quant), made(quant)
    stored = {
        f"{name}.{own}": value.clone()
        for name, layer in layers_of(plain).items()
        for own, value in layer.tensors.items()
    }
    wanted = plain(inputs())
    wanted.square().sum().backward()
    lorakit.save(plain, folder / f"plain{dist.get_rank()}")
    with lorakit.adapters(plain).disabled():
        wanted_base = plain(inputs())
    with lorakit.adapters(plain).merged():
        wanted_merged = plain(inputs())

    model = sharded(model)
    for name, layer in layers_of(model).items():
        for own in layer.tensors:
            part, full = getattr(layer, f"weight_{own}").to_local(), stored[f"{name}.{own}"]
            assert part.dtype == full.dtype, f"{own} became {part.dtype}"
            assert part.numel() < full.numel() or full.numel() == 1, f"{own} is not sharded"
    got = model(inputs())
    torch.testing.assert_close(got, wanted)
    got.square().sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert isinstance(parameter.grad, DTensor)
            torch.testing.assert_close(parameter.grad.full_tensor(), theirs[name].grad)
    for module in model.modules():
        if hasattr(module, "unshard"):
            module.unshard()  # type: ignore[operator]
    for name, layer in layers_of(model).items():
        for own, value in layer.tensors.items():
            assert same(value, stored[f"{name}.{own}"]), f"{name} gathers other bits of {own}"
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]
    lorakit.save(model, folder / "sharded")
    assert_same_files(folder / "sharded", folder / f"plain{dist.get_rank()}")
    with lorakit.adapters(model).disabled():
        torch.testing.assert_close(model(inputs()), wanted_base)
    with lorakit.adapters(model).merged():
        torch.testing.assert_close(model(inputs()), wanted_merged)
    torch.testing.assert_close(model(inputs()), wanted)


def check_base(quant: str, folder: Path) -> None:
    torch.manual_seed(0)
    source = make_llama()
    spec = f"adapt q_proj,down_proj rank 4 quant {quant}"
    data = [torch.ones(1, 4, dtype=torch.long)]
    plain = lorakit.apply(spec, copy.deepcopy(source), calibration=data)
    lorakit.save(plain, folder / f"plain{dist.get_rank()}", with_base=True)
    model: Any = lorakit.apply(spec, source, calibration=data)
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    lorakit.save(model, folder / "sharded", with_base=True)
    # transformers writes in the first process alone
    assert_same_files(folder / "sharded", folder / "plain0")
    assert_same_files(folder / "sharded" / "base", folder / "plain0" / "base")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    mine, theirs = (value.contiguous().flatten().view(torch.uint8) for value in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(mine, theirs)


def assert_same_files(one: Path, other: Path) -> None:
    names, others = ({path.name for path in folder.iterdir()} for folder in (one, other))
    assert names == others, f"{one} holds {names} and {other} {others}"
    for path in one.glob("*.safetensors"):
        mine, theirs = load_file(path), load_file(other / path.name)
        assert mine.keys() == theirs.keys(), f"{path.name} holds {sorted(mine.keys() ^ theirs.keys())}"
        different = [name for name, value in mine.items() if not same(value, theirs[name])]
        assert not different, f"{path.name} holds other bits of {different}"


CHECKS: dict[str, tuple[Callable[[str, Path], None], str]] = {
    **{f"data parallel {quant}": (check_data_parallel, quant) for quant in QUANTIZERS},
    **{f"sharded {quant}": (check_sharded, quant) for quant in QUANTIZERS},
    **{f"base {quant}": (check_base, quant) for quant in ("nf4 double", "int8", "hqq")},
}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    results = {}
    for index, (name, (check, quant)) in enumerate(CHECKS.items()):
        own = Path(folder) / str(index)
        own.mkdir(exist_ok=True)
        dist.barrier()
        try:
            check(quant, own)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        # a process that failed alone would leave the other waiting in the next check
        failed = [""] * WORLD
        dist.all_gather_object(failed, results[name])
        results[name] = "\n".join(filter(None, failed))
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("processes")
    spawn(worker, (str(folder),), WORLD)
    yield json.loads((folder / "results.json").read_text())


def expect_none(failure: str) -> None:
    if failure:
        pytest.fail(failure, pytrace=False)


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_data_parallel_sends_nothing_of_a_frozen_weight(results: dict[str, str], quant: str) -> None:
    expect_none(results[f"data parallel {quant}"])


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_a_sharded_model_computes_saves_switches_and_merges_as_a_whole_one(results: dict[str, str], quant: str) -> None:
    expect_none(results[f"sharded {quant}"])


@pytest.mark.parametrize("quant", ["nf4 double", "int8", "hqq"])
def test_a_sharded_base_is_saved_as_a_whole_one(results: dict[str, str], quant: str) -> None:
    expect_none(results[f"base {quant}"])
