"""What a model can be called: folders and factories near a spec, and hub ids in the local Hugging Face cache.

Nothing is imported and nothing fetched: files are listed, and Python files read as syntax.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

# A walk looks at so many entries, so deep, and reads Python files up to this size
_MOST, _DEEPEST, _LARGEST = 2000, 3, 200_000
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})
_MODULES = re.compile(r"\b(?:torch|transformers)\b")


def model_names(folder: Path) -> Iterator[str]:
    """Yield what `# model:` could name in specs of a folder."""
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.name == "config.json" and path.parent != folder:
            yield path.parent.relative_to(folder).as_posix()
        elif path.suffix == ".py":
            yield from (f"{name}:{factory}" for factory in factories(path))
    yield from cached_ids()


def cached_ids() -> Iterator[str]:
    """Yield the hub ids whose configuration lies in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        if any(folder.glob("snapshots/*/config.json")):
            yield folder.name.removeprefix("models--").replace("--", "/")


def cached_config(hub_id: str) -> Path | None:
    """Return the configuration of a hub id in the local cache, or None where it is not there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = Path(HF_HUB_CACHE).glob(f"models--{hub_id.replace('/', '--')}/snapshots/*/config.json")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def factories(path: Path) -> Iterator[str]:
    """Yield the functions and classes of a Python file that can be called without arguments and may make a model."""
    try:
        text = path.read_text("utf-8") if path.stat().st_size <= _LARGEST else ""
        tree = ast.parse(text) if _MODULES.search(text) else ast.Module([], [])
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and _takes_nothing(node):
            yield node.name


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those nearest first, without hidden folders; not all of very many."""
    waiting, seen = [(folder, 0)], 0
    for inner, depth in waiting:
        try:
            entries = sorted(os.scandir(inner), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > _MOST:
                return
            try:
                is_file = entry.is_file()
            except OSError:
                continue
            if is_file:
                yield Path(entry.path)
            elif (
                depth < _DEEPEST and entry.name[0] != "." and entry.name not in _PASSED_OVER and not entry.is_symlink()
            ):
                waiting.append((Path(entry.path), depth + 1))


def _takes_nothing(node: ast.FunctionDef) -> bool:
    given = node.args
    positional = len(given.posonlyargs) + len(given.args) - len(given.defaults)
    return positional == 0 and all(default is not None for default in given.kw_defaults)
