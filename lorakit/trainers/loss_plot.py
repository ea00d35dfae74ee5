"""The losses of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.artifacts.pictures import save_figure
from lorakit.trainers.settings import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_loss_plot(history: Sequence[Record], title: str, target: Path) -> None:
    """Draw a run's losses into a file whose ending names the format. Raises: WriteError."""
    save_figure(draw(history, title), target)


def draw(history: Sequence[Record], title: str) -> Figure:
    """Return the loss of every step and the held-out losses, over steps."""
    # no pyplot, which would look for a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, label, marker in (("loss", "training", ""), ("eval_loss", "held out", "o")):
        points = [(record["step"], record[name]) for record in history if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, linewidth=1, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, fontsize="medium")
    axes.legend()
    return figure
