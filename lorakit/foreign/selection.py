"""Which modules a LoraConfig adapts, each with which rank and alpha, as targets of `adapt`.

In PEFT the first key of a pattern that fits decides, in a spec the last rule. Where all keys are names, the rules go
from the shorter names to the longer ones; where one is a regex, each rule selects what no other one does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.errors import AdapterError
from lorakit.foreign.dialects import ALL_LINEAR
from lorakit.foreign.names import (
    ANYWHERE,
    LEAVES,
    NOT_LINEAR,
    covers,
    ends,
    is_plain,
    one_of,
    plain_key,
    ranges,
    target,
)
from lorakit.language.regexes import RegexError, check_regex
from lorakit.language.statements import IndexRange, Segment, Target

Fields = Mapping[str, Any]
LINEAR = Target(role="linear")
# what the heads of classifiers are called, which PEFT trains in full without being told
HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass(frozen=True, slots=True)
class Selected:
    """The modules of one `adapt`: its rank and alpha, and whether later rules may leave nothing of it."""

    targets: tuple[Target, ...]
    rank: int
    alpha: float
    layers: tuple[IndexRange, ...] = ()
    excepts: tuple[Target, ...] = ()
    optional: bool = False


@dataclass
class _Base:
    """What is adapted before patterns: names, a regex, or all linear layers; `guard` are lookaheads before a path."""

    names: list[str] = field(default_factory=list)
    regex: str = ""
    is_linear: bool = False
    guard: str = ""
    containers: tuple[str, ...] = ()
    layers: tuple[IndexRange, ...] = ()
    excepts: list[Target] = field(default_factory=list)


def selected(config: Fields, notes: list[str]) -> list[Selected]:
    """Return the rules in order; what they do not say alike goes to the notes. Raises: AdapterError."""
    base = _base(config)
    keys = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    _place_in_layers(base, config, keys)
    _leave_out(base, config, notes)
    if not (base.names or base.regex or base.is_linear):
        return []
    patterns = tuple(_first_fits(config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
    if all(plain_key(key) for key in keys):
        found = _by_name(base, config, *patterns)
    else:
        found = _apart(base, config, *patterns)
    for one in found:
        for each in one.targets:
            if each.regex is not None:
                _check(each.regex)
    return found


def _base(config: Fields) -> _Base:
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.lower() != ALL_LINEAR:
        _check(targets)
        return _Base(regex=targets)
    named = [targets] if isinstance(targets, str) else targets or []
    is_linear = any(name.lower() == ALL_LINEAR for name in named)
    return _Base([name for name in dict.fromkeys(named) if name.lower() != ALL_LINEAR], is_linear=is_linear)


def _place_in_layers(base: _Base, config: Fields, keys: Iterable[str]) -> None:
    """Put the layers that are adapted into a clause, into the names, or before all paths."""
    wanted = config.get("layers_to_transform")
    indices = [wanted] if isinstance(wanted, int) else wanted or []
    if not indices:
        return
    if base.regex or base.is_linear:
        raise AdapterError("layers_to_transform goes with a list of target_modules alone, in PEFT too")
    pattern = config.get("layers_pattern") or []
    containers = [pattern] if isinstance(pattern, str) else pattern
    if not containers:
        base.layers = ranges(indices)
        return
    names = [*base.names, *(plain_key(key) or "" for key in keys)]
    inside = any(segment in containers or segment.isdigit() for name in names for segment in name.split("."))
    # a lookahead on the path goes before a regex alone
    by_regex = inside or isinstance(config.get("exclude_modules"), str)
    if all(map(is_plain, [*containers, *names])) and not by_regex:
        base.containers, base.layers = tuple(containers), ranges(indices)
        return
    numbers = "|".join(map(str, sorted(set(indices))))
    base.guard += rf"(?={ANYWHERE}(?:{'|'.join(containers)})\.(?:{numbers})\.)"


def _leave_out(base: _Base, config: Fields, notes: list[str]) -> None:
    """Leave out what `exclude_modules` names, and what trains in full."""
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        _check(excluded)
        if base.is_linear:
            base.excepts.append(Target(regex=excluded))
            notes.append("exclude_modules: PEFT leaves out these modules alone, `except` what is inside them too")
        else:
            base.guard += f"(?!(?:{excluded})$)"
        excluded = []
    for name in excluded:
        if base.regex:
            base.guard += f"(?!{ANYWHERE}{re.escape(name)}$)"
        elif base.is_linear:
            base.excepts.append(target(name))
            notes.append(f"exclude_modules: PEFT leaves out `{name}` alone, `except` what is inside it too")
        elif not _drop(base, name):
            notes.append(f"exclude_modules: `{name}` is none of target_modules, so PEFT leaves nothing out")
    whole = list(config.get("modules_to_save") or [])
    heads = [name for name in HEADS.get(str(config.get("task_type")), ()) if name not in whole]
    for name in whole:
        if not _drop(base, name) and _may_lie_in(base, name):
            base.excepts.append(target(name))
    if heads and any(_may_lie_in(base, name) for name in heads):
        # one of them is there
        base.excepts.append(Target(regex=f"{ANYWHERE}{one_of(heads)}"))


def _may_lie_in(base: _Base, name: str) -> bool:
    """Return whether something that is adapted may be a module of this name, or lie in one."""
    return bool(base.regex) or name not in (NOT_LINEAR if base.is_linear else LEAVES)


def _drop(base: _Base, name: str) -> bool:
    """Take a name's modules from among the targets, and return whether any may have been there."""
    covered = [one for one in base.names if covers(name, one)]
    base.names = [one for one in base.names if one not in covered]
    if any(covers(one, name) for one in base.names):
        base.excepts.append(target(name))
        return True
    return bool(covered)


