"""A record under the names that its shape knows, whatever its columns are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lorakit.errors import DataError
from lorakit.quoting import shown

# the names that shapes know, each with the column that holds it
Columns: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fields:
    """A record under the names that its shape knows, whatever its columns are called."""

    place: str
    values: Mapping[str, Any]
    columns: Columns

    def column(self, name: str) -> str:
        """Return what the column is called in the file."""
        return self.columns.get(name, name)

    def text(self, name: str) -> str:
        """Return a text, empty where there is none. Raises: DataError where something else stands."""
        value = self.values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{self.place}: `{self.column(name)}` is {shown(value)}, where text belongs")
        return value
