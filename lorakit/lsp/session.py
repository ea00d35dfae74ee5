"""A session: the documents that are open, what was found in each, and when that is published."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lsprotocol import types
from pygls.uris import to_fs_path
from pygls.workspace import Workspace

from lorakit.diagnostics import Code, Diagnostic
from lorakit.errors import LorakitError, PlanError
from lorakit.hooks import Plugins
from lorakit.language.files import read_file
from lorakit.lsp.diagnostics import NOWHERE, kept, model_problem, problem, published
from lorakit.lsp.document import Document, read_document
from lorakit.lsp.model import Model, Unreadable
from lorakit.lsp.model_names import walk
from lorakit.lsp.models import Models

logger = logging.getLogger(__name__)

# Seconds of rest after a keystroke: keystrokes that come together are read once, and a plan waits for a longer pause
SOON, LATER = 0.002, 0.25


_BY_ITSELF = (Code.MATCHES_NOTHING, Code.NOT_ADAPTABLE, Code.RANK_TOO_LARGE, Code.NOT_QUANTIZABLE)


@dataclass(frozen=True)
class _Findings:
    """What planning a version of a document found wrong."""

    document: Document
    found: tuple[Diagnostic, ...]


@dataclass
class Session:
    """Everything that a server knows of its client's documents.

    `publish` sends diagnostics; a client that `pulls` asks for them, and is told when there is more to ask for, as are
    others whose hints come from models (`renewed`).
    """

    workspace: Workspace
    models: Models
    plugins: Plugins
    publish: Callable[[types.PublishDiagnosticsParams], None]
    pulls: bool
    renewed: Callable[[], None]
    _documents: dict[str, Document] = field(default_factory=dict)
    _findings: dict[str, _Findings] = field(default_factory=dict)
    _published: dict[str, types.PublishDiagnosticsParams] = field(default_factory=dict)
    _following: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    # plans are made one after the other: those that wait when the text changes are never made
    _planner: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def document(self, uri: str) -> Document:
        """Return the present version of a document, read. Raises: PluginError."""
        if uri not in self._documents:
            held = self.workspace.get_text_document(uri)
            path = to_fs_path(uri)
            encoding = self.workspace.position_encoding or types.PositionEncodingKind.Utf16
            self._documents[uri] = read_document(
                uri, Path(path) if path else None, held.version, held.source, encoding, self.plugins, self._contents
            )
        return self._documents[uri]

    def model(self, uri: str) -> Model | Unreadable | None:
        """Return the model of a document, or why it cannot be read; None where there is none (yet)."""
        return self.models.known(self.document(uri))

    def found(self, uri: str) -> tuple[Diagnostic, ...]:
        """Return everything that is known to be wrong with a document."""
        document = self.document(uri)
        planned = self._findings.get(uri)
        plan = kept(planned.found, planned.document, document) if planned is not None else ()
        return (*document.analysis.diagnostics, *plan)

    def programs(self) -> list[Document]:
        """Return the open documents, and the specs in the client's folders that are not open."""
        documents = [self.document(uri) for uri in self.workspace.text_documents if uri.endswith(".lora")]
        known = {document.path.resolve() for document in documents if document.path is not None}
        for folder in self.workspace.folders.values():
            root = to_fs_path(folder.uri)
            for path in walk(Path(root)) if root else ():
                if path.suffix == ".lora" and path.resolve() not in known:
                    known.add(path.resolve())
                    documents.append(self._stored(path))
        return documents

    def _stored(self, path: Path) -> Document:
        try:
            text = read_file(path).decode("utf-8", "replace")
        except OSError:
            text = ""
        encoding = self.workspace.position_encoding or types.PositionEncodingKind.Utf16
        return read_document(path.as_uri(), path, None, text, encoding, self.plugins, self._contents)

    def changed(self, uri: str) -> None:
        """Read a document anew, and every other that includes it."""
        for one in {uri, *self._including(uri)}:
            self._follow(one)

    def refresh(self) -> None:
        """Read every open document anew, since files that they include and their models may have changed."""
        self.models.retry()
        for uri in self.workspace.text_documents:
            self._follow(uri)

    def closed(self, uri: str) -> None:
        """Forget a document and clear what was published of it; where it is included, its file counts again."""
        including = self._including(uri) - {uri}
        self._documents.pop(uri, None)
        self._findings.pop(uri, None)
        self._published.pop(uri, None)
        if (task := self._following.pop(uri, None)) is not None:
            task.cancel()
        if not self.pulls:
            self.publish(types.PublishDiagnosticsParams(uri, []))
        for other in including:
            self._follow(other)
        self._keep_models()

    def _keep_models(self) -> None:
        """End reading models that no open document names any more. Raises: PluginError."""
        self.models.keep([self.document(uri) for uri in self.workspace.text_documents])

    def _including(self, uri: str) -> set[str]:
        """Return the documents that hold the text of this one."""
        path = to_fs_path(uri)
        return {
            other
            for other, document in self._documents.items()
            if any(_same(name, path) for name in document.analysis.sources)
        }

    def _follow(self, uri: str) -> None:
        self._documents.pop(uri, None)
        if (task := self._following.get(uri)) is not None:
            task.cancel()
        self._following[uri] = asyncio.create_task(self._check(uri))

    async def _check(self, uri: str) -> None:
        """Publish what is wrong with a document: at once what needs no model, and after a pause what does."""
        await asyncio.sleep(SOON)
        try:
            self._publish(uri)
            await asyncio.sleep(LATER)
            document = self.document(uri)
            self._keep_models()
            known = self.models.known(document)
            model = await self.models.read(document)
            if model is None:
                self._findings.pop(uri, None)
                return
            before = self.found(uri)
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._planner, _planned, document, model)
            self._findings[uri] = _Findings(document, found)
            self._publish(uri)
            if model is not known or self.found(uri) != before:
                self.renewed()
        except LorakitError as error:
            # a plugin that fails has no place in the text
            if not self.pulls:
                self._published.pop(uri, None)
                self.publish(types.PublishDiagnosticsParams(uri, [problem(NOWHERE, str(error))]))
        except Exception:
            # nobody waits for this task, so nobody else would hear of it
            logger.exception("checking %s failed", uri)

    def diagnostics(self, uri: str) -> list[types.Diagnostic]:
        """Return everything that is known to be wrong with a document, and with its model."""
        document, model = self.document(uri), self.model(uri)
        unreadable = model_problem(model, document) if isinstance(model, Unreadable) else []
        return [*published(self.found(uri), document), *unreadable]

    def _publish(self, uri: str) -> None:
        """Send what is known to be wrong with a document, unless that was said of this version."""
        if self.pulls:
            return
        said = types.PublishDiagnosticsParams(uri, self.diagnostics(uri), self.document(uri).version)
        if self._published.get(uri) != said:
            self._published[uri] = said
            self.publish(said)

    def _contents(self, path: Path) -> bytes:
        """Return a file's bytes as an editor holds them, or else as they are on the disk. Raises: OSError."""
        for held in self.workspace.text_documents.values():
            if _same(held.path, str(path)) and held.uri.startswith("file:"):
                return str(held.source).encode("utf-8", "replace")
        return read_file(path)


def _planned(document: Document, model: Model | Unreadable) -> tuple[Diagnostic, ...]:
    """Return what is wrong with what is sound of a spec when it meets its model.

    Beside errors only what a statement has wrong by itself counts: the rest may hang on what is left out.
    Raises: LorakitError where a plugin fails.
    """
    spec = document.analysis.spec
    if not isinstance(model, Model) or not document.analysis.sound.rules:
        return ()
    from lorakit.planning.planner import make_plan

    try:
        make_plan(document.analysis.sound, model.inventory, document.plugins)
    except PlanError as error:
        return tuple(one for one in error.diagnostics if spec is not None or one.code in _BY_ITSELF)
    return ()


def _same(one: str, other: str | None) -> bool:
    return other is not None and Path(one).absolute() == Path(other).absolute()
