"""Names in an adapter file that came out of a model's state dict, as PEFT's own save writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorakit.artifacts.peft_names import PREFIX, ROOT
from lorakit.errors import AdapterError
from lorakit.planning.wrappers import plain_path
from lorakit.quoting import named, shown

# `lora_A.default.weight`: in a model, and so in its state dict, an adapter's name stands in its tensors' names
NAMED = re.compile(r"(?P<start>(?:.*\.)?lora_(?:[AB]|embedding_[AB]))\.(?P<adapter>[^.]+)(?P<end>\.weight|)")
WHOLE, ORIGINAL, TOKENS = "modules_to_save", "original_module", "token_adapter"
# what PEFT puts beside an embedding of which some rows train by themselves
ROWS = f"{TOKENS}.trainable_tokens_delta"
BESIDE = (f"{TOKENS}.trainable_tokens_original", f"{TOKENS}.token_indices")
# what DistributedDataParallel puts before all names
MODULE = "module."


def plain_names(tensors: Mapping[str, Tensor], folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors by the names that PEFT saves them by: with no wrapper, and no adapter's name, in them.

    Raises: AdapterError for the tensors of several adapters, and for one that is there twice.
    """
    found = {name: match for name in tensors if (match := NAMED.fullmatch(name)) and _is_named(match)}
    adapters = sorted({match["adapter"] for match in found.values()})
    if len(adapters) > 1:
        raise AdapterError(
            f"{folder} holds the tensors of several adapters, {', '.join(map(shown, adapters[:5]))}: leave those of one"
        )
    plain: dict[str, Tensor] = {}
    originals: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = found.get(name)
        new = _plain(match["start"] + match["end"] if match else name, adapters[0] if adapters else "")
        if f".{ORIGINAL}." in new:
            originals[new.replace(f".{ORIGINAL}.", ".")] = tensor
        elif not any(f".{beside}" in new for beside in BESIDE):
            put(plain, new, tensor, folder)
    # what a trained module was before counts where it is alone
    return originals | plain


def put(tensors: dict[str, Tensor], name: str, tensor: Tensor, folder: Path) -> None:
    """Add a tensor to others. Raises: AdapterError if one of this name is there, with other values."""
    if name in tensors and not (tensors[name].shape == tensor.shape and torch.equal(tensors[name], tensor)):
        raise AdapterError(f"{folder} holds {named(name)} twice, under two names and with other values")
    tensors[name] = tensor


def inner_names(name: str) -> Iterable[str]:
    """Yield what a tensor may be called inside the model: without PEFT's prefix, be it there once, twice or never."""
    inner = name
    while True:
        while inner.startswith(PREFIX):
            inner = inner.removeprefix(PREFIX)
            yield inner
        if PREFIX not in inner:
            break
        inner = inner[inner.index(PREFIX) :]
    if inner == name:
        yield inner
    for prefix in (ROOT, MODULE):
        if inner.startswith(prefix):
            yield inner.removeprefix(prefix)


def _is_named(match: re.Match[str]) -> bool:
    # PEFT saves `lora_A.weight`; the matrices of an embedding alone have nothing behind them
    return bool(match["end"]) or (
        match["adapter"] != "weight" and match["start"].endswith(("embedding_A", "embedding_B"))
    )


def _plain(name: str, adapter: str) -> str:
    """Return a name without what was put around its module, and without the name of its adapter."""
    plain = plain_path(name)
    while plain.startswith(f"{MODULE}{ROOT}"):
        plain = plain.removeprefix(MODULE)
    outside, _, inside = plain.partition(f".{WHOLE}.")
    if inside:
        # a file has no adapter's name behind it, a state dict has
        plain = f"{outside}.{inside.removeprefix(f'{adapter}.') if adapter else inside}"
    if adapter and plain.endswith(f"{ROWS}.{adapter}"):
        plain = plain.removesuffix(f".{adapter}")
    return plain.replace(f".{TOKENS}.base_layer.", ".base_layer.")
