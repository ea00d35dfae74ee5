"""Every kind of layer that has an adapter, against its formula and against PEFT, with no transformers in sight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional

import lorakit
from helpers import randomize

CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(6, 10, 5),
    "2d": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "2d wide": lambda: nn.Conv2d(6, 10, (1, 4), padding="same"),
    "2d dilated": lambda: nn.Conv2d(6, 10, 3, dilation=2, padding=2),
    "2d reflecting": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
    "3d": lambda: nn.Conv3d(6, 10, 3, bias=False),
}
# PEFT leaves the dilation and the padding mode out of its thin convolution, and so disagrees with its own merge
ASTRAY_IN_PEFT = {"2d dilated", "2d reflecting"}


class Holder(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def holder(name: str) -> Holder:
    torch.manual_seed(0)
    return Holder(CONVOLUTIONS[name]())


def pixels(layer: Any) -> torch.Tensor:
    space = [12, 11, 9][: layer.weight.ndim - 2]
    return torch.randn(2, 6, *space, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_one_with_the_changed_weight(name: str) -> None:
    model = holder(name)
    x = pixels(model.layer)
    before = model(x)
    lorakit.apply("adapt layer rank 3 alpha 6", model)
    assert torch.equal(model(x), before)
    randomize(model)
    changed = holder(name)
    with torch.no_grad():
        flat = 2.0 * model.layer.lora_B.flatten(1) @ model.layer.lora_A.flatten(1)
        changed.layer.weight.add_(flat.view_as(changed.layer.weight))
    torch.testing.assert_close(model(x), changed(x), rtol=1e-4, atol=1e-4)
    assert float((model(x) - before).abs().max()) > 1e-2
    unbatched = model(x[0])
    torch.testing.assert_close(unbatched, model(x)[0], rtol=1e-4, atol=1e-4)
    merged = lorakit.merge(model)
    torch.testing.assert_close(merged(x), changed(x), rtol=1e-4, atol=1e-4)
    assert type(merged.layer) is type(changed.layer)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_both_ways_with_peft(name: str, tmp_path: Path) -> None:
    model = lorakit.apply("adapt layer rank 3 alpha 6", holder(name))
    randomize(model)
    x = pixels(holder(name).layer)
    lorakit.save(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(holder(name), str(tmp_path / "ours")).eval()
    difference = float((theirs(x) - model(x)).detach().abs().max()) if name not in ASTRAY_IN_PEFT else None
    if difference is not None:
        assert difference <= 1e-5
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)
    other = get_peft_model(holder(name), LoraConfig(r=3, target_modules=["layer"], init_lora_weights=False)).eval()
    other.save_pretrained(str(tmp_path / "theirs"))
    mine = lorakit.load(tmp_path / "theirs", holder(name))
    torch.testing.assert_close(mine(x), other.merge_and_unload()(x), rtol=1e-4, atol=1e-4)


def test_grouped_convolutions_are_refused_with_the_reason() -> None:
    with pytest.raises(lorakit.PlanError, match="grouped convolution, and B·A has not the shape of its weight"):
        lorakit.plan("adapt layer rank 2", Holder(nn.Conv2d(4, 8, 3, groups=2)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens))


def words() -> Words:
    torch.manual_seed(0)
    return Words()


def test_an_embedding_is_one_with_the_changed_rows(tmp_path: Path) -> None:
    tokens = torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(1))
    model: Any = lorakit.apply("adapt embed rank 3 alpha 6", words())
    assert torch.equal(model(tokens), words()(tokens))
    # a token picks one column of A: only σ = 1 gives its entries the spread of a normalized input
    assert 0.7 < float(model.embed.lora_A.detach().std()) < 1.3
    randomize(model)
    rows = words().embed.weight + 2.0 * (model.embed.lora_B @ model.embed.lora_A).T
    torch.testing.assert_close(model.embed(tokens), functional.embedding(tokens, rows))
    lorakit.save(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["target_modules"] == ["embed"]
    theirs = PeftModel.from_pretrained(words(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(tokens), model(tokens), rtol=0, atol=1e-5)
    again = lorakit.load(tmp_path / "ours", words())
    assert torch.equal(again(tokens), model(tokens))
    torch.testing.assert_close(lorakit.merge(again)(tokens), model(tokens), rtol=0, atol=1e-5)


def test_embeddings_that_peft_saved(tmp_path: Path) -> None:
    tokens = torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(1))
    theirs = get_peft_model(words(), LoraConfig(r=3, target_modules=["embed", "out"], init_lora_weights=False)).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    mine = lorakit.load(tmp_path / "theirs", words())
    torch.testing.assert_close(mine(tokens), theirs(tokens), rtol=0, atol=1e-5)


def test_a_scaled_embedding_scales_its_adapter() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    torch.manual_seed(0)
    model = Holder(Gemma3TextScaledWordEmbedding(20, 8, 0, embed_scale=8**0.5))
    lorakit.apply("adapt layer rank 3", model)
    randomize(model)
    tokens = torch.randint(1, 20, (3, 5))
    expected = (
        functional.embedding(
            tokens, model.layer.base_layer.weight + model.layer.change(model.layer.lora_A, model.layer.lora_B)
        )
        * 8**0.5
    )
    torch.testing.assert_close(model(tokens), expected)
    torch.testing.assert_close(lorakit.merge(model)(tokens), expected)


def test_what_looks_up_positions_is_no_lookup_of_tokens() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    small: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    model = BartForConditionalGeneration(BartConfig(vocab_size=32, d_model=16, **small)).eval()
    plan = lorakit.plan("adapt @embedding rank 2", model)
    assert not any("positions" in entry.path for entry in plan.entries)
    assert "passed over 2 modules that no adapter fits" in plan.notes[0]
    lorakit.apply(plan, model)
    tokens = torch.tensor([[3, 1, 2]])
    assert model(tokens).logits.shape == (1, 3, 32)
    with pytest.raises(lorakit.PlanError, match="no adapter fits `model.encoder.embed_positions`"):
        lorakit.plan("adapt encoder.embed_positions rank 2", BartForConditionalGeneration(model.config))


def test_quantizers_take_matrices_alone() -> None:
    with pytest.raises(lorakit.PlanError, match="`embed`, a Embedding, is no linear layer"):
        lorakit.plan("adapt embed rank 2 quant nf4", words())
    with pytest.raises(lorakit.PlanError, match="no matrix to quantize"):
        lorakit.plan("quantize layer nf4", holder("2d"))


class Residual(nn.Module):
    """A ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.layers = nn.Sequential(Residual(8, 16, 2), Residual(16, 32, 2))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.up = nn.ModuleList([nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = functional.relu(self.down[0](x))
        second = functional.relu(self.down[1](first))
        third = functional.interpolate(functional.relu(self.up[0](second)), scale_factor=2)
        return self.up[1](functional.interpolate(torch.cat([first, third], 1), scale_factor=2))


@pytest.mark.parametrize(
    ("make", "spec", "shape"),
    [
        (ResNet, "adapt :Conv2d rank 3\nadapt fc rank 4\ntrain bn1,bn2", (4, 3, 32, 32)),
        (UNet, "adapt down.*,up.* rank 3", (4, 3, 32, 32)),
        (lambda: nn.Transformer(32, 4, 1, 1, 48, batch_first=True), "adapt linear1,linear2 rank 3", (4, 6, 32)),
    ],
)
def test_networks_of_plain_pytorch_learn_and_come_back(
    make: object, spec: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()  # type: ignore[operator]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    inputs = (x, x) if isinstance(model, nn.Transformer) else (x,)
    wanted = torch.randn(model(*inputs).shape, generator=torch.Generator().manual_seed(2))
    lorakit.apply(spec, model).train()
    optimizer = lorakit.optimizer(model, lr=2e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(*inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval()
    lorakit.save(model, tmp_path / "adapter")
    fresh = make()  # type: ignore[operator]
    fresh.load_state_dict(state)
    # running statistics of batch norms are no parameters: they belong to whoever trains the norms
    for name, value in model.named_buffers():
        if name in dict(fresh.named_buffers()):
            fresh.get_buffer(name).copy_(value)
    again = lorakit.load(tmp_path / "adapter", fresh)
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lorakit.merge(again)(*inputs), model(*inputs), rtol=1e-3, atol=1e-4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention().eval()


def test_both_projections_of_torchs_attention(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    model: Any = lorakit.apply("adapt in_proj_weight,out_proj rank 3 alpha 6", attention())
    assert torch.equal(model(x), attention()(x))
    randomize(model)
    changed: Any = attention()
    with torch.no_grad():
        inner = model.attn.parametrizations.in_proj_weight[0]
        changed.attn.in_proj_weight.add_(inner.change(inner.lora_A, inner.lora_B))
        outer = model.attn.out_proj
        changed.attn.out_proj.weight.add_(outer.change(outer.lora_A, outer.lora_B))
        torch.testing.assert_close(model(x), changed(x), rtol=1e-5, atol=1e-5)
        assert float((model(x) - attention()(x)).abs().max()) > 1e-2
    lorakit.save(model, tmp_path / "ours")
    assert torch.equal(lorakit.load(tmp_path / "ours", attention())(x), model(x))
    merged = lorakit.merge(model)
    torch.testing.assert_close(merged(x), changed(x), rtol=1e-5, atol=1e-5)
    assert set(merged.state_dict()) == set(changed.state_dict())


def test_the_projection_into_attention_with_peft(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    model = lorakit.apply("adapt in_proj_weight rank 3 alpha 6", attention())
    randomize(model)
    lorakit.save(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(attention(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)
