"""What an adapter folder holds, read off its tensors, with no model at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor

from lorakit.artifacts.peft_names import FIRST, LORA, PREFIX, file_names
from lorakit.artifacts.reading import AdapterFiles, read_adapter
from lorakit.artifacts.scales import Scales
from lorakit.dtypes import name_of, short_name
from lorakit.errors import AdapterError
from lorakit.planning.plan import Plan
from lorakit.planning.report import layers_alike, show_bytes
from lorakit.planning.sheet import Sheet


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One adapted module: `update_norm` is the Frobenius norm of scaling · B · A, 0 if it never trained.

    None where the change of the weight takes more than the two matrices.
    """

    path: str
    rank: int
    out_features: int
    in_features: int
    scaling: float
    dtype: str
    update_norm: float | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """An adapter folder: its adapters, what else it holds, and its size in bytes.

    `other_methods` counts the tensors of methods that do not multiply two thin matrices, by method.
    """

    folder: str
    base_model: str
    written_by: str
    parameters: int
    bytes: int
    adapters: tuple[AdapterRow, ...]
    trained_in_full: tuple[str, ...]
    other_methods: tuple[tuple[str, int], ...] = ()


def inspect_adapter(folder: Path, allow_pickle: bool = False) -> Inspection:
    """Return what an adapter folder holds. Raises: AdapterError."""
    files = read_adapter(folder, allow_pickle)
    rows, others = [], []
    scales = Scales(folder, files.config)
    planned = _planned(files.plan) if files.plan else {}
    factors = _factors(files.plan) if files.plan else {}
    beyond = _beyond_two(files.plan) if files.plan else frozenset()
    methods: dict[str, int] = {}
    for name in files.tensors:
        found = LORA.fullmatch(name.removeprefix(PREFIX))
        if found is None and name in planned:
            methods[planned[name]] = methods.get(planned[name], 0) + 1
        elif found is None:
            others.append(name.removeprefix(PREFIX))
        elif found["matrix"] in FIRST:
            other = f"{name[: found.start('matrix') - len(found[0])]}{found['matrix'].replace('_A', '_B')}"
            lora_A, lora_B = _matrices(name, other, files)
            # beside a method that PEFT does not know, the config says nothing of scaling
            factor = factors[name] if name in factors else scales.scaling(found["path"], lora_A.shape[0])
            row = _row(found["path"], lora_A, lora_B, factor)
            rows.append(replace(row, update_norm=None) if name in beyond else row)
    return Inspection(
        folder=str(folder),
        base_model=files.config.get("base_model_name_or_path") or "",
        written_by="lorakit" if files.plan else "PEFT",
        parameters=sum(tensor.numel() for tensor in files.tensors.values()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in files.tensors.values()),
        adapters=tuple(rows),
        trained_in_full=tuple(others),
        other_methods=tuple(methods.items()),
    )


def _planned(plan: Plan) -> dict[str, str]:
    """Return the method of every tensor that a plan's tables name, by its name in the file."""
    names = file_names(plan)
    return {
        name: entry.adapter.method.name
        for entry in plan.entries
        if entry.adapter is not None
        for name in names(entry).values()
    }


def _beyond_two(plan: Plan) -> frozenset[str]:
    """Return the tensors, by their names in the file, of adapters that are more than two thin matrices."""
    names = file_names(plan)
    tables = [list(names(entry).values()) for entry in plan.entries if entry.adapter is not None]
    return frozenset(name for table in tables if len(table) > 2 for name in table)


def _factors(plan: Plan) -> dict[str, float]:
    """Return what a plan multiplies each update by, by the names in the file of all its adapter's tensors."""
    names = file_names(plan)
    entries = ((entry, entry.adapter) for entry in plan.entries if entry.adapter is not None)
    return {name: adapter.settings.factor for entry, adapter in entries for name in names(entry).values()}


def _matrices(name: str, other: str, files: AdapterFiles) -> tuple[Tensor, Tensor]:
    """Return lora_A and lora_B as matrices (rank, inputs) and (outputs, rank). Raises: AdapterError."""
    if other not in files.tensors:
        raise AdapterError(f"{files.folder} holds `{name}` and no `{other}`")
    lora_A, lora_B = files.tensors[name], files.tensors[other]
    fits = lora_A.ndim >= 2 and lora_B.ndim >= 2 and 0 < lora_A.shape[0] == lora_B.flatten(1).shape[1]
    if not fits:
        raise AdapterError(
            f"{files.folder}: `{name}` is {tuple(lora_A.shape)} and `{other}` {tuple(lora_B.shape)}, "
            "which are no two matrices of one rank"
        )
    return lora_A.flatten(1), lora_B.flatten(1)


def _row(path: str, lora_A: Tensor, lora_B: Tensor, scaling: float) -> AdapterRow:
    # ‖BA‖² = tr((BᵀB)(AAᵀ)), without the full-sized product
    gram_A, gram_B = lora_A.double() @ lora_A.double().T, lora_B.double().T @ lora_B.double()
    norm = scaling * float((gram_B * gram_A).sum().clamp(min=0).sqrt())
    dtype = name_of(lora_A.dtype)
    return AdapterRow(path, lora_A.shape[0], lora_B.shape[0], lora_A.shape[1], scaling, dtype, norm)


def adapter_view(found: Inspection, *, every_module: bool = False) -> RenderableType:
    """Return an inspection as tables, layers of one kind together unless asked."""
    table = Sheet(
        ("module", "left"), ("count", "right"), ("out × in", "right"), ("rank", "right"), ("scaling", "right"),
        ("dtype", "left"), ("‖update‖, mean", "right"),
    )  # fmt: skip
    groups: dict[tuple[object, ...], list[AdapterRow]] = {}
    for row in found.adapters:
        pattern = row.path if every_module else layers_alike(row.path)
        key = (pattern, row.out_features, row.in_features, row.rank, row.scaling, row.dtype, row.update_norm is None)
        groups.setdefault(key, []).append(row)
    for rows in groups.values():
        row, norms = rows[0], [one.update_norm for one in rows]
        table.add_row(
            # one alone is called by its name
            row.path if every_module or len(rows) == 1 else layers_alike(row.path),
            str(len(rows)),
            f"{row.out_features} × {row.in_features}",
            str(row.rank),
            f"{row.scaling:g}",
            short_name(row.dtype),
            "" if None in norms else f"{sum(filter(None, norms)) / len(rows):.4g}",
        )
    head = f"{found.folder}: {found.parameters:,} parameters, {show_bytes(found.bytes)}, written by {found.written_by}"
    base = f", for {found.base_model}" if found.base_model else ""
    others = [Text(f"trained in full: {', '.join(found.trained_in_full)}")] if found.trained_in_full else []
    other = [Text(f"{count} tensor{'s' * (count > 1)} of the method {name}") for name, count in found.other_methods]
    return Group(Text(head + base), Text(), *([table] if found.adapters else []), *other, *others)
