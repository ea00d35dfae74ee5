"""Models with one layer to adapt, here and for PEFT: the oracle holds the same weights, packed bytes included."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import eva
from peft.utils.incremental_pca import IncrementalPCA
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


def base_for_peft(kind: str, ours: nn.Module, weight: Tensor | None = None) -> nn.Module:
    """Return the model that PEFT adapts: the layer that lorakit adapts, as it is stored there.

    What bitsandbytes packs is packed by bitsandbytes itself, to the same bytes, from the original weight or from the
    one that is given, (out_features, in_features); any other quantized weight comes dequantized, which is what it
    computes with.
    """
    model, layer = model_of(kind), ours.get_submodule("layer")
    if weight is None:
        weight = original(model.get_submodule("layer"))
    model.layer = stored_for_peft(core_of(layer), model.get_submodule("layer"), weight)
    model.is_loaded_in_4bit = any(hasattr(one, "quant_type") for one in model.modules())  # type: ignore[assignment]
    return model.requires_grad_(False)


def original(layer: nn.Module) -> Tensor:
    """Return a layer's weight as quantizers see it: (out_features, in_features) for a linear one."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight if isinstance(layer, nn.Linear) or weight.ndim != 2 else weight.T


def stored_for_peft(core: nn.Module, plain: Any, weight: Tensor) -> Any:
    """Return what stands for a layer of lorakit's in PEFT's model: a bitsandbytes layer, a plain one, or itself."""
    if not isinstance(core, QuantizedLinear):
        return plain
    if core.quantizer.name != "nf4":
        return core.plain(core.weight)
    import bitsandbytes as bnb

    rows, columns = weight.shape
    packed: Any = bnb.nn.Linear4bit(
        columns, rows, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    packed.support_avx512bf16_for_cpu = False
    stored: Any = bnb.nn.Params4bit(weight.contiguous(), requires_grad=False, quant_type="nf4")
    packed.weight = stored.to("cpu")
    packed.bias = plain.bias
    assert torch.equal(packed.weight.data.flatten(), core.quantized.tensors["packed"].flatten().view(torch.uint8))
    return packed


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


def start_eva(theirs: Any, inputs: Tensor, observed: nn.Module | None = None) -> None:
    """Start as PEFT's EVA does, by what goes into its own layers, or into those of another model that it observes.

    PEFT decomposes inputs by a random start: here, as its code also can, by LAPACK.
    """
    how: dict[str, Any] = {
        "forward_fn": lambda model, batch: model(batch),
        "prepare_model_inputs_fn": None,
        "prepare_layer_inputs_fn": None,
        "show_progress_bar": False,
    }
    exact = IncrementalPCA
    with mock.patch.object(eva, "IncrementalPCA", lambda **given: exact(**{**given, "lowrank": False})):
        if observed is None:
            eva.initialize_lora_eva_weights(theirs, [inputs], **how)
        else:
            seen = eva.get_eva_state_dict(observed, [inputs], theirs.peft_config["default"], **how)
            named = {f"base_model.model.{path}": directions for path, directions in seen.items()}
            eva.initialize_lora_eva_weights(theirs, eva_state_dict=named, **how)
    theirs.eval()


def copied(ours: nn.Module, theirs: Any) -> None:
    """Give PEFT's adapter the values of ours; every tensor of the file has its place."""
    result: Any = set_peft_model_state_dict(theirs, tensors_of(ours))
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


def assert_same(ours: nn.Module, theirs: Any, inputs: Tensor, named: Callable[..., Any] = dict) -> None:
    """Both compute the same outputs and hold the same tensors; `named` gives ours the names that they have there."""
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    found, wanted = named(tensors_of(ours)), get_peft_model_state_dict(theirs)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5)


def train_tokens(model: nn.Module, tokens: Tensor) -> None:
    """Train a language model a few steps on its own optimizer."""
    optimizer = lorakit.optimizer(model, lr=2e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.eval()
