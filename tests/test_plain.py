"""Plain PyTorch models: objects and `file.py:factory`, with nothing of transformers imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from helpers import randomize

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))

def net():
    torch.manual_seed(0)
    return Net()

def pairs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator)
    return [(row, (row.sum() > 0).long() + (row[0] > 1).long()) for row in x]

number = 3
"""

JOURNEY = """
import sys, torch, lorakit
reference, folder = sys.argv[1], sys.argv[2]
plan = lorakit.plan("adapt body.* rank 4 quant nf4 double\\ntrain head", reference)
model = lorakit.apply(plan, reference)
optimizer = lorakit.optimizer(model, lr=1e-2)
x = torch.randn(32, 8, generator=torch.Generator().manual_seed(2))
for _ in range(5):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
lorakit.save(model, folder)
again = lorakit.load(folder, reference)
assert torch.equal(again(x), model.eval()(x))
lorakit.merge(again)
assert lorakit.summary(model).added_parameters == plan.added
assert "transformers" not in sys.modules, "transformers was imported"
"""

READING = """
import gc, sys
from lorakit.cli.inputs import load_model
from lorakit.errors import ModelError

whole = []
gc.callbacks.append(lambda phase, about: whole.append(phase) if about["generation"] == 2 else None)
load_model(sys.argv[1], with_weights=False)
assert "torch" in sys.modules and not whole, whole
assert gc.isenabled() and gc.get_freeze_count()
try:
    load_model(sys.argv[2], with_weights=False)
except ModelError:
    assert gc.isenabled()
else:
    raise SystemExit("it is there")
"""


def test_the_whole_way_without_transformers(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    model, script = write("net.py", MODEL), write("journey.py", JOURNEY)
    command = [sys.executable, str(script), f"{model}:net", str(tmp_path / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("missing.py:net", "no such file"),
        ("{net}:nothing", "has no `nothing`; it has: Net, net, pairs"),
        ("{net}:number", "`number` in .* is a int"),
        ("{net}:pairs", "returned a list, not a torch.nn.Module"),
        ("{broken}:net", "failed when it was loaded: ZeroDivisionError"),
        ("no.such.package:net", "no module named 'no'"),
    ],
)
def test_references_that_name_no_model(reference: str, complaint: str, write: Callable[[str, str], Path]) -> None:
    places = {"net": write("net.py", MODEL), "broken": write("broken.py", "1 / 0")}
    with pytest.raises(lorakit.ModelError, match=complaint):
        lorakit.plan("adapt head rank 1", reference.format(**places))


@pytest.mark.parametrize(
    ("target", "quant"),
    [
        *(
            (target, quant)
            for target in ("linear1", "out_proj", "linear1,linear2,out_proj")
            for quant in ("", "quant nf4")
        ),
        ("in_proj_weight", ""),
        ("in_proj_weight,out_proj", ""),
    ],
)
def test_a_transformer_layer_in_evaluation_mode_does_not_skip_the_adapter(target: str, quant: str) -> None:
    """torch computes such layers with the weights of their children, without calling them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2)
    x = torch.randn(2, 5, 32)
    lorakit.apply(f"adapt {target} rank 4 {quant} dtype fp32", layer)
    with torch.no_grad():
        fresh = layer.eval()(x)
    randomize(layer)
    with torch.no_grad():
        fast = layer(x)
    slow = layer.train()(x)
    assert float((fast - fresh).abs().max()) > 1e-2
    torch.testing.assert_close(fast, slow.detach(), rtol=1e-4, atol=1e-4)
    slow.sum().backward()
    for name, value in layer.named_parameters():
        if "lora_" in name:
            assert value.grad is not None and value.grad.any(), name


def test_dropout_where_a_layer_is_never_called_is_refused() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64)
    with pytest.raises(lorakit.PlanError, match="dropout"):
        lorakit.plan("adapt out_proj rank 4 dropout 0.1", layer)


def test_reading_a_structure_looks_for_no_garbage(write: Callable[[str, str], Path]) -> None:
    script = write("reading.py", READING)
    command = [sys.executable, str(script), f"{write('net.py', MODEL)}:net", f"{script.parent / 'missing.py'}:net"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
