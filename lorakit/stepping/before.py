"""What forward and backward change, as it was before them: gradients so far, buffers, generators."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Generators:
    """Where the generators of random numbers stand: torch's on the CPU and on every accelerator, and Python's own."""

    cpu: Tensor
    accelerators: tuple[Tensor, ...]
    python: Any

    @classmethod
    def now(cls) -> Generators:
        on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), tuple(on_devices), random.getstate())

    def restore(self) -> None:
        """Let them go on from here."""
        torch.set_rng_state(self.cpu)
        if self.accelerators:
            torch.cuda.set_rng_state_all(self.accelerators)
        random.setstate(self.python)

    def have_moved(self) -> bool:
        """Return whether torch's have drawn anything since."""
        now = Generators.now()
        pairs = zip((self.cpu, *self.accelerators), (now.cpu, *now.accelerators), strict=False)
        return not all(torch.equal(one, other) for one, other in pairs)


@dataclass(frozen=True, slots=True)
class Before:
    """A model's gradients and buffers, and the generators, at one moment.

    `gradients` are (parameter, gradient, copy), `buffers` (module, name, buffer, copy); a copy is as large as what it
    is of, which for adapters is little.
    """

    gradients: tuple[tuple[nn.Parameter, Tensor | None, Tensor | None], ...]
    buffers: tuple[tuple[nn.Module, str, Tensor, Tensor], ...]
    generators: Generators

    @classmethod
    def of(cls, model: nn.Module) -> Before:
        trained: dict[nn.Parameter, None] = {}
        buffers = []
        # a step does this every time: the dicts themselves take a fraction of what the methods do
        for module in model.modules():
            trained.update({one: None for one in module._parameters.values() if one is not None and one.requires_grad})
            # all of them, since kernels of norms write without a trace
            buffers += [
                (module, name, value, value.detach().clone())
                for name, value in module._buffers.items()
                if value is not None
            ]
        return cls(
            tuple((one, one.grad, None if one.grad is None else one.grad.detach().clone()) for one in trained),
            tuple(buffers),
            Generators.now(),
        )

    def restore(self) -> None:
        """Bring it all back; what came since is let go."""
        with torch.no_grad():
            for parameter, gradient, copy in self.gradients:
                if gradient is not None and copy is not None:
                    gradient.copy_(copy)
                parameter.grad = gradient
            for module, name, buffer, copy in self.buffers:
                buffer.copy_(copy)
                module._buffers[name] = buffer
        self.generators.restore()

    def buffers_changed(self) -> bool:
        """Return whether a buffer holds other values than then, bit for bit."""
        return any(
            module._buffers.get(name) is not buffer or not _same_bits(buffer, copy)
            for module, name, buffer, copy in self.buffers
        )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(value.detach().reshape(-1).view(torch.uint8) for value in (one, other)))
