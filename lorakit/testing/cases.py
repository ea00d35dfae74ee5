"""A method on a sample model: what its checks look at."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from lorakit.application.state import NamedAdapter, adapter_of
from lorakit.hooks.manager import Plugins
from lorakit.language.printer import call_text
from lorakit.language.statements import PluginCall
from lorakit.planning.plan import ParameterPlan, PlanEntry, Settings
from lorakit.planning.reading import read_inventory
from lorakit.testing.layers import SAMPLES, Sample
from lorakit.testing.subjects import Subject
from lorakit.values import LayerShape

RANK, ALPHA = 2, 3
TOLERANCE = 1e-4


def adapted(
    subject: Subject,
    model: nn.Module,
    targets: str,
    plugins: Plugins,
    clauses: str = "dtype fp32",
    *,
    name: str = "default",
    seed: int = 0,
) -> nn.Module:
    """Return the model with the method under test on these targets; it has a rank where it takes one, and an alpha.

    The alpha is not the rank, so that a scaling that is left out shows.
    """
    usual = {"rank": RANK, "alpha": ALPHA}
    given = [f"{name} {value}" for name, value in usual.items() if name in subject.plugin.clauses]
    missing = [one for one in given if f"{one.split()[0]} " not in clauses]
    text = f"adapt {targets} {' '.join(missing)} {clauses} method {call_text(subject.call)}"
    return lorakit.apply(lorakit.parse(text, plugins=plugins), model, name=name, seed=seed, plugins=plugins)


def moved(parameters: Iterable[Tensor], seed: int = 9) -> None:
    """Move parameters by noise, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise: Tensor = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device, parameter.dtype))


def own_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return every tensor that an adapter added to a model, by path and name."""
    adapter = adapter_of(model, name)
    return {
        f"{entry.path}.{one.name}": module.get_parameter(one.name)
        for entry, module in adapter.entries()
        for one in (entry.adapter.parameters if entry.adapter else ())
    }


def distinct_tensors(model: nn.Module) -> list[Tensor]:
    """Return every tensor of the adapter in use, shared ones once."""
    return list({id(value): value for value in own_tensors(model, adapter_of(model).name).values()}.values())


@dataclass(frozen=True)
class Case:
    """A sample model, adapted by the method under test."""

    subject: Subject
    sample: Sample
    dtype: str = "fp32"
    device: str = "cpu"
    clauses: str = ""
    seed: int = 0

    @functools.cached_property
    def plugins(self) -> Any:
        return self.subject.plugins()

    @functools.cached_property
    def model(self) -> nn.Module:
        model = self.sample.model().to(self.device)
        return adapted(
            self.subject, model, self.sample.path, self.plugins, f"dtype {self.dtype} {self.clauses}", seed=self.seed
        )

    @functools.cached_property
    def layer(self) -> Any:
        """The layer that was given to the method, as the adapter holds it."""
        return dict(self.model.named_modules()).get("layer.base_layer")

    @property
    def named(self) -> NamedAdapter:
        return adapter_of(self.model)

    @property
    def entry(self) -> PlanEntry:
        return self.named.plan.entries[0]

    @property
    def shape(self) -> LayerShape:
        assert self.entry.shape is not None
        return self.entry.shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {one.name: one.shape for one in self.table}

    @property
    def table(self) -> tuple[ParameterPlan, ...]:
        assert self.entry.adapter is not None
        return self.entry.adapter.parameters

    @functools.cached_property
    def adapter(self) -> nn.Module:
        return self.named.modules[self.entry.path]

    @functools.cached_property
    def own(self) -> dict[str, nn.Parameter]:
        """The parameters that the method added, by name."""
        return {n: p for n, p in self.adapter.named_parameters() if not n.startswith("base_layer.")}

    def randomize(self) -> None:
        """Move every parameter of the adapter, as training would."""
        moved(self.own.values())


def fitting(subject: Subject) -> dict[str, Sample]:
    """Return the samples for which the method names parameters."""
    fitting = {}
    for kind, sample in SAMPLES.items():
        with torch.device("meta"):
            inventory = read_inventory(nn.Sequential(sample.model()), subject.plugins())
        shape = inventory.modules[f"0.{sample.path}"].shape
        try:
            promised = _promised(subject, shape) if shape is not None else ()
        except ValueError:
            promised = ()
        except Exception:
            # the check of this kind says so
            promised = (None,)
        if promised:
            fitting[kind] = sample
    return fitting


def _promised(subject: Subject, shape: LayerShape) -> Sequence[Any]:
    clauses = subject.plugin.clauses
    given = {"rank": RANK, "alpha": float(RANK), "init": PluginCall("gaussian")}
    settings = Settings(**{name: value for name, value in given.items() if name in clauses})  # type: ignore[arg-type]
    return tuple(subject.make().parameters(shape, settings))
