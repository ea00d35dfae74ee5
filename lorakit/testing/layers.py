"""One small layer of every kind that adapters know, in a model around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

VOCABULARY = 20


@dataclass(frozen=True)
class Sample:
    """A layer of one kind, by the path that adapts it, and inputs for it."""

    path: str
    layer: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def model(self, seed: int = 0) -> nn.Module:
        """Return a model that holds the layer as `layer`, its weights drawn from this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(OrderedDict(layer=self.layer())).eval()

    @property
    def is_parameter(self) -> bool:
        return "." in self.path


class Experts(nn.Module):
    """Three matrices in one parameter: x (3, rows, 12) times each, transposed in memory or not."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn((3, 12, 10) if transposed else (3, 10, 12)))
        self.is_transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        """Return y (3, rows, 10)."""
        return x @ (self.stack if self.is_transposed else self.stack.transpose(1, 2))


# of `small_llama`: three shapes of layers, so that what they share has to fit them all
TARGETS = "q_proj,v_proj,down_proj"
TOKENS = torch.arange(12).reshape(2, 6) % 7


def small_llama() -> nn.Module:
    """Return a Llama of two layers in evaluation mode, its weights always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(config)
        return model.eval()


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(10, 12)


def _values(*shape: int) -> Callable[[int], Tensor]:
    return lambda seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tokens(seed: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(seed))


SAMPLES: Mapping[str, Sample] = {
    "linear": Sample("layer", lambda: nn.Linear(12, 10), _values(4, 12)),
    "linear-odd": Sample("layer", lambda: nn.Linear(7, 3, bias=False), _values(2, 3, 7)),
    # more inputs, outputs and rows than small layers have, all of them odd
    "linear-large": Sample("layer", lambda: nn.Linear(1031, 517), _values(129, 1031)),
    "linear_transposed": Sample("layer", _conv1d, _values(4, 12)),
    "conv1d": Sample("layer", lambda: nn.Conv1d(4, 6, 3, padding=1), _values(2, 4, 9)),
    "conv2d": Sample("layer", lambda: nn.Conv2d(4, 6, 3, stride=2), _values(2, 4, 9, 9)),
    "conv3d": Sample("layer", lambda: nn.Conv3d(4, 6, 2), _values(2, 4, 4, 4, 4)),
    "embedding": Sample("layer", lambda: nn.Embedding(VOCABULARY, 10), _tokens),
    "stack": Sample("layer.stack", lambda: Experts(transposed=False), _values(3, 4, 12)),
    "stack_transposed": Sample("layer.stack", lambda: Experts(transposed=True), _values(3, 4, 12)),
}
