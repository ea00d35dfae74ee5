"""What a shell offers where a word is begun; where it is nothing, shells offer files."""

from __future__ import annotations

from pathlib import Path

import typer


def specs(incomplete: str) -> list[str]:
    """Return the specs that a path may become."""
    folder, slash, begun = incomplete.rpartition("/")
    found = (one.name for one in Path(folder or slash or ".").glob("*.lora"))
    return sorted(f"{folder}{slash}{name}" for name in found if name.startswith(begun))


def codes(incomplete: str) -> list[str]:
    """Return the codes of errors that begin so."""
    from lorakit.diagnostics import Code

    return [code for code in Code if code.startswith(incomplete.upper())]


def distributions(incomplete: str) -> list[str]:
    """Return the distributions with plugins that begin so."""
    from lorakit.plugins import default_plugins

    names = ("lorakit", *(name for name, _ in default_plugins().distributions()))
    return [name for name in names if name.startswith(incomplete)]


def commands(context: typer.Context, incomplete: str) -> list[str]:
    """Return the commands that begin so."""
    root = context.find_root()
    return [name for name in root.command.list_commands(root) if name.startswith(incomplete)]  # type: ignore[attr-defined]
