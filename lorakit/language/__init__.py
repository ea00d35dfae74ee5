"""The `.lora` language: text to Spec, with diagnostics, a formatter and a printer. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorakit.diagnostics import Diagnostic
from lorakit.errors import SpecError
from lorakit.language.spec import Spec

if TYPE_CHECKING:
    from lorakit.hooks import Plugins
    from lorakit.language.analysis import Analysis, analyse
    from lorakit.language.format import format_text
    from lorakit.language.printer import to_text

__all__ = ["Analysis", "Diagnostic", "Spec", "SpecError", "analyse", "format_text", "parse", "to_text"]

# These load when they are asked for: whoever imports the Spec's classes needs no parser
_LATER = {"Analysis": "analysis", "analyse": "analysis", "format_text": "format", "to_text": "printer"}


def parse(
    text_or_path: str | os.PathLike[str],
    variables: Mapping[str, object] | None = None,
    plugins: Plugins | None = None,
) -> Spec:
    """Return the Spec that a text or a file holds; a string that ends in `.lora` and has no newline names a file.

    Raises: SpecError with every diagnostic; PluginError where a plugin fails on its options.
    """
    from lorakit.language.analysis import analyse
    from lorakit.language.render import render_text

    analysis = analyse(text_or_path, variables, plugins)
    if analysis.spec is None:
        raise SpecError(analysis.diagnostics, render_text(analysis.diagnostics, analysis.sources))
    return analysis.spec


def __getattr__(name: str) -> object:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"lorakit.language.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
