"""`lorakit fmt`: specs in their canonical form."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command


@command("fmt")
@click.argument(
    "specs",
    metavar="SPEC",
    nargs=-1,
    required=True,
    shell_complete=complete.specs,
    help="Spec files; `-` reads standard input, writes to output.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 where a file would change.")
@click.option("--diff", is_flag=True, help="Change nothing; print what would change.")
@options.quiet
def fmt(specs: tuple[str, ...], check: bool, diff: bool) -> None:
    """Write specs in their one canonical form, comments kept in place; what they mean never changes.

    Exits 0 when done, 1 where --check or --diff finds a file that would change, and 2 where a spec cannot be read.

    Example: lorakit fmt --check qlora.lora
    """
    from lorakit.errors import SpecError

    outcomes = []
    for spec in specs:
        try:
            outcomes.append(_format(spec, check=check, diff=diff))
        except SpecError as error:
            sys.stderr.write(f"{error}\n")
            outcomes.append(2)
    if any(outcomes):
        raise SystemExit(max(outcomes))


def _format(spec: str, *, check: bool, diff: bool) -> int:
    """Format one spec and return its exit code. Raises: SpecError."""
    from lorakit.cli.terminal import say
    from lorakit.language.files import decoded, read_spec
    from lorakit.language.format import format_text

    name = "<stdin>" if spec == "-" else spec
    data = sys.stdin.buffer.read() if spec == "-" else read_spec(Path(spec))
    before = decoded(data, name)
    after = format_text(before, name)
    changes = after.encode() != data
    if diff:
        import difflib

        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (formatted)")
        sys.stdout.writelines(lines)
    elif check:
        if changes:
            say(f"{name} would change")
    elif spec == "-":
        # a file through a pipe: its encoding is that of every spec
        sys.stdout.buffer.write(after.encode())
    elif changes:
        _replace(Path(os.path.realpath(spec)), after)
        say(f"{name} changed")
    return int((check or diff) and changes)


def _replace(path: Path, text: str) -> None:
    """Put a text in the place of a file in one step, with its permissions. Raises: OutputError, WriteError."""
    from lorakit.artifacts.folders import new_file

    with new_file(path) as aside:
        aside.write_bytes(text.encode())
        aside.chmod(path.stat().st_mode & 0o7777)
