"""The built-ins and one plugin that a test writes, and a model run with them."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

import lorakit
from lorakit.hooks import Plugins, hookimpl
from lorakit.plugins import load_plugins


def plugins_of(**functions: Any) -> Plugins:
    """Return the built-ins and one plugin made of these functions."""
    module = types.SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})
    return load_plugins(modules={"sample 1.0": module})


def run(text: str, model: nn.Module, plugins: Plugins) -> Any:
    return lorakit.apply(lorakit.parse(text, plugins=plugins), model, plugins=plugins)


def one() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6))
