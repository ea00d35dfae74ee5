"""`bias adapter`, PEFT's `lora_only`, on every kind of layer that has a bias; and what its `all` holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import lorakit
from helpers import make_gpt2, randomize


def qwen() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=128, num_hidden_layers=2, **sizes))


class Picture(nn.Module):
    """A convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def picture() -> nn.Module:
    torch.manual_seed(0)
    return Picture()


@dataclass(frozen=True)
class Kind:
    """A model with a kind of layer that has biases, and the layers' name."""

    build: Callable[[], nn.Module]
    name: str

    def base(self) -> nn.Module:
        return self.build().eval()

    def says(self, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.build is picture:
            return model(torch.rand(2, 3, 8, 8, generator=generator)).detach()
        return model(torch.randint(0, 128, (2, 9), generator=generator)).logits.detach()


KINDS = {"linear": Kind(qwen, "q_proj"), "conv1d": Kind(make_gpt2, "c_attn"), "conv2d": Kind(picture, "conv")}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def shift(model: nn.Module) -> None:
    """Change everything that trains, biases too."""
    randomize(model)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05)


@pytest.mark.parametrize("quant", ["", "nf4"])
def test_what_we_saved(kind: Kind, quant: str, tmp_path: Path) -> None:
    if quant and kind.build is picture:
        pytest.skip("quantizers take matrices")
    clauses = f"quant {quant} dtype fp32\nquantize @linear none optional" if quant else ""
    ours = lorakit.apply(f"adapt {kind.name} rank 2 bias adapter {clauses}", kind.base())
    assert any(name.endswith("bias") for name, value in ours.named_parameters() if value.requires_grad)
    shift(ours)
    said = kind.says(ours)
    lorakit.save(ours, tmp_path / "adapter")
    base = lorakit.merge(lorakit.apply(f"quantize {kind.name} {quant}", kind.base())) if quant else kind.base()
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert float((kind.says(theirs) - said).abs().max()) <= 1e-5
    assert torch.equal(kind.says(lorakit.load(tmp_path / "adapter", kind.base())), said)
    assert float((kind.says(lorakit.merge(ours)) - said).abs().max()) <= 1e-5


def peft_saved(kind: Kind, folder: Path, bias: Any, targets: Any) -> Tensor:
    theirs = get_peft_model(kind.base(), LoraConfig(r=2, target_modules=targets, bias=bias)).eval()
    shift(theirs)
    theirs.save_pretrained(str(folder))
    return kind.says(theirs)


def test_what_peft_saved(kind: Kind, tmp_path: Path) -> None:
    said = peft_saved(kind, tmp_path / "adapter", "lora_only", [kind.name])
    assert float((kind.says(lorakit.load(tmp_path / "adapter", kind.base())) - said).abs().max()) <= 1e-5


def test_all_biases_where_all_layers_are_adapted(tmp_path: Path) -> None:
    for number, targets in enumerate((["conv", "head"], ["q_proj", "k_proj", "v_proj"])):
        kind = (KINDS["conv2d"], KINDS["linear"])[number]
        said = peft_saved(kind, tmp_path / str(number), "all", targets)
        assert float((kind.says(lorakit.load(tmp_path / str(number), kind.base())) - said).abs().max()) <= 1e-5


def test_biases_of_layers_without_an_adapter_are_refused(kind: Kind, tmp_path: Path) -> None:
    peft_saved(kind, tmp_path / "adapter", "all", [kind.name])
    with pytest.raises(lorakit.AdapterError, match=r'bias="all" and holds the bias of .*which has no adapter'):
        lorakit.load(tmp_path / "adapter", kind.base())
