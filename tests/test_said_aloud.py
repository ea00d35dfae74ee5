"""What once went wrong without a word: rows that stand for no token, buffers, packed numbers, starts, plans by hand."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

import lorakit
from helpers import make_llama, randomize

X = 3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1)) + 2


class Net(nn.Module):
    """A batch norm between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


def trained(model: nn.Module, steps: int = 5) -> nn.Module:
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model.eval()


NORMS = "adapt q_proj rank 2\ntrain @norm"


def test_steps_that_bf16_does_not_hold_are_said_and_fp32_holds_them(caplog: pytest.LogCaptureFixture) -> None:
    def notes(spec: str, dtype: torch.dtype = torch.bfloat16) -> str:
        return "\n".join(lorakit.plan(spec, make_llama().to(dtype)).notes)

    words = "5 modules, first `model.layers.0.input_layernorm`, train in bf16, where a step of 0.0002 is lost on every"
    assert f"{words} weight above 0.1" in notes(f"{NORMS}\noptimizer adamw lr 2e-4")
    assert "0.001 is lost on every weight above 0.51" in notes(f"{NORMS} lr 1e-3")
    for spec in (f"{NORMS}\nstep compute fp32", f"{NORMS} lr 1e-2", "adapt q_proj rank 2"):
        assert "is lost" not in notes(spec)
    assert "is lost" not in notes(NORMS, torch.float32)

    lorakit.optimizer(lorakit.apply(NORMS, make_llama().to(torch.bfloat16)), lr=2e-4)
    assert "5 parameters that train in bf16, first `model.layers.0.input_layernorm.weight`, lose most" in caplog.text
    caplog.clear()
    # small weights have numbers for small steps
    lorakit.optimizer(lorakit.apply("train embed_tokens", make_llama().to(torch.bfloat16)), lr=2e-4)
    assert not caplog.text

    runs = [
        lorakit.apply(f"{NORMS}\nstep compute fp32", make_llama().to(torch.bfloat16)),
        lorakit.apply(f"{NORMS} \n", make_llama().to(torch.bfloat16).float()),
    ]
    for model in runs:
        optimizer = lorakit.optimizer(model, lr=2e-4)
        for _ in range(4):
            optimizer.zero_grad()
            model(input_ids=torch.arange(24)[None], labels=torch.arange(24)[None]).loss.backward()
            optimizer.step()
    assert not caplog.text
    ends = [model.get_submodule("model.norm").get_parameter("weight").detach() for model in runs]
    assert not torch.equal(ends[0], torch.ones(64))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_the_row_of_the_padding_stays_as_peft_leaves_it() -> None:
    embedding = nn.Embedding(6, 4, padding_idx=2)
    model = lorakit.apply("adapt 0 rank 2", nn.Sequential(embedding, nn.Linear(4, 3)))
    base = embedding.weight.detach().clone()
    optimizer = lorakit.optimizer(model, lr=1e-1)
    tokens = torch.tensor([[2, 0, 1], [5, 2, 2]])
    for _ in range(4):
        optimizer.zero_grad()
        model(tokens).sum().backward()
        optimizer.step()
    changed = lorakit.merge(model)[0].weight.detach()  # type: ignore[index]
    assert torch.equal(changed[2], base[2])
    assert not torch.equal(changed[[0, 1, 5]], base[[0, 1, 5]])
    assert torch.equal(changed[2], model(tokens).new_zeros(4) + base[2])


