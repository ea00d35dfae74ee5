"""An adapter as one GGUF file, which llama.cpp loads with `--lora` beside the base model."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.artifacts.folders import new_file
from lorakit.artifacts.gguf_names import Family, family_of, heads_of, permuted_rows
from lorakit.artifacts.loading import planned_files
from lorakit.artifacts.peft_names import file_names
from lorakit.artifacts.reading import AdapterFiles
from lorakit.errors import AdapterError, PluginError, WriteError
from lorakit.hooks.manager import Plugins
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.plan import Plan, PlanEntry
from lorakit.planning.reading import read_inventory

KINDS = ("linear", "linear_transposed", "embedding", "stack")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices on one weight of the GGUF model, in float32.

    Shapes: lora_a (rank, in_features), lora_b (out_features, rank), with the experts first for a stack of them; for the
    token embedding lora_a is (num_embeddings, rank). `factor` is what their product is multiplied by.
    """

    weight: str
    lora_a: Tensor
    lora_b: Tensor
    factor: float

    @property
    def rank(self) -> int:
        return self.lora_b.shape[-1]


@dataclass(frozen=True, slots=True)
class Exported:
    """What a GGUF adapter holds."""

    architecture: str
    alpha: float
    pairs: int


def export_adapter(
    adapter: Path, model: nn.Module, target: Path, plugins: Plugins, *, dtype: str, allow_pickle: bool = False
) -> Exported:
    """Write an adapter folder as a GGUF file in `dtype`, f32, f16 or bf16; `model` may live on meta tensors.

    llama.cpp scales every product by one alpha over its rank: where the adapter scales otherwise, lora_b takes it in.
    Raises: AdapterError naming what llama.cpp cannot load, PluginError without the gguf package, WriteError.
    """
    gguf = _gguf()
    config: Any = getattr(model, "config", None)
    family = family_of(config)
    inventory = read_inventory(model, plugins)
    files, plan = planned_files(adapter, inventory, model, plugins, quantize=False, allow_pickle=allow_pickle)
    _refuse(plan, inventory, files)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.architecture), config.num_hidden_layers)
    stored = file_names(plan)
    pairs = [pair for entry in plan.entries for pair in _pairs(entry, stored(entry), files, family, config, names)]
    alpha = _alpha(pairs)
    architecture = gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, family.architecture)]
    with new_file(target) as aside:
        writer = gguf.GGUFWriter(aside, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # a name that is no UTF-8 is one that Python holds as lone surrogates
        writer.add_name(adapter.resolve().name.encode("utf-8", "replace").decode())
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for pair in pairs:
            folded = pair.lora_b * (pair.factor * pair.rank / alpha)
            for suffix, matrix in (("lora_a", pair.lora_a), ("lora_b", folded)):
                _add(writer, f"{pair.weight}.{suffix}", matrix, dtype, gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_whole(aside, gguf)
    return Exported(architecture, alpha, len(pairs))


def _check_whole(file: Path, gguf: Any) -> None:
    """Read a file back: numpy, which gguf writes tensors with, does not say that the last of them met a full disk.

    Raises: WriteError.
    """
    try:
        gguf.GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise WriteError(f"writing {file.name} failed: less than all of it was written, as on a full disk") from error


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise PluginError("writing GGUF needs the gguf package: pip install 'lorakit[gguf]'") from error
    return gguf


def _refuse(plan: Plan, inventory: Inventory, files: AdapterFiles) -> None:
    """Raise for what an adapter of llama.cpp has no place for, every module of it named."""
    if files.taken:
        raise AdapterError(f"{files.folder} starts from a part of the base weights; `lorakit merge` folds it in")
    trained = [entry.path for entry in plan.entries if entry.train]
    carried = [entry.path for entry in plan.entries if entry.carried]
    biases = [entry.path for entry in plan.entries if entry.adapter and entry.adapter.bias_parameters]
    kinds = ((trained, "weights trained in full"), (carried, "base weights of its own"), (biases, "trained biases"))
    for paths, what in kinds:
        if paths:
            raise AdapterError(
                f"{files.folder} holds {what}, and a GGUF adapter holds low-rank changes alone: "
                f"{_some(paths)}; `lorakit merge` folds them in"
            )
    for entry in plan.entries:
        assert entry.adapter is not None and entry.shape is not None
        if entry.adapter.method.name != "lora" or entry.shape.kind not in KINDS:
            raise AdapterError(
                f"`{entry.path}` is adapted by {entry.adapter.method.name} as {entry.shape.kind}, "
                "for which llama.cpp's adapters have no place; `lorakit merge` folds it in"
            )
        weight = inventory.modules[entry.path].weight
        if weight is not None and len(inventory.owners[weight.weight_id]) > 1:
            raise AdapterError(
                f"`{entry.path}` shares its weight ({', '.join(inventory.owners[weight.weight_id])}), and llama.cpp "
                "keeps one tensor for both ends and cannot change one; `lorakit merge` folds it in"
            )


def _some(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _pairs(
    entry: PlanEntry, stored: Mapping[str, str], files: AdapterFiles, family: Family, config: Any, names: Any
) -> Iterator[Pair]:
    assert entry.adapter is not None and entry.shape is not None
    lora_A, lora_B = (files.tensors[stored[name]].float() for name in ("lora_A", "lora_B"))
    factor, shape = entry.adapter.settings.factor, entry.shape
    if shape.stack:
        # PEFT's layout of a stack: see LoRAStack
        lora_A = lora_A.view(shape.stack, -1, lora_A.shape[1])
        lora_B = lora_B.view(lora_B.shape[0], -1, shape.stack).permute(2, 0, 1)
        for path, rows in _projections(entry.path, lora_B, family):
            yield Pair(_name(path, entry, names), lora_A, rows, factor)
        return
    name = _name(entry.path, entry, names)
    if shape.kind == "embedding":
        # ggml looks up rows of lora_a by token
        yield Pair(name, lora_A.T, lora_B, factor)
    elif heads := heads_of(entry.path, family, config):
        yield Pair(name, lora_A, permuted_rows(lora_B, heads), factor)
    else:
        yield Pair(name, lora_A, lora_B, factor)


def _projections(path: str, lora_B: Tensor, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Yield the projections that a stack of experts holds, with their rows of lora_B; gate and up lie in one."""
    place = Place(path, is_parameter=True)
    holder, name = place.holder, place.leaf
    if not family.experts or not holder.endswith(family.experts) or name not in ("gate_up_proj", "down_proj"):
        raise AdapterError(
            f"`{path}` is a stack of matrices that llama.cpp holds otherwise; `lorakit merge` folds it in"
        )
    if name == "down_proj":
        yield path, lora_B
        return
    gate, up = lora_B.chunk(2, dim=1)
    yield f"{holder}.gate_proj", gate
    yield f"{holder}.up_proj", up


def _name(path: str, entry: PlanEntry, names: Any) -> str:
    found: str | None = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
    if found is None:
        raise AdapterError(f"`{entry.path}` has no name in GGUF for this architecture; `lorakit merge` folds it in")
    return found


def _alpha(pairs: list[Pair]) -> float:
    """Return the alpha that most pairs have as they are; llama.cpp reads 0 as none."""
    counted = collections.Counter(pair.factor * pair.rank for pair in pairs if pair.factor)
    return counted.most_common(1)[0][0] if counted else 1.0


def _add(writer: Any, name: str, matrix: Tensor, dtype: str, gguf: Any) -> None:
    if dtype == "f16" and not bool(torch.isfinite(matrix.half()).all()):
        raise AdapterError(f"{name} has values beyond float16; write it in f32 or bf16; nothing was written")
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    writer.add_tensor(name, gguf.quants.quantize(matrix.contiguous().numpy(), kind), raw_dtype=kind)
