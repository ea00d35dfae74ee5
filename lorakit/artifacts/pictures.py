"""Pictures that commands draw with matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.artifacts.folders import new_file
from lorakit.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot(target: Path) -> None:
    """Raise OutputError if matplotlib is missing, cannot draw this kind of file, or has nowhere to put it."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise OutputError(f"--plot needs {error.name}: pip install 'lorakit[plot]'") from error
    known = FigureCanvasBase.get_supported_filetypes()
    if target.suffix.removeprefix(".") not in known:
        raise OutputError(f"cannot draw {target}: a picture ends in .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")


def save_figure(figure: Figure, target: Path) -> None:
    """Write a picture into a file whose ending names the format. Raises: WriteError."""
    stream = io.BytesIO()
    figure.savefig(stream, format=target.suffix.removeprefix("."), dpi=150)
    with new_file(target) as aside:
        aside.write_bytes(stream.getvalue())