class Average(nn.Module):
    """Takes off the mean of what it saw, whatever the mode."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


KEEPERS = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "batch norm without weights": lambda: nn.BatchNorm1d(8, affine=False),
    "batch norm of all batches": lambda: nn.BatchNorm1d(8, momentum=None),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: spectral_norm(nn.Linear(8, 8)),
    "spectral norm of old": lambda: old_spectral_norm(nn.Linear(8, 8)),
}


@pytest.mark.parametrize("kind", KEEPERS)
def test_what_a_frozen_base_counts_stays_as_it_was(kind: str, tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(body=nn.Linear(8, 8), keeper=KEEPERS[kind](), head=nn.Linear(8, 3)))

    base = net().eval()
    model = trained(lorakit.apply("adapt body,head rank 2", net()))
    assert all(torch.equal(value, base[1].state_dict()[name]) for name, value in model[1].state_dict().items())  # type: ignore[index]
    lorakit.save(model, tmp_path / "adapter")
    torch.testing.assert_close(lorakit.load(tmp_path / "adapter", net())(X), model(X), rtol=0, atol=1e-6)
    with lorakit.adapters(model).disabled():
        torch.testing.assert_close(model(X), base(X), rtol=0, atol=0)
    # merged it is a plain model, that keeps count again
    merged = lorakit.merge(model).train()
    assert all(module.training for module in merged.modules())
    merged(X)
    assert not all(torch.equal(value, base[1].state_dict()[name]) for name, value in merged[1].state_dict().items())  # type: ignore[index]


def test_adapters_take_turns_with_a_norm_that_one_of_them_trains() -> None:
    model = lorakit.apply("adapt body rank 2; train norm", Net())
    model = lorakit.apply("adapt head rank 2", model, name="second").train()
    norm: Any = model.get_submodule("norm")
    assert not norm.training
    before = norm.running_mean.clone()
    model(X)
    assert torch.equal(norm.running_mean, before)
    lorakit.adapters(model).use("default")
    assert norm.training and not norm.eval().training and model.train().get_submodule("norm").training
    model(X)
    assert not torch.equal(norm.running_mean, before)
    with pytest.raises(lorakit.ModelError):
        lorakit.adapters(model).use("third")
    assert "train" not in vars(norm)


def test_the_plan_says_what_keeps_still() -> None:
    assert "1 modules, first `norm`, keep running means" in "\n".join(lorakit.plan("adapt body rank 2", Net()).notes)
    assert not any("running means" in note for note in lorakit.plan("adapt body rank 2; train norm", Net()).notes)


def test_a_base_that_changes_as_it_runs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(8, 8), Average(), nn.Linear(8, 3))
    model = lorakit.apply("adapt 0,2 rank 2", net)
    lorakit.save(model, tmp_path / "before")
    assert not caplog.text
    trained(model)
    for _ in range(2):
        lorakit.save(model, tmp_path / "after")
    assert caplog.text.count("the base changed as it ran, in `1.mean`, which no adapter holds") == 1


@pytest.mark.parametrize("reader", ["lorakit", "lorakit of PEFT's"])
def test_a_batch_norm_trained_in_full_keeps_its_means(reader: str, tmp_path: Path) -> None:
    if reader == "lorakit":
        model = trained(lorakit.apply("adapt body rank 2; train norm", Net()))
        lorakit.save(model, tmp_path / "adapter")
    else:
        model = trained(get_peft_model(Net(), LoraConfig(r=2, target_modules=["body"], modules_to_save=["norm"])))
        model.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    loaded = lorakit.load(tmp_path / "adapter", Net())
    torch.testing.assert_close(loaded(X), model(X))
    assert int(loaded.norm.num_batches_tracked) == 5  # type: ignore[arg-type, union-attr]


def test_another_adapter_brings_the_base_means_back() -> None:
    base = Net().eval()(X)
    model = trained(lorakit.apply("adapt body rank 2; train norm", Net()))
    first = model(X)
    lorakit.apply("adapt head rank 2", model, name="second")
    torch.testing.assert_close(model.eval()(X), base)
    lorakit.adapters(model).use("default")
    assert torch.equal(model(X), first)


def saved(tmp_path: Path) -> Path:
    return lorakit.save(lorakit.apply("adapt body,head rank 2", Net()), tmp_path / "adapter")


@pytest.mark.parametrize("has_plan", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint32, torch.int8])
def test_whole_numbers_are_no_weights(dtype: torch.dtype, has_plan: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / "adapter_model.safetensors")
    if not has_plan:
        (folder / "plan.json").unlink()
    with pytest.raises(lorakit.AdapterError, match=rf"`{name}` (is|holds) .*int"):
        lorakit.load(folder, Net())


def test_a_plan_that_decides_a_module_twice_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    plan["entries"].append(plan["entries"][0])
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(lorakit.AdapterError, match="decides `body` twice"):
        lorakit.load(folder, Net())
    with pytest.raises(lorakit.PlanError, match="decides `body` twice"):
        from dataclasses import replace

        made = lorakit.plan("adapt body rank 2", Net())
        lorakit.apply(replace(made, entries=made.entries * 2), Net())


@pytest.mark.parametrize("start", ["lora_ga", "pissa_niter_4", "OLoRA", "corda", "one that is to come"])
def test_a_start_that_may_have_changed_the_base_is_refused(start: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "plan.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    with pytest.raises(lorakit.AdapterError, match="base weight that its start may have changed"):
        lorakit.load(folder, Net())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "gaussian"}))
    lorakit.load(folder, Net())


def test_a_pattern_that_fits_nothing_it_meets_is_refused_with_what_is_inside() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    with pytest.raises(lorakit.PlanError, match="no adapter fits `self_attn`, a MultiheadAttention"):
        lorakit.plan("adapt :MultiheadAttention rank 2", layer)
    assert lorakit.plan("adapt :MultiheadAttention,linear1 rank 2", layer).entries


@pytest.mark.parametrize("at", ["layer", "projection"])
@pytest.mark.parametrize("kind", ["compiled", "checkpointed"])
def test_what_was_wrapped_before_is_saved_under_the_names_of_the_plain_model(
    kind: str, at: str, tokens: Tensor, tmp_path: Path
) -> None:
    def wrapped(module: nn.Module) -> nn.Module:
        return torch.compile(module, backend="eager") if kind == "compiled" else checkpoint_wrapper(module)  # type: ignore[return-value]

    model = make_llama()
    for index, layer in enumerate(model.model.layers):
        if at == "layer":
            model.model.layers[index] = wrapped(layer)
        else:
            layer.self_attn.q_proj = wrapped(layer.self_attn.q_proj)
    plan = lorakit.plan("adapt q_proj,v_proj rank 2; train model.norm", model)
    assert plan.entries == lorakit.plan("adapt q_proj,v_proj rank 2; train model.norm", make_llama()).entries
    lorakit.apply(plan, model).eval()
    randomize(model)
    expected = model(tokens).logits
    folder = lorakit.save(model, tmp_path / "adapter")
    torch.testing.assert_close(lorakit.load(folder, make_llama())(tokens).logits, expected)
    theirs = PeftModel.from_pretrained(make_llama(), str(folder)).eval()
    torch.testing.assert_close(theirs(tokens).logits, expected)
    torch.testing.assert_close(lorakit.merge(model)(tokens).logits, expected, rtol=1e-4, atol=1e-5)


def tied() -> nn.Module:
    return make_llama(tie_word_embeddings=True).eval()


def stepped(model: nn.Module, tokens: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    "spec",
    [
        "adapt lm_head rank 2", "adapt embed_tokens rank 2", "adapt lm_head,embed_tokens rank 2",
        "train lm_head; adapt q_proj rank 2", "train embed_tokens; adapt q_proj rank 2",
        "train lm_head,embed_tokens; adapt q_proj rank 2",
    ],
)  # fmt: skip
def test_a_tie_goes_round_whichever_end_is_changed_and_how(spec: str, tokens: Tensor, tmp_path: Path) -> None:
    model = stepped(lorakit.apply(spec, tied()), tokens)
    expected = model(tokens).logits
    with lorakit.adapters(model).disabled():
        torch.testing.assert_close(model(tokens).logits, tied()(tokens).logits)
    torch.testing.assert_close(model(tokens).logits, expected)
    folder = lorakit.save(model, tmp_path / "adapter")
    torch.testing.assert_close(lorakit.load(folder, tied())(tokens).logits, expected)
    theirs = PeftModel.from_pretrained(tied(), str(folder)).eval()
    torch.testing.assert_close(theirs(tokens).logits, expected)
    torch.testing.assert_close(lorakit.merge(model)(tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_one_end_of_a_tie_adapted_and_the_other_trained_is_refused() -> None:
    with pytest.raises(lorakit.PlanError, match=r"`model.embed_tokens` is trained .* with `lm_head`, which line 1"):
        lorakit.plan("adapt lm_head rank 2\ntrain embed_tokens", tied())


@pytest.mark.parametrize("ends", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_ends_of_a_tie_that_peft_trained_apart_are_refused(ends: list[str], tokens: Tensor, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=ends)
    stepped(get_peft_model(tied(), config), tokens).save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    with pytest.raises(lorakit.AdapterError, match="holds both as one tensor: untie them"):
        lorakit.load(tmp_path / "adapter", tied())


def test_names_that_end_each_other_are_told_apart_for_peft(tmp_path: Path) -> None:
    def nested() -> nn.Module:
        torch.manual_seed(0)
        inner = nn.ModuleDict({"b": nn.Linear(4, 4)})
        return nn.ModuleDict({"b": nn.Linear(4, 4), "a": inner, "x_b": nn.Linear(4, 4)})

    x = torch.randn(3, 4)
    for at, spec in enumerate(("adapt b rank 2 except a", "adapt b rank 2 alpha 2\nadapt a.b rank 4 alpha 16")):
        model = lorakit.apply(spec, nested())
        randomize(model)
        folder = lorakit.save(model, tmp_path / str(at))
        expected = nested_forward(model, x)
        torch.testing.assert_close(nested_forward(lorakit.load(folder, nested()), x), expected)
        theirs: Any = PeftModel.from_pretrained(nested(), str(folder)).eval()
        torch.testing.assert_close(nested_forward(theirs.base_model.model, x), expected)
        (folder / "plan.json").unlink()
        torch.testing.assert_close(nested_forward(lorakit.load(folder, nested()), x), expected)


def nested_forward(model: nn.Module, x: Tensor) -> Tensor:
    return model["x_b"](model["a"]["b"](model["b"](x)))  # type: ignore[index]


@pytest.mark.parametrize("more", ["", "; train @norm", " bias adapter", "; train @head", "; train @embedding"])
def test_a_float16_model_trains_under_the_defaults(more: str, tokens: Tensor, tmp_path: Path) -> None:
    model = lorakit.apply(f"adapt q_proj,v_proj rank 2{more}", make_llama(attention_bias=True).half()).train()
    optimizer = lorakit.optimizer(model)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    loaded = lorakit.load(lorakit.save(model, tmp_path / "adapter"), make_llama(attention_bias=True).half())
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("enabled", ["before", "after"])
def test_reentrant_checkpointing_over_pixels_leaves_no_adapter_without_its_gradient(enabled: str) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    def gradients(checkpointed: str) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        model = ViTForImageClassification(ViTConfig(**settings, image_size=8, patch_size=4))
        for moment in ("before", "apply", "after"):
            if moment == "apply":
                # transformers called them query and value before 5.10
                names = "q_proj,v_proj" if "q_proj" in str(model) else "query,value"
                lorakit.apply(f"adapt {names} rank 2; train @head", model).train()
            elif moment == checkpointed:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        model(pixel_values=pixels).logits.square().mean().backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        assert not any(module._forward_hooks for module in lorakit.merge(model).modules())
        return found

    plain = gradients("never")
    for name, value in gradients(enabled).items():
        torch.testing.assert_close(value, plain[name])


class Attending(nn.Module):
    """torch's own attention, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mha, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mha(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["mha"]},
        {"target_modules": ["mha", "head"], "rank_pattern": {"mha": 2}, "alpha_pattern": {"mha": 8}},
        {"target_parameters": ["mha.in_proj_weight"], "target_modules": ["head"]},
    ],
)
def test_an_attention_that_peft_adapted_gives_its_logits(config: dict[str, object], tmp_path: Path) -> None:
    theirs = get_peft_model(Attending(), LoraConfig(r=3, lora_alpha=6, **config)).eval()  # type: ignore[arg-type]
    randomize(theirs)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    x = torch.randn(2, 5, 16)
    assert not torch.allclose(theirs(x), Attending()(x), atol=1e-2)
    torch.testing.assert_close(lorakit.load(tmp_path / "adapter", Attending())(x), theirs(x))


