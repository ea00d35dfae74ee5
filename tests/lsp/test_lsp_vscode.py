"""The extension for VS Code: what it is packaged with, and its bundle with everything real but the editor."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lsp_helpers import SERVER
from npm import installed
from specs import ROOT

VSCODE = ROOT / "grammar" / "vscode"
STUB = Path(__file__).with_name("vscode_stub.js")
PACKAGE = json.loads((VSCODE / "package.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the extension, built in a copy of the checkout in the user's cache."""
    needed = PACKAGE["devDependencies"]
    names = ("esbuild", "vscode-languageclient")
    top = installed("vscode", *(f"{name}@{needed[name]}" for name in names), inside="grammar/vscode")
    folder = top / "grammar" / "vscode"
    for path in (ROOT / "LICENSE", ROOT / "grammar" / "lorakit.tmLanguage.json", *VSCODE.iterdir()):
        if path.is_file() and path.name not in ("package.json", "package-lock.json"):
            shutil.copy(path, top / path.relative_to(ROOT))
    done = subprocess.run(["node", "build.js"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def shown(built: Path, command: list[str], text: str) -> Any:
    """Return what the bundle shows of a text when the settings name this command."""
    done = subprocess.run(
        ["node", str(STUB), str(built / PACKAGE["main"]), json.dumps(command), text],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_its_bundle_shows_what_the_server_finds(built: Path) -> None:
    assert shown(built, SERVER, "\nadapt q rnak 4\n") == [["L003", 1, 8, 1, 12]]


def test_it_says_what_to_install_where_there_is_no_server(built: Path) -> None:
    (message,) = shown(built, ["no-such-command", "lsp"], "")
    assert message.startswith("lorakit: cannot run `no-such-command lsp`; `pip install 'lorakit[lsp]'` installs it")


def test_everything_that_it_is_packaged_with_is_there(built: Path) -> None:
    kept = [line[1:] for line in (VSCODE / ".vscodeignore").read_text("utf-8").split() if line.startswith("!")]
    assert {path for path in kept if not (built / path).is_file()} == set()
    (language,), (grammar,) = PACKAGE["contributes"]["languages"], PACKAGE["contributes"]["grammars"]
    used = [PACKAGE["main"], PACKAGE["icon"], language["configuration"], grammar["path"], "LICENSE", "README.md"]
    assert {path.removeprefix("./") for path in used} <= {*kept}
    assert "dependencies" not in PACKAGE
    assert sum((built / path).stat().st_size for path in kept) < 500_000


def test_it_is_for_the_language_and_starts_its_command() -> None:
    command = PACKAGE["contributes"]["configuration"]["properties"]["lorakit.command"]["default"]
    assert command == ["lorakit", "lsp"]
    (language,) = PACKAGE["contributes"]["languages"]
    assert (language["id"], language["extensions"]) == ("lora", [".lora"])


def test_its_icon_is_of_the_size_that_the_marketplace_wants() -> None:
    data = (VSCODE / PACKAGE["icon"]).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 4096
    assert struct.unpack(">II", data[16:24]) == (128, 128)
