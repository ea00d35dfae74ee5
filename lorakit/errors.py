"""Every error that lorakit raises for what a user gave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.diagnostics import Diagnostic
from lorakit.quoting import one_screen, visible

if TYPE_CHECKING:
    from lorakit.planning.plan import Plan


class LorakitError(Exception):
    """Base of all errors that a user's input can cause; the message is a screen long at most."""

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(one_screen(message)))


class SpecError(LorakitError):
    """A spec that does not parse or means nothing; holds every diagnostic of the file."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...], rendered: str) -> None:
        super().__init__(rendered)
        self.diagnostics = diagnostics


class PlanError(LorakitError):
    """A spec that is sound in itself but does not fit this model."""

    def __init__(self, message: str, diagnostics: tuple[Diagnostic, ...] = ()) -> None:
        super().__init__(message)
        self.diagnostics = diagnostics


class PromiseError(PlanError):
    """A plan that breaks what its spec promises by `require`; it is whole all the same."""

    def __init__(self, message: str, diagnostics: tuple[Diagnostic, ...], plan: Plan) -> None:
        super().__init__(message, diagnostics)
        self.plan = plan


class ModelError(LorakitError):
    """A model reference that cannot be read, or a model that cannot be used."""


class AdapterError(LorakitError):
    """An adapter folder that is missing, damaged, unsafe or made for another model."""


class DataError(LorakitError):
    """Training data that cannot be read or used."""


class PluginError(LorakitError):
    """A plugin that failed; the message names it with its distribution and version."""


class OutputError(LorakitError):
    """An output place that cannot be used; nothing was written."""


class TrainingError(Exception):
    """Training that left the finite numbers, or would train nothing: it stops there, and nothing of it is written."""


class WriteError(Exception):
    """The work itself failed, for example on a full disk; what stood at the output place before is untouched."""
