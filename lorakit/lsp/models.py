"""The models that open documents name: each read once in the background, and again when its files change."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from lorakit.hooks import Plugins
from lorakit.lsp.document import Document
from lorakit.lsp.model import Model, Unreadable, model_comment, stamp_of
from lorakit.planning import codec
from lorakit.planning.inventory import Inventory

# Seconds until a model that is still being read is given up
PATIENCE = 300

# What the reading process may answer
_ANSWERS = {"Inventory": Inventory, "Unreadable": Unreadable}

_OFF = Unreadable("models are not read: the server was started with --no-models")

Answer: TypeAlias = "Model | Unreadable"


@dataclass
class Models:
    """What was read of each model so far. Where it is not `allowed`, none is read: a factory is code that runs."""

    plugins: Plugins
    allowed: bool
    _stamps: dict[tuple[Path, str], int] = field(default_factory=dict)
    _tasks: dict[tuple[Path, str], asyncio.Task[Answer]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def known(self, document: Document) -> Answer | None:
        """Return the model of a document or why it cannot be read; None where it names none, or none is read yet."""
        comment = model_comment(document.source.text)
        if comment is None:
            return None
        found = self._stamp(comment.reference, document.folder)
        if isinstance(found, Unreadable):
            return found
        task = self._tasks.get((document.folder, comment.reference))
        return task.result() if task is not None and task.done() else None

    async def read(self, document: Document) -> Answer | None:
        """Return the same when the model has been read, which begins here where it is new or has changed."""
        comment = model_comment(document.source.text)
        if comment is None:
            return None
        stamp, key = self._stamp(comment.reference, document.folder), (document.folder, comment.reference)
        if isinstance(stamp, Unreadable):
            return stamp
        if self._stamps.get(key) != stamp:
            self._stamps[key] = stamp
            self._tasks[key] = asyncio.create_task(self._read(*key))
        # whoever waits may stop waiting; the reading goes on for the next
        return await asyncio.shield(self._tasks[key])

    def retry(self) -> None:
        """Forget why models could not be read: whatever was missing may be there now."""
        for key, task in self._tasks.items():
            if task.done() and isinstance(task.result(), Unreadable):
                self._stamps.pop(key, None)

    def _stamp(self, reference: str, folder: Path) -> int | Unreadable:
        return stamp_of(reference, folder) if self.allowed else _OFF

    async def _read(self, folder: Path, reference: str) -> Answer:
        async with self._turn:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "lorakit.lsp.model_reader", reference,
                    cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
            except OSError as error:
                return Unreadable(f"cannot start Python in {folder}: {error.strerror}")
            return await self._answer(process)

    async def _answer(self, process: asyncio.subprocess.Process) -> Answer:
        try:
            answer, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        except TimeoutError:
            return Unreadable(f"reading it took longer than {PATIENCE} seconds")
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            return Unreadable(f"reading it ended with exit code {process.returncode}")
        try:
            ((name, plain),) = json.loads(answer).items()
            found = codec.from_plain(_ANSWERS[name], plain)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # the reader may be of another version, installed since this process began
            return Unreadable(f"what was read cannot be used, start the server again: {error}")
        return found if isinstance(found, Unreadable) else Model(found, self.plugins.roles)
