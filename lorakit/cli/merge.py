"""`lorakit merge`: fold an adapter into its base model and write a plain one."""

from __future__ import annotations

from typing import Annotated

import typer

from lorakit.cli import options


def merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter folder, lorakit's or PEFT's.")],
    model: options.Model,
    output: options.Output,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Fold an adapter into the unquantized base model and write the result as a plain model folder.

    Prints what rounding to the base model's dtype costs before it writes.

    Example: lorakit merge adapter ./SmolLM2-135M -o merged
    """
    from pathlib import Path

    from lorakit.artifacts.folders import check_output, new_folder
    from lorakit.artifacts.loading import load_adapter
    from lorakit.artifacts.merge import merge_model
    from lorakit.artifacts.model_folder import write_model
    from lorakit.cli.inputs import load_model
    from lorakit.cli.terminal import say, working
    from lorakit.planning.report import show_bytes
    from lorakit.plugins import default_plugins

    folder = Path(output)
    check_output(folder, force)
    loaded = load_model(model, with_weights=True, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.parameters())
    dtype = str(next(loaded.parameters()).dtype).removeprefix("torch.")
    say(f"merging into the weights of {model}: {show_bytes(size)} in {dtype}")
    plugins = default_plugins()
    load_adapter(Path(adapter), loaded, plugins, quantize=False, allow_pickle=allow_pickle)
    merged, report = merge_model(loaded, plugins)
    say(
        f"merged {report.modules} modules; rounding to {dtype} costs at most {report.max_error:.3g} a weight, "
        f"{report.relative_error:.3g} relative (Frobenius)"
    )
    for path in report.untied:
        say(f"`{path}` shared its weight and now has its own")
    with working(f"writing {folder}"), new_folder(folder) as aside:
        write_model(merged, aside, Path(model))
    say(f"{folder}: a plain model, loadable without lorakit")
