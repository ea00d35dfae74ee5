"""The model of a spec, as a comment `# model: PATH` names it, and what an editor asks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorakit.hooks import Role
from lorakit.language.regexes import RegexError
from lorakit.language.statements import Target
from lorakit.language.suggestions import nearest
from lorakit.lsp.model_names import cached_config, model_names
from lorakit.planning.inventory import Inventory, ModuleInfo
from lorakit.planning.place import Place
from lorakit.planning.targets import Selection
from lorakit.values import HUB_ID

_COMMENT = re.compile(r"^[ \t]*#[ \t]*model:[ \t]*(?P<reference>\S[^\n]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModelComment:
    """What a spec says of its model, and where: a folder, a hub id, `FILE.py:FACTORY` or `package.module:FACTORY`."""

    reference: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a model cannot be read, and what was probably meant."""

    problem: str
    near: str | None = None


@dataclass(frozen=True)
class Model:
    """A model whose inventory was read."""

    inventory: Inventory
    roles: Mapping[str, Role]

    @cached_property
    def _selection(self) -> Selection:
        return Selection(self.inventory, self.roles)

    @cached_property
    def _matches(self) -> dict[Target, tuple[str, ...]]:
        return {}

    def matches(self, target: Target) -> tuple[str, ...]:
        """Return the paths of the modules that a target selects."""
        if target not in self._matches:
            # a session has no bound of time for all of its regexes together
            selection = self._selection if target.regex is None else Selection(self.inventory, self.roles)
            try:
                self._matches[target] = selection.matches(target)
            except RegexError:
                # the plan says so at its place
                self._matches[target] = ()
        return self._matches[target]

    def fitting(self, target: Target) -> tuple[str, ...]:
        """Return those paths that an adapter fits."""
        return tuple(path for path in self.matches(target) if self.inventory.modules[path].shape is not None)

    def named(self, below: Target | None = None) -> Mapping[str, list[ModuleInfo]]:
        """Return the modules by the last segment of their path: all, or those one segment below a target."""
        paths = self.inventory.modules if below is None else self._below(below)
        found: dict[str, list[ModuleInfo]] = {}
        for path in paths:
            if path:
                found.setdefault(Place(path).leaf, []).append(self.inventory.modules[path])
        return found

    def classes(self, below: Target | None = None) -> Mapping[str, list[ModuleInfo]]:
        """Return the modules by the name of their class: all, or those one segment below a target."""
        found: dict[str, list[ModuleInfo]] = {}
        for modules in self.named(below).values():
            for module in modules:
                found.setdefault(module.class_name, []).append(module)
        return found

    def _below(self, target: Target) -> list[str]:
        return [child for path in self.matches(target) for child in self.inventory.children.get(path, ())]


def model_comment(text: str) -> ModelComment | None:
    """Return what the first such comment of a text says."""
    found = _COMMENT.search(text)
    if found is None:
        return None
    reference = found["reference"].rstrip()
    return ModelComment(reference, found.start("reference"), found.start("reference") + len(reference))


def place_of(reference: str, folder: Path) -> Path | None:
    """Return the file that a reference hangs on, which may be missing; None where it has no place of its own."""
    place, _, factory = reference.rpartition(":")
    path = folder / reference
    if not path.is_dir() and factory and place:
        return folder / place if place.endswith(".py") else None
    if not path.exists() and HUB_ID.fullmatch(reference):
        return cached_config(reference) or path
    return path / "config.json" if path.is_dir() else path


def stamp_of(reference: str, folder: Path) -> int | Unreadable:
    """Return when the files behind a reference last changed, 0 where they have no place of their own."""
    try:
        path = place_of(reference, folder)
        return path.stat().st_mtime_ns if path is not None else 0
    except (OSError, ValueError):
        return _missing(reference, folder)


def _missing(reference: str, folder: Path) -> Unreadable:
    try:
        is_folder = (folder / reference).is_dir()
    except (OSError, ValueError):
        is_folder = False
    near = nearest(reference, model_names(folder))
    if is_folder:
        return Unreadable("the folder has no config.json", near)
    if reference.count("/") == 1 and HUB_ID.fullmatch(reference):
        return Unreadable(
            "there is no such folder, and the hub id is not in the local Hugging Face cache; "
            f"`hf download {reference} config.json` brings it there: an editor fetches nothing",
            near,
        )
    what = "a Hugging Face folder, a hub id or FILE.py:FACTORY, files relative to this one"
    return Unreadable(f"there is no such folder or file: a model is {what}", near)
