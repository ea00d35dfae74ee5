"""What a page on an error holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorakit.language.codes import Code


@dataclass(frozen=True)
class Page:
    """The page on one code: what it means, a spec that has the error, and one that has not.

    Pages of the kind `plan` are on errors that only a model brings out; their examples say which in a comment.
    `files` are what the examples include; `settings` what `--set` gives the wrong one, and `encoding` how it is saved.
    """

    code: Code
    title: str
    explanation: str
    wrong: str
    right: str
    kind: str = "language"
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
