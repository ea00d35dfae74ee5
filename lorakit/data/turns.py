"""What the assistant says in a chat, found in the whole rendering.

A rendering that stops after some turns need not begin the whole one: many templates write the last answer otherwise. So
nothing is cut by lengths: each message is changed, and what moves with it is its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorakit.data.examples import Chat, Message
from lorakit.data.messages import ASSISTANT
from lorakit.data.template import PROBE, Template
from lorakit.errors import DataError

Span = tuple[int, int]


def encode_chat(chat: Chat, template: Template) -> tuple[list[int], list[bool]]:
    """Return a chat's token ids, and of each whether it is learned: what the assistant says and the end of its turn.

    Where the template marks that itself, its markers decide; turns of weight 0 are not learned.
    Raises: DataError if the tokenizer or its template does not tell where the turns are.
    """
    messages = template.messages(chat)
    spoken = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
    if template.marked(chat):
        ids, marked = template.encode(messages, chat)
        silent = [place for place in spoken if not chat.learned[place]]
        if not silent:
            return ids, marked
        _, unlearned = _found(_Turns(messages, chat, template), silent)
        return ids, [one and not other for one, other in zip(marked, unlearned, strict=True)]
    return _found(_Turns(messages, chat, template), [place for place in spoken if chat.learned[place]])


def _found(turns: _Turns, wanted: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Return the token ids of a chat, and of each whether it lies in one of these turns."""
    spans = turns.spans()
    said = [spans[place] for place in wanted]
    found = turns.template.tokenizer(turns.text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [
        any(start < last and max(end, start + 1) > first for first, last in said)
        for start, end in found["offset_mapping"]
    ]
    return found["input_ids"], inside


class _Turns:
    """One chat, rendered."""

    def __init__(self, messages: Sequence[Message], chat: Chat, template: Template) -> None:
        self._messages, self._chat, self.template = messages, chat, template
        self.text = self._render(messages)

    def spans(self) -> dict[int, Span]:
        """Return where the assistant's turns begin, behind the header that prompts for them, and where they end."""
        answers = [place for place, message in enumerate(self._messages) if message["role"] == ASSISTANT]
        header, ending = self._header(answers), self._ending(answers[-1])
        places = list(self._places())
        spans = {}
        for answer in answers:
            start, end = places[answer]
            before = places[answer - 1][1] if answer else 0
            prompt = self.text.rfind(header, before, start) if header else -1
            after = places[answer + 1][0] if answer + 1 < len(places) else len(self.text)
            ended = _shared(ending, self.text[end:after])
            spans[answer] = (start if prompt < 0 else prompt + len(header)), end + ended
        return spans

    def _places(self) -> Iterator[Span]:
        """Yield where each message stands, in their order."""
        last = 0
        for place, message in enumerate(self._messages):
            start, end = self._place(self._messages, place, self.text)
            if start == end == len(self.text) and message.get("content"):
                raise DataError(f"the chat template leaves out what message {place + 1} ({message['role']}) says")
            if start < last:
                raise DataError(
                    f"the chat template writes message {place + 1} ({message['role']}) into those before it: which "
                    "tokens to learn cannot be told; give `prompt` and `completion`"
                )
            yield start, end
            last = end

    def _place(self, messages: Sequence[Message], place: int, text: str) -> Span:
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
        return self.template.render(messages, self._chat, add_generation_prompt)


def _shared(one: str, other: str) -> int:
    """Return how many letters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
