"""A plan for an adapter that PEFT saved: the modules and ranks that its tensors speak of, scaled as its config says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit.artifacts.adapter_folder import CONFIG
from lorakit.artifacts.peft_names import PREFIX
from lorakit.artifacts.reading import AdapterFiles
from lorakit.dtypes import SHORT, name_of
from lorakit.errors import AdapterError
from lorakit.hooks.manager import Plugins
from lorakit.language.regexes import Matcher, RegexError
from lorakit.language.statements import Adapt, Train
from lorakit.planning.cascade import Decisions
from lorakit.planning.figures import finished
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan
from lorakit.planning.planner import plan_decisions
from lorakit.values import LayerShape

LORA = re.compile(r"(?P<path>.+)\.(?P<matrix>lora_[AB]\.weight|lora_embedding_[AB])")
# the parameter of a MultiheadAttention that stands for its three projections
IN_PROJECTION = "in_proj_weight"
FIRST = ("lora_A.weight", "lora_embedding_A")
_DOTTED = re.compile(r"[\w.-]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def plan_of_files(files: AdapterFiles, inventory: Inventory, plugins: Plugins) -> Plan:
    """Return the plan that gives the model the modules which the files hold tensors for.

    Raises: AdapterError naming the first tensor that no module of this model takes.
    """
    adapt: dict[str, Adapt] = {}
    train: dict[str, Train] = {}
    scales = Scales(files.folder, files.config)
    for name, tensor in files.tensors.items():
        inner = name.removeprefix(PREFIX)
        if found := LORA.fullmatch(inner):
            path = _target(found["path"], inventory, files)
            _known(path, name, inventory, files)
            module = inventory.modules[path]
            if module.shape is None:
                raise AdapterError(f"{files.folder} adapts `{path}`, a {module.class_name}, which no adapter here fits")
            if found["matrix"] in FIRST:
                dtype = SHORT.get(name_of(tensor.dtype), "fp32")
                rank = _rank(name, tensor, module.shape, files)
                where = _decided_at(path, inventory, files)
                adapt[path] = _rule(where, rank, dtype, files.config, scales)
                if where != path and path.endswith(".out_proj"):
                    # PEFT adds the change of this one twice, as it merges (peft 0.21, MultiheadAttention.merge)
                    adapt[path] = replace(adapt[path], alpha=2 * (adapt[path].alpha or 0.0))
            continue
        place = Place(inner, is_parameter=True)
        path, parameter = place.holder, place.leaf
        if parameter == "bias" and path.endswith(".base_layer"):
            continue
        _known(path, name, inventory, files)
        if parameter not in {
            own.name for own in (*inventory.modules[path].parameters, *inventory.modules[path].buffers)
        }:
            raise AdapterError(f"{files.folder} holds tensors that nothing here takes, first {name}")
        if parameter == "bias" and files.config.get("bias") == "all":
            _whole(path, inventory, files)
        train[path] = Train(targets=())
    if not adapt and not train:
        raise AdapterError(f"{files.folder} holds no LoRA tensors")
    plan, problems = plan_decisions(Decisions(adapt, {}, train), inventory, plugins)
    if problems:
        raise AdapterError(f"{files.folder} does not fit this {inventory.model_class}: {problems[0].message}")
    return finished(plan, inventory, plugins)


def _rank(name: str, lora_A: Tensor, shape: LayerShape, files: AdapterFiles) -> int:
    """Return the rank that a lora_A (rank, …), for a stack (stack · rank, …), gives."""
    stack = shape.stack or 1
    if lora_A.ndim < 2 or not lora_A.shape[0] or lora_A.shape[0] % stack:
        raise AdapterError(f"{files.folder}: `{name}` is {tuple(lora_A.shape)}, which is no lora_A of any rank")
    return lora_A.shape[0] // stack


def _target(path: str, inventory: Inventory, files: AdapterFiles) -> str:
    """Return the target of a tensor: for a parameter of a module, PEFT writes the module's path and `base_layer`s."""
    if path not in inventory.modules and (inner := path.replace(".base_layer.", ".")) in inventory.modules:
        # a module around it was wrapped
        return inner
    if f"{path}.{IN_PROJECTION}" in inventory.modules and not files.config.get("target_parameters"):
        # what PEFT's adapter of a whole MultiheadAttention has besides that of its out_proj
        return f"{path}.{IN_PROJECTION}"
    outer = path
    while outer.endswith(".base_layer"):
        outer = outer.removesuffix(".base_layer")
    wanted = tuple(f".{name}" for name in files.config.get("target_parameters") or ())
    own = [
        child
        for child in inventory.children.get(outer, ())
        if inventory.modules[child].is_parameter and f".{child}".endswith(wanted)
    ]
    depth = path.count(".base_layer")
    return own[len(own) - 1 - depth] if depth < len(own) else path


