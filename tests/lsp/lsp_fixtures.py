"""One server for all tests of the folder, and one for each encoding of positions."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import pytest_lsp
from lsp_helpers import FACTORY, SERVER, Client, Editor
from lsprotocol import types
from pytest_lsp import ClientServerConfig

CONFIG = ClientServerConfig(SERVER, Client, dict(os.environ))


async def _session(client: Client, encodings: list[str] | None) -> AsyncIterator[None]:
    general = types.GeneralClientCapabilities(position_encodings=encodings) if encodings else None
    result = await client.initialize_session(types.InitializeParams(types.ClientCapabilities(general=general)))
    client.encoding = result.capabilities.position_encoding
    yield
    await client.shutdown_session()


@pytest_lsp.fixture(config=CONFIG, scope="session")  # type: ignore[untyped-decorator]
async def client(lsp_client: Client):  # type: ignore[no-untyped-def]
    async for _ in _session(lsp_client, None):
        yield


@pytest_lsp.fixture(config=CONFIG, scope="session", params=["utf-8", "utf-16", "utf-32"])  # type: ignore[untyped-decorator]
async def encoded_client(lsp_client: Client, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    async for _ in _session(lsp_client, [request.param]):
        yield


@pytest_asyncio.fixture(loop_scope="session")
async def editor(client: Client, tmp_path: Path) -> AsyncIterator[Editor]:
    editor = Editor(client, tmp_path)
    yield editor
    editor.leave()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, the same in all tests: it is read once, and waits for no other that is being read."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.py").write_text(FACTORY)
    return folder
