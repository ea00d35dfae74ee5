"""Target selection: which modules of an inventory a selector names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from lorakit.hooks.protocols import Role
from lorakit.language.regexes import Matcher
from lorakit.language.statements import IndexRange, Target
from lorakit.planning.place import Place

if TYPE_CHECKING:
    from lorakit.planning.inventory import Inventory, ModuleInfo

ANY_NUMBER = object()
Part: TypeAlias = "str | Glob | tuple[IndexRange, ...] | object"


class Selection:
    """Answers, for one inventory, which modules a target matches and which layer a module belongs to."""

    def __init__(self, inventory: Inventory, roles: Mapping[str, Role]) -> None:
        self._inventory = inventory
        self._roles = roles
        self._role_paths: dict[str, frozenset[str]] = {}
        self._lengths: dict[str, int] = {}
        self._matcher = Matcher()
        self._today = {former: path for path, former in inventory.former_paths.items()}

    def matches(self, target: Target) -> tuple[str, ...]:
        """Return the paths of the modules that a target selects, in the model's order.

        Where no module is called so, those count that were in earlier releases of the model's library.
        Raises: RegexError for a regex that takes too long.
        """
        modules = [module for path, module in self._inventory.modules.items() if path]
        found = [one for one in modules if self._fits(target, one, (one.path, *one.other_paths))]
        former = self._inventory.former_paths if not found else {}
        found = found or [one for one in modules if one.path in former and self._fits(target, one, (former[one.path],))]
        return tuple(one.path for one in found)

    def in_layers(self, path: str, ranges: tuple[IndexRange, ...]) -> bool:
        """Return whether a module's index in its outermost numbered container falls in the ranges."""
        position = outermost_index(path)
        return position is not None and self._in_ranges(*position, ranges)

    def role(self, name: str) -> frozenset[str]:
        """Return the paths that play a role."""
        if name not in self._role_paths:
            self._role_paths[name] = self._roles[name].select(self._inventory)
        return self._role_paths[name]

    def _fits(self, target: Target, module: ModuleInfo, paths: Iterable[str]) -> bool:
        if module.shape is not None and module.shape.outright and not target.is_outright:
            return False
        if target.class_name is not None and module.class_name != target.class_name:
            return False
        if target.role is not None and module.path not in self.role(target.role):
            return False
        return any(self._path_fits(target, path) for path in paths)

    def _path_fits(self, target: Target, path: str) -> bool:
        if target.regex is not None:
            return self._matcher.fits(target.regex, path)
        parts = _parts(target)
        if isinstance(parts[-1], str) and not path.endswith(parts[-1]):
            return False
        segments = path.split(".")
        # how many segments the parts so far may take up: each part is tried once at each place
        ends = [0]
        for part in parts:
            if part is ANY_NUMBER:
                ends = list(range(ends[0], len(segments) + 1))
            else:
                ends = [end + 1 for end in ends if end < len(segments) and self._segment_fits(part, segments, end)]
            if not ends:
                return False
        return ends[-1] == len(segments)

    def _segment_fits(self, part: Part, segments: list[str], position: int) -> bool:
        segment = segments[position]
        if isinstance(part, str):
            return segment == part
        if isinstance(part, Glob):
            return part.fits(segment)
        index = index_of(segment)
        return index is not None and self._in_ranges(
            ".".join(segments[:position]), index, cast(tuple[IndexRange, ...], part)
        )

    def _in_ranges(self, container: str, index: int, ranges: tuple[IndexRange, ...]) -> bool:
        length = self.length_of(container)
        return any(_from_start(one.first, length) <= index <= _from_start(one.last, length) for one in ranges)

    def length_of(self, container: str) -> int:
        """Return one more than the last index in a numbered container, 0 where it has none."""
        if container not in self._lengths:
            children = self._inventory.children.get(self._today.get(container, container), ())
            indices = (index_of(Place(path).leaf) for path in children)
            self._lengths[container] = 1 + max((index for index in indices if index is not None), default=-1)
        return self._lengths[container]


@dataclass(frozen=True, slots=True)
class Glob:
    """A segment in which `*` stands for any characters; `words` are what stands between."""

    words: tuple[str, ...]

    def fits(self, segment: str) -> bool:
        """Return whether the glob fits a whole segment: each word is looked for once, behind the one before it."""
        first, *middle, last = self.words
        end = len(segment) - len(last)
        if not (segment.startswith(first) and segment.endswith(last) and len(first) <= end):
            return False
        position = len(first)
        for word in middle:
            position = segment.find(word, position, end)
            if position < 0:
                return False
            position += len(word)
        return True


def index_of(segment: str) -> int | None:
    """Return the index that a segment of a path is, or None; no container has so many members as 18 digits count."""
    return int(segment) if segment.isdecimal() and len(segment) <= 18 else None


def outermost_index(path: str) -> tuple[str, int] | None:
    """Return the outermost numbered container above a path and the index in it, or None."""
    segments = path.split(".")
    for position, segment in enumerate(segments):
        index = index_of(segment)
        if index is not None:
            return ".".join(segments[:position]), index
    return None


def block_of(path: str) -> str:
    """Return the member of the outermost numbered container that a path is or lies in, or ''."""
    position = outermost_index(path)
    return f"{position[0]}.{position[1]}".lstrip(".") if position else ""


def container_counts(paths: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return how many of these paths lie in each outermost numbered container; '' stands for none."""
    counts: dict[str, int] = {}
    for path in paths:
        position = outermost_index(path)
        container = position[0] if position else ""
        counts[container] = counts.get(container, 0) + 1
    return tuple(counts.items())


def _from_start(index: int, length: int) -> int:
    return index + length if index < 0 else index


@functools.lru_cache(maxsize=1024)
def _parts(target: Target) -> tuple[Part, ...]:
    """Return a path target as what each segment of a path must be; it matches as a suffix."""
    parts: list[Part] = [ANY_NUMBER]
    for segment in target.segments:
        if segment.name == "**":
            parts.append(ANY_NUMBER)
        elif "*" in segment.name:
            parts.append(Glob(tuple(segment.name.split("*"))))
        else:
            parts.append(segment.name)
        if segment.indices:
            # behind an index any number of segments may stand, none of them included
            parts += [segment.indices, ANY_NUMBER]
    if target.role is not None or target.class_name is not None:
        parts.append(Glob(("", "")))
    return tuple(parts)
