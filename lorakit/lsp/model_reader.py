"""Reads the inventory of a model in a process of its own: `python -m lorakit.lsp.model_reader REFERENCE`.

There the model's imports and its factory's code keep no editor waiting, print into no protocol, and end with it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from lorakit.errors import LorakitError
from lorakit.hooks import ModelReference
from lorakit.lsp.model import Unreadable
from lorakit.planning import codec
from lorakit.planning.reading import read_inventory
from lorakit.plugins import default_plugins

if TYPE_CHECKING:
    from lorakit.planning.inventory import Inventory


def main() -> None:
    """Write the inventory as JSON, or why there is none, to what was standard output."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answer:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        found = _read(sys.argv[1])
        json.dump({type(found).__name__: codec.to_plain(found)}, answer)


def _read(text: str) -> Inventory | Unreadable:
    plugins = default_plugins()
    try:
        return read_inventory(plugins.load_model(ModelReference(text, with_weights=False)), plugins)
    except LorakitError as error:
        return Unreadable(str(error))


if __name__ == "__main__":
    main()
