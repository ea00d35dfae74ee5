"""What of a language model decides how text is made ready for it: its kind, its tokenizer, the tokens it takes."""

from __future__ import annotations

from typing import Any

from lorakit.errors import ModelError


def check_causal(model: Any, what: str) -> None:
    """Raise ModelError unless a model predicts each next token of what it reads: labels and inputs are one row."""
    generates = hasattr(model, "can_generate") and model.can_generate()
    if not generates or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{what} takes a causal language model, and {type(model).__name__} is none")


def row_limit(model: Any, tokens: int) -> int:
    """Return how many tokens a row may have: those asked for, and no more than the model has positions."""
    return min(tokens, getattr(model.config.get_text_config(), "max_position_embeddings", None) or tokens)


def vocabulary_of(model: Any) -> int:
    """Return how many tokens a model knows."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def read_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model folder or hub id, with something to pad with. Raises: ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{model} has no tokenizer that transformers can read: {str(error).partition(chr(10))[0]}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
