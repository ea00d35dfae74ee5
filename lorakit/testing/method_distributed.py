"""Checks of a method on several devices: copies of a model side by side, and a model in shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from lorakit.application.state import adapter_of
from lorakit.testing.cases import adapted, distinct_tensors, moved
from lorakit.testing.checks import expect
from lorakit.testing.layers import TARGETS, TOKENS, small_llama
from lorakit.testing.subjects import Subject, relative_error


def data_parallel(subject: Subject) -> None:
    """Under DistributedDataParallel gradients are the same, and no large buffer is sent before every forward."""
    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(distinct_tensors(model))
    for path, adapter in adapter_of(model).modules.items():
        inside = {id(value) for value in adapter.get_submodule("base_layer").buffers()}
        sent = sum(value.numel() for value in adapter.buffers() if id(value) not in inside)
        entry = next(one for one in adapter_of(model).plan.entries if one.path == path)
        assert entry.shape is not None
        expect(
            sent <= entry.shape.in_features + entry.shape.out_features,
            f"the adapter of `{path}` holds {sent} numbers in buffers, which DistributedDataParallel sends before each "
            "forward: declare what is large as a parameter that does not train",
        )
    wanted = _gradients(model)
    with _alone():
        found = _parallel_gradients(model)
    _expect_same(found, wanted, "DistributedDataParallel")


def _parallel_gradients(model: nn.Module) -> dict[str, Tensor]:
    # gone before its group is: the last to let go of a group waits for its threads, and may hold what they wait for
    parallel = nn.parallel.DistributedDataParallel(model)
    # a parameter that is not used is noticed in the second step
    return [_gradients(model, parallel) for _ in range(2)][1]


def sharded(subject: Subject) -> None:
    """Under `fully_shard` gradients are the same: every parameter has a dimension, and one dtype."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = adapted(subject, small_llama(), TARGETS, subject.plugins())
    moved(distinct_tensors(model))
    wanted = _gradients(model)
    with _alone():
        mesh = init_device_mesh("cpu", (1,))
        # what layers share belongs to one group: the whole model is sharded as one then
        for layer in [] if adapter_of(model).plan.shared else model.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        found = {name: value.full_tensor() for name, value in _gradients(model).items()}  # type: ignore[attr-defined]
    _expect_same(found, wanted, "fully_shard")


def _gradients(model: nn.Module, called: nn.Module | None = None) -> dict[str, Tensor]:
    model.eval().zero_grad()
    (called or model)(TOKENS, labels=TOKENS).loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def _expect_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    expect(found.keys() == wanted.keys(), f"under {what} other parameters got gradients")
    for name, gradient in wanted.items():
        error = relative_error(found[name], gradient)
        expect(error < 1e-3, f"under {what} the gradient of `{name}` is off by {error:.2g}")


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of one process, unless there is a group already."""
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
