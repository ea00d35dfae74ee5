"""`plan --fit`: what to change so that a step fits, the cheapest first, and no more than it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import nn

import lorakit
from helpers import make_llama
from lorakit.cli.inputs import decider
from lorakit.cli.plan import plan as command
from lorakit.errors import PromiseError
from lorakit.language.amounts import Amount, amount_of
from lorakit.language.spec import Spec
from lorakit.planning.fitting import Fit, fit, needs
from lorakit.planning.plan import Memory

TEXT = "adapt @linear rank 16 dtype fp32\nstep batch 4 tokens 512"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_llama(num_hidden_layers=4, hidden_size=256, intermediate_size=512)


def size(count: float) -> Amount:
    found = amount_of(f"{int(count)}B")
    assert found is not None
    return found


def smallest(text: str, model: nn.Module) -> Memory:
    """Return the least that a step comes to by what is computed again."""
    with pytest.raises(PromiseError) as error:
        lorakit.plan(f"{text} memory 1B", model)
    memory: Memory = error.value.plan.memory
    return memory


def fitted(model: nn.Module, bytes_: float, text: str = TEXT) -> Fit:
    found = fit(lorakit.parse(text), decider(model), size(bytes_))
    # what it says is what comes of it
    again: Spec = lorakit.parse(str(found.spec))
    assert again == found.spec and needs(decider(model)(again)) == needs(found.plan) <= bytes_
    return found


def test_what_fits_stays_as_it_is(model: nn.Module) -> None:
    peak = lorakit.plan(TEXT, model).memory.peak
    found = fitted(model, peak)
    assert found.changes == () and found.plan.memory.recomputed == ()


def test_each_kind_in_its_turn(model: nn.Module) -> None:
    whole, least = lorakit.plan(TEXT, model).memory, smallest(TEXT, model)
    first = fitted(model, (whole.peak + least.peak) / 2)
    assert [change.words.split("`")[1].split()[0] for change in first.changes] == ["memory"]
    assert 0 < len(first.plan.memory.recomputed) < 4
    second = fitted(model, least.peak - least.optimizer / 2)
    assert [change.words.split("`")[1] for change in second.changes][1:] == ["paged"]
    third = fitted(model, least.peak - least.optimizer - 1000)
    assert third.changes[-1].words == "`quant nf4 double` in `adapt`"
    # four bits free more than state that pages
    assert not any("paged" in change.words for change in third.changes) and not third.plan.memory.paged
    quantized = smallest(TEXT.replace("fp32", "fp32 quant nf4 double"), model)
    fourth = fitted(model, quantized.peak - quantized.optimizer - 1000)
    assert fourth.changes[-1].words == "`batch 2` in `step`"
    assert fourth.spec.step is not None and (fourth.spec.step.batch, fourth.spec.step.tokens) == (2, 512)


def test_nothing_fits(model: nn.Module) -> None:
    with pytest.raises(lorakit.PlanError, match=r"it holds [\d.]+ MiB with `memory .*`tokens 128` in `step`; `rank 1`"):
        fit(lorakit.parse(TEXT), decider(model), size(1000))


def test_the_command(model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    spec = tmp_path / "a.lora"
    spec.write_text(TEXT)

    def ran(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, [str(spec), str(tmp_path / "model"), *words])
        return result.exit_code, result.output

    code, output = ran("--fit", "1GiB")
    assert code == 0 and "a step of 4 × 512 fits 1GiB as it is" in output
    code, output = ran("--fit", "30MiB", "--batch", "2")
    assert code == 0 and "`memory 30MiB` in `step`" in output and "step batch 2 tokens 512 memory 30MiB" in output
    assert " blocks recomputed" in output
    for wrong in ("30", "5%", "-1GiB", "much"):
        code, output = ran("--fit", wrong)
        assert code == 2 and "it is bytes with a unit, as in 24GiB" in output


def test_promises_that_a_change_keeps(model: nn.Module) -> None:
    peak = lorakit.plan(TEXT, model).memory.peak
    found = fitted(model, peak * 0.9, f"{TEXT}\nrequire peak_memory <= {int(peak * 0.9)}B")
    assert [change.words.split("`")[1].split()[0] for change in found.changes] == ["memory"]
