"""From a Spec and an inventory to a Plan: one pure function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lorakit.errors import PlanError
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import call_of
from lorakit.hooks.protocols import CalibratedQuantizer, OptimizerFactory, Quantizer
from lorakit.language.diagnostics import Diagnostic, at, render
from lorakit.language.printer import call_text
from lorakit.language.spec import Adapt, PluginCall, Quantize, Spec, Train
from lorakit.planning import memory, requirements
from lorakit.planning.cascade import Decisions, decide, place
from lorakit.planning.computing import ITEMSIZE, adapter_dtype, compute_for, held_itemsize
from lorakit.planning.hardware import Compute, Hardware
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.plan import AdapterPlan, Bytes, OptimizerPlan, Plan, PlanEntry

DEFAULT_OPTIMIZER = PluginCall("adamw")


def make_plan(
    spec: Spec,
    inventory: Inventory,
    plugins: Plugins,
    *,
    batch: int = 1,
    tokens: int = 512,
    hardware: Hardware | None = None,
) -> Plan:
    """Return what the spec makes of this model; batch × tokens is the step that the memory forecast is for.

    On no `hardware` in particular the model computes in its own dtype, unless the spec says otherwise.

    Raises: PlanError holding every diagnostic: targets that match nothing, layers that no adapter fits, and so on.
    """
    if not spec.rules:
        raise PlanError(
            "this spec has no rules: nothing would change; write a line such as `adapt q_proj,v_proj rank 16`"
        )
    decisions = decide(spec, inventory, plugins.roles)
    plan, problems = plan_decisions(
        decisions,
        inventory,
        plugins,
        _optimizer(spec, plugins),
        batch=batch,
        tokens=tokens,
        compute=compute_for(spec, decisions, inventory, hardware),
    )
    _raise([*decisions.findings, *problems, *_without_bias(decisions, inventory)], spec)
    plan = replace(plan, notes=tuple(_notes(spec, inventory, decisions, plugins)), source=spec.source)
    changed = plugins.plan_ready(plan)
    _raise(requirements.broken(spec, changed), spec)
    return changed


def plan_decisions(
    decisions: Decisions,
    inventory: Inventory,
    plugins: Plugins,
    optimizer: OptimizerPlan | None = None,
    *,
    batch: int = 1,
    tokens: int = 512,
    compute: Compute | None = None,
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
        problems = list(_problems(module, adapt, quantize, train, inventory, plugins))
        findings += problems
        if not problems:
            entry = _entry(module, adapt, quantize, train, plugins, factory, compute)
            extra = plugins.estimate_memory(entry)
            entries.append(replace(entry, bytes=replace(entry.bytes, extra=extra)) if extra else entry)
    plan = Plan(
        model_class=inventory.model_class,
        model_parameters=inventory.total_parameters,
        entries=tuple(entries),
        rules=decisions.rules,
        optimizer=optimizer,
        memory=memory.forecast(inventory, entries, batch, tokens, compute),
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
        raise PlanError(render(ordered, spec.sources), ordered)


def _optimizer(spec: Spec, plugins: Plugins) -> OptimizerPlan:
    chosen = spec.optimizer
    call = chosen.call if chosen else DEFAULT_OPTIMIZER
    lr = chosen.lr if chosen and chosen.lr is not None else plugins.optimizers[call.name].default_lr
    return OptimizerPlan(call, lr, paged=bool(chosen and chosen.paged))


def _problems(
    module: ModuleInfo,
    adapt: Adapt | None,
    quantize: Quantize | None,
    train: Train | None,
    inventory: Inventory,
    plugins: Plugins,
) -> Iterable[Diagnostic]:
    """Find what makes a module's decision impossible."""
    if adapt and module.shape:
        largest = module.shape.largest_rank
        if adapt.rank is not None and adapt.rank > largest:
            yield at(
                "L103",
                f"rank {adapt.rank} is larger than `{module.path}` allows: {module.shape} has rank {largest} at most",
                adapt.rank_span or adapt.span,
                suggestion=f"write rank {largest} or less, or leave the module out with `except {module.path}`",
            )
        if adapt.dropout and not module.shape.called:
            yield at(
                "L107",
                f"`{module.path}` is not always called: its parent computes with its weight, where dropout cannot act",
                adapt.span,
                suggestion=f"leave out `dropout` for it, or the module with `except {module.path}`",
            )
    quant = adapt.quant if adapt else quantize.quant if quantize else None
    rule = adapt or quantize
    weight = module.weight
    if quant and rule and module.shape and not module.shape.is_linear:
        yield at(
            "L106",
            f"`{module.path}`, a {module.class_name}, is no linear layer: quantizers take matrices",
            quant.span or rule.span,
            suggestion=f"leave out `quant` for it, or the module with `except {module.path}`",
        )
    elif quant and rule and weight:
        stored: Quantizer | None = module.shape.stored if module.shape else None
        if weight.dtype not in ITEMSIZE and stored != (wanted := plugins.quantizer(quant)):
            how = call_text(call_of(stored)) if stored else weight.dtype
            yield at(
                "L106",
                f"`{module.path}` holds its weight as {how}: it is quantized already, "
                f"and this asks for {call_text(call_of(wanted))}",
                quant.span or rule.span,
                suggestion="leave out `quant` for it, an adapter works on it as it is; or start from plain weights",
            )
        ends = inventory.owners[weight.weight_id]
        if len(ends) > 1:
            others = ", ".join(f"`{end}`" for end in ends if not end.startswith(f"{module.path}."))
            yield at(
                "L106",
                f"`{module.path}` shares its weight with {others}: quantizing one end would keep both copies",
                quant.span or rule.span,
                suggestion=f"leave it as it is: `except {module.path}`",
            )
    if train and module.shape and module.shape.stored:
        yield at(
            "L107",
            f"`{module.path}` is stored as {call_text(call_of(module.shape.stored))}, and cannot train in full",
            train.span,
            suggestion=f"leave it out with `except {module.path}`, or start from unquantized weights",
        )
    if adapt and train:
        yield at(
            "L107",
            f"`{module.path}` is adapted by line {adapt.span.line if adapt.span else '?'} and trained in full here",
            train.span,
            suggestion=f"keep one of the two, for example with `except {module.path}`",
        )


