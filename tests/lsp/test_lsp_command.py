"""`lorakit lsp` as a command: what it says where it cannot work, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lsp_helpers import FACTORY, SERVER, Client, Editor
from lsprotocol import types


def test_without_pygls_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['pygls'] = None; from lorakit.cli.lsp import lsp; lsp.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the language server needs pygls: pip install 'lorakit[lsp]'\n"
    assert done.stdout == ""


def test_help_shows_how_to_start_it() -> None:
    done = subprocess.run([*SERVER, "--help"], capture_output=True, text=True, check=True)
    assert "Example: lorakit lsp" in done.stdout and "--no-models" in done.stdout


def test_a_server_holds_neither_torch_nor_transformers() -> None:
    code = "import sys, lorakit.lsp.server; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.asyncio(loop_scope="session")
async def test_no_model_is_read_where_none_is_allowed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tiny.py").write_text(FACTORY + "\nopen('ran', 'w').close()\n")
    client = Client()
    await client.start_io(*SERVER, "--no-models")
    await client.initialize_session(types.InitializeParams(types.ClientCapabilities()))
    editor = Editor(client, tmp_path)
    uri = editor.open("# model: tiny.py:tiny\nadapt q_proj rank 2")
    (found,) = await editor.diagnostics(uri, bool)
    assert "--no-models" in found.message
    await client.shutdown_session()
    await client.stop()
    assert not (tmp_path / "ran").exists()


def said_by(*messages: dict[str, object]) -> tuple[bytes, bytes]:
    """Return what a server answers to messages, and what it writes into its log."""
    bodies = [json.dumps({"jsonrpc": "2.0", **message}).encode() for message in messages]
    sent = b"".join(b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies)
    done = subprocess.run(SERVER, input=sent, capture_output=True, timeout=60, check=False)
    return done.stdout, done.stderr


def test_a_refusal_is_no_fault_in_the_log() -> None:
    document = {"uri": "file:///spec.lora"}
    item = {**document, "languageId": "lora", "version": 1, "text": "let r = 4\nadapt q rank r\n"}
    place = {"textDocument": document, "position": {"line": 0, "character": 4}}
    answers, log = said_by(
        {"id": 1, "method": "initialize", "params": {"capabilities": {}, "processId": None, "rootUri": None}},
        {"method": "initialized", "params": {}},
        {"method": "textDocument/didOpen", "params": {"textDocument": item}},
        {"id": 2, "method": "textDocument/rename", "params": {**place, "newName": "adapt"}},
        {"id": 3, "method": "shutdown"},
        {"method": "exit"},
    )
    assert b"`adapt` is a word of the language" in answers
    assert b"Traceback" not in log, log.decode()
