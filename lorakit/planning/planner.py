"""From a Spec and an inventory to a Plan: one pure function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.protocols import OptimizerFactory
from lorakit.language.diagnostics import Diagnostic, render
from lorakit.language.spec import Adapt, PluginCall, Quantize, Spec, Train
from lorakit.planning import requirements
from lorakit.planning.cascade import Decisions, decide, place
from lorakit.planning.checks import Decided, problems_of, without_bias
from lorakit.planning.figures import finished
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.notes import notes_of, paging_notes
from lorakit.planning.plan import DTYPES, AdapterPlan, Bytes, Memory, OptimizerPlan, Plan, PlanEntry

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
DEFAULT_OPTIMIZER = PluginCall("adamw")


def make_plan(
    spec: Spec,
    inventory: Inventory,
    plugins: Plugins,
    *,
    batch: int = 1,
    tokens: int = 512,
    recompute: bool = False,
) -> Plan:
    """Return what the spec makes of this model, with the memory forecast for a step on batch × tokens.

    Figures are counted once plugins have had the plan, and promises are held against those. With `recompute` the step
    computes blocks again in its backward pass.

    Raises: PlanError holding every diagnostic: targets that match nothing, layers that no adapter fits, and so on.
    """
    if not spec.rules:
        raise PlanError(
            "this spec has no rules: nothing would change; write a line such as `adapt q_proj,v_proj rank 16`"
        )
    decisions = decide(spec, inventory, plugins.roles)
    step = Memory.of_step(batch, tokens, recompute)
    plan, problems = plan_decisions(decisions, inventory, plugins, _optimizer(spec, plugins), step)
    _raise([*decisions.findings, *problems, *without_bias(decisions, inventory)], spec)
    plan = replace(plan, notes=tuple(notes_of(spec, inventory, decisions, plugins)), source=spec.source)
    changed = finished(plugins.plan_ready(plan), inventory, plugins)
    changed = replace(changed, notes=(*paging_notes(changed, inventory, plugins), *changed.notes))
    _raise(requirements.broken(spec, changed), spec)
    return changed


def plan_decisions(
    decisions: Decisions,
    inventory: Inventory,
    plugins: Plugins,
    optimizer: OptimizerPlan | None = None,
    step: Memory = Memory.of_step(1, 512, False),  # noqa: B008
) -> tuple[Plan, list[Diagnostic]]:
    """Return the plan of what was decided for each module, without the modules whose decision has a problem."""
    optimizer = optimizer or OptimizerPlan(
        DEFAULT_OPTIMIZER, plugins.optimizers[DEFAULT_OPTIMIZER.name].default_lr, False
    )
    factory = plugins.optimizer(optimizer.call)
    entries: list[PlanEntry] = []
    findings: list[Diagnostic] = []
    for path, module in inventory.modules.items():
        adapt, quantize, train = decisions.adapt.get(path), decisions.quantize.get(path), decisions.train.get(path)
        if not (adapt or quantize or train):
            continue
        problems = list(problems_of(Decided(module, adapt, quantize, train), inventory, plugins))
        findings += problems
        if not problems:
            entries.append(_entry(module, adapt, quantize, train, plugins, factory))
    plan = Plan(
        model_class=inventory.model_class,
        model_parameters=inventory.total_parameters,
        entries=tuple(entries),
        rules=decisions.rules,
        optimizer=optimizer,
        memory=step,
    )
    return finished(plan, inventory, plugins), findings


def _raise(findings: Iterable[Diagnostic], spec: Spec) -> None:
    # one complaint of a kind a place is enough: a rule that reaches 400 modules would say it 400 times
    unique = {
        (finding.code, finding.file, finding.line, finding.column): finding for finding in reversed(list(findings))
    }
    if unique:
        ordered = tuple(sorted(unique.values(), key=lambda finding: (finding.file, finding.line, finding.column)))
        raise PlanError(render(ordered, spec.sources), ordered)


def _optimizer(spec: Spec, plugins: Plugins) -> OptimizerPlan:
    chosen = spec.optimizer
    call = chosen.call if chosen else DEFAULT_OPTIMIZER
    lr = chosen.lr if chosen and chosen.lr is not None else plugins.optimizers[call.name].default_lr
    return OptimizerPlan(call, lr, paged=bool(chosen and chosen.paged))


def _entry(
    module: ModuleInfo,
    adapt: Adapt | None,
    quantize: Quantize | None,
    train: Train | None,
    plugins: Plugins,
    factory: OptimizerFactory,
) -> PlanEntry:
    quant = adapt.quant if adapt else quantize.quant if quantize else None
    weight, shape = module.weight, module.shape
    before = sum(parameter.bytes for parameter in module.parameters)
    after = before
    if quant and weight and shape:
        bits = plugins.quantizer(quant).bits_per_weight((shape.out_features, shape.in_features))
        after = before - weight.bytes + round(bits * weight.numel / 8)
    adapter: AdapterPlan | None = None
    trained: list[tuple[int, int]] = []
    if adapt:
        adapter, trained = _adapter(module, adapt, plugins)
    elif train:
        trained = [(parameter.numel, parameter.itemsize) for parameter in module.parameters]
    added = sum(numel * itemsize for numel, itemsize in trained)
    return PlanEntry(
        path=module.path,
        class_name=module.class_name,
        shape=shape,
        dtype=weight.dtype if weight else module.parameters[0].dtype,
        parameters=sum(parameter.numel for parameter in module.parameters),
        quant=quant,
        adapter=adapter,
        train=train is not None,
        train_lr=train.lr if train else None,
        decided_by=tuple(place(rule) for rule in (adapt, quantize, train) if rule is not None),
        bytes=Bytes(
            weight_before=before,
            weight_after=after,
            adapter=added if adapt else 0,
            gradient=added,
        ),
    )


def _adapter(module: ModuleInfo, adapt: Adapt, plugins: Plugins) -> tuple[AdapterPlan, list[tuple[int, int]]]:
    """Return the adapter of a module, and (numel, itemsize) of every tensor that it trains."""
    weight = module.weight
    base = weight.dtype if weight and weight.dtype in ITEMSIZE else "bfloat16"
    dtype = DTYPES[adapt.dtype] if adapt.dtype else "bfloat16" if adapt.quant else base
    method = plugins.method(adapt.method)
    trained = []
    assert module.shape is not None
    for shape in method.parameter_shapes(module.shape, adapt.rank).values():
        numel = 1
        for size in shape:
            numel *= size
        trained.append((numel, ITEMSIZE[dtype]))
    added = sum(numel for numel, _ in trained)
    biases = [parameter for parameter in module.parameters if parameter.name == "bias" and adapt.bias == "adapter"]
    trained += [(bias.numel, bias.itemsize) for bias in biases]
    plan = AdapterPlan(
        method=adapt.method,
        rank=adapt.rank,
        alpha=adapt.alpha if adapt.alpha is not None else float(adapt.rank or 1),
        scaling=adapt.scaling,
        dropout=adapt.dropout,
        init=adapt.init,
        dtype=dtype,
        bias=adapt.bias,
        lr=adapt.lr,
        lr_ratio=adapt.lr_ratio,
        paged=adapt.paged,
        parameters=added,
        bias_parameters=sum(bias.numel for bias in biases),
    )
    return plan, trained
