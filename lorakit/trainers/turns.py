"""What the assistant says in a chat, found in the whole rendering.

A rendering that stops after some turns need not begin the whole one: many templates write the last answer otherwise. So
nothing is cut by lengths: each message is changed, and what moves with it is its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorakit.errors import DataError

# of the private use areas: no text holds them, so that what is rendered differs from its first letter to its last
PROBE = "\ue0f0lorakit\ue0f1"

Message = Mapping[str, Any]
Span = tuple[int, int]


def turns(record: Mapping[str, Any], tokenizer: Any) -> Iterator[tuple[list[int], bool]]:
    """Yield the token ids of a chat, each with whether the assistant says it: its words and the end of its turn.

    Raises: DataError if the tokenizer or its template does not tell where they are.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError('this model has no chat template: give {"text": …} records')
    if not getattr(tokenizer, "is_fast", False):
        raise DataError('this tokenizer does not say where its tokens lie: give {"prompt": …, "completion": …} records')
    chat = _Chat(record, tokenizer)
    said = list(chat.said())
    found = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        yield [token], any(start < last and max(end, start + 1) > first for first, last in said)


class _Chat:
    """One record, rendered."""

    def __init__(self, record: Mapping[str, Any], tokenizer: Any) -> None:
        self._messages: Sequence[Message] = record["messages"]
        self._tools, self._tokenizer = record.get("tools"), tokenizer
        self.text = self._render(self._messages)

    def said(self) -> Iterator[Span]:
        """Yield where the assistant's turns begin, behind the header that prompts for them, and where they end."""
        answers = [place for place, message in enumerate(self._messages) if message["role"] == "assistant"]
        if not answers:
            return
        header, ending = self._header(answers), self._ending(answers[-1])
        places = list(self._places())
        for answer in answers:
            start, end = places[answer]
            before = places[answer - 1][1] if answer else 0
            prompt = self.text.rfind(header, before, start) if header else -1
            after = places[answer + 1][0] if answer + 1 < len(places) else len(self.text)
            ended = _shared(ending, self.text[end:after])
            yield (start if prompt < 0 else prompt + len(header)), end + ended

    def _places(self) -> Iterator[Span]:
        """Yield where each message's content stands, in their order."""
        last = 0
        for place, message in enumerate(self._messages):
            start, end = self._place(self._messages, place, self.text)
            if start == end == len(self.text) and message["content"]:
                raise DataError(f"the chat template leaves out what message {place + 1} ({message['role']}) says")
            if start < last:
                raise DataError(
                    f"the chat template writes message {place + 1} ({message['role']}) into those before it: which "
                    'tokens to learn cannot be told; give {"prompt": …, "completion": …} records'
                )
            yield start, end
            last = end

    def _place(self, messages: Sequence[Message], place: int, text: str) -> Span:
        changed = [{**one, "content": PROBE} if at == place else one for at, one in enumerate(messages)]
        other = self._render(changed)
        start = _shared(text, other)
        # the same letters are not counted from both sides
        behind = _shared(text[start:][::-1], other[start:][::-1])
        return start, len(text) - behind

    def _header(self, answers: Sequence[int]) -> str:
        """Return what the template puts before an answer to prompt for it; nothing if it has no such thing."""
        first = next((answer for answer in answers if answer), None)
        if first is None:
            return ""
        before = self._messages[:first]
        without, with_prompt = self._render(before), self._render(before, add_generation_prompt=True)
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""

    def _ending(self, answer: int) -> str:
        """Return what the template puts behind an answer that nothing follows."""
        messages = self._messages[: answer + 1]
        text = self._render(messages)
        return text[self._place(messages, answer, text)[1] :]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            list(messages), tools=self._tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return rendered


def _shared(one: str, other: str) -> int:
    """Return how many letters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
