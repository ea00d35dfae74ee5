"""Trainers on what lorakit adapted: each cell of the table is run, on a tiny Llama in fp32 on the CPU, and checked.

    pip install peft trl datasets
    python benchmarks/trainers.py [--trainers Trainer 'TRL SFT' …] [--quant none 'nf4 double' …] [--cells train …]
                                  [--format text|md|json]

train: the adapter changed, and no bit of the base. checkpoint: it holds the adapter alone, in how many per cent of the
whole model's bytes says the table, and `lorakit.load` opens it with equal logits. resume: a run that ended half-way
goes on to the bits of one that did not. best model: it comes back though the last is another. evaluate, predict,
generate: what the model itself gives, called directly. A cell is `ok`, `no` with a reason below, or `–` where the
trainer has no such thing. Exits with 1 if any is `no`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

# behind the lines that they obey
import torch
from torch import Tensor
from trainer_kinds import KINDS
from trainer_runs import EVERY, STEPS, EndedError, Run, Setting, after_step, interrupt, make_base, spoil

import lorakit
from lorakit.cli.terminal import tracked

QUANTIZERS = ("none", "nf4 double", "hqq(bits=4)", "ao_int8")
ADAPT = "adapt q_proj,v_proj rank 4 dropout 0.1 dtype fp32"
NAMES = ("torch", "transformers", "trl", "peft", "accelerate", "lightning")


class DiffersError(Exception):
    """A comparison that failed."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise DiffersError(what)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(kind: type[Run], setting: Setting) -> str:
    run = kind(setting)
    frozen, start = run.frozen(), run.trained()
    run.train()
    end = run.trained()
    still = [name for name in start if torch.equal(start[name], end[name])]
    need(bool(start) and not still, f"{', '.join(still[:2])} did not change")
    need(same(frozen, run.frozen()), "the base changed")
    return ""


def checkpoint(kind: type[Run], setting: Setting) -> str:
    run = kind(setting)
    run.train()
    saved = run.checkpoint(STEPS)
    loaded = run.opened(saved)
    with torch.no_grad():
        mine, again = (model.eval()(**run.held_out()).logits for model in (run.model, loaded))
        need(torch.equal(mine, again), "loaded again it answers otherwise")
    # one file may have two names
    written = {path.stat().st_ino: path.stat().st_size for path in run.files(saved)}
    whole = lorakit.summary(run.model).weight_bytes
    share = sum(written.values()) / whole
    need(share < 0.5, f"{sum(written.values()):,} bytes, and the whole model has {whole:,}")
    return f"{share:.0%}"


def resume(kind: type[Run], setting: Setting) -> str:
    whole = kind(within(setting, "whole"))
    whole.train()
    ended = kind(within(setting, "ended"))
    try:
        with after_step(STEPS - 1, interrupt):
            ended.train()
    except EndedError:
        pass
    else:
        raise DiffersError("it did not take so many steps")
    again = kind(ended.setting)
    again.train(resume=again.last())
    need(same(whole.trained(), again.trained()), "it ends with other bits")
    return ""


def best_model(kind: type[Run], setting: Setting) -> str:
    run = kind(replace(setting, keeps_best=True))
    with after_step(EVERY + 1, spoil):
        run.train()
    first, last = (run.opened(run.checkpoint(step)) for step in (EVERY, STEPS))
    with torch.no_grad():
        batch = run.held_out()
        mine, best, spoiled = (model.eval()(**batch).logits for model in (run.model, first, last))
    need(not torch.equal(best, spoiled), "nothing was spoiled")
    need(not torch.equal(mine, spoiled), "the last one came back")
    need(torch.equal(mine, best), "what came back is neither the best nor the last")
    return ""


def evaluate(kind: type[Run], setting: Setting) -> str:
    run = trained(kind, setting)
    mine, direct = run.evaluate(), run.direct_loss()
    need(abs(mine - direct) <= 1e-6 * direct, f"{mine:.7f}, and the model gives {direct:.7f}")
    with lorakit.adapters(run.model).disabled():
        need(abs(run.direct_loss() - direct) > 1e-4, "the adapter makes no difference")
    return ""


def predict(kind: type[Run], setting: Setting) -> str:
    run = trained(kind, setting)
    need(torch.equal(run.predict(), run.direct_logits()), "other logits than the model's")
    return ""


