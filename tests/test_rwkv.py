"""RWKV 4, which divides its own weights in evaluation mode."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import lorakit
from helpers import randomize

TOLERANCE = 1e-5


def rwkv(rescale_every: int = 1) -> Any:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "context_length": 64}
    model = RwkvForCausalLM(RwkvConfig(**shape, rescale_every=rescale_every))
    # a halved input would show against the epsilon
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-10
    return model.train()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quant", ["", "quant nf4 double dtype fp32"])
@pytest.mark.parametrize("passes", ["none", "evaluation"])
def test_training_and_evaluation_agree(ids: Tensor, quant: str, passes: str) -> None:
    """Whether the model had divided its weights before it was adapted or not; and its weights stay what they are."""
    model = rwkv()
    weights = copy.deepcopy(model.state_dict())
    if passes == "evaluation":
        divided = model.eval()(ids) and model.state_dict()
        assert [name for name, value in weights.items() if not torch.equal(divided[name], value)]
    lorakit.apply(f"adapt @linear rank 4 {quant}", model)
    randomize(model)
    frozen = copy.deepcopy(model.state_dict())
    training = model.train()(ids).logits
    evaluation = model.eval()(ids).logits
    assert float((training - evaluation).abs().max()) <= 1e-6
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items())
    if not quant:
        inner = {name.replace(".base_layer", ""): value for name, value in frozen.items() if "lora_" not in name}
        assert all(torch.equal(value, weights[name]) for name, value in inner.items())
    merged: Any = lorakit.merge(model)
    assert merged.config.rescale_every == 1
    assert float((merged(ids).logits - evaluation).abs().max()) <= TOLERANCE
    assert float((merged.train()(ids).logits - evaluation).abs().max()) <= TOLERANCE


def test_the_plan_says_so() -> None:
    assert "rescale_every" in " ".join(lorakit.plan("adapt @linear rank 4", rwkv()).notes)


def test_both_ways_with_peft_without_rescaling(ids: Tensor, tmp_path: Path) -> None:
    ours = lorakit.apply("adapt @linear rank 4 alpha 8", rwkv())
    randomize(ours)
    ours.eval()
    lorakit.save(ours, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(rwkv(rescale_every=0), str(tmp_path / "adapter")).eval()
    assert float((theirs(ids).logits - ours(ids).logits).abs().max()) <= 1e-5
    again = lorakit.load(tmp_path / "adapter", rwkv().eval())
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_quantized_weights_that_were_divided_are_refused(ids: Tensor) -> None:
    model = rwkv()
    model.rwkv.layers_are_rescaled = True
    for block in model.rwkv.blocks:
        block.attention.output.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(lorakit.ModelError, match="load it again"):
        lorakit.apply("adapt @linear rank 4", model)
