"""Read a config file of another tool: which tool it is of, and what it says in common names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.artifacts.json_files import MAX_BYTES, read_text
from lorakit.artifacts.peft_fields import check_types
from lorakit.errors import AdapterError
from lorakit.foreign.dialects import DIALECTS, Dialect, dialect_of
from lorakit.foreign.fields import FIELDS
from lorakit.language.source import MAX_SIZE
from lorakit.language.suggestions import listed
from lorakit.quoting import named

CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """What a config says: `fields` by their common names, and `called` what its tool calls those that it renames."""

    path: Path
    tool: str
    fields: Mapping[str, Any]
    called: Mapping[str, str]


def read_foreign(path: Path) -> ForeignConfig:
    """Return what a config file, or the one in an adapter folder, says.

    Raises: AdapterError for what cannot be read, is of no known tool, or describes no LoRA.
    """
    path = path / CONFIG if path.is_dir() else path
    config = _loaded(path)
    dialect = dialect_of(config)
    if dialect is None:
        tools = listed(one.tool for one in DIALECTS).replace("`", "")
        raise AdapterError(f"{path} is no config that lorakit reads: it has no field that marks one of {tools}")
    if refusal := dialect.refused(config):
        raise AdapterError(f"{path} {refusal}")
    own_names = sorted(dialect.names.items(), key=lambda name: name[0] in config)
    called = {common: own for own, common in own_names}
    given = {name: value for name, value in _common(config, dialect, path).items() if value is not None}
    settled = dialect.settled({**dialect.absent, **given})
    fields = {name: _number(value) if name in FIELDS else value for name, value in settled.items()}
    check_types(path, fields, FIELDS, called)
    return ForeignConfig(path, dialect.tool, fields, called)


def _common(config: Mapping[str, Any], dialect: Dialect, path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        common = dialect.names.get(name, name)
        if common in fields:
            raise AdapterError(f"{path} says the same thing twice, the second time as {named(name)}")
        fields[common] = value
    return fields


def _number(value: Any) -> Any:
    """Return the number that a text spells: to YAML 1.1 `2e-4` is a text, for want of a point."""
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        return value


def _loaded(path: Path) -> Mapping[str, Any]:
    is_json = path.suffix.lower() == ".json"
    text = read_text(path, AdapterError, MAX_BYTES if is_json else MAX_SIZE)
    try:
        found = json.loads(text) if is_json else _yaml(text, path)
    # numbers of thousands of digits are a ValueError, as is all that is no JSON
    except (ValueError, RecursionError) as problem:
        raise AdapterError(f"{path} is no {'JSON' if is_json else 'YAML'}: {problem}") from problem
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise AdapterError(f"{path} is no config: it holds no fields by name")
    return found


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as missing:
        raise AdapterError(f"{path}: reading YAML needs PyYAML: pip install pyyaml") from missing
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise AdapterError(f"{path} is no YAML: {problem}") from problem
