"""How llama.cpp calls the weights of a model and lays out their rows, for the architectures that are known here.

Source: llama.cpp's convert_hf_to_gguf.py, the `modify_tensors` of each architecture; names by gguf's TensorNameMap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lorakit.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of llama.cpp; `permuted` where its converter reorders the rows of q_proj and k_proj.

    `experts` is what stands between a layer and the name of its experts' projections in gguf's table.
    """

    architecture: str
    permuted: bool = False
    experts: str = ""


# by `model_type`; every other matrix of these goes over as it lies, Conv1D transposed
FAMILIES: Mapping[str, Family] = {
    "llama": Family("LLAMA", permuted=True),
    "mistral": Family("LLAMA", permuted=True),
    "mixtral": Family("LLAMA", permuted=True, experts="mlp.experts"),
    "smollm3": Family("SMOLLM3", permuted=True),
    "granite": Family("GRANITE", permuted=True),
    "arcee": Family("ARCEE", permuted=True),
    "olmo": Family("OLMO", permuted=True),
    "olmo2": Family("OLMO2"),
    "qwen2": Family("QWEN2"),
    "qwen3": Family("QWEN3"),
    "qwen2_moe": Family("QWEN2MOE", experts="mlp.experts"),
    "qwen3_moe": Family("QWEN3MOE", experts="mlp.experts"),
    "gemma": Family("GEMMA"),
    "gemma2": Family("GEMMA2"),
    "gemma3_text": Family("GEMMA3"),
    "phi": Family("PHI2"),
    "phi3": Family("PHI3"),
    "cohere": Family("COMMAND_R"),
    "gpt2": Family("GPT2"),
}


def family_of(config: Any) -> Family:
    """Return the architecture of a config. Raises: AdapterError naming those that are known."""
    kind: str = getattr(config, "model_type", "")
    if kind not in FAMILIES:
        raise AdapterError(
            f"models of type {kind!r} have no known layout in GGUF; known are: {', '.join(sorted(FAMILIES))}; "
            "for others, `lorakit merge` and then llama.cpp's own converter"
        )
    return FAMILIES[kind]


def permuted_rows(matrix: Tensor, heads: int) -> Tensor:
    """Return rows (heads · 2 · half, …) as (heads · half · 2, …): ggml rotates pairs that lie beside each other."""
    rows: Tensor = matrix.unflatten(0, (heads, 2, -1))
    return rows.transpose(1, 2).reshape(matrix.shape)


def heads_of(name: str, family: Family, config: Any) -> int:
    """Return by how many heads the rows of a projection are reordered; 0 for one that stays as it is."""
    if not family.permuted:
        return 0
    if name.endswith(".q_proj"):
        return int(config.num_attention_heads)
    if name.endswith(".k_proj"):
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return 0
