"""The roles of every architecture against a reviewed list; `LORAKIT_UPDATE=1` writes it anew, for another review."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from torch import nn

import lorakit
from architectures import ARCHITECTURES

REVIEWED = Path(__file__).parent / "data" / "roles.json"
ROLES = ("linear", "attention", "mlp", "experts", "embedding", "norm", "head")

Roles = dict[str, dict[str, int]]


def roles_of(model: nn.Module) -> Roles:
    """Return, for every role, the paths that play it with `*` for the layers' numbers, and how many each stands for."""
    return {role: _pattern_counts(f"train @{role} optional", model) for role in ROLES}


def _pattern_counts(spec: str, model: nn.Module) -> dict[str, int]:
    paths = (entry.path for entry in lorakit.plan(spec, model).entries)
    counts = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths)
    return dict(sorted(counts.items()))


def reviewed() -> dict[str, Roles]:
    found: dict[str, Roles] = json.loads(REVIEWED.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module", autouse=True)
def _update() -> None:
    if os.environ.get("LORAKIT_UPDATE"):
        found = {name: roles_of(entry.build()) for name, entry in ARCHITECTURES.items()}
        REVIEWED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles(name: str) -> None:
    assert roles_of(ARCHITECTURES[name].build()) == reviewed()[name]


def test_the_list_has_these_architectures() -> None:
    assert list(reviewed()) == list(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_mlp_and_head_are_apart(name: str) -> None:
    roles = reviewed()[name]
    assert roles["attention"].keys().isdisjoint(roles["mlp"])
    assert roles["linear"].keys() | roles["experts"].keys() >= roles["attention"].keys() | roles["mlp"].keys()
    assert roles["linear"].keys().isdisjoint(roles["head"])
