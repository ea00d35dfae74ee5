"""A language model's answers, as chat turns where it knows chats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TextStreamer

from lorakit.data.examples import Message
from lorakit.errors import DataError
from lorakit.generating.generate import generate


def knows_chats(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def answer(
    model: nn.Module,
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    heard: Callable[[str], None] | None = None,
) -> str:
    """Return what a model says next, of at most so many tokens; `heard` is given it word by word.

    At temperature 0 it takes the likeliest token, else it draws, by the seed. A model that knows no chats continues the
    last message. Raises: DataError where the messages do not fit the template, or fill the model's positions.
    """
    inputs = _inputs(tokenizer, messages).to(next(model.parameters()).device)
    length = inputs["input_ids"].shape[1]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    if not length:
        raise DataError("an empty prompt has no continuation")
    if room is not None and length >= room:
        raise DataError(f"the conversation has {length} tokens, and the model has {room} positions")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    # what a model's own settings say of sampling is for sampling
    unset = {} if temperature else {"temperature": None, "top_p": None, "top_k": None}
    was_training = model.training
    model.eval()
    torch.manual_seed(seed)
    try:
        ids = generate(
            model,
            **inputs,
            **sampling,
            **unset,
            max_new_tokens=min(max_tokens, room - length) if room is not None else max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            # whoever waits for a first word is not to wait for a compiler
            disable_compile=True,
            streamer=_Streamer(tokenizer, heard) if heard else None,
        )
    finally:
        model.train(was_training)
    text: str = tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    return text.strip()


def _inputs(tokenizer: Any, messages: Sequence[Message]) -> Any:
    if not knows_chats(tokenizer):
        return tokenizer(messages[-1]["content"], return_tensors="pt")
    try:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    # a template is code, and fails as code does
    except Exception as error:
        raise DataError(f"the chat template refuses this: {error}") from error


class _Streamer(TextStreamer):
    """Hands each word on once no later token changes it."""

    def __init__(self, tokenizer: Any, heard: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._heard = heard

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._heard(text)
