"""The processes that train together, as torchrun and accelerate start them: one speaks and writes, any may fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lorakit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

Value = TypeVar("Value")
# what a process that fails leaves where torchrun has its processes meet
FAILED = "lorakit/failed"
MEETING = timedelta(seconds=10)
# what gloo and torch's store say of a process that is gone
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "recvValue failed")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together: `rank` of `count`, and `local_rank` of `local_count` on its host.

    Alone, every method does what needs no others. What follows `joined` is collective: every process calls it, in the
    same order.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def started(cls) -> Processes:
        """Return what a launcher said in the environment.

        Raises: DataError for what no launcher says, and where it says that engines are to spread the model.
        """
        for engine in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
                raise DataError(
                    f"accelerate is told to train by {engine}, and `lorakit train` has each process hold the model and "
                    "take its share of the rows: accelerate launch --multi_gpu, or a script of your own with "
                    "lorakit.shard"
                )
        said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        if int(said["WORLD_SIZE"] or 1) <= 1:
            return ALONE
        if lacking := [name for name in (*said, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            raise DataError(
                f"WORLD_SIZE={said['WORLD_SIZE']} in the environment says that several processes train, and "
                f"{', '.join(lacking)} is not set: start them by torchrun or accelerate launch, or unset it"
            )
        return cls(*(int(value or 0) for value in said.values()))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Have the processes know each other inside the block, each with a GPU of its own where there are any.

        Raises: DataError if there are fewer GPUs than processes here.
        """
        if self.count == 1:
            yield
            return
        import torch
        from torch import distributed

        if torch.cuda.is_available():
            if (found := torch.cuda.device_count()) < self.local_count:
                raise DataError(
                    f"{self.local_count} processes on this machine, and {found} GPU{'s' * (found != 1)}: start one a "
                    f"GPU, as by torchrun --nproc-per-node {found}"
                )
            torch.cuda.set_device(self.local_rank)
        if distributed.is_initialized():
            yield
            return
        # gloo beside NCCL, for what lies on the CPU
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # after a failure the others may be gone, and to leave the group is to meet them
        yield
        distributed.destroy_process_group()

    def meet(self) -> None:
        """Wait for all of them."""
        self.gathered(None)

    def told(self, value: Value) -> Value:
        """Return the first process's value."""
        if self.count == 1:
            return value
        from torch import distributed

        holder: list[Any] = [value]
        distributed.broadcast_object_list(holder)
        told: Value = holder[0]
        return told

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all processes, by their ranks."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def sums(self, *numbers: float) -> list[float]:
        """Return each number summed over all processes."""
        if self.count == 1:
            return list(numbers)
        return self._reduced(numbers, "SUM")

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return number if self.count == 1 else int(self._reduced([number], "MAX")[0])

    def _reduced(self, numbers: Iterable[float], how: str) -> list[float]:
        import torch
        from torch import distributed

        values = torch.tensor(list(numbers), dtype=torch.float64)
        distributed.all_reduce(values, getattr(distributed.ReduceOp, how))
        found: list[float] = values.tolist()
        return found

    def add_gradients(self, parameters: Iterable[nn.Parameter], share: float) -> None:
        """Give every process the sum of all gradients, each times the share of its process; none counts as nought."""
        if self.count == 1:
            return
        import torch
        from torch import distributed

        by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for one in parameters:
            by_kind.setdefault((one.dtype, one.device), []).append(one)
        for alike in by_kind.values():
            has_any = torch.tensor([float(one.grad is not None) for one in alike])
            distributed.all_reduce(has_any)
            reached = [one for one, any_has in zip(alike, has_any.tolist(), strict=True) if any_has]
            if not reached:
                continue
            parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in reached]
            flat = torch.cat([part.flatten() for part in parts]) * share
            distributed.all_reduce(flat)
            for one, part in zip(reached, flat.split([one.numel() for one in reached]), strict=True):
                one.grad = part.view_as(one)


ALONE = Processes()


def speaks() -> bool:
    """Return whether this process, which fails, is the one to say why: the first that does, of those torchrun started.

    Any other keeps silent: it failed alike, or for want of the one that did.
    """
    return _failures(1) <= 1


def another_failed() -> bool:
    """Return whether a process that trains beside this one has failed."""
    return _failures(0) > 0


def is_gone(error: BaseException) -> bool:
    """Return whether an error says that another process is not there any more."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in GONE)


def _failures(more: int) -> int:
    """Return how many processes have failed, after so many more; 0 where nobody can know of each other."""
    if int(os.environ.get("WORLD_SIZE") or 1) <= 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return 0
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=MEETING,
            wait_for_workers=False,
        )  # fmt: skip
        return int(store.add(f"{FAILED}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", more))
    except RuntimeError:
        # the launcher itself has ended
        return 0
