"""Small configs of the kinds of models that the cookbook's specs are for; no weights belong to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, Qwen3MoeConfig

SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 16384,
}


def _llama() -> PreTrainedConfig:
    return LlamaConfig(**SIZES)


def _classifier() -> PreTrainedConfig:
    return LlamaConfig(**SIZES, architectures=["LlamaForSequenceClassification"], num_labels=3)  # type: ignore[call-arg]


def _experts() -> PreTrainedConfig:
    return Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, head_dim=128)  # type: ignore[call-arg]


def _seeing() -> PreTrainedConfig:
    eye = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    return LlavaConfig(
        vision_config=eye.to_dict(),
        text_config=_llama().to_dict(),
        architectures=["LlavaForConditionalGeneration"],
    )


# by the name of the spec
MODELS: Mapping[str, Callable[[], PreTrainedConfig]] = MappingProxyType({
    "chat": _llama,
    "classification": _classifier,
    "long-context": _llama,
    "moe": _experts,
    "vision": _seeing,
    "tasks": _llama,
})  # fmt: skip
