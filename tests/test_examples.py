"""Every file in `examples/` does what it is for on the README's model: planned, applied, trained for a step, saved."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import lorakit
from lorakit.demo import dialogues, smollm2
from lorakit.jobs import Job
from lorakit.planning.plan import Plan
from lorakit.plugins import default_plugins
from lorakit.trainers.display import Display
from lorakit.trainers.settings import Settings
from lorakit.training import Training, train
from lorakit.values import ModelReference

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.lora"))
# seven matrices in each of 30 layers
LINEAR = 7 * 30


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_and_is_saved(path: Path, tmp_path: Path) -> None:
    spec = lorakit.parse(path)
    job = Job(spec, ModelReference(str(smollm2())), tmp_path / "adapter")
    settings = Settings(steps=1, batch=1, tokens=64, held_out=0.0)
    outcome = train(
        job,
        Training(str(dialogues()), settings),
        default_plugins(),
        Display(Console(file=io.StringIO()), lambda said: None),
    )
    assert outcome.steps == 1 and not outcome.stopped
    plan = Plan.from_json((job.output / "plan.json").read_text())
    assert sum(entry.quant is not None for entry in plan.entries) == (LINEAR if "quant" in str(spec) else 0)
    trained, base = load_file(job.output / "adapter_model.safetensors"), load_file(smollm2() / "model.safetensors")
    # B starts at zero; of what trains in full, bfloat16 rounds most of such a step away
    assert all(bool(value.any()) for name, value in trained.items() if "lora_B" in name)
    full = {name: base[name.removeprefix("base_model.model.")] for name in trained if "lora_" not in name}
    assert not full or any(not torch.equal(trained[name], value) for name, value in full.items())
