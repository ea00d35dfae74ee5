"""Functions named `FILE.py:NAME` or `package.module:NAME`, such as what makes a model, its data or its loss."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.errors import ModelError


def named_object(reference: str, what: str) -> Any:
    """Return the function that `FILE.py:NAME` or `package.module:NAME` names. Raises: ModelError."""
    place, _, name = reference.rpartition(":")
    if not place:
        raise ModelError(f"{what} {reference!r}: write FILE.py:FUNCTION")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{place} has no `{name}`; it has: {', '.join(known) or 'nothing to call'}")
    if not callable(found):
        raise ModelError(f"`{name}` in {place} is a {type(found).__name__}; a function is needed")
    return found


def _from_file(path: Path) -> ModuleType:
    try:
        is_file = path.is_file()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not is_file:
        raise ModelError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"lorakit_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # classes of the file are found by name when a model is copied or pickled
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path} failed when it was loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _from_package(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"no module named {error.name!r} for the model reference") from error
    except Exception as error:
        raise ModelError(f"module {name} failed when it was loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
