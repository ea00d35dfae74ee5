"""Checks of a quantizer inside the layer that holds what it stores."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.plugins import default_plugins
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import DTYPES, Subject, on_devices, random_matrix, relative_error, same_bits
from lorakit.values import LowRank

OUT_FEATURES, IN_FEATURES = 48, 64
BATCHES = ((64,), (2, 64), (2, 3, 64), (0, 64))
# a quantizer may round its inputs too, to one part in 127 as int8 does; bfloat16 keeps one in 256
TOLERANCE = 2e-2


# each takes for granted what those before it ask
LAYER_STAGES = (
    ("files", "meta", "forward-stores-nothing"),
    ("state-dict", "module-copies", "no-outputs", "forward"),
    ("input-gradient", "autocast"),
    ("adapters",),
)


def layer_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of a quantizer in a QuantizedLinear."""
    everywhere = on_devices({"": ()})
    forwards = {
        f"{'x'.join(map(str, batch))}-{name}-{'bias' if bias else 'no-bias'}": (batch, dtype, bias)
        for batch in BATCHES
        for name, dtype in DTYPES.items()
        for bias in (True, False)
    }
    yield from variants_of(forward, subject, on_devices(forwards))
    yield from variants_of(no_outputs, subject, everywhere)
    yield from variants_of(input_gradient, subject, on_devices({name: (dtype,) for name, dtype in DTYPES.items()}))
    yield from variants_of(autocast, subject, everywhere)
    yield from variants_of(adapters, subject, on_devices({name: (dtype,) for name, dtype in DTYPES.items()}))
    yield from variants_of(forward_stores_nothing, subject, everywhere)
    yield from variants_of(state_dict, subject, everywhere)
    yield from variants_of(files, subject)
    yield from variants_of(module_copies, subject, everywhere)
    yield from variants_of(meta, subject)


def forward(subject: Subject, batch: tuple[int, ...], dtype: torch.dtype, bias: bool, device: str) -> None:
    """`linear` multiplies inputs of any batch shape with the transposed weight, and adds the bias."""
    layer = _layer(subject, dtype, device, bias=bias)
    x = _inputs(batch, dtype, device)
    y = layer(x)
    wanted = (*batch[:-1], OUT_FEATURES)
    expect(tuple(y.shape) == wanted, f"inputs of {batch} gave outputs of {tuple(y.shape)}; expected {wanted}")
    expect(y.dtype == dtype, f"inputs of {dtype} gave outputs of {y.dtype}")
    exact = x.double() @ layer.weight.double().T + (layer.bias.double() if layer.bias is not None else 0)
    if y.numel():
        error = relative_error(y, exact)
        expect(error < TOLERANCE, f"`linear` is off by {error:.3f} from x @ dequantize(weight).T + bias")


def no_outputs(subject: Subject, device: str) -> None:
    """A layer without outputs, a weight of 0 × 64, gives an empty answer."""
    quantizer = subject.make()
    weight = torch.zeros(0, IN_FEATURES, device=device)
    layer = QuantizedLinear(quantizer.quantize(weight), quantizer, None, _kernels(subject))
    y = layer(_inputs((2, IN_FEATURES), torch.float32, device))
    expect(tuple(y.shape) == (2, 0), f"the outputs are {tuple(y.shape)}; expected (2, 0)")


