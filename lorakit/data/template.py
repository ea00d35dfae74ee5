"""A tokenizer's chat template, which is code of the model's makers: what it makes of messages, or why it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorakit.data.examples import Chat, Message
from lorakit.errors import DataError
from lorakit.quoting import cut

# of the private use areas: no text holds them, so that what is rendered differs from its first letter to its last
PROBE = "\ue0f0lorakit\ue0f1"
# as transformers looks for the markers of what the assistant says
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Template:
    """The chat template of one tokenizer. Raises: DataError if there is none, or tokens do not say where they lie."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError("this model has no chat template: give `text`, or `prompt` and `completion`")
        if not getattr(tokenizer, "is_fast", False):
            raise DataError("this tokenizer does not say where its tokens lie: give `prompt` and `completion`")
        self.tokenizer = tokenizer
        words = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._special = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")
        self._parts = self._wants_parts()
        self._knows_tools = False

    def marked(self, chat: Chat) -> bool:
        """Return whether the template itself marks what the assistant says, with `{% generation %}`."""
        return bool(_MARKERS.search(self.tokenizer.get_chat_template(None, list(chat.tools) or None)))

    def special(self, text: str) -> int:
        """Return the length of the special token that a text begins with, 0 if there is none."""
        found = self._special.match(text)
        return found.end() if found else 0

    def messages(self, chat: Chat) -> Sequence[Message]:
        """Return a chat's messages in the form that this template takes.

        Templates differ in whether arguments of tools are objects or JSON, and a missing content is an empty one.
        Raises: DataError in the template's words where it takes none, or if it leaves out tools or their calls.
        """
        complaint: DataError | None = None
        for form in _forms(chat.messages):
            try:
                text = self.render(form, chat)
            except DataError as error:
                complaint = complaint or error
                continue
            if not _printed_as_python(form, text):
                self._check_tools(chat, form, text)
                return form
        raise complaint or DataError(
            "the chat template writes the arguments of tools as Python, and no model reads that"
        )

    def render(self, messages: Sequence[Message], chat: Chat, add_generation_prompt: bool = False) -> str:
        """Return messages as the template writes them, offered the chat's tools. Raises: DataError in its words."""
        return self._write(messages, list(chat.tools) or None, add_generation_prompt)

    def encode(self, messages: Sequence[Message], chat: Chat) -> tuple[list[int], list[bool]]:
        """Return token ids, and of each whether the template's own markers say that it is the assistant's."""
        made = self.tokenizer.apply_chat_template(
            self._formed(messages), tools=list(chat.tools) or None, return_dict=True, return_assistant_tokens_mask=True
        )
        return made["input_ids"], [bool(one) for one in made["assistant_masks"]]

    def _write(self, messages: Sequence[Message], tools: Any = None, add_generation_prompt: bool = False) -> str:
        try:
            written: str = self.tokenizer.apply_chat_template(
                self._formed(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        # whatever is wrong with messages, a template runs into it as code does: TypeError, KeyError and jinja's own
        except Exception as error:
            raise DataError(f"the chat template refuses this: {cut(str(error))}") from error
        return written

    def _formed(self, messages: Sequence[Message]) -> list[Message]:
        if not self._parts:
            return list(messages)
        return [
            {**one, "content": [{"type": "text", "text": one["content"]}]} if "content" in one else one
            for one in messages
        ]

    def _wants_parts(self) -> bool:
        """Return whether a text is lost unless it comes as a list of parts, as models that see images have it."""
        self._parts = False
        try:
            return PROBE not in self._write([{"role": "user", "content": PROBE}])
        except DataError:
            return False

    def _check_tools(self, chat: Chat, messages: Sequence[Message], text: str) -> None:
        if chat.tools and not self._knows_tools:
            if self._write(messages) == text:
                raise DataError("the chat template leaves out the tools that are offered: it knows none")
            self._knows_tools = True
        for number, message in enumerate(messages):
            if message.get("tool_calls"):
                without = {name: value for name, value in message.items() if name != "tool_calls"}
                bare = [*messages[:number], {"content": "", **without}, *messages[number + 1 :]]
                try:
                    left_out = self.render(bare, chat) == text
                except DataError:
                    continue
                if left_out:
                    raise DataError(
                        f"the chat template leaves out the tool calls of message {number + 1} ({message['role']})"
                    )


def _forms(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the forms in which templates may want messages, those that transformers documents first."""
    forms: list[list[Message]] = []
    for argument in (_object, _string):
        called = [_with_arguments(one, argument) for one in messages]
        for form in (called, [one if "content" in one else {**one, "content": ""} for one in called]):
            if form not in forms:
                forms.append(form)
    return forms


def _with_arguments(message: Message, form: Callable[[Any], Any]) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call(call, form) for call in calls]}


def _call(call: Any, form: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], form)}
    return {**call, "arguments": form(call["arguments"])} if "arguments" in call else call


def _object(arguments: Any) -> Any:
    """Return arguments as an object, where they are one written as JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _string(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _printed_as_python(messages: Sequence[Message], text: str) -> bool:
    """Return whether a text holds the arguments of a tool as Python shows them, with quotes that JSON has not."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, Mapping) else {}
            arguments = function.get("arguments") if isinstance(function, Mapping) else None
            if isinstance(arguments, dict) and arguments and "'" in str(arguments) and str(arguments) in text:
                return True
    return False
