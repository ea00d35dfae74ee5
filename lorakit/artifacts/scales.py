"""What an adapter_config.json says of single modules: what it multiplies their updates by, and their ranks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorakit.artifacts.adapter_folder import CONFIG
from lorakit.errors import AdapterError
from lorakit.language.regexes import Matcher, RegexError

# what PEFT takes where the config says nothing
ALPHA = RANK = 8
_DOTTED = re.compile(r"[\w.-]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Scales:
    """What an adapter_config.json multiplies the update of each module by. Raises: AdapterError for a bad pattern."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._config = config
        self._alphas = _Patterns(folder / CONFIG, config, "alpha_pattern", "lora_alpha", ALPHA)
        self._ranks = _Patterns(folder / CONFIG, config, "rank_pattern", "r", RANK)

    def alpha(self, path: str) -> float:
        """Return the alpha of the first pattern that fits the end of a path, as PEFT looks it up."""
        return float(self._alphas.value(path))

    def rank(self, path: str) -> int:
        """Return the rank that the config gives a module, which its tensors need not have."""
        return int(self._ranks.value(path))

    def scaling(self, path: str, rank: int) -> float:
        """Return what B·A of a module is multiplied by."""
        return self.alpha(path) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


class _Patterns:
    """A value by module: patterns are regexes on the end of a path, and where none fits it is the usual one.

    PEFT writes the path itself, with dots that fit any character, and lorakit the path with what is special in it
    escaped: those are looked up, and what is left is matched one by one.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], field: str, usual: str, default: int) -> None:
        self._path, self._field = path, field
        self._usual = default if config.get(usual) is None else config[usual]
        self._matcher = Matcher(start=r"(.*\.)?")
        self._regexes: list[tuple[int, str, Any]] = []
        self._names: dict[str, tuple[int, Any]] = {}
        self._dotted: dict[tuple[int, tuple[int, ...]], dict[str, tuple[int, Any]]] = {}
        for place, (key, value) in enumerate((config.get(field) or {}).items()):
            name = _ESCAPE.sub(r"\1", key)
            if re.escape(name) == key:
                self._names.setdefault(name, (place, value))
            elif _DOTTED.fullmatch(key):
                dots = tuple(at for at, character in enumerate(key) if character == ".")
                self._dotted.setdefault((len(key), dots), {})[key] = (place, value)
            else:
                self._regexes.append((place, key, value))

    def value(self, path: str) -> Any:
        """Return the value of the first pattern that fits.

        A layer may be named by its weight, where the adapter's config has it among `target_parameters`.
        """
        names = (path, f"{path}.weight")
        try:
            begun = self._matcher.begin()
            known = [found for name in names for found in self._known(name)]
            self._matcher.charge(begun)
            first, value = min(known, key=lambda found: found[0], default=(None, self._usual))
            for place, key, one in self._regexes:
                if first is not None and place > first:
                    break
                if any(self._matcher.fits(key, name) for name in names):
                    return one
        except RegexError as error:
            raise AdapterError(f"{self._path}: {self._field}: {error}") from error
        return value

    def _known(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield the places and values of the patterns that fit the end of a name and are looked up."""
        if self._names:
            segments = name.split(".")
            ends = (".".join(segments[start:]) for start in range(len(segments)))
            yield from (self._names[end] for end in ends if end in self._names)
        for (length, dots), keys in self._dotted.items():
            before = len(name) - length
            if before == 0 or (before > 0 and name[before - 1] == "."):
                end = list(name[before:])
                for dot in dots:
                    end[dot] = "."
                if (found := keys.get("".join(end))) is not None:
                    yield found