def _decided_at(path: str, inventory: Inventory, files: AdapterFiles) -> str:
    """Return the path that PEFT looks up in its patterns: a MultiheadAttention is one module to it."""
    holder = Place(path).holder
    whole = f"{holder}.{IN_PROJECTION}" in inventory.modules and not files.config.get("target_parameters")
    return holder if whole and f"{PREFIX}{holder}.lora_A.weight" in files.tensors else path


def _whole(path: str, inventory: Inventory, files: AdapterFiles) -> None:
    """Refuse the bias of a layer that has no adapter, unless the layer was trained in full."""
    if any(f"{PREFIX}{path}.{own.name}" not in files.tensors for own in inventory.modules[path].parameters):
        raise AdapterError(
            f'{files.folder} was trained with bias="all" and holds the bias of `{path}`, which has no adapter; lorakit '
            'reads bias="lora_only", so fold this one in with PEFT\'s merge_and_unload'
        )


def _known(path: str, name: str, inventory: Inventory, files: AdapterFiles) -> None:
    if path not in inventory.modules:
        raise AdapterError(
            f"{files.folder} is for another model: it holds `{name}`, and this {inventory.model_class} has no `{path}`"
        )


class Scales:
    """What an adapter_config.json multiplies the update of each module by. Raises: AdapterError for a bad pattern.

    Patterns are regexes on the end of a path. PEFT writes the path itself, with dots that fit any character, and
    lorakit the path with what is special in it escaped: those are looked up, and what is left is matched one by one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._path = folder / CONFIG
        self._config = config
        self._matcher = Matcher(start=r"(.*\.)?")
        self._regexes: list[tuple[int, str, Any]] = []
        self._names: dict[str, tuple[int, Any]] = {}
        self._dotted: dict[tuple[int, tuple[int, ...]], dict[str, tuple[int, Any]]] = {}
        for place, (key, value) in enumerate((config.get("alpha_pattern") or {}).items()):
            name = _ESCAPE.sub(r"\1", key)
            if re.escape(name) == key:
                self._names.setdefault(name, (place, value))
            elif _DOTTED.fullmatch(key):
                dots = tuple(at for at, character in enumerate(key) if character == ".")
                self._dotted.setdefault((len(key), dots), {})[key] = (place, value)
            else:
                self._regexes.append((place, key, value))

    def alpha(self, path: str, rank: int) -> float:
        """Return the alpha of the first pattern that fits the end of a path, as PEFT looks it up.

        A layer may be named by its weight, where the adapter's config has it among `target_parameters`.
        """
        names = (path, f"{path}.weight")
        try:
            begun = self._matcher.begin()
            known = [found for name in names for found in self._known(name)]
            self._matcher.charge(begun)
            first, value = min(
                known, key=lambda found: found[0], default=(None, self._config.get("lora_alpha") or rank)
            )
            for place, key, one in self._regexes:
                if first is not None and place > first:
                    break
                if any(self._matcher.fits(key, name) for name in names):
                    return float(one)
        except RegexError as error:
            raise AdapterError(f"{self._path}: alpha_pattern: {error}") from error
        return float(value)

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

    def scaling(self, path: str, rank: int) -> float:
        """Return what B·A of a module is multiplied by."""
        return self.alpha(path, rank) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _rule(path: str, rank: int, dtype: str, config: Mapping[str, Any], scales: Scales) -> Adapt:
    return Adapt(
        targets=(),
        rank=rank,
        alpha=scales.alpha(path, rank),
        scaling="rslora" if config.get("use_rslora") else "standard",
        dropout=float(config.get("lora_dropout") or 0.0),
        dtype=dtype,
        bias="adapter" if config.get("bias") in ("lora_only", "all") else "none",
    )
