"""`lorakit.generate`: which calls of transformers' `generate` are captured, and with what settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger("lorakit")

# what asks for a cache, or a way to search, of its own
OWN = ("past_key_values", "assistant_model", "custom_generate", "prompt_lookup_num_tokens", "prefill_chunk_size")


def generate(model: nn.Module, inputs: Any = None, **settings: Any) -> Any:
    """Return what the model's own `generate` returns; each token after the prompt is one CUDA graph where it can be."""
    from lorakit.generating.decoding import decoding
    from lorakit.generating.model_state import why_not

    own: Any = model.generate
    asked = partial(_asked, model, settings)
    if not _asks_for_the_usual(asked) or why_not(model) is not None:
        return own(inputs, **settings)
    stands = decoding(model, logger.info)
    with stands.standing_before(model, compiles=not asked("disable_compile", False)):
        result = own(inputs, **{**settings, "cache_implementation": "static", "disable_compile": True})
    if not isinstance(result, Tensor):
        # which may hold the cache
        stands.forget_caches()
    return result


def _asked(model: Any, settings: dict[str, Any], name: str, usual: Any) -> Any:
    if settings.get(name) is not None:
        return settings[name]
    for config in (settings.get("generation_config"), getattr(model, "generation_config", None)):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return usual


def _asks_for_the_usual(asked: Callable[[str, Any], Any]) -> bool:
    return (
        not any(asked(name, None) for name in OWN)
        and asked("num_beams", 1) == 1
        and asked("use_cache", True)
        and asked("cache_implementation", None) in (None, "static", "dynamic", "hybrid")
    )
