"""What a shell offers where a word is begun; where that is nothing, it offers files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from click import Context, Parameter
    from click.shell_completion import CompletionItem


def specs(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Return the specs that a path may become."""
    from click.shell_completion import CompletionItem

    folder, slash, begun = incomplete.rpartition("/")
    found = _begun((one.name for one in Path(folder or slash or ".").glob("*.lora")), begun)
    return [CompletionItem(f"{folder}{slash}{name}") for name in sorted(found)] or [
        CompletionItem(incomplete, type="file")
    ]


def codes(context: Context, parameter: Parameter, incomplete: str) -> list[str]:
    """Return the codes of errors that begin so."""
    from lorakit.diagnostics import Code

    return _begun(Code, incomplete.upper())


def distributions(context: Context, parameter: Parameter, incomplete: str) -> list[str]:
    """Return the distributions with plugins that begin so."""
    from lorakit.plugins import default_plugins

    return _begun(("lorakit", *(name for name, _ in default_plugins().distributions())), incomplete)


def commands(context: Context, parameter: Parameter, incomplete: str) -> list[str]:
    """Return the commands that begin so."""
    root = context.find_root()
    return _begun(root.command.list_commands(root), incomplete)  # type: ignore[attr-defined]


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
