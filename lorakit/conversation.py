"""A conversation with a model: with its adapter, without it, or both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import AdapterError, DataError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from lorakit.data.examples import Message

CONFIG = "adapter_config.json"
BASE, ADAPTED = "base", "adapted"


@dataclass(frozen=True, slots=True)
class Places:
    """An adapter folder, or none, and the model that it goes on; with `compare` both answer."""

    adapter: str | None
    model: str
    compare: bool = False

    @classmethod
    def of(cls, places: Sequence[str], compare: bool) -> Places:
        """Return the places of a command line: [ADAPTER] MODEL. Raises: DataError for anything else."""
        if len(places) not in (1, 2):
            raise DataError(f"chat takes a model, or an adapter and a model; these are {len(places)}")
        folders = [(Path(place) / CONFIG).is_file() for place in places]
        if folders == [True]:
            raise DataError(f"{places[0]} is an adapter; name its base model too: lorakit chat {places[0]} MODEL")
        if folders == [False, True]:
            raise DataError(f"{places[1]} is the adapter: lorakit chat {places[1]} {places[0]}")
        if folders == [False, False]:
            what = "holds no adapter_config.json" if Path(places[0]).exists() else "is not there"
            raise AdapterError(f"{places[0]} is no adapter folder: it {what}")
        if compare and len(places) == 1:
            raise DataError(f"--compare takes an adapter and its model: lorakit chat ADAPTER {places[0]} --compare")
        if ":" in places[-1] and not Path(places[-1]).exists():
            raise ModelError(f"{places[-1]} names code, and chat takes a Hugging Face language model")
        return cls(places[0] if len(places) == 2 else None, places[-1], compare)


@dataclass(slots=True)
class Side:
    """One who answers, with what was said so far."""

    name: str
    messages: list[Message] = field(default_factory=list)


class Conversation:
    """Messages to a model and its answers; each side remembers its own."""

    def __init__(self, model: nn.Module, tokenizer: Any, places: Places, **settings: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._places = places
        self._settings = settings
        adapted = [ADAPTED] if places.adapter else []
        self.sides = tuple(Side(name) for name in ([BASE] if places.compare or not adapted else []) + adapted)

    @property
    def description(self) -> str:
        """Who is talked to."""
        from lorakit.trainers.answering import knows_chats

        how = "" if knows_chats(self._tokenizer) else ", which has no chat template: it continues what you write"
        return (
            f"{self._places.adapter} on {self._places.model}{how}"
            if self._places.adapter
            else f"{self._places.model}{how}"
        )

    def reset(self) -> None:
        """Forget what was said."""
        for side in self.sides:
            side.messages.clear()

    def ask(self, prompt: str, heard: Callable[[str, str], None] | None = None) -> dict[str, str]:
        """Return the answer of every side by its name; `heard` is given side and words as they come.

        What is broken off is as if it were never asked. Raises: DataError where a conversation grows too long.
        """
        from lorakit.named_adapters import Adapters
        from lorakit.trainers.answering import answer

        answers: dict[str, str] = {}
        for side in self.sides:

            def words(text: str, name: str = side.name) -> None:
                if heard is not None:
                    heard(name, text)

            asked = [*side.messages, {"role": "user", "content": prompt}]
            if side.name == BASE and self._places.adapter:
                with Adapters(self._model).disabled():
                    answers[side.name] = answer(self._model, self._tokenizer, asked, heard=words, **self._settings)
            else:
                answers[side.name] = answer(self._model, self._tokenizer, asked, heard=words, **self._settings)
        for side in self.sides:
            side.messages += [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answers[side.name]},
            ]
        return answers


def read_conversation(
    places: Places,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Conversation:
    """Return a conversation with the model and the adapter of these places. Raises: ModelError, AdapterError."""
    from lorakit.api import load
    from lorakit.data.language_model import check_causal, read_tokenizer
    from lorakit.pipeline import accelerator, read_model, read_structure
    from lorakit.plugins import default_plugins
    from lorakit.values import ModelReference

    reference = ModelReference(places.model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    plugins = default_plugins()
    check_causal(read_structure(reference, plugins), "chat")
    # an adapter that was trained here brings the tokenizer, with a chat template that it may have learned
    own = places.adapter is not None and (Path(places.adapter) / "tokenizer_config.json").is_file()
    tokenizer = read_tokenizer(str(places.adapter) if own else places.model, trust_remote_code)
    if places.adapter is None:
        model = read_model(reference, plugins)
    else:
        model = load(
            places.adapter,
            places.model,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            plugins=plugins,
        )
    device = accelerator()
    if device is not None:
        model.to(device)
    return Conversation(model, tokenizer, places, max_tokens=max_tokens, temperature=temperature, seed=seed)
