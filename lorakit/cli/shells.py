"""How a shell comes to complete `lorakit`: the script that it reads, printed or put where it looks."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import NamedTuple

import click


class Place(NamedTuple):
    """Where a shell's script lies in the home folder, and which line of which file has it read."""

    script: str
    startup: str = ""
    line: str = ""


PLACES = {
    "bash": Place(".bash_completions/lorakit.sh", ".bashrc", "source ~/.bash_completions/lorakit.sh"),
    "zsh": Place(".zfunc/_lorakit", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": Place(".config/fish/completions/lorakit.fish"),
}
# PowerShell reads a profile, which is wherever $PROFILE says
ELSEWHERE = ("powershell",)


def options(function: click.decorators.FC) -> click.decorators.FC:
    """Add --install-completion and --show-completion, which take a shell, or that of $SHELL."""
    for name, callback, meaning in (
        ("--show-completion", _show, "Print the script that makes a shell complete commands."),
        ("--install-completion", _install, "Have a shell complete commands: that of $SHELL, unless named."),
    ):
        function = click.option(
            name, is_flag=False, flag_value="", expose_value=False, is_eager=True, callback=callback, metavar="[SHELL]",
            help=meaning,
        )(function)  # fmt: skip
    return function


def script(shell: str, root: click.Command) -> str:
    """Return what a shell reads to complete `lorakit`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(root, {}, "lorakit", "_LORAKIT_COMPLETE").source()


def _show(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    if shell is not None and not context.resilient_parsing:
        click.echo(script(_known(shell, (*PLACES, *ELSEWHERE)), context.command), nl=False)
        context.exit()


def _install(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    if shell is None or context.resilient_parsing:
        return
    known = _known(shell, tuple(PLACES))
    place = PLACES[known]
    target = Path.home() / place.script
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(script(known, context.command), encoding="utf-8")
    if place.startup:
        _add_line(Path.home() / place.startup, place.line)
    click.echo(f"{target}: a new {known} completes what follows lorakit")
    context.exit()


def _known(shell: str, known: tuple[str, ...]) -> str:
    """Return the shell that is named, or that of the user. Raises: BadParameter."""
    name = shell or PurePath(os.environ.get("SHELL", "")).name
    if name not in known:
        said = f"`{name}` is none that it knows" if name else "$SHELL names none"
        raise click.BadParameter(f"{said}; write one of {', '.join(known)}")
    return name


def _add_line(file: Path, line: str) -> None:
    """Write a line at the end of a file that may not be there, unless it holds it."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if line not in before.splitlines():
        with file.open("a", encoding="utf-8") as end:
            end.write(line + "\n" if not before or before.endswith("\n") else f"\n{line}\n")
