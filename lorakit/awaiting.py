"""Libraries that may be imported later or never: have a word with one once it is loaded, and load none for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Act = Callable[[ModuleType], object]


def once_loaded(name: str, act: Act) -> None:
    """Call `act` with a module as soon as it is loaded, now where it is; the same `act` once alone."""
    if name in _awaiting.done and act in _awaiting.done[name]:
        return
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        _awaiting.done.setdefault(name, []).append(act)
        act(module)
        return
    acts = _awaiting.acts.setdefault(name, [])
    if act not in acts:
        acts.append(act)
    if _awaiting not in sys.meta_path:
        sys.meta_path.insert(0, _awaiting)


class _Awaiting:
    """Finds modules as the others do, and attends the loading of those that are awaited."""

    def __init__(self) -> None:
        self.acts: dict[str, list[Act]] = {}
        self.done: dict[str, list[Act]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.acts:
            return None
        for finder in sys.meta_path:
            if finder is not self and (found := finder.find_spec(name, path, target)) is not None:
                self._attend(found)
                return found
        return None

    def _attend(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_act(module: ModuleType) -> None:
            load(module)
            for act in self.acts.pop(spec.name, ()):
                self.done.setdefault(spec.name, []).append(act)
                act(module)

        loader.exec_module = load_and_act


_awaiting = _Awaiting()
