"""Two start values for adapters: `orthogonal` and `spectral`."""

from __future__ import annotations

from lorakit import hookimpl
from lorakit.hooks import Initializer
from lorakit_orthogonal.orthogonal import Orthogonal
from lorakit_orthogonal.spectral import Spectral

__all__ = ["Orthogonal", "Spectral", "lorakit_initializers"]


@hookimpl
def lorakit_initializers() -> list[type[Initializer]]:
    return [Orthogonal, Spectral]
