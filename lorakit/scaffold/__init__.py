"""A new plugin as a whole distribution: files from the templates beside this module, with its names filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template

from lorakit.errors import PluginError
from lorakit.language.words import name_fault
from lorakit.version import __version__

# how a spec uses a plugin of each kind
EXAMPLES: Mapping[str, str] = {
    "quantizer": "adapt q_proj,v_proj rank 16 quant {name}",
    "initializer": "adapt q_proj,v_proj rank 16 init {name}",
    "optimizer": "adapt q_proj,v_proj rank 16\noptimizer {name}",
    "method": "adapt q_proj,v_proj rank 16 method {name}",
    "role": "adapt @{name} rank 16",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What a new plugin is called: in a spec, as a distribution, as a package and as a class."""

    kind: str
    name: str

    @property
    def distribution(self) -> str:
        return f"lorakit-{self.name.replace('_', '-').lower()}"

    @property
    def package(self) -> str:
        return f"lorakit_{self.name.lower()}"

    @property
    def class_name(self) -> str:
        words = (word[:1].upper() + word[1:] for word in self.name.split("_"))
        return "".join((*words, self.kind.capitalize()))

    @property
    def with_article(self) -> str:
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"

    @property
    def example(self) -> str:
        return EXAMPLES[self.kind].format(name=self.name)


def names_of(kind: str, name: str) -> Names:
    """Return what a new plugin is called. Raises: PluginError for a name that a spec or a package cannot have."""
    if fault := name_fault(name):
        raise PluginError(f"`{name}` is no name for a plugin: {fault}")
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?", name) or "__" in name:
        raise PluginError(
            f"`{name}` is no name for a distribution: write letters, digits and single underscores between them"
        )
    return Names(kind, name)


def files_of(names: Names) -> dict[str, str]:
    """Return every file of the new distribution by its path in it."""
    values = {
        "kind": names.kind,
        "name": names.name,
        "distribution": names.distribution,
        "package": names.package,
        "class_name": names.class_name,
        "example": names.example,
        "with_article": names.with_article,
        "lorakit": __version__,
    }
    files = {f"{names.package}/py.typed": ""}
    for folder in ("common", names.kind):
        for template in (resources.files(__package__) / folder).iterdir():
            name = template.name.removesuffix(".txt")
            path = name if folder == "common" else f"{names.package}/{name}"
            if name == "test.py":
                path = f"tests/test_{names.package}.py"
            files[path] = Template(template.read_text(encoding="utf-8")).substitute(values)
    return files
