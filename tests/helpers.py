"""Small models and what tests ask of them; nothing here is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.planning.hardware import Hardware

# whatever the machine is: models keep the dtypes that they have
EVERY_DTYPE = Hardware("cpu", frozenset({"bfloat16", "float16"}), "this CPU")
QLORA = "adapt q_proj,v_proj rank 4 quant nf4 double paged"
# a plain model with dropout, and pairs to train it on
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 1))

def pairs():
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    return [(row, row[:1] * 3) for row in x]
"""


def make_llama(seed: int = 0, **changes: Any) -> Any:
    """Return a random two-layer Llama; what its modules hold no type says."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def bitsandbytes_weight(packed: torch.Tensor, state):  # type: ignore[no-untyped-def]
    """Return what bitsandbytes dequantizes, seen as one row.

    Its 0.50 gives the weights of rows that are no whole blocks wrong scales on processors with AVX-512.
    """
    import copy

    from bitsandbytes.functional import dequantize_4bit

    row = copy.copy(state)
    row.shape = torch.Size((1, state.shape.numel()))
    return dequantize_4bit(packed, row).view(state.shape)


def make_gpt2(seed: int = 0) -> nn.Module:
    """Return a random two-layer GPT-2, whose projections are transformers' Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=128, n_positions=64))


def byte_tokenizer():  # type: ignore[no-untyped-def]
    """Return a tokenizer with one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(["<eos>", "<user>", "<bot>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", additional_special_tokens=["<user>", "<bot>"]
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    return fast


def adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of everything that trains, by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def randomize(model: nn.Module, seed: int = 5) -> None:
    """Give every B random values, so that adapters change what a model computes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def run_page(title: str, model: Path, **names: Any) -> dict[str, Any]:
    """Run the first code of a section of the page on trainers, on a model of this folder; return what it leaves."""
    root = Path(__file__).parent.parent
    section = (root / "examples/site/pages/trainers.md").read_text("utf-8").partition(f"\n## {title}\n")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[0]
    code = code.replace("SmolLM2-135M-Instruct", str(model)).replace("qlora.lora", str(root / "examples/qlora.lora"))
    exec(compile(code, title, "exec"), names)
    return names
