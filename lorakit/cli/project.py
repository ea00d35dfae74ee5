"""Defaults of options from a project's `pyproject.toml`: `[tool.lorakit.train]` holds those of `lorakit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE = "pyproject.toml"
# what makes a file worth reading as TOML
TABLE = b"tool.lorakit"
# what runs code of others, or takes away what stands there, is asked for each time
ASKED = frozenset({"allow-pickle", "force", "loss", "trust-remote-code"})


def defaults(command: click.Command, name: str, folder: Path) -> dict[str, Any]:
    """Return what the nearest `pyproject.toml` above a folder says of a command's options, by parameter.

    Raises: click.UsageError for a file that is no TOML, an option that there is not, or one that no file may give.
    """
    path = next((one / FILE for one in (folder, *folder.parents) if (one / FILE).is_file()), None)
    if path is None or TABLE not in (content := path.read_bytes()):
        return {}
    import tomllib

    try:
        tables = tomllib.loads(content.decode()).get("tool", {}).get("lorakit", {})
    except ValueError as error:
        raise click.UsageError(f"{path} is no TOML: {error}") from error
    given = tables.get(name, {}) if isinstance(tables, dict) else {}
    if not isinstance(given, dict):
        raise click.UsageError(f"{path}: `tool.lorakit.{name}` is no table: write [tool.lorakit.{name}]")
    options = [one for one in command.params if isinstance(one, click.Option) and one.expose_value]
    known = {word.removeprefix("--"): one.name for one in options for word in one.opts if word.startswith("--")}
    found: dict[str, Any] = {}
    for key, value in given.items():
        option = key.replace("_", "-")
        if option not in known:
            raise click.UsageError(f"{path}: [tool.lorakit.{name}] gives `{key}`: `lorakit {name}` has no such option")
        if option in ASKED:
            raise click.UsageError(f"{path}: [tool.lorakit.{name}] gives `{key}`, which is for the command line alone")
        found[known[option]] = value
    return found
