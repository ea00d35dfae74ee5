"""Models that accelerate split over devices, as far as a CPU shows it; two GPUs are in test_cuda.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn

import lorakit
from helpers import make_llama, randomize

SPECS = {
    "plain": "adapt @linear rank 4",
    "quantized": "adapt @linear rank 4 quant nf4 double dtype fp32",
    "quantized alone": "adapt q_proj rank 4\nquantize @mlp nf4",
    "head": "adapt @head rank 4",
}


def dispatched(**changes: Any) -> nn.Module:
    """Return a Llama with a hook on every module that holds tensors, as if it were split."""
    split: nn.Module = dispatch_model(make_llama(**changes).eval(), {"": "cpu"}, force_hooks=True)
    return split


def hooked(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if hasattr(module, "_hf_hook")}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SPECS)
def test_hooks_stay_where_their_layers_were(name: str, ids: Tensor, tmp_path: Path) -> None:
    reference = lorakit.apply(SPECS[name], make_llama().eval())
    randomize(reference)
    said = reference(ids).logits
    model = dispatched()
    held = hooked(model)
    lorakit.apply(SPECS[name], model)
    randomize(model)
    assert hooked(model) == held
    calls: list[str] = []

    def noted(path: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def pre_forward(*args: Any, **more: Any) -> Any:
            calls.append(path)
            return do(*args, **more)

        return pre_forward

    for path, module in model.named_modules():
        if path in held:
            module._hf_hook.pre_forward = noted(path, module._hf_hook.pre_forward)
    assert torch.equal(model(ids).logits, said)
    decided = {entry.path for entry in lorakit.plan(SPECS[name], make_llama()).entries}
    assert decided <= held and decided <= set(calls)
    lorakit.save(model, tmp_path / "adapter")
    assert torch.equal(lorakit.load(tmp_path / "adapter", dispatched())(ids).logits, said)
    merged = lorakit.merge(model)
    assert hooked(merged) == held
    torch.testing.assert_close(merged(ids).logits, said, rtol=1e-5, atol=1e-5)


def test_dispatched_after_it_was_adapted(ids: Tensor) -> None:
    model = lorakit.apply("adapt q_proj rank 4", make_llama().eval())
    randomize(model)
    said = model(ids).logits
    model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.equal(model(ids).logits, said)
    torch.testing.assert_close(lorakit.merge(model)(ids).logits, said, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["q_proj", "model.norm"])
def test_offloaded_weights_are_refused(targets: str, ids: Tensor, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.rotary_emb": "cpu"}
    model = dispatch_model(
        make_llama().eval(), {**places, "model.norm": "disk", "lm_head": "cpu"}, offload_dir=tmp_path / "away"
    )
    said = model(ids).logits
    keyword = "train" if targets == "model.norm" else "adapt"
    rank = " rank 4" if keyword == "adapt" else ""
    with pytest.raises(lorakit.ModelError, match=r"the weights of 1 modules are offloaded, first `model\..*device_map"):
        lorakit.apply(f"{keyword} {targets}{rank}", model)
    assert torch.equal(model(ids).logits, said)
    adapted = lorakit.apply("adapt q_proj rank 4 layers 0", model)
    assert torch.equal(adapted(ids).logits, said)


def test_a_folder_loaded_with_a_device_map(ids: Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_llama().save_pretrained(tmp_path / "base")
    places = {"model": "cpu", "lm_head": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=places, offload_folder=str(tmp_path / "away")
    )
    with pytest.raises(lorakit.ModelError, match="`lm_head`: they come from the CPU or the disk"):
        lorakit.apply("adapt @head rank 4", model)
    adapted = lorakit.apply("adapt @linear rank 4", model)
    randomize(adapted)
    assert float((adapted(ids).logits - make_llama().eval()(ids).logits).abs().max()) > 1e-3
