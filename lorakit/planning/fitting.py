"""What to change of a spec so that a step of it fits a device: the cheapest first, and no more than it takes.

Blocks that are computed again cost time alone, and so does state that pages. Four bits and a lower rank are another
model; fewer rows and shorter ones are another step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lorakit.errors import PlanError, PromiseError
from lorakit.language.amounts import Amount
from lorakit.language.spec import Spec
from lorakit.language.statements import Adapt, Number, Optimizer, PluginCall, Step
from lorakit.planning.plan import Plan

# gives a spec's plan for one model
Decide = Callable[[Spec], Plan]
FEWEST_TOKENS = 128
FOUR_BITS = PluginCall("nf4", double=True)


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a spec, in words, and what it makes of a spec."""

    words: str
    of: Callable[[Spec], Spec]


@dataclass(frozen=True, slots=True)
class Fit:
    """A spec whose step holds no more than was asked for, its plan, and by what it differs from the one given."""

    spec: Spec
    plan: Plan
    changes: tuple[Change, ...]


def fit(spec: Spec, decide: Decide, size: Amount) -> Fit:
    """Return what a spec becomes so that a step of it fits.

    `size` is in bytes, and the step's rows and tokens are those of the spec. Raises: PlanError, where no change helps,
    with the least that a step comes to.
    """
    plan = _planned(spec, decide)
    taken: tuple[Change, ...] = ()
    if needs(plan) <= size.value:
        return Fit(spec, plan, ())
    for kind in _changes(spec, plan, size):
        last = taken
        for change in kind:
            last = (*taken, change)
            try:
                plan = _planned(_changed(spec, last), decide)
            except PlanError:
                # nothing here that it could be done to
                last = taken
                continue
            if needs(plan) <= size.value:
                return _lean(spec, last, decide, size)
        taken = last
    from lorakit.planning.report import show_bytes

    raise PlanError(
        f"nothing that a spec says makes a step fit {size.written:g}{size.unit}: it holds "
        f"{show_bytes(needs(plan))} with {'; '.join(change.words for change in taken)}"
    )


def needs(plan: Plan) -> int:
    """Return the bytes that a step holds on the device once what pages has left it."""
    return plan.memory.peak - plan.memory.paged


def _lean(spec: Spec, changes: Sequence[Change], decide: Decide, size: Amount) -> Fit:
    """Return the fit without the changes that a later one made needless."""
    for change in changes[:-1]:
        fewer = [one for one in changes if one is not change]
        if needs(_planned(_changed(spec, fewer), decide)) <= size.value:
            changes = fewer
    made = _changed(spec, changes)
    return Fit(made, _planned(made, decide), tuple(changes))


def _planned(spec: Spec, decide: Decide) -> Plan:
    try:
        return decide(spec)
    except PromiseError as broken:
        return broken.plan


def _changed(spec: Spec, changes: Iterable[Change]) -> Spec:
    for change in changes:
        spec = change.of(spec)
    return spec


def _changes(spec: Spec, plan: Plan, size: Amount) -> Iterable[Iterable[Change]]:
    """Yield what can be changed, a kind at a time, each by more and more."""
    memory = plan.memory
    limit = Number(size.written, size.unit)
    yield [Change(f"`memory {limit.value:g}{limit.unit}` in `step`", _step(memory=limit))]
    if memory.optimizer > memory.paged:
        yield [Change("`paged` behind the optimizer", _paged)]
    if any(isinstance(rule, Adapt) and rule.quant is None for rule in spec.rules):
        yield [Change("`quant nf4 double` in `adapt`", _in_four_bits)]
    yield [Change(f"`batch {rows}` in `step`", _step(batch=rows)) for rows in _halves(memory.batch, 1)]
    yield [
        Change(f"`tokens {count}` in `step`", _step(tokens=count)) for count in _halves(memory.tokens, FEWEST_TOKENS)
    ]
    ranks = [rule.rank for rule in spec.rules if isinstance(rule, Adapt) and rule.rank]
    yield [Change(f"`rank {rank}` at most", _of_rank(rank)) for rank in _halves(max(ranks, default=1), 1)]


def _halves(count: int, least: int) -> Iterable[int]:
    while count // 2 >= least:
        count //= 2
        yield count


def _step(**clauses: object) -> Callable[[Spec], Spec]:
    return lambda spec: replace(spec, step=replace(spec.step or Step(), **clauses))  # type: ignore[arg-type]


def _paged(spec: Spec) -> Spec:
    return replace(spec, optimizer=replace(spec.optimizer or Optimizer(PluginCall("adamw")), paged=True))


def _in_four_bits(spec: Spec) -> Spec:
    # a spec that says no more of storage has the layers beside stored so too
    rules = (
        replace(rule, quant=FOUR_BITS) if isinstance(rule, Adapt) and rule.quant is None else rule
        for rule in spec.rules
    )
    return replace(spec, rules=tuple(rules))


def _of_rank(most: int) -> Callable[[Spec], Spec]:
    def of(spec: Spec) -> Spec:
        lower = (
            replace(rule, rank=most) if isinstance(rule, Adapt) and rule.rank and rule.rank > most else rule
            for rule in spec.rules
        )
        return replace(spec, rules=tuple(lower))

    return of
