"""Checks of any plugin that a spec can name: its name, its options, how it imports and how it travels."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

from lorakit.hooks.options import configure, options_of
from lorakit.language import to_text
from lorakit.language.analysis import analyse
from lorakit.language.printer import call_text
from lorakit.language.statements import PluginCall
from lorakit.language.words import name_fault
from lorakit.testing.checks import Check, expect, variants_of
from lorakit.testing.subjects import Subject

# how a spec names a plugin of each kind
STATEMENTS: dict[str, Callable[[str, bool], str]] = {
    "quantizer": lambda call, _: f"quantize q {call}",
    "initializer": lambda call, _: f"adapt q rank 2 init {call}",
    "optimizer": lambda call, _: f"optimizer {call}",
    "method": lambda call, ranked: f"adapt q {'rank 2 ' if ranked else ''}method {call}",
}
PROBE = "import importlib, sys; importlib.import_module(sys.argv[1]); sys.exit('torch' in sys.modules)"


def configured_checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks that every configurable plugin shares."""
    for function in (name, documentation, options, spec_round_trip, import_without_torch, copies):
        yield from variants_of(function, subject)


def name(subject: Subject) -> None:
    """`name` is a class variable that a spec can write: a name, and none of the language's own words."""
    found = getattr(subject.plugin, "name", None)
    expect(isinstance(found, str), f"`name` is to be a string on the class; it is {found!r}")
    fault = name_fault(str(found))
    expect(not fault, f"`name` is {found!r}, which no spec can write: {fault}")


def documentation(subject: Subject) -> None:
    """The class has a docstring, whose first line is what editors and `lorakit plugins` show."""
    text = vars(subject.plugin).get("__doc__") or ""
    # dataclasses write their signature where there is no docstring
    written = text and not text.startswith(f"{subject.plugin.__name__}(")
    expect(bool(written), f"{subject.plugin.__name__} has no docstring; write one line that says what it does")


def options(subject: Subject) -> None:
    """The class is a frozen dataclass; each field is an option of a type that a spec can write, its default too."""
    plugin = subject.plugin
    expect(dataclasses.is_dataclass(plugin), f"{plugin.__name__} is no dataclass; write @dataclass(frozen=True) above")
    expect(plugin.__dataclass_params__.frozen, f"{plugin.__name__} is not frozen; write @dataclass(frozen=True)")
    for option in options_of(plugin):
        expect(
            _is_writable(option.type),
            f"the option `{option.name}` is of type {option.type}, which no spec can write; "
            "bool, int, float, str, Literal[…], tuple[…] and unions of them can be",
        )
        if not option.required and option.default is not None:
            configure(plugin, PluginCall(plugin.name, ((option.name, option.default), *_required(subject, option))))
        if option.required:
            expect(
                option.name in subject.options,
                f"the option `{option.name}` must be given, so checks need a value for it: pass it here as "
                f'`{option.name}=…`, or put metadata={{"example": …}} on the field',
            )


def spec_round_trip(subject: Subject) -> None:
    """A spec with all options written out reads as the same plugin, and so does what the formatter makes of it."""
    made = subject.make()
    given = tuple(
        (option.name, value)
        for option in options_of(subject.plugin)
        if (value := getattr(made, option.name)) is not None
    )
    call = PluginCall(subject.plugin.name, given, subject.call.double)
    plugins, ranked = subject.plugins(), "rank" in getattr(subject.plugin, "clauses", ())
    text = STATEMENTS[subject.kind](call_text(call), ranked)
    read = analyse(text, {}, plugins)
    expect(read.spec is not None, f"`{text}` does not read: {'; '.join(one.message for one in read.diagnostics)}")
    assert read.spec is not None
    again = analyse(to_text(read.spec), {}, plugins).spec
    for spec in (read.spec, again):
        found = None if spec is None else configure(subject.plugin, _call_in(spec, subject.kind))
        expect(found == made, f"`{text}` reads as {found}, and {made} was written")


def import_without_torch(subject: Subject) -> None:
    """Importing the plugin does not import torch: do that inside the methods, so that `lorakit check` stays quick."""
    module = subject.plugin.__module__
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROBE, module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expect(not done.stderr, f"importing `{module}` by itself failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    expect(
        done.returncode == 0,
        f"`{module}` imports torch when it is imported itself; move that import into the methods that need it",
    )


def copies(subject: Subject) -> None:
    """A configured plugin is a value: its copy and what comes back from pickle are equal to it."""
    made = subject.make()
    for what, copied in (("copy.deepcopy", copy.deepcopy(made)), ("pickle", pickle.loads(pickle.dumps(made)))):
        expect(copied == made, f"{what} gave {copied}, which is not equal to {made}")
    hash(made)


def _call_in(spec: Any, kind: str) -> PluginCall:
    if kind == "optimizer":
        return spec.optimizer.call  # type: ignore[no-any-return]
    field = {"quantizer": "quant", "initializer": "init", "method": "method"}[kind]
    return getattr(spec.rules[0], field)  # type: ignore[no-any-return]


def _required(subject: Subject, beside: Any) -> tuple[tuple[str, Any], ...]:
    """Return the options that must be given, as they are given here."""
    required = {option.name for option in options_of(subject.plugin) if option.required and option != beside}
    return tuple((name, value) for name, value in subject.options.items() if name in required)


def _is_writable(wanted: Any) -> bool:
    if wanted in (bool, int, float, str, type(None)):
        return True
    if (origin := get_origin(wanted)) is None:
        return False
    if getattr(origin, "__name__", str(origin)) == "Literal" or "Literal" in str(origin):
        return all(isinstance(value, bool | int | float | str) for value in get_args(wanted))
    return all(argument is Ellipsis or _is_writable(argument) for argument in get_args(wanted))