def _first_fits(pattern: Mapping[str, float]) -> dict[str, float]:
    """Return a pattern without the keys that never decide, because one before them fits wherever they do.

    Keys that are names stand as these.
    """
    kept: dict[str, float] = {}
    for key, value in pattern.items():
        name = plain_key(key)
        if name is None:
            kept[key] = value
        elif not any(end in kept for end in ends(name)):
            kept[name] = value
    return kept


def _by_name(base: _Base, config: Fields, ranks: Fields, alphas: Fields) -> list[Selected]:
    """Return rules where every pattern is by name: of two names that fit a module the longer one decides, last."""
    root, usual = base.is_linear or bool(base.regex), (int(config["r"]), config["lora_alpha"])
    looked_up = [_First(pattern) for pattern in (ranks, alphas)]
    depths: dict[str, int] = {}
    values: dict[str, tuple[int, float]] = {}
    shadowed: set[str] = set()
    for name in sorted(_named(base, [*ranks, *alphas], root), key=lambda one: one.count(".")):
        rank, alpha = (first.value(name, default) for first, default in zip(looked_up, usual, strict=True))
        above = [end for end in ends(name)[1:] if end in depths]
        inside_root = root and name not in base.names
        around = values[above[0]] if above else usual if inside_root else None
        if (rank, alpha) == around:
            continue
        depths[name] = max((depths[end] + 1 for end in above), default=int(inside_root))
        values[name] = (int(rank), alpha)
        shadowed.update(above)
    groups: dict[tuple[int, tuple[int, float]], list[str]] = {}
    for name in sorted(depths, key=lambda one: (depths[one], values[one] != usual)):
        groups.setdefault((depths[name], values[name]), []).append(name)
    found = []
    if root:
        whole = (
            LINEAR if base.is_linear else Target(regex=f"{base.guard}(?:{base.regex})" if base.guard else base.regex)
        )
        found.append(_rule(base, (whole, *_targets(base, groups.pop((0, usual), []))), usual, optional=bool(depths)))
    for (_, value), members in groups.items():
        # what a regex and a name select both may be nothing
        optional = bool(base.regex) or shadowed.issuperset(members)
        found.append(_rule(base, _targets(base, members), value, optional=optional))
    return found


