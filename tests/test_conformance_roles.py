"""Every check of roles finds the one that it is there for, and says so in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from planted import failures

from lorakit.testing import role_checks


@dataclasses.dataclass(frozen=True)
class Role:
    """A role that selects what it is told."""

    answer: Any
    name: str = "mine"

    def select(self, inventory: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("role", "check", "words"),
    [
        (Role(frozenset(), "no name"), "name", "begins with no digit"),
        (Role(["0"]), "selects", "returned a list"),
        (Role(frozenset(["nowhere"])), "selects", "nowhere, which are no paths"),
    ],
)
def test_roles(role: Role, check: str, words: str) -> None:
    found = failures(role_checks(role), check)
    assert found and words in found[0], found
