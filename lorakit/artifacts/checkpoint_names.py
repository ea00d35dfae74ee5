"""How a transformers model calls the tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def model_names(names: Iterable[str], model: nn.Module) -> tuple[dict[str, str], bool]:
    """Return how a transformers model calls each tensor of its checkpoint, and whether it converts others on load.

    It takes the way that from_pretrained takes: renamings of old checkpoints, then the prefix of the base model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix, held = getattr(model, "base_model_prefix", ""), model.state_dict()
    found: dict[str, str] = {}
    converts = False
    for name in names:
        own, pattern = rename_source_key(name, renamings, converters, prefix, held)
        if own not in held and name in held:
            own, pattern = name, None
        converts = converts or pattern is not None
        if own in held and pattern is None:
            found[name] = own
    return found, converts
