"""Messages of chats as files hold them, in OpenAI's words or ShareGPT's, made what chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.data.examples import Chat, LeftOut, Message
from lorakit.errors import DataError
from lorakit.quoting import shown

ASSISTANT = "assistant"
# other words for roles that templates know
ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
# a turn of the assistant that calls tools, in JSON
CALL = "function_call"
# what ShareGPT calls a role and what it says
ROLE, CONTENT = ("role", "from"), ("content", "value")


def read_messages(value: Any, place: str, column: str) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    """Return messages, and of each whether it is learned: the assistant's are, but for those of weight 0.

    Raises: DataError naming the message that does not fit.
    """
    found = read_list(value, place, column)
    messages, learned = [], []
    for number, one in enumerate(found, 1):
        where = f"{place}: message {number} of `{column}`"
        if isinstance(one, str):
            one = _decoded(one, where)
        if not isinstance(one, Mapping):
            raise DataError(f"{where} is {shown(one)}, and no object with `role` and `content`")
        message = _message(one, where)
        weight = one.get("weight")
        if weight not in (None, 0, 1):
            raise DataError(f"{where} has the weight {shown(weight)}: 0 leaves it unlearned, 1 or none learns it")
        messages.append(message)
        learned.append(message["role"] == ASSISTANT and weight != 0)
    return tuple(messages), tuple(learned)


def chat_of(
    place: str, messages: Sequence[Message], learned: Sequence[bool], tools: Sequence[Mapping[str, Any]] = ()
) -> Chat | LeftOut:
    """Return a chat, `learned` saying of each message whether it is; left out where none of the assistant's is."""
    if not any(message["role"] == ASSISTANT for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        return LeftOut(place, f"without a turn of the assistant (roles: {roles})")
    if not any(learned):
        return LeftOut(place, "with no turn of the assistant that is learned")
    return Chat(place, tuple(messages), tuple(learned), tuple(tools))


def read_list(value: Any, place: str, column: str) -> Sequence[Any]:
    """Return a list, or the list that a string holds as JSON, as tables must. Raises: DataError."""
    found = _decoded(value, f"{place}: `{column}`") if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise DataError(f"{place}: `{column}` is {shown(value)}, where a list belongs")
    return found


def read_tools(value: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools that a record offers. Raises: DataError."""
    tools = [_decoded(one, f"{place}: `tools`") if isinstance(one, str) else one for one in _tools(value, place)]
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise DataError(f"{place}: `tools` holds {shown(tool)}, where the object of a tool belongs")
    return tuple(tools)


def _tools(value: Any, place: str) -> Sequence[Any]:
    return read_list(value, place, "tools") if value else ()


def _message(one: Mapping[str, Any], where: str) -> Message:
    role = next((one[name] for name in ROLE if one.get(name)), None)
    if not isinstance(role, str):
        raise DataError(f"{where} has no `role`; it has {', '.join(map(repr, one)) or 'nothing'}")
    content = next((one[name] for name in CONTENT if one.get(name) is not None), None)
    # templates ask whether a name is there: one without a value is not
    rest = {name: value for name, value in one.items() if value is not None and name not in (*ROLE, *CONTENT, "weight")}
    if role == CALL and isinstance(content, str):
        calls = _decoded(content, where)
        functions = calls if isinstance(calls, list) else [calls]
        return {"role": ASSISTANT, "tool_calls": [{"type": "function", "function": one} for one in functions]}
    if content is None and not rest:
        raise DataError(f"{where} ({role}) has no `content`, and nothing in its place")
    message = {"role": ROLES.get(role, role), **rest}
    return message if content is None else {**message, "content": _content(content, where)}


def _content(content: Any, where: str) -> str:
    """Return what a message says; parts of text are one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where} says {shown(content)}, where text or a list of parts belongs")
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"{where} holds a part of the type {shown(kind)}: `lorakit train` reads text alone")
    return "".join(part["text"] for part in content)


def _decoded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is {shown(text)}, which is no JSON: {error}") from error
