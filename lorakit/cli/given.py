"""What was given in each place of a command line, told before anything heavy is imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import permutations
from pathlib import Path

from lorakit.errors import AdapterError, LorakitError, ModelError


def _is_spec(text: str) -> bool:
    return text == "-" or (text.endswith((".lora", ".json")) and not Path(text).is_dir())


def _is_adapter(text: str) -> bool:
    return (Path(text) / "adapter_config.json").is_file()


def _is_model(text: str) -> bool:
    return ((Path(text) / "config.json").is_file() and not _is_adapter(text)) or ".py:" in text


# what stands in the place of each name that help gives an argument
SPEC, MODEL, ADAPTER = "spec", "model", "adapter"
PLACES = {"SPEC": SPEC, "A": SPEC, "B": SPEC, "MODEL": MODEL, "ADAPTER": ADAPTER}
KINDS: Mapping[str, Callable[[str], bool]] = {SPEC: _is_spec, MODEL: _is_model, ADAPTER: _is_adapter}


def check_given(given: Mapping[str, object]) -> None:
    """Look at a command's arguments by the names that its help gives them; of other names nothing is known.

    Raises: LorakitError for two that are swapped, ModelError and AdapterError for what is not there.
    """
    # an argument that may be left out, and was, is an empty text
    known = [(PLACES[name], text) for name, text in given.items() if name in PLACES and isinstance(text, str) and text]
    wanted, texts = [kind for kind, _ in known], [text for _, text in known]
    try:
        found = [_kind(text, kind) for kind, text in known]
    except (OSError, ValueError):
        # a name that is too long, a folder that may not be looked into: reading it says so
        return
    if found != wanted and sorted(found) == sorted(wanted):
        right = next(order for order in permutations(range(len(found))) if [found[at] for at in order] == wanted)
        raise LorakitError(
            f"`{texts[0]}` is {_with_article(found[0])}, and {_with_article(wanted[0])} comes first; write\n"
            f"  {_command(texts, [texts[at] for at in right])}"
        )
    for kind, text in known:
        if kind == MODEL:
            check_model(text)
        elif kind == ADAPTER:
            check_adapter(text)


def check_model(text: str) -> None:
    """Raise ModelError for a model that is not there, as far as names tell."""
    from lorakit.huggingface.models import check_reference
    from lorakit.values import ModelReference

    reference = ModelReference(text, with_weights=False)
    if not reference.is_factory:
        check_reference(reference)
    elif (file := text.rpartition(":")[0]).endswith(".py") and not Path(file).is_file():
        raise ModelError(f"no such file: {file}")


def check_adapter(text: str) -> None:
    """Raise AdapterError for an adapter folder that is not there."""
    if not Path(text).is_dir():
        raise AdapterError(f"no such adapter folder: {text}")
    if _is_model(text):
        raise AdapterError(f"`{text}` is a model; an adapter stands here, a folder that `lorakit train` or PEFT wrote")


def _kind(text: str, wanted: str) -> str:
    """Return what a text names: what is wanted, unless it is plainly another thing."""
    if KINDS[wanted](text):
        return wanted
    return next((kind for kind, fits in KINDS.items() if fits(text)), wanted)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _command(texts: Iterable[str], right: Iterable[str]) -> str:
    """Return the command that was given with these arguments in the right order."""
    words, moved = ["lorakit", *sys.argv[1:]], dict(zip(texts, right, strict=True))
    return shlex.join(moved.get(word, word) for word in words)
