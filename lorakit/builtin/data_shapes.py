"""Registers the shapes that records come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lorakit.data.examples import Chat, Completion, Example, LeftOut, Text
from lorakit.data.fields import Fields
from lorakit.data.messages import ASSISTANT, chat_of, read_messages, read_tools
from lorakit.hooks.specs import hookimpl

# Stanford Alpaca's words, for a model that knows no chats
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class Shape:
    """A shape and what makes an example of its records."""

    name: str
    summary: str
    make: Callable[[Fields], Example | LeftOut]
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()

    def example(self, fields: Fields) -> Example | LeftOut:
        """Return what is learned from a record, or why nothing is."""
        return self.make(fields)


def text(fields: Fields) -> Example:
    """All of a text is learned."""
    return Text(fields.place, fields.text("text"))


def alpaca(fields: Fields) -> Example:
    """The output is learned, as a chat; in Alpaca's own words where a model knows no chats."""
    instruction, given, output = (fields.text(name) for name in ("instruction", "input", "output"))
    messages = [{"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}]
    if system := fields.text("system"):
        messages.insert(0, {"role": "system", "content": system})
    paired = ", paired with an input that provides further context" if given else ""
    parts = [ALPACA.format(paired=paired), f"### Instruction:\n{instruction}"]
    parts += [f"### Input:\n{given}"] if given else []
    plain = Completion(fields.place, "\n\n".join([*parts, "### Response:\n"]), output)
    messages.append({"role": ASSISTANT, "content": output})
    return Chat(fields.place, tuple(messages), (*(False,) * (len(messages) - 1), True), plain=plain)


def completion(fields: Fields) -> Example | LeftOut:
    """The completion is learned; both are texts, or both lists of messages."""
    values = fields.values
    if isinstance(values["prompt"], str) and isinstance(values["completion"], str):
        return Completion(fields.place, values["prompt"], values["completion"])
    before, _ = read_messages(values["prompt"], fields.place, fields.column("prompt"))
    after, learned = read_messages(values["completion"], fields.place, fields.column("completion"))
    tools = read_tools(values.get("tools"), fields.place)
    made = chat_of(fields.place, (*before, *after), (*(False,) * len(before), *learned), tools)
    return replace(made, prompt=len(before)) if isinstance(made, Chat) else made


def conversations(fields: Fields) -> Example | LeftOut:
    """What the assistant says is learned, in ShareGPT's words."""
    return _chat(fields, "conversations")


def messages(fields: Fields) -> Example | LeftOut:
    """What the assistant says and the ends of its turns are learned."""
    return _chat(fields, "messages")


def _chat(fields: Fields, name: str) -> Example | LeftOut:
    found, learned = read_messages(fields.values[name], fields.place, fields.column(name))
    tools = read_tools(fields.values.get("tools"), fields.place)
    system = fields.text("system")
    if system and not (found and found[0]["role"] == "system"):
        found, learned = ({"role": "system", "content": system}, *found), (False, *learned)
    return chat_of(fields.place, found, learned, tools)


def _shape(
    name: str, make: Callable[[Fields], Example | LeftOut], needs: tuple[str, ...], may: tuple[str, ...] = ()
) -> Shape:
    return Shape(name, make.__doc__ or "", make, needs, may)


@hookimpl
def lorakit_data_shapes() -> list[Shape]:
    # a record that has the columns of several is of the last one
    return [
        _shape("texts", text, ("text",)),
        _shape("instructions with outputs", alpaca, ("instruction", "output"), ("input", "system")),
        _shape("prompts with completions", completion, ("prompt", "completion"), ("tools",)),
        _shape("ShareGPT chats", conversations, ("conversations",), ("tools", "system")),
        _shape("chats", messages, ("messages",), ("tools", "system")),
    ]
