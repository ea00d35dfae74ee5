"""What a run asks of each Python that it starts, and what each of them tells, as files in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.language.spec import Spec
    from lorakit.planning.plan import Plan

# the environment's name for the folder
FOLDER = "LORAKIT_RUN"
ASKED = "asked"


@dataclass(frozen=True, slots=True)
class Asked:
    """What to adapt and how: a file with a spec or a plan, and other values of its `let` names as NAME=VALUE.

    `only` names the class of the model, `output` where the adapter goes at the end; with `force` it takes the place of
    whatever stands there.
    """

    spec: str
    variables: Sequence[str] = ()
    seed: int = 0
    only: str | None = None
    output: str | None = None
    force: bool = False
    quiet: bool = False

    def write(self, folder: Path) -> None:
        """Leave it in a run's folder."""
        (folder / ASKED).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def read_spec(self) -> Spec | Plan:
        """Return what the file holds. Raises: SpecError, PlanError."""
        path = Path(self.spec)
        if path.suffix == ".json":
            from lorakit.planning.plan import Plan

            return Plan.from_json(path.read_text(encoding="utf-8"))
        from lorakit.api import parse
        from lorakit.language.settings import variables_of

        return parse(path, variables_of(self.variables))


def read_asked(folder: Path) -> Asked:
    """Return what a run left in its folder."""
    return Asked(**json.loads((folder / ASKED).read_text(encoding="utf-8")))


@dataclass(slots=True)
class Told:
    """What happened in one Python, in words; empty is what did not. `left` are models that stay as they are."""

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0") or 0))
    adapted: str = ""
    optimizer: str = ""
    saved: str = ""
    left: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace what this process told before; a run that is over has nobody who listens."""
        with suppress(OSError):
            aside = folder / f"{os.getpid()}.new"
            aside.write_text(json.dumps(asdict(self)), encoding="utf-8")
            aside.replace(folder / f"{os.getpid()}.json")


def read_told(folder: Path) -> Sequence[Told]:
    """Return what each Python of a run told, the first rank first."""
    found = [Told(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("*.json")]
    return sorted(found, key=lambda one: (one.rank, not one.adapted))
