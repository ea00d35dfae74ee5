"""From a Spec and an inventory to a Plan: one pure function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lorakit.diagnostics import Code, Diagnostic, diagnostic_at
from lorakit.errors import PlanError, PromiseError
from lorakit.hooks.manager import Plugins
from lorakit.language.render import render_text
from lorakit.language.spec import Spec
from lorakit.language.statements import PluginCall
from lorakit.planning import requirements
from lorakit.planning.cascade import Decisions, decide
from lorakit.planning.checks import Decided, problems_of, tied_apart, without_bias
from lorakit.planning.computing import compute_for
from lorakit.planning.entries import EntryMaker, UnfitError, with_shared
from lorakit.planning.figures import finished
from lorakit.planning.hardware import Compute, Hardware
from lorakit.planning.inventory import Inventory
from lorakit.planning.notes import notes_of, rounding_notes
from lorakit.planning.paging import fitting_notes, paged_out, paging_notes
from lorakit.planning.plan import Memory, OptimizerPlan, Plan, PlanEntry
from lorakit.planning.reach import with_reach

DEFAULT_OPTIMIZER = PluginCall("adamw")


def make_plan(
    spec: Spec,
    inventory: Inventory,
    plugins: Plugins,
    *,
    batch: int = 1,
    tokens: int = 512,
    recompute: bool = False,
    limit: int = 0,
    devices: int = 1,
    frozen: str = "shard",
    hardware: Hardware | None = None,
) -> Plan:
    """Return what the spec makes of this model, with the memory forecast for a step on batch × tokens.

    Figures are counted last, once plugins have had the plan, and promises are held against those. With `recompute` the
    step computes all blocks again in its backward pass, else as many as it takes to hold at most `limit` bytes. Of
    several `devices` it is what each holds, with `frozen` weights sharded or replicated.

    On no `hardware` in particular the model computes in its own dtype, unless the spec says otherwise.

    Raises: PlanError holding every diagnostic: targets that match nothing, layers that no adapter fits, and so on;
    PromiseError, which holds the plan too, where it breaks a promise or does not fit the spec's `memory`.
    """
    if not spec.rules:
        raise PlanError(
            "this spec has no rules: nothing would change; write a line such as `adapt q_proj,v_proj rank 16`"
        )
    decisions = with_reach(decide(spec, inventory, plugins.roles), spec, inventory, plugins)
    step = Memory.of_step(batch, tokens, recompute, limit=limit, devices=devices, frozen=frozen)
    plan, problems = plan_decisions(
        decisions, inventory, plugins, _optimizer(spec, plugins), step,
        compute_for(spec, decisions, inventory, hardware),
    )  # fmt: skip
    _raise(
        [*decisions.findings, *problems, *without_bias(decisions, inventory), *tied_apart(decisions, inventory)], spec
    )
    plan = replace(plan, notes=tuple(notes_of(spec, inventory, decisions, plugins)), source=spec.source)
    plan = finished(plugins.plan_ready(plan), inventory, plugins)
    plan = replace(plan, notes=(*paging_notes(plan, plugins), *rounding_notes(plan, inventory), *plan.notes))
    broken = tuple(requirements.broken(spec, plan))
    if broken and plan.memory.paged and not (broken := tuple(requirements.broken(spec, paged_out(plan)))):
        plan = replace(plan, notes=(*fitting_notes(plan), *plan.notes))
    if broken:
        raise PromiseError(render_text(broken, spec.sources), broken, plan)
    return plan


def plan_decisions(
    decisions: Decisions,
    inventory: Inventory,
    plugins: Plugins,
    optimizer: OptimizerPlan | None = None,
    step: Memory = Memory.of_step(1, 512, False),  # noqa: B008
    compute: Compute | None = None,
) -> tuple[Plan, list[Diagnostic]]:
    """Return the plan of what was decided for each module, without the modules whose decision has a problem.

    Its figures are not counted yet.
    """
    optimizer = optimizer or OptimizerPlan(
        DEFAULT_OPTIMIZER, plugins.optimizers[DEFAULT_OPTIMIZER.name].default_lr, False
    )
    maker = EntryMaker(plugins, compute)
    decided: list[PlanEntry] = []
    findings: list[Diagnostic] = []
    for path, module in inventory.modules.items():
        adapt, quantize, train = decisions.adapt.get(path), decisions.quantize.get(path), decisions.train.get(path)
        if not (adapt or quantize or train):
            continue
        problems = list(problems_of(Decided(module, adapt, quantize, train), inventory, plugins))
        findings += problems
        if problems:
            continue
        try:
            decided.append(maker.entry(module, adapt, quantize, train))
        except UnfitError as error:
            assert adapt is not None
            findings.append(diagnostic_at(Code.NOT_POSSIBLE_HERE, str(error), adapt.span))
    plan = Plan(
        model_class=inventory.model_class,
        model_parameters=inventory.total_parameters,
        entries=with_shared(decided),
        rules=decisions.rules,
        optimizer=optimizer,
        memory=step,
        compute=compute,
    )
    return plan, findings


def _raise(findings: Iterable[Diagnostic], spec: Spec) -> None:
    # one complaint of a kind a place is enough: a rule that reaches 400 modules would say it 400 times
    unique = {
        (finding.code, finding.file, finding.line, finding.column): finding for finding in reversed(list(findings))
    }
    if unique:
        ordered = tuple(sorted(unique.values(), key=lambda finding: (finding.file, finding.line, finding.column)))
        raise PlanError(render_text(ordered, spec.sources), ordered)


def _optimizer(spec: Spec, plugins: Plugins) -> OptimizerPlan:
    chosen = spec.optimizer
    call = chosen.call if chosen else DEFAULT_OPTIMIZER
    lr = chosen.lr if chosen and chosen.lr is not None else plugins.optimizers[call.name].default_lr
    return OptimizerPlan(call, lr, paged=bool(chosen and chosen.paged))
