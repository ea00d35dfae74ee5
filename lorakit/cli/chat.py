"""`lorakit chat`: ask a model, with an adapter, without, or both side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from lorakit.cli import options
from lorakit.cli.help import command

if TYPE_CHECKING:
    from lorakit.conversation import Conversation

RESET, MARK = "/reset", "> "


@command("chat")
@click.argument(
    "places",
    metavar="[ADAPTER] MODEL",
    nargs=-1,
    required=True,
    type=options.ANY_PATH,
    help="An adapter folder, lorakit's or PEFT's, and its base model; or a model alone.",
)
@click.option("--prompt", metavar="TEXT", help="Answer this one and leave.")
@click.option("--compare", is_flag=True, help="Answer with the base model and with the adapter, side by side.")
@click.option("--max-tokens", type=options.FROM_ONE, default=256, help="Tokens of an answer at most.")
@click.option(
    "--temperature",
    type=options.NOT_NEGATIVE,
    default=0.0,
    help="0 takes the likeliest token; higher draws more freely.",
)
@click.option("--seed", type=options.FROM_ZERO, default=0, help="The seed of each draw.")
@options.trust_remote_code
@options.allow_pickle
def chat(
    places: tuple[str, ...],
    prompt: str | None,
    compare: bool,
    max_tokens: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Talk to a language model, with an adapter on it or without.

    Messages go through the model's chat template; a model without one continues each of them as a text. Lines of a pipe
    are messages too. /reset forgets the conversation, Ctrl-C ends an answer, Ctrl-D or Ctrl-C at the prompt the chat.
    With --compare each side remembers its own answers.

    Example: lorakit chat adapter ./SmolLM2-135M --compare --prompt "Who are you?"
    """
    from lorakit.cli.terminal import say, working
    from lorakit.conversation import Places, read_conversation
    from lorakit.errors import DataError

    found = Places.of(places, compare)
    with working(f"reading {found.model}"):
        talk = read_conversation(
            found,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    if prompt is not None:
        _answer(talk, prompt, compare)
        return
    if sys.stdin.isatty():
        say(f"{talk.description}; {RESET} forgets, Ctrl-D ends")
    for line in _lines():
        if line == RESET:
            talk.reset()
            continue
        try:
            _answer(talk, line, compare)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except DataError as error:
            say(f"{error}; {RESET} forgets the conversation")


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in, without lines that are blank, until the end or Ctrl-C."""
    if sys.stdin.isatty():
        # arrows and earlier lines, where the system has them
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = input(MARK if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                sys.stdout.write("\n")
            return
        if line:
            yield line


def _answer(talk: Conversation, prompt: str, compare: bool) -> None:
    if compare:
        _side_by_side(talk, prompt)
        return

    def heard(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    talk.ask(prompt, lambda side, text: heard(text))
    sys.stdout.write("\n")


def _side_by_side(talk: Conversation, prompt: str) -> None:
    """Show both answers in columns, word by word on a terminal."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from lorakit.cli.terminal import console, show

    said = {side.name: "" for side in talk.sides}

    def table() -> Table:
        made = Table(box=None, expand=True, padding=(0, 2, 0, 0))
        for name in said:
            made.add_column(name, ratio=1, overflow="fold")
        made.add_row(*(Text(text.strip()) for text in said.values()))
        return made

    terminal = console()
    if not terminal.is_terminal:
        said |= talk.ask(prompt)
        show(table())
        return
    with Live(table(), console=terminal, vertical_overflow="visible") as live:

        def heard(side: str, text: str) -> None:
            said[side] += text
            live.update(table())

        talk.ask(prompt, heard)
