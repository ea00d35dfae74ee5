"""What the assistant says in a chat whose turns are written otherwise when others follow: found by changing them.

Many templates write the last answer otherwise, so that a rendering that stops after some turns does not begin the whole
one. Then nothing can be cut by lengths: each message is changed, and what moves with it is its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorakit.data.examples import Chat, Message
from lorakit.data.messages import ASSISTANT
from lorakit.data.template import PROBE, Template
from lorakit.errors import DataError


@dataclass(frozen=True, slots=True)
class Span:
    """Where a turn of the assistant stands in a text: from `start`, what it says until `said`, its end until `end`."""

    start: int
    said: int
    end: int


class Probes:
    """One chat, rendered, and rendered with changes."""

    def __init__(self, messages: Sequence[Message], chat: Chat, template: Template, text: str) -> None:
        self._messages, self._chat, self._template, self._text = messages, chat, template, text

    def spans(self) -> dict[int, Span]:
        """Return the assistant's turns, which begin behind the header that prompts for them.

        Raises: DataError where the template leaves a message out, or mixes it with others.
        """
        answers = [place for place, message in enumerate(self._messages) if message["role"] == ASSISTANT]
        header, ending = self._header(answers), self._ending(answers[-1])
        places = list(self._places())
        spans = {}
        for answer in answers:
            start, end = places[answer]
            before = places[answer - 1][1] if answer else 0
            prompt = self._text.rfind(header, before, start) if header else -1
            after = places[answer + 1][0] if answer + 1 < len(places) else len(self._text)
            behind = self._text[end:after]
            ended = max(_shared(ending, behind), self._template.special(behind))
            spans[answer] = Span(start if prompt < 0 else prompt + len(header), end, end + ended)
        return spans

    def _places(self) -> Iterator[tuple[int, int]]:
        """Yield where each message stands, in their order."""
        last = 0
        for place, message in enumerate(self._messages):
            start, end = self._place(self._messages, place, self._text)
            if start == end == len(self._text) and message.get("content"):
                raise DataError(f"the chat template leaves out what message {place + 1} ({message['role']}) says")
            if start < last:
                raise DataError(
                    f"the chat template writes message {place + 1} ({message['role']}) into those before it: which "
                    "tokens to learn cannot be told; give `prompt` and `completion`"
                )
            yield start, end
            last = end

    def _place(self, messages: Sequence[Message], place: int, text: str) -> tuple[int, int]:
        other = self._changed(messages, place)
        start = _shared(text, other)
        # the same letters are not counted from both sides
        behind = _shared(text[start:][::-1], other[start:][::-1])
        return start, len(text) - behind

    def _changed(self, messages: Sequence[Message], place: int) -> str:
        """Return what is rendered if one message says something else: the assistant nothing but that, if it may."""
        one = messages[place]
        bare = {"role": one["role"], "content": PROBE}
        whole = {**one, "content": PROBE}
        if one["role"] == ASSISTANT and bare.keys() != whole.keys():
            try:
                return self._render([*messages[:place], bare, *messages[place + 1 :]])
            except DataError:
                # what tools answer may need their calls before it
                pass
        return self._render([*messages[:place], whole, *messages[place + 1 :]])

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
        return self._template.render(messages, self._chat, add_generation_prompt)


def _shared(one: str, other: str) -> int:
    """Return how many letters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
