"""Small models that the tests share; nothing here is downloaded."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Nursery, shared
from torch import nn

from helpers import EVERY_DTYPE, NET, byte_tokenizer, make_gpt2, make_llama
from lorakit.application import hardware

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
# threads that wait by spinning bring a machine with more processes than cores to a standstill
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


# sets of parameters of each test that coverage is measured of
TRACED = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what takes many minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes; run with --slow"))
    # a tracer slows all Python by a third, and a test's first parameters show what it runs
    sets = Counter[str]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        sets[test] += 1
        if sets[test] > TRACED:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace no process that a test starts which is not traced itself."""
    if request.node.get_closest_marker("no_cover"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models keep the dtypes that a test gives them: whether the machine multiplies bf16 is chance."""
    monkeypatch.setattr(hardware, "hardware", lambda: EVERY_DTYPE)


@pytest.fixture
def llama() -> nn.Module:
    return make_llama().eval()


@pytest.fixture
def gpt2() -> nn.Module:
    return make_gpt2().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of the small Llama with a byte-level tokenizer and a chat template."""
    folder = tmp_path / "llama"
    make_llama(vocab_size=320).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that writes a text file and returns its path."""

    def writer(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """A process that has imported everything, to fork commands from."""
    return shared()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands are given: a small Llama with data and a spec, and a net with pairs and a spec."""
    folder = tmp_path_factory.mktemp("inputs")
    make_llama(vocab_size=320).save_pretrained(folder / "llama")
    byte_tokenizer().save_pretrained(folder / "llama")
    rows = [json.dumps({"text": f"hello world {number}"}) for number in range(16)]
    (folder / "data.jsonl").write_text("\n".join(rows))
    (folder / "llama.lora").write_text("adapt q_proj,v_proj rank 4 dropout 0.1\n")
    (folder / "net.py").write_text(NET)
    (folder / "net.lora").write_text("adapt 0 rank 2\nadapt 2 rank 2 alpha 4\n")
    return folder