def _without_bias(decisions: Decisions, inventory: Inventory) -> Iterable[Diagnostic]:
    """Find the rules that train biases where no module has one."""
    asked: dict[Adapt, bool] = {}
    for path, rule in decisions.adapt.items():
        if rule.bias == "adapter":
            has_one = any(parameter.name == "bias" for parameter in inventory.modules[path].parameters)
            asked[rule] = asked.get(rule, False) or has_one
    for rule, found in asked.items():
        if not found:
            yield at(
                "L107",
                "`bias adapter` trains the biases of the adapted modules, and none of them has one",
                rule.span,
                suggestion="leave out `bias adapter`",
            )


def _entry(
    module: ModuleInfo,
    adapt: Adapt | None,
    quantize: Quantize | None,
    train: Train | None,
    plugins: Plugins,
    factory: OptimizerFactory,
    compute: Compute | None,
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
        adapter, trained = _adapter(module, adapt, plugins, compute)
    elif train:
        trained = [(parameter.numel, held_itemsize(parameter, compute)) for parameter in module.parameters]
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
            optimizer=sum(factory.state_bytes(numel, itemsize) for numel, itemsize in trained),
        ),
    )


def _adapter(
    module: ModuleInfo, adapt: Adapt, plugins: Plugins, compute: Compute | None
) -> tuple[AdapterPlan, list[tuple[int, int]]]:
    """Return the adapter of a module, and (numel, itemsize) of every tensor that it trains."""
    weight = module.weight
    dtype = adapter_dtype(adapt, weight.dtype if weight else None, compute)
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
    trained += [(bias.numel, held_itemsize(bias, compute)) for bias in biases]
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


def _notes(spec: Spec, inventory: Inventory, decisions: Decisions, plugins: Plugins) -> Iterable[str]:
    """Say what is true of this plan and easily missed."""
    for rule, summary in zip(spec.rules, decisions.rules, strict=True):
        where = summary.place
        towers = [container for container, _ in summary.containers if container]
        if len(towers) > 1:
            reach = ", ".join(f"{count} in {container or 'no layer'}" for container, count in summary.containers)
            yield f"{where}: the rule crosses {len(towers)} towers: {reach}"
        if passed := sum(selector.passed_over for selector in summary.selectors):
            yield f"{where}: passed over {passed} modules that no adapter fits"
        if isinstance(rule, Adapt) and rule.alpha is None and rule.rank is not None:
            scale = "1" if rule.scaling == "standard" else f"sqrt(rank) = {rule.rank**0.5:.3g}"
            yield f"{where}: alpha is not given, so alpha = rank = {rule.rank} and the update is scaled by {scale}"
    paged = any(isinstance(rule, Adapt) and rule.paged for rule in spec.rules) or (
        spec.optimizer and spec.optimizer.paged
    )
    if paged:
        yield (
            "paged: on CUDA optimizer state moves to CPU memory when the GPU runs short (bitsandbytes); "
            "on a CPU it lives there anyway and nothing changes"
        )
    quants = {rule.quant for rule in spec.rules if isinstance(rule, Adapt | Quantize) and rule.quant}
    for name in sorted({quant.name for quant in quants if isinstance(plugins.quantizer(quant), CalibratedQuantizer)}):
        yield f"{name}: sees what goes into its layers before it quantizes them, so it needs calibration data"
    outside = [path for path, module in inventory.modules.items() if module.shape and module.shape.stack > 1]
    if outside and not any(path in decisions.adapt or path in decisions.train for path in outside):
        count = sum(parameter.numel for path in outside for parameter in inventory.modules[path].parameters)
        share = count / inventory.total_parameters
        yield f"{count:,} parameters ({share:.0%}) lie in expert stacks that no rule adapts; `adapt @experts` would"
    for path in (*decisions.adapt, *decisions.train):
        weight = inventory.modules[path].weight
        if weight and len(ends := inventory.owners[weight.weight_id]) > 1:
            verb = "trains" if path in decisions.train else "is adapted"
            other = ", ".join(f"`{end.rpartition('.')[0]}`" for end in ends if end.rpartition(".")[0] != path)
            consequence = "both ends train" if path in decisions.train else f"{other} keeps the shared weight as it is"
            yield f"`{path}` {verb} and shares its weight with {other}: {consequence}"
