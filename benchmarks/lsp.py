"""How long an editor waits: from a keystroke in a 500-line spec to its diagnostics.

    python benchmarks/lsp.py [--keystrokes 50]

The clock runs from the moment that `didChange` is written to the server's input until `publishDiagnostics` of that
version has been read, the server's pause for further keystrokes included; beside it stands the processor time that the
server took, which on Linux is known and which other work on the machine does not lengthen. Two specs: one with a whole
rule on every line, and one as people write them, with blocks and comments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

LINES = 500
URI = "file:///spec.lora"


def rules() -> list[str]:
    """Return a spec with a rule on every line."""
    return [
        f"adapt layers.{line}.q_proj,layers.{line}.v_proj rank {line % 64 + 1} alpha 2*rank quant nf4 double paged"
        for line in range(LINES)
    ]


def blocks() -> list[str]:
    """Return a spec of blocks with comments."""
    lines = ["let r = 16", ""]
    for layer in range((LINES - 2) // 6):
        lines += [
            f"# layer {layer}", f"adapt layers[{layer}].@attention {{", "  rank  r", "  alpha 2*rank",
            "  quant nf4(blocksize=64) double", "}",
        ]  # fmt: skip
    return lines


class Client:
    """The few messages of the protocol that a measurement needs."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "lorakit", "lsp"]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._version = 0
        self._send("initialize", {"capabilities": {}, "processId": None, "rootUri": None}, id=1)
        self._read()
        self._send("initialized", {})

    def open(self, text: str) -> None:
        """Open a document and wait for its diagnostics."""
        document = {"uri": URI, "languageId": "lora", "version": self._version, "text": text}
        self._send("textDocument/didOpen", {"textDocument": document})
        self._diagnostics()

    def change(self, text: str) -> tuple[float, float]:
        """Change the document; return the seconds until its diagnostics are there, and the server's processor time."""
        self._version += 1
        document = {"uri": URI, "version": self._version}
        start, used = time.perf_counter(), self._used()
        self._send("textDocument/didChange", {"textDocument": document, "contentChanges": [{"text": text}]})
        self._diagnostics()
        return time.perf_counter() - start, self._used() - used

    def _used(self) -> float:
        # the clock of another process, as clock_getcpuclockid(3) makes its number
        return time.clock_gettime((~self._server.pid << 3) | 2) if sys.platform == "linux" else float("nan")

    def leave(self) -> None:
        """End the server as the protocol wants it."""
        self._send("shutdown", None, id=2)
        self._read()
        self._send("exit", None)
        self._server.wait()

    def _send(self, method: str, params: object, **more: int) -> None:
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **more}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._server.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        length = 0
        while (header := self._server.stdout.readline().strip()) != b"":
            if header.startswith(b"Content-Length:"):
                length = int(header.partition(b":")[2])
        message: dict[str, Any] = json.loads(self._server.stdout.read(length))
        return message

    def _diagnostics(self) -> None:
        message: dict[str, Any] = {}
        while message.get("method") != "textDocument/publishDiagnostics" or not self._is_current(message):
            message = self._read()

    def _is_current(self, message: dict[str, Any]) -> bool:
        return bool(message["params"].get("version") == self._version)


def measure(lines: list[str], keystrokes: int) -> list[tuple[float, float]]:
    """Return the seconds that each of so many keystrokes took, spread over a spec; two of three leave an error."""
    client = Client()
    client.open("\n".join(lines))
    times = []
    for stroke in range(keystrokes):
        changed = list(lines)
        line = stroke * len(lines) // keystrokes
        changed[line] += " al"[: 1 + stroke % 3]
        times.append(client.change("\n".join(changed)))
        time.sleep(0.05)
    client.leave()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keystrokes", type=int, default=50)
    keystrokes = parser.parse_args().keystrokes
    for name, lines in (("a rule on every line", rules()), ("blocks and comments", blocks())):
        for what, times in zip(("elapsed", "processor"), zip(*measure(lines, keystrokes), strict=True), strict=True):
            ranked = sorted(1000 * seconds for seconds in times)
            p95 = ranked[int(0.95 * (len(ranked) - 1))]
            print(f"{name:24} {what:10} median {statistics.median(ranked):6.1f} ms  p95 {p95:6.1f} ms")


if __name__ == "__main__":
    main()
