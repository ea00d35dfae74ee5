"""What is under test: a plugin's class with options, as a spec would configure it, and where it is tested."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit import builtin
from lorakit.dtypes import LONG, dtype_of
from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import configure, options_of
from lorakit.hooks.specs import hookimpl
from lorakit.language.statements import PluginCall
from lorakit.plugins import load_plugins
from lorakit.testing.checks import CheckError

DTYPES = {short: dtype_of(name) for short, name in LONG.items()}


@dataclass(frozen=True)
class Subject:
    """A plugin class of one kind, such as `quantizer`, and the options that it is tested with.

    `kernels` are those that layers of a quantizer ask; None for all that are installed.
    """

    plugin: Any
    kind: str
    options: Mapping[str, Any]
    kernels: tuple[Any, ...] | None = None

    @property
    def call(self) -> PluginCall:
        """The call that a spec would hold."""
        options = tuple((name, value) for name, value in self.options.items() if name != "double")
        return PluginCall(self.plugin.name, options, bool(self.options.get("double")))

    def make(self) -> Any:
        """Return the plugin configured. Raises: CheckError if its class takes no such options."""
        try:
            return configure(self.plugin, self.call)
        except Exception as error:
            raise CheckError(
                f"{self.plugin.__name__} is to be a frozen dataclass whose fields are its options, and {self.call} "
                f"did not make one: {error}"
            ) from error

    def plugins(self, *beside: Any) -> Plugins:
        """Return the built-ins, this plugin and others of its kind, whatever else is installed."""
        registry = f"lorakit_{self.kind}s"
        own = [item for module in builtin.plugins().values() for item in getattr(module, registry, tuple)()]
        tested = [item for item in (self.plugin, *(one for one in beside if one is not self.plugin)) if item not in own]
        if not tested:
            return load_plugins()
        module = types.SimpleNamespace(**{registry: hookimpl(lambda: tested)})
        return load_plugins(modules={"the plugin under test": module})


def subject_of(plugin: Any, kind: str, options: Mapping[str, Any]) -> Subject:
    """Return what to test; an option that must be given and is not takes the `example` of its field's metadata."""
    if not inspect.isclass(plugin):
        raise TypeError(f"give the {kind}'s class and its options, not {plugin!r}")
    return Subject(plugin, kind, {**examples_of(plugin), **options})


def examples_of(plugin: Any) -> dict[str, Any]:
    """Return the examples in the metadata of a plugin's options that must be given."""
    try:
        required = {option.name for option in options_of(plugin) if option.required}
        fields = [field for field in dataclasses.fields(plugin) if field.name in required]
        return {field.name: field.metadata["example"] for field in fields if "example" in field.metadata}
    except (AttributeError, TypeError, NameError):
        # no dataclass: the checks say so
        return {}


def devices() -> tuple[str, ...]:
    """Return the devices here: the CPU, and CUDA where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def on_devices(variants: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Return variants for every device here, the device as a last argument; the CPU's keep their names."""
    found = {}
    for device in devices():
        for name, arguments in variants.items():
            label = name if device == "cpu" else "-".join(filter(None, (name, device)))
            found[label] = (*arguments, device)
    return found


def random_matrix(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> torch.Tensor:
    """Return normal values (rows, columns) of deviation 0.02, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(rows, columns, generator=generator)).to(device, dtype)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are of one dtype and shape and hold the same bits, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (first, second)))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the Frobenius norm of an error over that of the exact values."""
    found, exact = found.detach().double(), exact.detach().double()
    error, norm = (found - exact).norm(), exact.norm()
    return float(error / norm) if norm else float(error)