def _named(base: _Base, keys: Iterable[str], root: bool) -> Iterable[str]:
    """Return the names among which modules are told apart: those adapted, and those of keys within them."""
    named = set(base.names)
    longer: dict[str, list[str]] = {}
    for name in base.names:
        for end in ends(name)[1:]:
            longer.setdefault(end, []).append(name)
    found = dict.fromkeys(base.names)
    for key in keys:
        if base.is_linear and key not in named and key.rpartition(".")[2] in LEAVES:
            continue
        within = root or any(end in named for end in ends(key))
        found.update(dict.fromkeys([key] if within else longer.get(key, ())))
    return found


class _First:
    """Looks names up in a pattern of names: the first key that covers one decides."""

    def __init__(self, pattern: Mapping[str, float]) -> None:
        self._places = {key: (place, value) for place, (key, value) in enumerate(pattern.items())}

    def value(self, name: str, usual: float) -> float:
        found = [self._places[end] for end in ends(name) if end in self._places]
        return min(found)[1] if found else usual


def _targets(base: _Base, names: Sequence[str]) -> tuple[Target, ...]:
    if base.regex:
        return tuple(Target(regex=f"{_within(base)}{ANYWHERE}{re.escape(name)}") for name in names)
    if base.guard:
        return (Target(regex=f"{base.guard}{ANYWHERE}{one_of(list(map(re.escape, names)))}"),)
    if base.containers:
        placed = [Segment(one, base.layers) for one in base.containers]
        return tuple(Target((one, *target(name).segments)) for one in placed for name in names)
    return tuple(map(target, names))


def _rule(base: _Base, targets: tuple[Target, ...], value: tuple[int, float], *, optional: bool) -> Selected:
    layers = () if base.containers else base.layers
    return Selected(targets, *value, layers, tuple(dict.fromkeys(base.excepts)), optional)


def _within(base: _Base) -> str:
    """Return the lookaheads that a path among those adapted passes."""
    if base.regex:
        return f"{base.guard}(?=(?:{base.regex})$)"
    if base.is_linear:
        return f"(?!{ANYWHERE}{one_of(sorted(LEAVES))}$)"
    return f"{base.guard}(?={ANYWHERE}{one_of(list(map(re.escape, base.names)))}$)"


def _apart(base: _Base, config: Fields, ranks: Fields, alphas: Fields) -> list[Selected]:
    """Return a rule for everything, and one for each pair of keys that selects what both fit before all others."""
    usual = (int(config["r"]), config["lora_alpha"])
    found = [
        _rule(base, one.targets, usual, optional=True)
        for one in _by_name(base, {**config, "r": usual[0], "lora_alpha": usual[1]}, {}, {})
    ]
    for (of_rank, rank), (of_alpha, alpha) in itertools.product(_keys(ranks), _keys(alphas)):
        value = (int(rank or usual[0]), alpha or usual[1])
        if value != usual:
            every = Target(regex=f"{_within(base)}{of_rank}{of_alpha}.*")
            found.append(_rule(base, (every,), value, optional=True))
    return found


def _keys(pattern: Mapping[str, float]) -> Iterator[tuple[str, float | None]]:
    """Yield what a path must pass to be decided by each key, with its value; and by none of them."""
    before = ""
    for key, value in pattern.items():
        yield f"{before}(?={ANYWHERE}(?:{key})$)", value
        before += f"(?!{ANYWHERE}(?:{key})$)"
    yield before, None


def _check(regex: str) -> None:
    try:
        check_regex(regex)
    except RegexError as error:
        raise AdapterError(f"{regex[:200]!r}: {error}") from error
