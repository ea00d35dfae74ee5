"""`lorakit diff`: what changes in the plan from one spec to another."""

from __future__ import annotations

import click

from lorakit.cli import complete, options
from lorakit.cli.help import command


@command("diff")
@click.argument("before", metavar="A", shell_complete=complete.specs, help="The spec, or a plan.json, to start from.")
@click.argument("after", metavar="B", shell_complete=complete.specs, help="The spec, or a plan.json, to go to.")
@options.model
@options.variables
@options.every_module
@options.form
@options.trust_remote_code
@options.quiet
def diff(
    before: str,
    after: str,
    model: str,
    variables: tuple[str, ...],
    every_module: bool,
    form: str,
    trust_remote_code: bool,
) -> None:
    """Show what changes from spec A to spec B on a model, module by module: + to add, - to remove, ~ to change.

    Reads the model's config alone.

    Example: lorakit diff old.lora new.lora ./SmolLM2-135M
    """
    from lorakit.cli.inputs import decide, load_model, read_spec
    from lorakit.cli.terminal import print_json, show
    from lorakit.errors import PromiseError
    from lorakit.planning import codec
    from lorakit.planning.difference import difference, difference_view

    specs = [read_spec(path, variables) for path in (before, after)]
    structure = load_model(model, with_weights=False, trust_remote_code=trust_remote_code)
    plans, broken = [], []
    for spec in specs:
        try:
            plans.append(decide(spec, structure))
        except PromiseError as error:
            # what it would be says why it cannot
            plans.append(error.plan)
            broken.append(error)
    found = difference(*plans)
    if form == "json":
        print_json(codec.to_plain(found))
    else:
        show(difference_view(found, every_module=every_module))
    if broken:
        raise broken[-1]
