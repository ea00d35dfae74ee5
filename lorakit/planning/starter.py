"""A commented starter spec for a model, from its structure."""

from __future__ import annotations

from collections.abc import Iterable

from lorakit.dtypes import short_name
from lorakit.errors import ModelError
from lorakit.hooks.manager import Plugins
from lorakit.language import parse
from lorakit.language.format import format_text
from lorakit.planning.inventory import Inventory
from lorakit.planning.place import Place
from lorakit.planning.planner import make_plan
from lorakit.planning.report import show_bytes

# the usual advice of those who train: 16 for one domain, 64 for several
RANKS = {"one": 16, "many": 64}
# below this a model trains on any machine as it is, and four bits would only cost accuracy
LARGE = 2 * 2**30


def starter_spec(inventory: Inventory, plugins: Plugins, domains: str = "one", reference: str = "") -> str:
    """Return a spec that adapts every linear layer, in canonical form, with the figures of each choice as comments.

    Raises: ModelError if the model has no layer that an adapter fits.
    """
    roles = {name: role.select(inventory) for name, role in plugins.roles.items()}
    targets = [inventory.modules[path] for path in roles["linear"] if inventory.modules[path].shape is not None]
    if not targets:
        raise ModelError(f"{inventory.model_class} has no layer that an adapter fits")
    rank = RANKS[domains]
    narrow = _narrow(inventory, roles["linear"], max(RANKS.values()))
    rule = _rule(inventory.total_bytes >= LARGE, narrow)
    text = "\n".join(
        [
            *_head(inventory, roles, reference),
            "",
            "# One domain is well served by rank 16, many want 64. On 1 × 512 tokens:",
            *(f"#   rank {each}: {_cost(inventory, plugins, rule, each)}" for each in RANKS.values()),
            f"let r = {rank}",
            "",
            *rule,
            "",
            "optimizer adamw lr 2e-4",
            "",
            "# A promise that `lorakit plan` checks:",
            "require trainable < 25%",
        ]
    )
    return format_text(text + "\n", "starter.lora")


def _head(inventory: Inventory, roles: dict[str, frozenset[str]], reference: str) -> Iterable[str]:
    dtypes = {short_name(parameter.dtype) for parameter in inventory.unique_parameters()}
    yield (
        f"# {inventory.model_class}: {inventory.total_parameters:,} parameters, "
        f"{show_bytes(inventory.total_bytes)} in {', '.join(sorted(dtypes))}"
    )
    present = ", ".join(f"@{name} {len(paths)}" for name, paths in roles.items() if paths)
    yield f"# its roles, with the modules of each: {present}"
    if reference:
        yield f"# model: {reference}"


def _rule(large: bool, narrow: list[str]) -> list[str]:
    lines = ["adapt @linear {", "rank r", "alpha r # the update is scaled by alpha / rank"]
    if narrow:
        stored = "; stored in four bits like the rest" if large else ""
        lines.append(f"except {', '.join(narrow)} # too narrow for this rank{stored}")
    if large:
        lines.append("quant nf4 double # the weights are large: four bits each, and their scales eight")
        lines.append("paged # optimizer state moves to CPU memory when the GPU runs short")
    return [*lines, "}"]


def _narrow(inventory: Inventory, paths: Iterable[str], rank: int) -> list[str]:
    """Return the last names of layers that a rank does not fit, such as a classifier with two outputs."""
    names: dict[str, None] = {}
    for path in inventory.modules:
        shape = inventory.modules[path].shape
        if path in paths and shape is not None and shape.largest_rank < rank:
            names[Place(path).leaf] = None
    return list(names)


def _cost(inventory: Inventory, plugins: Plugins, rule: list[str], rank: int) -> str:
    spec = parse("\n".join([f"let r = {rank}", *rule]), plugins=plugins)
    plan = make_plan(spec, inventory, plugins)
    return f"{plan.trainable:,} parameters ({plan.trainable_share:.2%}), peak memory {show_bytes(plan.memory.peak)}"
