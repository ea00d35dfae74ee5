"""`lorakit plugins test`: everything that a distribution adds, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lorakit.hooks.manager import Plugins
    from lorakit.planning.sheet import Sheet
    from lorakit.testing import Check

Outcome = tuple["Check", str]


@command("test")
@click.argument(
    "distribution",
    metavar="DIST",
    shell_complete=complete.distributions,
    help="An installed distribution; `lorakit` is the built-ins.",
)
@options.quiet
def test(distribution: str) -> None:
    """Run the checks that every plugin must pass on all that a distribution adds, and print a table of them.

    Exits 0 where all pass, 1 where one fails, and 2 for a distribution that is not installed.

    Example: lorakit plugins test lorakit-mine
    """
    from lorakit.cli.terminal import BAD_INPUT, WORK_FAILED, fail, say, show, tracked
    from lorakit.plugins import default_plugins

    plugins = default_plugins()
    failure = plugins.failure_of(distribution)
    if failure is not None:
        fail(str(failure), WORK_FAILED)
    origins = _origins(plugins, distribution)
    if not origins:
        installed = ", ".join(("lorakit", *(name for name, _ in plugins.distributions())))
        off = " (it is switched off)" if plugins.is_switched_off(distribution) else ""
        fail(f"no plugin of a distribution `{distribution}` is loaded{off}; there are: {installed}", BAD_INPUT)
    from lorakit.testing.causes import Failure, causes
    from lorakit.testing.distribution import checks_of_distribution

    suites = checks_of_distribution(plugins, origins)
    if not suites:
        say(f"{distribution} adds no name to specs: its hooks are called at moments of a run, and nothing checks those")
        return
    every = [(title, check) for title, checks in suites.items() for check in checks]
    outcomes: dict[str, list[Outcome]] = {title: [] for title in suites}
    for title, check in tracked(every, f"checking {distribution}"):
        outcomes[title].append((check, _failure(check)))
    show(_table(outcomes))
    failed = [Failure(title, check, reason) for title, ran in outcomes.items() for check, reason in ran if reason]
    for text in causes(failed):
        say(text)
    say(f"{len(every) - len(failed)} of {len(every)} checks passed")
    if failed:
        raise SystemExit(WORK_FAILED)


def _origins(plugins: Plugins, distribution: str) -> tuple[str, ...]:
    from lorakit.hooks.manager import normal_name

    wanted = normal_name(distribution)
    if wanted == "lorakit":
        return tuple(added.origin for added in plugins.added if not added.distribution)
    return tuple(added.origin for added in plugins.added if normal_name(added.distribution.partition(" ")[0]) == wanted)


def _failure(check: Check) -> str:
    """Return why a check fails, or an empty string where it passes."""
    from lorakit.testing import CheckError

    try:
        check()
    except CheckError as error:
        return str(error)
    return ""


def _table(outcomes: Mapping[str, Sequence[Outcome]]) -> Sheet:
    """Return a row for every kind of check, with how many variants of it passed."""
    from lorakit.planning.sheet import Sheet

    table = Sheet(("plugin", "left"), ("check", "left"), ("passed", "left"), ("what is asked", "prose"))
    for title, ran in outcomes.items():
        shown = title
        for name in dict.fromkeys(check.name for check, _ in ran):
            group = [(check, reason) for check, reason in ran if check.name == name]
            passed = sum(not reason for _, reason in group)
            style = "" if passed == len(group) else "bold red"
            words = (shown, name, f"{passed} of {len(group)}", group[0][0].question)
            table.add_row(*words, style=style)
            shown = ""
    return table
