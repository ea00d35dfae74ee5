"""Target selection: which modules of an inventory a selector names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

from lorakit.hooks.protocols import Role
from lorakit.language.spec import IndexRange, Target
from lorakit.planning.place import Place

if TYPE_CHECKING:
    from lorakit.planning.inventory import Inventory, ModuleInfo

ANY_NUMBER = object()
Part: TypeAlias = "str | re.Pattern[str] | tuple[IndexRange, ...] | object"


class Selection:
    """Answers, for one inventory, which modules a target matches and which layer a module belongs to."""

    def __init__(self, inventory: Inventory, roles: Mapping[str, Role]) -> None:
        self._inventory = inventory
        self._roles = roles
        self._role_paths: dict[str, frozenset[str]] = {}

    def matches(self, target: Target) -> tuple[str, ...]:
        """Return the paths of the modules that a target selects, in the model's order."""
        return tuple(path for path, module in self._inventory.modules.items() if path and self._fits(target, module))

    def in_layers(self, path: str, ranges: tuple[IndexRange, ...]) -> bool:
        """Return whether a module's index in its outermost numbered container falls in the ranges."""
        position = outermost_index(path)
        return position is not None and self._in_ranges(*position, ranges)

    def role(self, name: str) -> frozenset[str]:
        """Return the paths that play a role."""
        if name not in self._role_paths:
            self._role_paths[name] = self._roles[name].select(self._inventory)
        return self._role_paths[name]

    def _fits(self, target: Target, module: ModuleInfo) -> bool:
        if module.shape is not None and module.shape.outright and not target.is_outright:
            return False
        if target.class_name is not None and module.class_name != target.class_name:
            return False
        if target.role is not None and module.path not in self.role(target.role):
            return False
        return any(self._path_fits(target, path) for path in (module.path, *module.other_paths))

    def _path_fits(self, target: Target, path: str) -> bool:
        if target.regex is not None:
            return re.fullmatch(target.regex, path) is not None
        parts = _parts(target)
        if isinstance(parts[-1], str) and not path.endswith(parts[-1]):
            return False
        return self._walk(parts, 0, path.split("."), 0)

    def _walk(self, parts: tuple[Part, ...], at: int, segments: list[str], position: int) -> bool:
        """Return whether the parts from `at` on fit the segments from `position` on."""
        if at == len(parts):
            return position == len(segments)
        part = parts[at]
        if part is ANY_NUMBER:
            return any(self._walk(parts, at + 1, segments, next_) for next_ in range(position, len(segments) + 1))
        if position == len(segments):
            return False
        segment = segments[position]
        if isinstance(part, str):
            fits = segment == part
        elif isinstance(part, re.Pattern):
            fits = part.fullmatch(segment) is not None
        else:
            fits = segment.isdecimal() and self._in_ranges(
                ".".join(segments[:position]), int(segment), cast(tuple[IndexRange, ...], part)
            )
        return fits and self._walk(parts, at + 1, segments, position + 1)

    def _in_ranges(self, container: str, index: int, ranges: tuple[IndexRange, ...]) -> bool:
        length = self._container_length(container)
        return any(_from_start(one.first, length) <= index <= _from_start(one.last, length) for one in ranges)

    def _container_length(self, container: str) -> int:
        children = self._inventory.children.get(container, ())
        return 1 + max((int(name) for path in children if (name := Place(path).leaf).isdigit()), default=-1)


def outermost_index(path: str) -> tuple[str, int] | None:
    """Return the outermost numbered container above a path and the index in it, or None."""
    segments = path.split(".")
    for position, segment in enumerate(segments):
        if segment.isdigit():
            return ".".join(segments[:position]), int(segment)
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
            parts.append(re.compile(re.escape(segment.name).replace(r"\*", ".*")))
        else:
            parts.append(segment.name)
        if segment.indices:
            # behind an index any number of segments may stand, none of them included
            parts += [segment.indices, ANY_NUMBER]
    if target.role is not None or target.class_name is not None:
        parts.append(re.compile(".*"))
    return tuple(parts)
