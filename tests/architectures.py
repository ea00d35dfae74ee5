"""Tiny random models of many architectures, each built as its real ones are; nothing here is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 96
IMAGE_TOKEN = VOCABULARY - 1
CHANNELS, PIXELS, PATCH = 3, 16, 8
MELS, FRAMES = 8, 24
LABELS = 5

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One architecture: `build` returns the same weights each time, `inputs` what its forward takes, labels included.

    `idle` are the paths of modules that the loss of these inputs cannot depend on, and everything in them.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    inputs: Callable[[], Inputs]
    idle: tuple[str, ...] = ()


def loss_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the loss of these inputs."""
    loss: Tensor = model(**inputs).loss
    return loss


def output_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits, in evaluation mode and without gradients."""
    model.eval()
    with torch.no_grad():
        found = model(**inputs)
    output: Tensor = found.logits_per_image if "logits_per_image" in found else found.logits
    return output


def _config(class_name: str, **settings: Any) -> PreTrainedConfig:
    """Return a config with a small vocabulary and no dropout, so that two passes agree."""
    usual = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config: PreTrainedConfig = getattr(transformers, class_name)(**usual | settings)
    for name, value in vars(config).items():
        if isinstance(value, float) and name.endswith(("drop", "dropout", "dropout_prob", "dropout_rate", "_pdrop")):
            setattr(config, name, 0.0)
    return config


def _builder(model_class: str, config_class: str, **settings: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, model_class)(_config(config_class, **settings))
        return model.eval()

    return build


def _decoder(family: str, **settings: Any) -> Callable[[], PreTrainedModel]:
    """Return a builder for the families that call their sizes as Llama does; `settings` add to them or replace them."""
    return _builder(f"{family}ForCausalLM", f"{family}Config", **LLAMA_SIZES | settings)


LLAMA_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_channels": CHANNELS,
    "image_size": PIXELS,
    "patch_size": PATCH,
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _tokens() -> Tensor:
    return torch.randint(3, IMAGE_TOKEN, (2, 12), generator=_generator())


def _pixels() -> Tensor:
    return torch.randn(2, CHANNELS, PIXELS, PIXELS, generator=_generator())


def _classes() -> Tensor:
    return torch.tensor([0, 2])


def _text() -> Inputs:
    return {"input_ids": _tokens(), "attention_mask": torch.ones_like(_tokens()), "labels": _tokens()}


def _bare_text() -> Inputs:
    return {"input_ids": _tokens(), "labels": _tokens()}


def _classified_text() -> Inputs:
    return {"input_ids": _tokens(), "attention_mask": torch.ones_like(_tokens()), "labels": _classes()}


def _classified_image() -> Inputs:
    return {"pixel_values": _pixels(), "labels": _classes()}


def _text_beside_image() -> Inputs:
    # the text tower reads its answer off at the end-of-text token
    ids = torch.cat([_tokens(), torch.full((2, 1), 2)], dim=1)
    return {"input_ids": ids, "pixel_values": _pixels(), "return_loss": torch.tensor(True)}


def _text_with_image() -> Inputs:
    ids = torch.cat([torch.full((2, (PIXELS // PATCH) ** 2), IMAGE_TOKEN), _tokens()], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _pixels(),
        "labels": ids.where(ids != IMAGE_TOKEN, -100),
    }


def _speech() -> Inputs:
    return {"input_features": torch.randn(2, MELS, FRAMES, generator=_generator()), "labels": _tokens()}


def _clip() -> PreTrainedModel:
    torch.manual_seed(0)
    text = LLAMA_SIZES | {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.CLIPModel(config).eval()


def _rwkv() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}
    model = _builder("RwkvForCausalLM", "RwkvConfig", **sizes, rescale_every=1)()
    # rescaling halves what comes in, which would show against the epsilon
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-10
    return model


def _llava() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=_config("LlamaConfig", **LLAMA_SIZES),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=IMAGE_TOKEN,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


_ENTRIES = (
    Architecture("llama", _decoder("Llama"), _text),
    Architecture(
        "llama4",
        _builder(
            "Llama4ForCausalLM",
            "Llama4TextConfig",
            **LLAMA_SIZES,
            intermediate_size_mlp=96,
            head_dim=16,
            num_local_experts=4,
            interleave_moe_layer_step=2,
        ),
        _text,
    ),
    Architecture("mistral", _decoder("Mistral", sliding_window=8), _text),
    Architecture("mixtral", _decoder("Mixtral", **EXPERTS), _text),
    Architecture("qwen2", _decoder("Qwen2"), _text),
    Architecture("qwen3", _decoder("Qwen3", head_dim=16), _text),
    Architecture(
        "qwen3_moe",
        _decoder(
            "Qwen3Moe",
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            mlp_only_layers=[0],
        ),
        _text,
    ),
    Architecture("gemma2", _decoder("Gemma2", head_dim=16, sliding_window=8), _text),
    Architecture("gemma3", _builder("Gemma3ForCausalLM", "Gemma3TextConfig", **LLAMA_SIZES, head_dim=16), _text),
    Architecture("phi3", _decoder("Phi3"), _text),
    Architecture(
        "gpt2", _builder("GPT2LMHeadModel", "GPT2Config", n_layer=2, n_embd=64, n_head=4, n_positions=64), _text
    ),
    Architecture("gpt_neox", _decoder("GPTNeoX"), _text),
    Architecture(
        "gptj",
        _builder("GPTJForCausalLM", "GPTJConfig", n_layer=2, n_embd=64, n_head=4, n_positions=64, rotary_dim=8),
        _text,
    ),
    Architecture(
        "gpt_oss",
        _decoder("GptOss", **EXPERTS, head_dim=16, sliding_window=8, max_position_embeddings=131072),
        _text,
    ),
    Architecture(
        "opt",
        _decoder("OPT", ffn_dim=96, word_embed_proj_dim=32, activation_function="gelu"),
        _text,
    ),
    Architecture("bloom", _builder("BloomForCausalLM", "BloomConfig", n_layer=2, hidden_size=64, n_head=4), _text),
    Architecture("falcon", _decoder("Falcon"), _text),
    Architecture(
        "falcon_new",
        _decoder("Falcon", new_decoder_architecture=True, num_kv_heads=2),
        _text,
    ),
    Architecture(
        "mpt", _builder("MptForCausalLM", "MptConfig", d_model=64, n_heads=4, n_layers=2, max_seq_len=64), _text
    ),
    Architecture(
        "mamba",
        _builder(
            "MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=8
        ),
        _bare_text,
    ),
    Architecture(
        "rwkv",
        _rwkv,
        _bare_text,
    ),
    Architecture(
        "recurrent_gemma",
        _decoder(
            "RecurrentGemma",
            num_hidden_layers=3,
            lru_width=64,
            attention_window_size=8,
            block_types=("recurrent", "recurrent", "attention"),
        ),
        _text,
    ),
    Architecture(
        "jamba",
        _decoder(
            "Jamba",
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            mamba_d_state=8,
        ),
        _text,
    ),
    Architecture(
        "falcon_h1",
        _decoder(
            "FalconH1",
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
            ssm_in_multiplier=0.5,
        ),
        _text,
    ),
    Architecture(
        "deepseek_v3",
        _decoder(
            "DeepseekV3",
            num_key_value_heads=4,
            moe_intermediate_size=48,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=24,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        ),
        _text,
    ),
    Architecture("granite", _decoder("Granite"), _text),
    Architecture("olmo2", _decoder("Olmo2"), _text),
    Architecture("cohere", _decoder("Cohere", use_qk_norm=True, logit_scale=1.0), _text),
    Architecture("starcoder2", _decoder("Starcoder2"), _text),
    Architecture(
        "t5",
        _builder(
            "T5ForConditionalGeneration",
            "T5Config",
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        _text,
    ),
    Architecture(
        "bart",
        _builder(
            "BartForConditionalGeneration",
            "BartConfig",
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_position_embeddings=64,
            decoder_start_token_id=2,
        ),
        _text,
    ),
    Architecture("bert", _builder("BertForMaskedLM", "BertConfig", **LLAMA_SIZES), _text),
    Architecture("roberta", _builder("RobertaForMaskedLM", "RobertaConfig", **LLAMA_SIZES), _text),
    Architecture(
        "roberta_classifier",
        _builder("RobertaForSequenceClassification", "RobertaConfig", **LLAMA_SIZES, num_labels=LABELS),
        _classified_text,
    ),
    Architecture(
        "bert_classifier",
        _builder("BertForSequenceClassification", "BertConfig", **LLAMA_SIZES, num_labels=LABELS),
        _classified_text,
    ),
    Architecture(
        "llama_classifier",
        _builder("LlamaForSequenceClassification", "LlamaConfig", **LLAMA_SIZES, num_labels=LABELS),
        _classified_text,
    ),
    Architecture(
        "vit", _builder("ViTForImageClassification", "ViTConfig", **VISION, num_labels=LABELS), _classified_image
    ),
    Architecture("clip", _clip, _text_beside_image),
    Architecture(
        "whisper",
        _builder(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            num_mel_bins=MELS,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_source_positions=FRAMES // 2,
            max_target_positions=64,
            decoder_start_token_id=1,
        ),
        _speech,
    ),
    Architecture(
        "llava",
        _llava,
        _text_with_image,
        # LLaVA reads the image off before the vision tower's last layer
        idle=("model.vision_tower.encoder.layers.1",),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _ENTRIES}