def generate(kind: type[Run], setting: Setting) -> str:
    run = trained(kind, setting)
    mine, direct = run.generate(), run.direct_answer()
    need(mine == direct, f"{mine!r}, and step by step it is {direct!r}")
    return ""


CELLS: dict[str, Callable[[type[Run], Setting], str]] = {
    "train": train, "checkpoint": checkpoint, "resume": resume, "best model": best_model, "evaluate": evaluate,
    "predict": predict, "generate": generate,
}  # fmt: skip


def trained(kind: type[Run], setting: Setting) -> Run:
    run = kind(setting)
    run.train()
    return run


def within(setting: Setting, name: str) -> Setting:
    return replace(setting, work=setting.work / name)


@dataclass(frozen=True)
class Cell:
    """What came of one cell: ok, no, or – for what a trainer lacks; a figure, and what is to be said of it."""

    trainer: str
    quant: str
    cell: str
    result: str
    figure: str = ""
    note: str = ""


def found(kind: type[Run], quant: str, cell: str, base: Path) -> Cell:
    """Run one cell in a folder of its own."""
    if cell in kind.lacks:
        return Cell(kind.name, quant, cell, "–", note=kind.lacks[cell])
    spec = ADAPT if quant == "none" else f"{ADAPT} quant {quant}"
    torch.manual_seed(0)
    with TemporaryDirectory() as folder, quiet():
        try:
            figure = CELLS[cell](kind, Setting(base, spec, Path(folder) / "work"))
        except DiffersError as error:
            return Cell(kind.name, quant, cell, "no", note=str(error))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return Cell(kind.name, quant, cell, "no", note=f"{type(error).__name__}: {lines[0]}")
    return Cell(kind.name, quant, cell, "ok", figure, kind.notes.get(cell, ""))


def notes_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.note for cell in cells if cell.note))


def grid(cells: Sequence[Cell], columns: Sequence[str]) -> list[list[str]]:
    """Return the table's lines: a trainer on a base each, with the number of each note."""
    notes = notes_of(cells)

    def text(cell: Cell) -> str:
        mark = f" [{notes.index(cell.note) + 1}]" if cell.note else ""
        return f"{cell.result} {cell.figure}".rstrip() + mark

    by_place = {(cell.trainer, cell.quant, cell.cell): text(cell) for cell in cells}
    lines = dict.fromkeys((cell.trainer, cell.quant) for cell in cells)
    head = ["trainer", "base", *columns]
    return [head, *([*line, *(by_place[(*line, column)] for column in columns)] for line in lines)]


def numbered(cells: Sequence[Cell]) -> list[str]:
    return [f"[{number}] {note}" for number, note in enumerate(notes_of(cells), start=1)]


def as_text(cells: Sequence[Cell], columns: Sequence[str]) -> Iterator[str]:
    lines = grid(cells, columns)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
    yield from ["", *numbered(cells)]


def as_md(cells: Sequence[Cell], columns: Sequence[str]) -> Iterator[str]:
    head, *lines = grid(cells, columns)
    yield from (f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
    for note in numbered(cells):
        yield from ["", note]


def as_json(cells: Sequence[Cell], columns: Sequence[str]) -> Iterator[str]:
    yield json.dumps([asdict(cell) for cell in cells], ensure_ascii=False, indent=1)


FORMATS: dict[str, Callable[[Sequence[Cell], Sequence[str]], Iterator[str]]] = {
    "text": as_text, "md": as_md, "json": as_json,
}  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries say on the way from the table."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trainers", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--quant", nargs="+", default=list(QUANTIZERS), metavar="QUANTIZER", help="as a spec writes it")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME")
    parser.add_argument("--format", choices=FORMATS, default="text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    places = [
        (KINDS[trainer], quant, cell)
        for trainer in arguments.trainers
        for quant in arguments.quant
        for cell in arguments.cells
    ]
    with TemporaryDirectory() as folder:
        with quiet():
            base = make_base(Path(folder) / "base")
        cells = [found(*place, base) for place in tracked(places, "cells")]
    if arguments.format != "json":
        print(", ".join(f"{name} {version(name)}" for name in NAMES if _is_installed(name)), end="\n\n")
    print("\n".join(FORMATS[arguments.format](cells, arguments.cells)))
    sys.exit(any(cell.result == "no" for cell in cells))


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


if __name__ == "__main__":
    main()
