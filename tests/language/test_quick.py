"""Starting and reading are quick, and nothing heavy is loaded for them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from language_helpers import look

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "bitsandbytes", "numpy", "safetensors", "lark", "rich")


def loaded(script: str) -> set[str]:
    """Return which heavy modules a script has loaded at its end."""
    code = f"{script}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def test_the_language_loads_nothing_heavy() -> None:
    modules = " ".join(
        f"import lorakit.language.{path.stem};" for path in (ROOT / "lorakit" / "language").glob("[a-z]*.py")
    )
    assert loaded(modules) == set()
    parse = "from lorakit.language import parse, SpecError; spec = parse('examples/full.lora')"
    assert loaded(f"{parse}; parse(str(spec))") == set()
    assert loaded(f"{parse}\ntry: parse('adapt q rnak 4')\nexcept SpecError as error: str(error)") == set()


def test_the_commands_load_no_torch() -> None:
    for command in ("check examples/full.lora", "fmt --check examples/full.lora", "explain L042"):
        words = ["lorakit", *command.split()]
        script = (
            f"import sys; sys.argv = {words}\nfrom lorakit.cli.main import main\ntry: main()\nexcept SystemExit: pass"
        )
        assert loaded(script).isdisjoint({"torch", "transformers", "bitsandbytes"})


@pytest.mark.parametrize(
    "line",
    [
        "adapt q_proj,v_proj rank 16 quant nf4 double paged",
        "adapt layers.{n}.self_attn.q_proj rank {n}+1 alpha 2*rank quant nf4(blocksize=64) double lr 2e-4",
        "let x{n} = {n}+1\nadapt m{n} {{\n  rank x{n}\n  alpha 2*rank\n}}",
    ],
)
def test_five_thousand_statements(line: str) -> None:
    """The bound is far above what it takes, for machines that are busy; it catches quadratic work."""
    text = "".join(line.format(n=n) + "\n" for n in range(5_000))
    look("adapt q rank 4")
    start = time.process_time()
    analysis = look(text)
    assert time.process_time() - start < 4
    assert analysis.spec is not None and len(analysis.spec.rules) == 5_000


def test_time_grows_with_length_only() -> None:
    def taken(count: int) -> float:
        text = "".join(f"let t{n} = [a{n}, b{n}]\nadapt t{n},c{n} rank {n}+1\n" for n in range(count))
        times = []
        for _ in range(3):
            start = time.process_time()
            look(text)
            times.append(time.process_time() - start)
        return min(times)

    assert taken(4_000) < 4 * taken(2_000)
