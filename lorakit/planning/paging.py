"""What `paged` comes to in a plan: which state leaves the accelerator, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.planning.plan import OptimizerPlan, Plan, PlanEntry

# bytes a second each way with copies both ways at once, over PCIe 5 x16: 175 MiB in and as many out took 6.4 ms on the
# host of an H100
LINK = 28.7e9


def pages(entry: PlanEntry, optimizer: OptimizerPlan) -> bool:
    """Return whether the optimizer state of an entry pages: its rule says so, or the optimizer does for all."""
    return optimizer.paged or bool(entry.adapter and entry.adapter.paged)


def paged_out(plan: Plan) -> Plan:
    """Return a plan whose paged state counts to CPU memory."""
    memory = plan.memory
    return replace(plan, memory=replace(memory, optimizer=memory.optimizer - memory.paged, paged=0))


def paging_notes(plan: Plan, plugins: Plugins) -> Iterable[str]:
    """Yield what a plan that asks for `paged` gets. Raises: PlanError where the optimizer's state cannot page."""
    asking = [entry for entry in plan.entries if pages(entry, plan.optimizer)]
    if not (asking or plan.optimizer.paged):
        return
    name, memory = plan.optimizer.call.name, plan.memory
    if getattr(plugins.optimizer(plan.optimizer.call), "couples_parameters", False):
        raise PlanError(f"`{name}` takes parameters together in a step, so its state cannot page; leave out `paged`")
    if not memory.optimizer:
        yield f"paged: `{name}` keeps no state as it is configured, so there is nothing to page"
    else:
        yield (
            f"paged: {memory.paged:,} of {memory.optimizer:,} bytes of optimizer state page: they move to CPU memory "
            "when the accelerator's runs short, and a promise about `peak_memory` may count on it; a step that finds "
            f"all of them there moves them in and out again, {1000 * memory.paged / LINK:.2g} ms at "
            f"{LINK / 1e9:g} GB/s each way (measured over PCIe 5 x16)"
        )


def fitting_notes(plan: Plan) -> Iterable[str]:
    """Yield that a promise holds because of what pages."""
    yield (
        f"paged: this fits what the spec promises with {plan.memory.paged:,} bytes of optimizer state in CPU memory, "
        f"and not with all of it on the accelerator"
    )
