"""What a Hugging Face model takes, in shape, for a run on meta tensors: read from its config and its forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# long enough for what looks back over a few tokens
TOKENS = 16
SAMPLES = 16_000


def examples_of(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    """Yield what the forward of a transformers model may take, on meta tensors; nothing for any other model.

    A config that does not say how large an input is gives nothing either.
    """
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    if not hasattr(config, "to_dict") or main is None:
        return
    takes = inspect.signature(type(model).forward).parameters
    names = [name for name in (main, "pixel_values") if name in takes and name in SHAPES]
    try:
        whole = {name: SHAPES[name](config, _dtype(model)) for name in dict.fromkeys(names)}
    except (AttributeError, TypeError, ValueError):
        return
    text = {name: tensor for name, tensor in whole.items() if name == main}
    for inputs in (whole, text) if len(whole) > len(text) else (text,):
        inputs = inputs | ({"decoder_input_ids": _ids()} if "decoder_input_ids" in takes else {})
        yield inputs | ({"use_cache": False} if "use_cache" in takes else {})


def _dtype(model: nn.Module) -> Any:
    import torch

    found = (value.dtype for value in model.parameters() if value.is_floating_point())
    return next(found, torch.float32)


def _ids(*ignored: Any) -> Tensor:
    import torch

    return torch.empty(1, TOKENS, dtype=torch.int64, device="meta")


def _pixels(config: Any, dtype: Any) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = vision.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return _floats((1, getattr(vision, "num_channels", 3), height, width), dtype)


def _features(config: Any, dtype: Any) -> Tensor:
    return _floats((1, config.num_mel_bins, 2 * config.max_source_positions), dtype)


def _samples(config: Any, dtype: Any) -> Tensor:
    return _floats((1, SAMPLES), dtype)


def _floats(shape: tuple[int, ...], dtype: Any) -> Tensor:
    import torch

    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


SHAPES: Mapping[str, Callable[[Any, Any], Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "input_features": _features,
    "input_values": _samples,
}
