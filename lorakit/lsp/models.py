"""The models that open documents name: each read once in the background, and again when its files change.

Each is read by a process of its own, which ends when no document names the model any more: one that never comes to an
end keeps no other waiting.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from lorakit.hooks import Plugins
from lorakit.lsp.document import Document
from lorakit.lsp.model import Model, Unreadable, model_comment, stamp_of
from lorakit.planning import codec
from lorakit.planning.inventory import Inventory

# Seconds until a model that is still being read is given up, and how many are read at the same time
PATIENCE, READERS = 300, 4

# What the reading process may answer
_ANSWERS = {"Inventory": Inventory, "Unreadable": Unreadable}

_OFF = Unreadable("models are not read: the server was started with --no-models")

Answer: TypeAlias = "Model | Unreadable"

# The folder that a reference is relative to, and the reference
_Key: TypeAlias = tuple[Path, str]


@dataclass
class Models:
    """What was read of each model so far. Where it is not `allowed`, none is read: a factory is code that runs."""

    plugins: Plugins
    allowed: bool
    _stamps: dict[_Key, int] = field(default_factory=dict)
    _tasks: dict[_Key, asyncio.Task[Answer]] = field(default_factory=dict)
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))

    def known(self, document: Document) -> Answer | None:
        """Return the model of a document or why it cannot be read; None where it names none, or none is read yet."""
        comment = model_comment(document.source.text)
        if comment is None:
            return None
        found = self._stamp(comment.reference, document.folder)
        if isinstance(found, Unreadable):
            return found
        return _answered(self._tasks.get((document.folder, comment.reference)))

    async def read(self, document: Document) -> Answer | None:
        """Return the same when the model has been read, which begins here where it is new or has changed."""
        comment = model_comment(document.source.text)
        if comment is None:
            return None
        stamp, key = self._stamp(comment.reference, document.folder), (document.folder, comment.reference)
        if isinstance(stamp, Unreadable):
            return stamp
        if self._stamps.get(key) != stamp:
            self._drop(key)
            self._stamps[key] = stamp
            self._tasks[key] = asyncio.create_task(self._read(*key))
        # whoever waits may stop waiting, and what is awaited may begin anew or be dropped
        while (task := self._tasks.get(key)) is not None:
            await asyncio.wait((task,))
            if not task.cancelled():
                return task.result()
        return None

    def retry(self) -> None:
        """Forget why models could not be read: whatever was missing may be there now."""
        for key, task in self._tasks.items():
            if isinstance(_answered(task), Unreadable):
                self._stamps.pop(key, None)

    def keep(self, documents: Iterable[Document]) -> None:
        """End reading what none of these documents names any more."""
        comments = ((document.folder, model_comment(document.source.text)) for document in documents)
        named = {(folder, comment.reference) for folder, comment in comments if comment is not None}
        for key in [key for key, task in self._tasks.items() if not task.done() and key not in named]:
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        self._stamps.pop(key, None)
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()

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


def _answered(task: asyncio.Task[Answer] | None) -> Answer | None:
    return task.result() if task is not None and task.done() and not task.cancelled() else None