def input_gradient(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """The gradient of the inputs is the outputs' gradient times the dequantized weight; the weight gets none."""
    layer = _layer(subject, dtype, device)
    x = _inputs((4, 3, IN_FEATURES), dtype, device).requires_grad_()
    y = layer(x)
    expect(y.requires_grad, "the outputs need no gradient although the inputs do; adapters below would not learn")
    gradient = _inputs(tuple(y.shape), dtype, device, seed=4)
    y.backward(gradient)
    expect(x.grad is not None, "the inputs got no gradient")
    assert x.grad is not None
    expect(x.grad.dtype == dtype, f"inputs of {dtype} got a gradient of {x.grad.dtype}")
    error = relative_error(x.grad, gradient.double() @ layer.weight.double())
    expect(error < TOLERANCE, f"the inputs' gradient is off by {error:.3f} from gradient @ dequantize(weight)")


def autocast(subject: Subject, device: str) -> None:
    """Under autocast to bfloat16 the outputs are bfloat16, as a plain Linear's, and the inputs' gradient float32."""
    layer = _layer(subject, torch.float32, device)
    x = _inputs((3, IN_FEATURES), torch.float32, device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y = layer(x)
    expect(y.dtype == torch.bfloat16, f"under autocast to bfloat16 the outputs are {y.dtype}")
    y.float().sum().backward()
    expect(x.grad is not None and x.grad.dtype == torch.float32, "under autocast the float32 inputs got no gradient")


def adapters(subject: Subject, dtype: torch.dtype, device: str) -> None:
    """What adapters add is scaling · B · A · x, of float32 matrices too, and their gradients are those of this sum."""
    layer, x = _layer(subject, dtype, device), _inputs((4, 3, IN_FEATURES), dtype, device)
    lora_A = random_matrix(4, IN_FEATURES, torch.float32, device, seed=5).requires_grad_()
    lora_B = random_matrix(OUT_FEATURES, 4, torch.float32, device, seed=6).requires_grad_()
    y = layer(x, (LowRank(lora_A, lora_B, 2.0, 0.0),))
    exact = layer(x).double() + 2 * x.double() @ lora_A.double().T @ lora_B.double().T
    error = relative_error(y, exact)
    expect(y.dtype == dtype, f"with adapters the outputs are {y.dtype} for inputs of {dtype}")
    expect(error < TOLERANCE, f"with adapters the outputs are off by {error:.3f}")
    gradient = _inputs(tuple(y.shape), dtype, device, seed=4)
    y.backward(gradient)
    wanted = torch.autograd.grad(exact, (lora_A, lora_B), gradient.double())
    for name, matrix, right in zip("AB", (lora_A, lora_B), wanted, strict=True):
        expect(matrix.grad is not None, f"{name} of the adapter got no gradient")
        assert matrix.grad is not None
        error = relative_error(matrix.grad, right)
        expect(error < TOLERANCE, f"the gradient of {name} is off by {error:.3f}")


def forward_stores_nothing(subject: Subject, device: str) -> None:
    """Neither training nor evaluation changes what is stored, and the same inputs give the same bits."""
    layer = _layer(subject, torch.float32, device)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = _inputs((2, IN_FEATURES), torch.float32, device)
    layer.train()(x.clone().requires_grad_()).sum().backward()
    with torch.no_grad():
        answers = [layer.eval()(x) for _ in range(3)]
    after = layer.state_dict()
    changed = [name for name in before if name not in after or not same_bits(after[name], before[name])]
    expect(not changed and len(after) == len(before), f"a forward changed what is stored: {', '.join(changed)}")
    expect(same_bits(answers[0], answers[2]), "the same inputs gave other bits the third time")


def state_dict(subject: Subject, device: str) -> None:
    """A state dict goes back strictly into a fresh layer of another weight, which then is the same function."""
    layer, other = _layer(subject, torch.float32, device), _layer(subject, torch.float32, device, seed=1)
    x = _inputs((2, IN_FEATURES), torch.float32, device)
    wanted = layer(x)
    expect(not same_bits(other(x), wanted), "two layers of different weights give the same outputs")
    other.load_state_dict(layer.state_dict(), strict=True)
    expect(same_bits(other.weight, layer.weight), "the state dict lacks something: the weight came back different")
    expect(same_bits(other(x), wanted), "the state dict lacks something: the outputs came back different")


def files(subject: Subject) -> None:
    """The stored tensors go through a safetensors file unchanged."""
    from safetensors.torch import load, save

    layer = _layer(subject, torch.bfloat16, "cpu")
    stored = {name: tensor.contiguous() for name, tensor in layer.state_dict().items()}
    read = load(save(stored))
    lost = [name for name, tensor in stored.items() if not same_bits(read[name], tensor)]
    expect(not lost, f"{', '.join(lost)} came back different from a safetensors file")


def module_copies(subject: Subject, device: str) -> None:
    """The layer survives copy.deepcopy and pickle, and its copy shares no memory with it."""
    layer = _layer(subject, torch.float32, device)
    x = _inputs((2, IN_FEATURES), torch.float32, device)
    wanted = layer(x)
    copied = copy.deepcopy(layer)
    for name, tensor in copied.state_dict().items():
        own = layer.state_dict()[name]
        expect(not tensor.numel() or tensor.data_ptr() != own.data_ptr(), f"the copy shares `{name}` with the layer")
    for what, one in (("copy.deepcopy", copied), ("pickle", pickle.loads(pickle.dumps(layer)))):
        expect(same_bits(one(x), wanted), f"after {what} the layer gives other outputs")


def meta(subject: Subject) -> None:
    """The layer moves to the meta device, keeps its names, shapes and dtypes there, and copies there."""
    layer = _layer(subject, torch.bfloat16, "cpu")
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()}
    moved = copy.deepcopy(layer.to("meta"))
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in moved.state_dict().items()}
    expect(found == wanted, f"on the meta device the layer holds {found}; expected {wanted}")
    expect(all(tensor.is_meta for tensor in moved.state_dict().values()), "some tensors did not move to meta")


def _layer(subject: Subject, dtype: torch.dtype, device: str, *, bias: bool = True, seed: int = 0) -> QuantizedLinear:
    quantizer = subject.make()
    weight = random_matrix(OUT_FEATURES, IN_FEATURES, dtype, device, seed)
    offset = random_matrix(1, OUT_FEATURES, dtype, device, seed=8)[0] if bias else None
    layer = QuantizedLinear(quantizer.quantize(weight), quantizer, offset, _kernels(subject))
    assert isinstance(layer, nn.Module)
    return layer


def _kernels(subject: Subject) -> tuple[Any, ...]:
    return default_plugins().kernels if subject.kernels is None else subject.kernels


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
