"""Which tokens of a chat are learned: what the assistant says, and the end of its turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lorakit.data.examples import Chat, Message
from lorakit.data.messages import ASSISTANT
from lorakit.data.probes import Probes, Span
from lorakit.data.template import Template

Encoded: TypeAlias = tuple[list[int], list[bool]]


def encode_chat(chat: Chat, template: Template) -> Encoded:
    """Return a chat's token ids, and of each whether it is learned.

    Where the template marks what the assistant says, its markers decide; turns of weight 0 are not learned.
    Raises: DataError if the tokenizer or its template does not tell where the turns are.
    """
    messages = template.messages(chat)
    spoken = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
    learned = [place for place in spoken if chat.learned[place]]
    if not template.marked(chat):
        return _inside(messages, chat, template, learned)
    ids, marked = template.encode(messages, chat)
    if all(chat.learned[place] for place in spoken if place >= chat.prompt):
        start = _prompted(ids, messages, chat, template)
        return ids, [one and place >= start for place, one in enumerate(marked)]
    _, wanted = _inside(messages, chat, template, learned)
    return ids, [one and other for one, other in zip(marked, wanted, strict=True)]


def _prompted(ids: Sequence[int], messages: Sequence[Message], chat: Chat, template: Template) -> int:
    """Return how many tokens a prompt has that was given apart: until there it reads as the whole does."""
    if not chat.prompt:
        return 0
    text = template.render(messages[: chat.prompt], chat, add_generation_prompt=True)
    before = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    pairs = zip(before, ids, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(before), len(ids)))


def _inside(messages: Sequence[Message], chat: Chat, template: Template, learned: Sequence[int]) -> Encoded:
    """Return the token ids of a chat, and of each whether it lies in one of these turns."""
    text = template.render(messages, chat)
    spans = _verified(messages, chat, template, text) or Probes(messages, chat, template, text).spans()
    wanted = [spans[place] for place in learned]
    found = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # some tokens are parts of a letter, and have no length
    places = [(start, max(end, start + 1)) for start, end in found["offset_mapping"]]
    # a token that holds the end of a turn and what comes behind says more than that the turn ends
    return found["input_ids"], [
        any((start < one.said and end > one.start) or one.start <= start < end <= one.end for one in wanted)
        for start, end in places
    ]


def _verified(messages: Sequence[Message], chat: Chat, template: Template, text: str) -> dict[int, Span]:
    """Return the assistant's turns as lengths of what is rendered up to them; none unless the text begins with each.

    None either where the words of a message are not in the text, so that it has to be asked for them, or where nothing
    prompts for an answer: its header would count as said.
    """
    if any(message.get("content", "").strip() not in text for message in messages):
        return {}
    spans: dict[int, Span] = {}
    header = ""
    for place, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        if not place:
            return {}
        before = template.render(messages[:place], chat, add_generation_prompt=True)
        until = template.render(messages[: place + 1], chat)
        header = header or before.removeprefix(template.render(messages[:place], chat))
        if not header or not text.startswith(before) or not text.startswith(until):
            return {}
        # some templates prompt for no answer to a tool, and write its header all the same
        start = len(before) + len(header) * text.startswith(header, len(before))
        if start >= len(until):
            return {}
        spans[place] = Span(start, len(until), len(until))
    return spans
