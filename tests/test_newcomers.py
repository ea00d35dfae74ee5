"""What somebody who is new here types, and what they are told."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import lorakit
from lorakit.artifacts.inspection import adapter_view, inspect_adapter
from lorakit.cli.given import check_given
from lorakit.huggingface import models
from lorakit.planning.report import grouped
from lorakit.trainers.display import Display
from lorakit.trainers.plain_task import PairsTask
from lorakit.trainers.reports import check_reports
from lorakit.trainers.settings import Settings
from lorakit.values import ModelReference


def unreachable(*words: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_hub_id_without_a_network_is_told_at_once(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "no such model folder: somebody/model; nor can it be fetched, since huggingface.co is out of reach"
    with pytest.raises(lorakit.ModelError, match=words):
        check_given({"MODEL": "somebody/model"})
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hf")
    with pytest.raises(lorakit.ModelError, match=r"since mirror\.example is out of reach"):
        check_given({"MODEL": "somebody/model"})


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "https_proxy"])
def test_a_network_that_cannot_be_judged_is_left_to_the_hubs_library(
    name: str, no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1" if name.startswith("HF") else "http://proxy.example:3128")
    models.check_reference(ModelReference("somebody/model"))


def test_a_model_of_the_cache_needs_no_network(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_is_cached", lambda name: name == "somebody/model")
    models.check_reference(ModelReference("somebody/model"))


def test_a_model_in_an_adapters_place_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(lorakit.AdapterError, match="is a model; an adapter stands here"):
        check_given({"ADAPTER": str(tmp_path), "MODEL": "somebody/model"})


def test_the_help_of_chat_names_its_places_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", "chat", "--help"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "Usage: lorakit chat [OPTIONS] [ADAPTER] MODEL\n" in done.stdout
    assert "\n  [ADAPTER] MODEL  An adapter folder" in done.stdout


NET = """
import torch
from torch import nn

def make():
    return nn.Linear(4, 2)

def data():
    return [(torch.ones(4), torch.ones(2))] * 8

def wide():
    return [(torch.ones(5), torch.ones(2))] * 8

def of_the_model(model, batch):
    return model(batch[0]).mean()

def number(prediction, target):
    return float((prediction - target).square().mean())

def each(prediction, target):
    return (prediction - target).square()
"""


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        ("wide", None, "the model does not take a batch of inputs: mat1 and mat2"),
        (
            "data",
            "of_the_model",
            r"the loss does not take \(prediction, target\), the model's answer to a batch",
        ),
        ("data", "number", "the loss returned a float; return a tensor of one number, the mean over the batch"),
        ("data", "each", r"the loss returned a tensor \(4, 2\); return a tensor of one number"),
    ],
)
def test_a_loss_of_ones_own_is_told_what_it_gets(data: str, loss: str | None, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    named = f"{tmp_path / 'net.py'}:"
    task = PairsTask(named + data, named + loss if loss else None, Settings(steps=1, held_out=0.0))
    adapted = lorakit.apply("adapt 0 rank 1", nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(lorakit.DataError, match=words):
        task.train(adapted, tmp_path, Display(Console(quiet=True), print), resume=False)


def test_a_tracker_without_an_account_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def login() -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    wandb = types.ModuleType("wandb")
    wandb.login = login  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = r"--report wandb: No API key configured\. Use `wandb login` to log in\. WANDB_MODE=offline writes"
    with pytest.raises(lorakit.DataError, match=words):
        check_reports(("csv", "wandb"), is_plain=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_reports(("csv", "wandb"), is_plain=False)


def test_a_module_that_is_alone_of_its_kind_is_called_by_its_name() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    plan = lorakit.plan("adapt 0,2,3,4 rank 2", net)
    assert [row.pattern for row in grouped(plan.entries, every_module=False)] == ["0", "2", "*"]


def test_no_norm_is_shown_of_a_change_that_two_matrices_do_not_say(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    adapted = lorakit.apply("adapt 0 rank 2\nadapt 1 rank 2 method dora", net)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.1)
    found = inspect_adapter(lorakit.save(adapted, tmp_path / "adapter"))
    assert [row.update_norm is None for row in found.adapters] == [False, True]
    stream = io.StringIO()
    Console(file=stream, width=100).print(adapter_view(found))
    assert re.search(r"^ 0 .*\d\s*$", stream.getvalue(), re.M) and re.search(r"^ 1 .*fp32\s*$", stream.getvalue(), re.M)
