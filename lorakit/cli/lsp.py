"""`lorakit lsp`: the language server that editors start."""

from __future__ import annotations

import click

from lorakit.cli.help import command


@command("lsp")
@click.option(
    "--models/--no-models",
    default=True,
    help="Read the model that a comment `# model: PATH` names; FILE.py:FACTORY runs that file's code.",
)
def lsp(models: bool) -> None:
    """Serve an editor on standard input and output: errors, meanings and names while a spec is written.

    Example: lorakit lsp
    """
    try:
        from lorakit.lsp.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pygls", "lsprotocol"):
            raise
        from lorakit.cli.terminal import BAD_INPUT, fail

        fail("the language server needs pygls: pip install 'lorakit[lsp]'", BAD_INPUT)
    serve(models)
