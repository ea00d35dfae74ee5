"""Write the `.lora` that means what a config of another tool says."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorakit.artifacts.peft_fields import INERT
from lorakit.errors import AdapterError, SpecError
from lorakit.foreign.reading import ForeignConfig, read_foreign
from lorakit.foreign.rules import RULES, Statements, statements_of
from lorakit.language.format import format_text
from lorakit.language.spec import Spec
from lorakit.quoting import cut, visible

_WIDTH = 100


def _with(option: str, fits: Callable[[Any], bool] = lambda value: value > 0) -> Callable[[Any], str]:
    def words(value: Any) -> str:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"{option} {value:g}" if is_number and fits(value) else ""

    return words


def _whole(value: float) -> bool:
    return value >= 1 and value == int(value)


def _schedule(value: Any) -> str:
    # one that is constant behind its warm-up is how lorakit has it
    name = str(value).removesuffix("_with_warmup") if str(value).startswith("constant") else str(value)
    return f"--schedule {name}" if name in SCHEDULES else ""


# what `lorakit train` takes, by the fields that say it elsewhere
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "inverse_sqrt")
TRAIN_OPTIONS: Mapping[str, Callable[[Any], str]] = MappingProxyType({
    "num_train_epochs": _with("--epochs"),
    "max_steps": _with("--steps", _whole),
    "warmup_steps": _with("--warmup", _whole),
    "held_out": _with("--held-out", lambda value: 0 < value <= 0.9),
    "eval_steps": _with("--evaluate-every", _whole),
    "save_steps": _with("--save-every", _whole),
    "seed": _with("--seed", lambda value: value >= 0),
    "gradient_accumulation_steps": _with("--accumulate", _whole),
    "lr_scheduler_type": _schedule,
    "max_grad_norm": _with("--max-grad-norm", lambda value: value >= 0),
    "packing": lambda value: "--pack" if value is True else "",
    "gradient_checkpointing": lambda value: "--gradient-checkpointing" if value else "",
})  # fmt: skip
# of these it is said what they were set to, where lorakit has no such value
_WITH_VALUE = ("eval_steps", "save_steps", "held_out", "lr_scheduler_type", "gradient_accumulation_steps", "packing")
# what is the same without being said, or said by the command itself
_SILENT = INERT | RULES | {"base_model", "data", "output_dir", "peft_type", "strict"}


def foreign_spec(path: Path, model: str = "", output: str = "") -> str:
    """Return the spec, in canonical form, that means what a config file says, for a model where one is given.

    Comments name what `lorakit train` is told instead, and once each what has no counterpart. Raises: AdapterError.
    """
    config = read_foreign(path)
    made = statements_of(config)
    reference = model or _line(config.fields.get("base_model") or "")
    try:
        lines = [f"# what {_line(str(config.path))} says ({config.tool})"]
        lines += [f"# model: {reference}"] if reference else []
        lines += ["", *_statements(made), *_left(config, made, reference, output)]
        return format_text("\n".join(lines) + "\n", "converted.lora")
    except SpecError as error:
        raise AdapterError(f"{config.path} says what no spec can: {error.diagnostics[0].message}") from error


def _statements(made: Statements) -> Iterator[str]:
    if made.uses:
        yield str(Spec(uses=tuple((name, None) for name in sorted(made.uses))))
    for rule, comment in made.rules:
        yield from _comment(comment)
        yield str(Spec((rule,))).rstrip("\n")
    tail = Spec(optimizer=made.optimizer, step=made.step)
    if tail != Spec():
        yield f"\n{tail}".rstrip("\n")


def _left(config: ForeignConfig, made: Statements, reference: str, output: str) -> Iterator[str]:
    """Yield what no statement says: the options of `lorakit train`, and what has no counterpart."""
    options, missing = [], []
    for name, value in config.fields.items():
        words = TRAIN_OPTIONS[name](value) if name in TRAIN_OPTIONS else ""
        if words:
            options.append(words)
        elif name not in _SILENT and name not in TRAIN_OPTIONS and value not in (None, False, "", [], {}):
            missing.append(config.called.get(name, name))
        elif name in _WITH_VALUE and value:
            missing.append(f"{config.called.get(name, name)}: {_line(str(value)[:20])}")
    if options:
        data = _data(config.fields.get("data"))
        spec = output if output not in ("", "-") else "SPEC.lora"
        yield from ("", "# the rest is said to the command that trains:")
        model = shlex.quote(reference) if reference else "MODEL"
        yield f"#   lorakit train {shlex.quote(spec)} {model} {data} -o OUT \\"
        yield f"#     {' '.join(options)}"
    if made.notes or missing:
        yield ""
    for note in dict.fromkeys(made.notes):
        yield from _comment(note)
    if missing:
        yield from _comment(f"no counterpart: {', '.join(_line(name) for name in dict.fromkeys(missing))}")


def _data(value: Any) -> str:
    """Return the data file that a config names, where it is one."""
    first = value[0] if isinstance(value, list) and len(value) == 1 else value
    name = first.get("path") if isinstance(first, dict) else first
    return shlex.quote(_line(name)) if isinstance(name, str) and Path(name).suffix else "DATA"


def _comment(text: str) -> Iterable[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)] if text else []


def _line(text: str) -> str:
    """Return a text as one line that a comment can hold."""
    return cut(visible(" ".join(text.split())))
