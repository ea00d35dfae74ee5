"""A new plugin as a whole distribution: files from the templates beside this module, with its names filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template

from lorakit.errors import PluginError
from lorakit.hooks.registration import PROTOCOLS
from lorakit.hooks.specs import PROTOCOL
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
# what a new plugin of a kind may be like, the first unless another is asked for: the folder of its code and a spec
LIKE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "method": {"lora": ("method", EXAMPLES["method"]), "ia3": ("method_ia3", "adapt q_proj,v_proj method {name}")},
}


@dataclass(frozen=True, slots=True)
class Names:
    """What a new plugin is called: in a spec, as a distribution, as a package and as a class; and what it is like."""

    kind: str
    name: str
    like: str = ""

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
    def template(self) -> str:
        """The folder of its code beside this module."""
        return LIKE[self.kind][self.like][0] if self.like else self.kind

    @property
    def example(self) -> str:
        example = LIKE[self.kind][self.like][1] if self.like else EXAMPLES[self.kind]
        return example.format(name=self.name)


def names_of(kind: str, name: str, like: str = "") -> Names:
    """Return what a new plugin is called.

    Raises: PluginError for a name that a spec or a package cannot have, or if there is nothing of its kind to be like.
    """
    if like and like not in LIKE.get(kind, {}):
        choices = " or ".join(f"`--like {one}`" for one in LIKE.get(kind, {}))
        raise PluginError(
            f"no {kind} to start from is like `{like}`; " + (f"there are {choices}" if choices else "leave --like out")
        )
    if fault := name_fault(name):
        raise PluginError(f"`{name}` is no name for a plugin: {fault}")
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?", name) or "__" in name:
        raise PluginError(
            f"`{name}` is no name for a distribution: write letters, digits and single underscores between them"
        )
    return Names(kind, name, like)


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
        "protocol": str(PROTOCOL),
        "protocol_class": PROTOCOLS[names.kind].__name__,
    }
    files = {f"{names.package}/py.typed": ""}
    for folder in ("common", names.template):
        for template in (resources.files(__package__) / folder).iterdir():
            name = template.name.removesuffix(".txt")
            path = name if folder == "common" else f"{names.package}/{name}"
            if name == "test.py":
                path = f"tests/test_{names.package}.py"
            files[path] = Template(template.read_text(encoding="utf-8")).substitute(values)
    return files
