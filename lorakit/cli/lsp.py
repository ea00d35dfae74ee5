"""`lorakit lsp`: the language server that editors start."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer


def lsp(
    models: Annotated[
        bool,
        typer.Option(
            "--models/--no-models",
            help="Read the model that a comment `# model: PATH` names; FILE.py:FACTORY runs that file's code.",
        ),
    ] = True,
) -> None:
    """Serve an editor on standard input and output: errors, meanings and names while a spec is written.

    Example: lorakit lsp
    """
    if importlib.util.find_spec("pygls") is None:
        from lorakit.cli.terminal import BAD_INPUT, fail

        fail("the language server needs pygls: pip install 'lorakit[lsp]'", BAD_INPUT)
    from lorakit.lsp.server import serve

    serve(models)
