"""A quantization report as people see it: tables, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lorakit.artifacts.pictures import save_figure
from lorakit.artifacts.quantization_error import QuantizationError, QuantizationReport, by_kind, together
from lorakit.dtypes import short_name
from lorakit.planning.report import layers_alike, show_change
from lorakit.planning.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quantization_view(report: QuantizationReport, *, every_module: bool = False) -> RenderableType:
    """Return a report as a table, layers of one kind together unless asked, with totals and the loss below."""
    table = Sheet(
        ("module", "left"), ("count", "right"), ("out × in", "right"), ("weight", "left"), ("bits", "right"),
        ("error", "right"), ("largest", "right"), ("SQNR", "right"), ("bytes", "right"),
    )  # fmt: skip
    for kind, modules in by_kind(report.modules, _kind(every_module)):
        first = modules[0]
        table.add_row(
            kind,
            str(len(modules)),
            f"{first.out_features} × {first.in_features}",
            f"{short_name(first.dtype)} → {first.quantizer}",
            *_figures(together(module.error for module in modules)),
        )
    table.add_section()
    table.add_row("all", str(len(report.modules)), "", "", *_figures(report.total), style="bold")
    head = f"{report.model_class}: {report.total.weights:,} weights quantized in {len(report.modules)} modules"
    meaning = "bits a weight, error ‖W−Ŵ‖ / ‖W‖, the largest |W−Ŵ|, SQNR = 10·log₁₀(‖W‖² / ‖W−Ŵ‖²)"
    parts: list[RenderableType] = [Text(head), Text(meaning, style="dim"), Text(), table]
    if (loss := report.loss) is not None:
        cut = f", {loss.cut} cut to {loss.limit} tokens" if loss.cut else ""
        parts += [
            Text(),
            Text(f"loss on {loss.text} ({loss.rows} rows, {loss.tokens:,} tokens predicted{cut}), mean per token:"),
            Text(
                f"  {loss.before:.4f} → {loss.after:.4f} ({loss.after - loss.before:+.4f}), "
                f"perplexity {loss.perplexity_before:.4g} → {loss.perplexity_after:.4g}"
            ),
        ]
    return Group(*parts)


def _kind(every_module: bool) -> Callable[[str], str]:
    return str if every_module else layers_alike


def _figures(error: QuantizationError) -> tuple[str, ...]:
    return (
        f"{error.bits_per_weight:.3f}",
        "" if error.relative_error is None else f"{error.relative_error:.3%}",
        f"{error.max_error:.3g}",
        f"{error.sqnr_db:.2f} dB" if error.sqnr_db is not None else "" if error.error_square else "lossless",
        show_change(error.bytes_before, error.bytes_after),
    )


def save_plot(report: QuantizationReport, target: Path) -> None:
    """Draw a report into a file whose ending names the format. Raises: WriteError."""
    save_figure(draw(report), target)


def draw(report: QuantizationReport) -> Figure:
    """Return the relative error of every module as a picture, a line for each kind."""
    # no pyplot, which would look for a screen
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind, modules in by_kind(report.modules, layers_alike):
        errors = [module.error.relative_error or 0.0 for module in modules]
        axes.plot(
            range(len(errors)), errors, marker="o", markersize=3, linewidth=1, label=f"{kind}: {modules[0].quantizer}"
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_xlabel("layer, counted within its kind")
    axes.set_ylabel("relative error ‖W−Ŵ‖ / ‖W‖")
    total = report.total
    title = (
        f"{report.model_class}: {total.bits_per_weight:.3f} bits a weight, "
        f"relative error {total.relative_error or 0:.3%}, {show_change(total.bytes_before, total.bytes_after)}"
    )
    if report.loss is not None:
        title += f"\nloss {report.loss.before:.4f} → {report.loss.after:.4f}"
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
