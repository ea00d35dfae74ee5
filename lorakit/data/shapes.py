"""The forms that records come in: which columns tell one, and what is learned from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lorakit.data.examples import Chat, Completion, Example, LeftOut, Text
from lorakit.data.messages import ASSISTANT, read_messages, read_tools
from lorakit.data.rows import Row
from lorakit.errors import DataError
from lorakit.language.suggestions import listed, nearest
from lorakit.quoting import named, shown

# Stanford Alpaca's words, for a model that knows no chats
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
)

# the names that lorakit knows, each with the column that holds it
Columns: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fields:
    """A record under the names that lorakit knows, whatever its columns are called."""

    place: str
    values: Mapping[str, Any]
    columns: Columns

    def column(self, name: str) -> str:
        """Return what the column is called in the file."""
        return self.columns.get(name, name)

    def text(self, name: str) -> str:
        """Return a text, empty where there is none. Raises: DataError where something else stands."""
        value = self.values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{self.place}: `{self.column(name)}` is {shown(value)}, where text belongs")
        return value


@dataclass(frozen=True, slots=True)
class Shape:
    """A form of records: the columns that it has and may have, and what an example of it is."""

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    example: Callable[[Fields], Example | LeftOut]


def _text(fields: Fields) -> Example:
    return Text(fields.place, fields.text("text"))


def _completion(fields: Fields) -> Example | LeftOut:
    values = fields.values
    if isinstance(values["prompt"], str) and isinstance(values["completion"], str):
        return Completion(fields.place, values["prompt"], values["completion"])
    before, _ = read_messages(values["prompt"], fields.place, fields.column("prompt"))
    after, learned = read_messages(values["completion"], fields.place, fields.column("completion"))
    tools = read_tools(values.get("tools"), fields.place)
    made = _chat(fields, (*before, *after), (*(False,) * len(before), *learned), tools)
    return replace(made, prompt=len(before)) if isinstance(made, Chat) else made


def _messages(name: str) -> Callable[[Fields], Example | LeftOut]:
    def example(fields: Fields) -> Example | LeftOut:
        messages, learned = read_messages(fields.values[name], fields.place, fields.column(name))
        tools = read_tools(fields.values.get("tools"), fields.place)
        system = fields.text("system")
        if system and not (messages and messages[0]["role"] == "system"):
            messages, learned = ({"role": "system", "content": system}, *messages), (False, *learned)
        return _chat(fields, messages, learned, tools)

    return example


def _chat(fields: Fields, messages: Any, learned: tuple[bool, ...], tools: Any) -> Example | LeftOut:
    if not any(message["role"] == ASSISTANT for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        return LeftOut(fields.place, f"without a turn of the assistant (roles: {roles})")
    if not any(learned):
        return LeftOut(fields.place, "with no turn of the assistant that is learned")
    return Chat(fields.place, messages, learned, tools)


def _alpaca(fields: Fields) -> Example:
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


# the first whose columns a record has is its form
SHAPES = (
    Shape("chats", ("messages",), ("tools", "system"), _messages("messages")),
    Shape("ShareGPT chats", ("conversations",), ("tools", "system"), _messages("conversations")),
    Shape("prompts with completions", ("prompt", "completion"), ("tools",), _completion),
    Shape("instructions with outputs", ("instruction", "output"), ("input", "system"), _alpaca),
    Shape("texts", ("text",), (), _text),
)
NAMES = tuple(dict.fromkeys(name for shape in SHAPES for name in (*shape.needs, *shape.may)))
FORMS = ", ".join(" + ".join(f"`{name}`" for name in shape.needs) for shape in SHAPES)


def read_columns(text: str) -> Columns:
    """Return what `--columns prompt=question,completion=answer` says. Raises: DataError."""
    columns: dict[str, str] = {}
    for word in text.split(","):
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals or not column:
            raise DataError(f"--columns {text}: write NAME=COLUMN, such as prompt=question,completion=answer")
        if name not in NAMES:
            known = listed(NAMES, "and")
            raise DataError(f"--columns: lorakit knows no name {named(name)}{_meant(name, NAMES)}; it knows {known}")
        columns[name] = column
    if not any(set(shape.needs) <= columns.keys() for shape in SHAPES):
        raise DataError(f"--columns {text} names no whole record; one is {FORMS}")
    return columns


def shape_of(row: Row, columns: Columns) -> Shape:
    """Return the form of a record: of what the columns name alone, where they are given. Raises: DataError."""
    names = columns.keys() if columns else row.values.keys()
    fitting = [shape for shape in SHAPES if names >= set(shape.needs)]
    if not fitting:
        raise DataError(
            f"{row.place}: a record is {FORMS}; this one has {_names(row)}; say which column is what, such as "
            "--columns prompt=question,completion=answer"
        )
    for name in fitting[0].needs:
        column = columns.get(name, name)
        if column not in row.values:
            meant = _meant(column, row.values)
            raise DataError(f"{row.place}: no column {named(column)}{meant}; it has {_names(row)}")
    # what holds nothing tells no form while another does
    filled = (shape for shape in fitting if all(row.values.get(columns.get(name, name)) for name in shape.needs))
    return next(filled, fitting[0])


def example_of(row: Row, shape: Shape, columns: Columns) -> Example | LeftOut:
    """Return what is learned from a record of this form. Raises: DataError naming its place."""
    values = {}
    for name in (*shape.needs, *shape.may):
        column = columns.get(name, name)
        if column in row.values:
            values[name] = row.values[column]
    for name in shape.needs:
        # a prompt may be empty: a text then begins with what is learned
        if name != "prompt" and not values[name]:
            return LeftOut(row.place, f"with nothing in `{columns.get(name, name)}`")
    return shape.example(Fields(row.place, values, columns))


def _meant(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f", did you mean {named(near)}?" if near else ""


def _names(row: Row) -> str:
    return ", ".join(named(name) for name in row.values) or "nothing"
