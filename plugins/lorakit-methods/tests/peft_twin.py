"""Models with one layer to adapt, here and for PEFT: the oracle holds the same weights, packed bytes included."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

import lorakit
from lorakit.layers.quantized_linear import QuantizedLinear

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(64, 48),
    "linear_transposed": lambda: _conv1d(),
    "conv2d": lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "embedding": lambda: nn.Embedding(20, 16),
}
STEPS, LR = 10, 1e-2


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(48, 64)
    nn.init.normal_(layer.bias)
    return layer


def model_of(kind: str) -> nn.Module:
    """Return a model whose module `layer` is of this kind."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(layer=LAYERS[kind](), after=nn.Tanh())).eval()


def inputs_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        return torch.randint(0, 20, (4, 5), generator=generator)
    return torch.randn((4, 3, 8, 8) if kind == "conv2d" else (4, 3, 64), generator=generator)


def base_for_peft(kind: str, ours: nn.Module) -> nn.Module:
    """Return the model that PEFT adapts: the layer that lorakit adapts, as it is stored there.

    What bitsandbytes packs is packed by bitsandbytes itself; any other quantized weight comes dequantized.
    """
    model, core = model_of(kind), core_of(ours.get_submodule("layer"))
    if isinstance(core, QuantizedLinear) and core.quantizer.name == "nf4":
        import bitsandbytes as bnb

        plain: Any = model.get_submodule("layer")
        packed = bnb.nn.Linear4bit(64, 48, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4")
        packed.support_avx512bf16_for_cpu = False
        packed.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4").to("cpu")
        packed.bias = plain.bias
        assert torch.equal(packed.weight.data.flatten(), core.quantized.tensors["packed"].flatten().view(torch.uint8))
        model.layer = packed
        model.is_loaded_in_4bit = True  # type: ignore[assignment]
    elif isinstance(core, QuantizedLinear):
        model.layer = core.plain(core.weight)
    return model.requires_grad_(False)


def core_of(layer: nn.Module) -> nn.Module:
    while isinstance(inner := layer._modules.get("base_layer"), nn.Module):
        layer = inner
    return layer


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter folder of the model holds, by PEFT's names."""
    with tempfile.TemporaryDirectory() as folder:
        return load_file(lorakit.save(model, Path(folder, "adapter")) / "adapter_model.safetensors")


def in_peft(base: nn.Module, config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(base, config)


def copied(ours: nn.Module, theirs: Any) -> None:
    """Give PEFT's adapter the values of ours; every tensor of the file has its place."""
    result = set_peft_model_state_dict(theirs, tensors_of(ours))
    assert not result.unexpected_keys


def train(model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Train some steps of AdamW on random targets."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    with torch.no_grad():
        targets = torch.randn(model(inputs).shape, generator=torch.Generator().manual_seed(2))
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    model.eval()


def assert_same(ours: nn.Module, theirs: Any, inputs: Tensor) -> None:
    """Both compute the same outputs and hold the same tensors."""
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    found, wanted = tensors_of(ours), get_peft_model_state_dict(theirs)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5)


def check_against_peft(text: str, kind: str, config: Any, *, same_start: str) -> None:
    """Compare a rule on the module `layer` with PEFT's config: after the start, and after some steps of training.

    Tensors whose names fit `same_start` PEFT itself starts with the same values; it gets ours of all others.
    """
    inputs = inputs_of(kind)
    ours = lorakit.apply(f"adapt layer {text} dtype fp32", model_of(kind))
    theirs = in_peft(base_for_peft(kind, ours), copy.deepcopy(config))
    own = get_peft_model_state_dict(theirs)
    for name, tensor in tensors_of(ours).items():
        if re.search(same_start, name):
            torch.testing.assert_close(tensor, own[name], rtol=1e-5, atol=1e-5)
    copied(ours, theirs)
    assert_same(ours, theirs, inputs)
    start = ours(inputs).detach()
    train(ours, inputs)
    train(theirs, inputs)
    assert_same(ours, theirs, inputs)
    # training did something
    assert float((ours(inputs) - start).abs().max()) > 1e-3


def train_tokens(model: nn.Module, tokens: Tensor) -> None:
    """Train a language model a few steps on its own optimizer."""
    optimizer = lorakit.optimizer(model, lr=2e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.eval()
