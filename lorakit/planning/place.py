"""Where something lies in a model: its path, what holds it, and what it is called there."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Placed(Protocol):
    """What has a path and may be a parameter of a module: an entry of a plan, a module of an inventory."""

    @property
    def path(self) -> str: ...

    @property
    def is_parameter(self) -> bool: ...


class Place(NamedTuple):
    """A module at a path, or with `is_parameter` a parameter, such as a stack of experts, named by its own path.

    A path is as torch names it, with dots between; the model itself is "".
    """

    path: str
    is_parameter: bool = False

    @classmethod
    def of(cls, placed: Placed) -> Place:
        """Return the place of an entry or a module."""
        return cls(placed.path, placed.is_parameter)

    @property
    def holder(self) -> str:
        """The path of the module that it is a direct part of."""
        return self.path.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """What it is called in its holder."""
        return self.path.rpartition(".")[2]

    @property
    def module(self) -> str:
        """The path of the module that has the weight among its own parameters: the layer, or a parameter's holder."""
        return self.holder if self.is_parameter else self.path

    @property
    def parameter(self) -> str:
        """What the weight is called in `module`."""
        return self.leaf if self.is_parameter else "weight"

    @property
    def weight(self) -> str:
        """The weight's name in the model's state."""
        return self.inside("" if self.is_parameter else "weight")

    def inside(self, name: str) -> str:
        """Return the path of what is called so in it; "" is itself."""
        return ".".join(part for part in (self.path, name) if part)
