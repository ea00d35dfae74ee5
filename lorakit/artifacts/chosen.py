"""Whether an adapter_config.json chooses the modules that the file beside it holds tensors for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorakit.artifacts.adapter_folder import CONFIG
from lorakit.artifacts.peft_names import BASE, PREFIX
from lorakit.errors import AdapterError
from lorakit.quoting import shown

_WORD = re.compile(r"\w+")


class Chosen:
    """What a config says by names and numbers alone of the modules that it adapts.

    PEFT passes over the tensors of other modules without a word. Expressions it may have written for other names than
    those of today: they are not asked.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._path, self._config = folder / CONFIG, config
        targets: Any = config.get("target_modules")
        # a parameter's adapter hangs on the module around it
        by_name = isinstance(targets, list) and "all-linear" not in targets and not config.get("target_parameters")
        self._targets = frozenset(one.removeprefix(PREFIX) for one in targets) if by_name else None
        excluded = config.get("exclude_modules")
        self._excluded = frozenset(excluded if isinstance(excluded, list) else ())
        layers = config.get("layers_to_transform")
        self._layers = frozenset(layers if isinstance(layers, list) else () if layers is None else (layers,))
        patterns = config.get("layers_pattern") or r"[^.]*"
        words = [patterns] if isinstance(patterns, str) else patterns
        self._layer = [re.compile(rf".*\.{one}\.(\d+)\.") for one in words if one == r"[^.]*" or _WORD.fullmatch(one)]

    def check(self, names: Iterable[str]) -> None:
        """Hold a module against the config, by each of the names that it has or had.

        Raises: AdapterError if all of these names are left out.
        """
        plain = [name.replace(BASE, "") for name in names]
        for field, chooses in (
            ("target_modules", self._is_target), ("exclude_modules", self._is_spared),
            ("layers_to_transform", self._is_layer),
        ):  # fmt: skip
            if not any(map(chooses, plain)):
                said = self._config[field]
                words = shown(", ".join(map(str, said))) if isinstance(said, list) else shown(said)
                raise AdapterError(
                    f"{self._path} says {field}={words}, which leaves `{plain[0]}` out, and the file beside it holds "
                    "an adapter of it: one of the two was changed by hand"
                )

    def _is_target(self, name: str) -> bool:
        if self._targets is None:
            return True
        segments = name.split(".")
        around = (".".join(segments[:end]) for end in range(len(segments), 0, -1))
        return any(end in self._targets for one in around for end in _ends(one))

    def _is_spared(self, name: str) -> bool:
        return not any(end in self._excluded for end in _ends(name)) if self._excluded else True

    def _is_layer(self, name: str) -> bool:
        if not self._layers or not self._layer:
            return True
        found = next(filter(None, (pattern.match(name) for pattern in self._layer)), None)
        return found is None or int(found[1]) in self._layers


def _ends(name: str) -> Iterator[str]:
    segments = name.split(".")
    return (".".join(segments[start:]) for start in range(len(segments)))