def test_peft_reads_the_projections_of_an_attention_and_refuses_what_it_would_not_hear(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 16)
    for spec in ("adapt in_proj_weight,head rank 2 alpha 8", "adapt in_proj_weight,out_proj rank 2"):
        model = lorakit.apply(spec, Attending()).eval()
        randomize(model)
        folder = lorakit.save(model, tmp_path / spec[-6:].strip())
        torch.testing.assert_close(lorakit.load(folder, Attending())(x), model(x))
        if "out_proj" not in spec:
            torch.testing.assert_close(PeftModel.from_pretrained(Attending(), str(folder)).eval()(x), model(x))
            continue
        with pytest.raises(Exception, match="LORAKIT_LORA"):
            PeftModel.from_pretrained(Attending(), str(folder))


def test_a_layer_that_was_replaced_after_apply_is_named(tmp_path: Path) -> None:
    for change in (
        lambda model: setattr(model.model.layers[0].self_attn, "q_proj", nn.Linear(64, 64)),
        lambda model: setattr(model.model, "layers", model.model.layers[1:][:0]),
    ):
        model = lorakit.apply("adapt q_proj rank 2", make_llama())
        change(model)
        with pytest.raises(lorakit.ModelError, match="layers.0.self_attn.q_proj` of this model holds its adapter"):
            lorakit.save(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_grew_after_apply_trains_and_comes_back(tmp_path: Path) -> None:
    model = lorakit.apply("adapt q_proj rank 2; train embed_tokens", make_llama())
    model.resize_token_embeddings(140)  # type: ignore[operator]
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1  # type: ignore[operator]
    adapter = lorakit.save(model, tmp_path / "adapter")
    with pytest.raises(lorakit.AdapterError, match=r"resize_token_embeddings\(140\)"):
        lorakit.load(adapter, make_llama())
    other = make_llama()
    other.resize_token_embeddings(140)
    found = lorakit.load(adapter, other).get_input_embeddings().weight  # type: ignore[operator]
    assert torch.equal(found, model.get_input_embeddings().weight)  # type: ignore[operator]


@pytest.mark.parametrize("lr", [0, -1e-4, float("nan"), float("inf"), "1e-4"])
def test_a_rate_that_is_none_is_refused(lr: object) -> None:
    model = lorakit.apply("adapt q_proj rank 2", make_llama())
    with pytest.raises(lorakit.ModelError, match="lr is a number above 0, such as 2e-4, not "):
        lorakit.optimizer(model, lr=lr)  # type: ignore[call-overload]


@pytest.mark.parametrize("spec", [None, b"adapt q_proj rank 2", ["adapt q_proj rank 2"]])
def test_a_spec_that_is_none_is_refused(spec: Any) -> None:
    for use in (lorakit.plan, lorakit.apply):
        with pytest.raises(lorakit.PlanError, match="a spec is text, a path, a Spec or a Plan, not a "):
            use(spec, make_llama())
