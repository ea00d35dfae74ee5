"""Jobs from Python: what they write, what they tell, and that they say nothing unasked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lorakit
from lorakit.jobs import Job, adapt
from lorakit.plugins import default_plugins
from lorakit.reporter import Reporter
from lorakit.values import ModelReference

FACTORY = """
from pathlib import Path
from torch import nn


def tiny():
    with Path(__file__).with_name("made").open("a") as made:
        made.write("x")
    return nn.Sequential(nn.Linear(8, 8))
"""


def test_a_run_tells_its_steps_in_order(llama_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    @contextmanager
    def working(what: str) -> Iterator[None]:
        told.append(("working", what))
        yield

    @contextmanager
    def measured(what: str) -> Iterator[Any]:
        seen: list[tuple[int, int]] = []
        yield lambda done, total: seen.append((done, total))
        told.append(("measured", seen))

    def tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
        told.append((what, len(items)))
        return items

    reporter = Reporter(
        lambda line: told.append(("line", line)), lambda plan: told.append(("plan", plan)), working, measured, tracked
    )
    spec = lorakit.parse("adapt q_proj rank 2 quant nf4")
    adapt(Job(spec, ModelReference(str(llama_folder)), tmp_path / "out"), default_plugins(), reporter)
    assert [kind for kind, _ in told] == ["working", "plan", "line", "measured", "applying", "line"]
    plan, seen = told[1][1], told[3][1]
    assert plan == lorakit.plan(spec, llama_folder) and told[4][1] == len(plan.entries)
    assert seen == sorted(seen) and 0 < seen[-1][0] < seen[-1][1]
    assert str(tmp_path / "out") in told[-1][1] and (tmp_path / "out" / "plan.json").is_file()


def test_code_makes_its_model_once_and_nothing_is_said_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.py").write_text(FACTORY)
    reference = ModelReference(f"{tmp_path / 'tiny.py'}:tiny")
    model = adapt(Job(lorakit.parse("adapt @linear rank 2"), reference, tmp_path / "out"), default_plugins())
    assert lorakit.summary(model).added_parameters == 2 * (8 + 8)
    assert (tmp_path / "made").read_text() == "x"
    assert capsys.readouterr().out == ""
