"""Starting and reading are quick, and nothing heavy is loaded for them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from language_helpers import look

ROOT = Path(__file__).parents[2]
# what a model is needed for, other commands, and what the built-ins have beside the words of a spec
UNUSED = (
    "lorakit.api",
    "lorakit.pipeline",
    "lorakit.planning.plan",
    "lorakit.planning.inventory",
    "lorakit.planning.reading",
    "lorakit.cli.train",
    "lorakit.builtin.kernels",
    "lorakit.builtin.data_formats",
    "lorakit.huggingface.models",
    "lorakit.values",
    "lorakit_methods",
    "importlib.metadata",
    "json",
    "logging",
    "urllib.request",
)
HEAVY = ("torch", "transformers", "bitsandbytes", "numpy", "safetensors", "lark", "rich")


def loaded(script: str, among: tuple[str, ...] = HEAVY) -> set[str]:
    """Return which of these modules a script has loaded at its end."""
    code = f"{script}\nimport sys; print(*[name for name in {among} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    # what measures coverage loads modules of its own in such a process, now and then later than at its start
    own = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=own).stdout
    return set(printed.splitlines()[-1].split())


def command(words: str) -> str:
    """Return the script that runs a command."""
    argv = ["lorakit", *words.split()]
    return f"import sys; sys.argv = {argv}\nfrom lorakit.cli.main import main\ntry: main()\nexcept SystemExit: pass"


def test_the_language_loads_nothing_heavy() -> None:
    modules = " ".join(
        f"import lorakit.language.{path.stem};" for path in (ROOT / "lorakit" / "language").glob("[a-z]*.py")
    )
    assert loaded(modules) == set()
    parse = "from lorakit.language import parse, SpecError; spec = parse('examples/full.lora')"
    assert loaded(f"{parse}; parse(str(spec))") == set()
    assert loaded(f"{parse}\ntry: parse('adapt q rnak 4')\nexcept SpecError as error: str(error)") == set()


def test_the_commands_load_no_torch() -> None:
    for words in ("check examples/full.lora", "fmt --check examples/full.lora", "explain L042"):
        assert loaded(command(words)).isdisjoint({"torch", "transformers", "bitsandbytes"})


def test_a_command_loads_what_it_uses() -> None:
    assert loaded(command("check examples/full.lora"), (*HEAVY, *UNUSED, "lorakit.cli.check")) == {"lorakit.cli.check"}
    # that is no list of names that nothing has: to plan loads some of them
    assert "lorakit.planning.inventory" in loaded("from lorakit.hooks import Inventory", UNUSED)
    assert "lorakit.api" in loaded("from lorakit import parse", UNUSED)


def test_what_loads_later_is_there_when_it_is_asked_for() -> None:
    # `Step` is a class that computes, and all names together load it
    for package, light in (("lorakit", {"transformers"}), ("lorakit.hooks", {"torch", "transformers"})):
        script = (
            f"import {package} as one; assert set(one.__all__) <= set(dir(one))\n"
            f"from {package} import *; assert set(one.__all__) <= set(globals())\n"
            "try: one.nothing\n"
            "except AttributeError as error: assert 'nothing' in str(error)\n"
            "else: raise SystemExit(1)"
        )
        assert loaded(script).isdisjoint(light)
    assert loaded("import lorakit; lorakit.plan, lorakit.optimizer, lorakit.survive").isdisjoint({"torch"})


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
    assert time.process_time() - start < 16
    assert analysis.spec is not None and len(analysis.spec.rules) == 5_000


def test_time_grows_with_length_only() -> None:
    def taken(count: int) -> float:
        text = "".join(f"let t{n} = [a{n}, b{n}]\nadapt t{n},c{n} rank {n}+1\n" for n in range(count))
        times = []
        # as for the command; what other tests left would be looked through again and again
        gc.disable()
        try:
            for _ in range(3):
                start = time.process_time()
                look(text)
                times.append(time.process_time() - start)
        finally:
            gc.enable()
        return min(times)

    assert taken(4_000) < 4 * taken(2_000)
