"""The end of a run: what it took, and what there is to do with the adapter."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lorakit.planning.plan import Plan
from lorakit.planning.report import show_bytes
from lorakit.trainers.display import duration, rate
from lorakit.trainers.needs import needs_words
from lorakit.trainers.settings import Outcome
from lorakit.values import ModelReference


class Peak(NamedTuple):
    """The most memory that was held, in bytes, and by what."""

    bytes: int
    of: str


def start_measuring() -> None:
    """Forget the peak so far of the accelerator; that of a process is of its whole life."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> Peak | None:
    """Return the peak of the accelerator, or of this process; None where the system does not tell."""
    if torch.cuda.is_available():
        return Peak(torch.cuda.max_memory_allocated(), "the accelerator")
    try:
        import resource
    except ImportError:
        return None
    # in KiB, but on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "the whole process")


def ended(outcome: Outcome, peak: Peak | None, plan: Plan) -> str:
    """Return in words what training took."""
    took = f"{duration(outcome.seconds)}, {rate(outcome.count, outcome.unit, outcome.seconds)}"
    held = (
        f"; peak memory {show_bytes(peak.bytes)} of {peak.of} (the plan says {show_bytes(plan.memory.peak)} a step)"
        if peak
        else ""
    )
    needed = needs_words(outcome.history)
    return f"trained {outcome.steps} steps: {took}, {outcome.count:,} {outcome.unit}{held}{needed}"


def next_steps(output: Path, model: ModelReference, structure: Any, plan: Plan, *, is_text: bool) -> str:
    """Return the lines that load an adapter, ask it, fold it in and take it elsewhere, as they are to be typed."""
    adapter, base = shlex.quote(str(output)), shlex.quote(model.text)
    flags = " --trust-remote-code" * model.trust_remote_code + " --allow-pickle" * model.allow_pickle
    lines = {"load": f"lorakit.load({str(output)!r}, {model.text!r})"}
    if is_text:
        lines["chat"] = f"lorakit chat {adapter} {base} --compare{flags}"
    lines["merge"] = f"lorakit merge {adapter} {base} -o {shlex.quote(f'{output}-merged')}{flags}"
    if is_text and _exports(structure, plan):
        lines["export"] = f"lorakit export {adapter} {base} -o {shlex.quote(f'{output}.gguf')}{flags}"
    return "next:\n" + "\n".join(f"  {name:<8}{line}" for name, line in lines.items())


def _exports(structure: Any, plan: Plan) -> bool:
    """Return whether llama.cpp's adapters have a place for this one, as far as is seen without its tensors."""
    from lorakit.artifacts.gguf_names import FAMILIES

    whole = any(entry.train or (entry.adapter and entry.adapter.method.name != "lora") for entry in plan.entries)
    return getattr(structure.config, "model_type", None) in FAMILIES and not whole
