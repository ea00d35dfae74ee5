"""`lorakit merge`: fold an adapter into its base model and write a plain one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli import options
from lorakit.cli.help import command

if TYPE_CHECKING:
    from lorakit.artifacts.merge_layout import Layout


@command("merge")
@options.adapter
@options.model
@options.output
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Write weights in it; as the base holds them if not given.",
)
@options.force
@options.trust_remote_code
@options.allow_pickle
@options.quiet
def merge(
    adapter: str,
    model: str,
    output: str,
    dtype: str | None,
    force: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Fold an adapter into its base model and write the result, not quantized, as a plain model folder.

    Goes through the base model's files a tensor at a time, so that a model larger than memory merges too. A base that
    bitsandbytes quantized is dequantized on the way. Prints what rounding costs before the folder takes its place.

    Example: lorakit merge adapter ./SmolLM2-135M -o merged --dtype bf16
    """

    from lorakit.artifacts.folders import claimed

    with claimed(Path(output), force, adapter, model):
        _merge(adapter, model, Path(output), dtype, trust_remote_code, allow_pickle)


def _merge(
    adapter: str, model: str, folder: Path, dtype: str | None, trust_remote_code: bool, allow_pickle: bool
) -> None:
    from lorakit.artifacts.checkpoint import local_folder
    from lorakit.artifacts.merge_layout import merge_layout
    from lorakit.artifacts.merge_pieces import WholeModelNeeded
    from lorakit.cli.inputs import load_model
    from lorakit.cli.terminal import say
    from lorakit.dtypes import LONG, dtype_of
    from lorakit.planning.report import show_bytes
    from lorakit.plugins import default_plugins

    name = LONG[dtype] if dtype else None
    base = None
    if ":" not in model:
        structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
        base = local_folder(model)
        try:
            layout = merge_layout(
                Path(adapter),
                base,
                structure,
                default_plugins(),
                dtype=dtype_of(name) if name else None,
                allow_pickle=allow_pickle,
            )
        except WholeModelNeeded as reason:
            size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
            say(f"{reason}: the whole model goes through memory, {show_bytes(size)}")
        else:
            _streamed(layout, model, folder)
            return
    _in_memory(adapter, model, base or Path(model), folder, name, trust_remote_code, allow_pickle)


def _streamed(layout: Layout, model: str, folder: Path) -> None:
    from lorakit.artifacts.folders import new_folder, require_space
    from lorakit.artifacts.streamed_merge import write_merged
    from lorakit.cli.terminal import say, tracked
    from lorakit.dtypes import name_of
    from lorakit.planning.report import show_bytes
    from lorakit.plugins import default_plugins

    require_space(folder, layout.bytes)
    dtype = name_of(layout.dtype)
    packed = "packed by bitsandbytes, dequantized to" if layout.is_packed else "in"
    say(f"merging into the weights of {model}: {show_bytes(layout.stored_bytes)} {packed} {dtype}")
    with new_folder(folder) as aside:
        rounding = write_merged(layout, aside, default_plugins(), lambda pieces: tracked(pieces, "merging"))
        _say_cost(rounding.modules, dtype, rounding.largest, rounding.relative, layout.untied)
    say(f"{folder}: {show_bytes(layout.bytes)}, a plain model, loadable without lorakit")


def _in_memory(
    adapter: str, model: str, base: Path, folder: Path, dtype: str | None, trust_remote_code: bool, allow_pickle: bool
) -> None:
    from lorakit.artifacts.folders import new_folder, require_space
    from lorakit.artifacts.loading import load_adapter, trained_in
    from lorakit.artifacts.merge import merge_model
    from lorakit.artifacts.model_folder import write_model
    from lorakit.cli.inputs import load_model
    from lorakit.cli.terminal import say, working
    from lorakit.dtypes import name_of
    from lorakit.planning.report import show_bytes
    from lorakit.plugins import default_plugins

    loaded = load_model(
        model, with_weights=True, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, dtype=dtype,
        fresh=trained_in(Path(adapter)),
    )  # fmt: skip
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.parameters())
    require_space(folder, size)
    held = name_of(next(loaded.parameters()).dtype)
    say(f"merging into the weights of {model}: {show_bytes(size)} in {held}")
    plugins = default_plugins()
    load_adapter(Path(adapter), loaded, plugins, quantize=False, allow_pickle=allow_pickle)
    merged, report = merge_model(loaded)
    _say_cost(report.modules, held, report.max_error, report.relative_error, report.untied)
    with working(f"writing {folder}"), new_folder(folder) as aside:
        write_model(merged, aside, base)
    say(f"{folder}: a plain model, loadable without lorakit")


def _say_cost(modules: int, dtype: str, largest: float, relative: float, untied: tuple[str, ...]) -> None:
    from lorakit.cli.terminal import say

    say(
        f"merged {modules} modules; rounding to {dtype} costs at most {largest:.3g} a weight, "
        f"{relative:.3g} relative (Frobenius)"
    )
    for path in untied:
        say(f"`{path}` shared its weight and now has its own")
