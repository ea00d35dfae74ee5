"""State space models, whose mixers multiply with the weights of some layers instead of calling them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from helpers import randomize

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA = {"state_size": 8, "time_step_rank": 8}
JAMBA = {
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 1, "mamba_d_state": 8,
    "mamba_dt_rank": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
}  # fmt: skip
# what a fused kernel reads the weight of, for a family and the sizes of a model of it
READ: dict[str, tuple[dict[str, Any], set[str]]] = {
    "Mamba": (MAMBA, {"dt_proj", "x_proj", "out_proj"}),
    "FalconMamba": (MAMBA, {"dt_proj", "x_proj", "out_proj"}),
    "Jamba": (JAMBA, {"dt_proj"}),
    "Mamba2": ({"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1}, {"out_proj"}),
}


def model_of(family: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **READ[family][0], pad_token_id=0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 96, (2, 10), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", READ)
def test_dropout_is_refused_where_it_would_do_nothing(family: str) -> None:
    model = model_of(family)
    plan = lorakit.plan("adapt @linear rank 4", model)
    mixers = [entry for entry in plan.entries if ".mixer." in entry.path or ".mamba." in entry.path]
    assert {entry.path.rpartition(".")[2] for entry in mixers if entry.shape and not entry.shape.called} == READ[
        family
    ][1]
    assert all(entry.shape and entry.shape.called for entry in plan.entries if entry not in mixers)
    for name in READ[family][1]:
        with pytest.raises(lorakit.PlanError, match=rf"L107.*{name}.*dropout cannot act"):
            lorakit.plan(f"adapt {name} rank 4 dropout 0.1", model)
    lorakit.plan(f"adapt @linear rank 4 dropout 0.1 except {', '.join(READ[family][1])}", model)


@pytest.mark.parametrize("family", ["Mamba", "FalconMamba", "Jamba"])
@pytest.mark.parametrize("quant", ["", "quant nf4 double dtype fp32"])
def test_an_adapter_on_a_weight_that_is_multiplied_with_acts_and_learns(family: str, quant: str, ids: Tensor) -> None:
    # what no rule decides is stored as the rule has it
    plain = lorakit.merge(lorakit.apply("quantize @linear nf4 double", model_of(family))) if quant else model_of(family)
    model = lorakit.apply(f"adapt dt_proj rank 4 alpha 8 {quant}", model_of(family))
    randomize(model)
    by_hand = copy.deepcopy(plain)
    with torch.no_grad():
        for name, lora_A in model.named_parameters():
            if name.endswith("lora_A"):
                path = name.removesuffix(".lora_A")
                # a step size is small, and shows little of what is added to it
                lora_B = model.get_parameter(f"{path}.lora_B").mul_(50)
                by_hand.get_parameter(f"{path}.weight").add_(2 * lora_B @ lora_A)
    said = model(ids).logits
    torch.testing.assert_close(said, by_hand(ids).logits, rtol=1e-5, atol=1e-5)
    assert float((said - plain(ids).logits).abs().max()) > 1e-4
    model.train()(ids, labels=ids).loss.backward()
    learned = [value for value in model.parameters() if value.requires_grad]
    assert learned and all(value.grad is not None and bool(value.grad.any()) for value in learned)


class Handing(nn.Module):
    """A parent that multiplies with the weight of one layer, asks about that of another, and calls a third."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplied, self.handed, self.asked, self.called = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.multiplied.weight.t() + nn.functional.linear(x, weight=self.handed.weight.to(x.dtype))
        if isinstance(self.asked.weight, Tensor) and self.asked.weight.dtype == x.dtype:
            x = self.asked(x)
        return self.called(x)


def test_any_module_shows_it_by_its_code() -> None:
    plan = lorakit.plan("adapt @linear rank 2", Handing())
    assert [entry.path for entry in plan.entries if entry.shape and not entry.shape.called] == ["multiplied", "handed"]
