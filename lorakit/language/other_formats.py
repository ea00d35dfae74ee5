"""What was taken for a spec and is a config of another tool, told by its first lines."""

from __future__ import annotations

import re
from typing import NamedTuple

from lorakit.language.words import STATEMENTS

# how much of a text is looked at
_SIGHT = 20_000
# fields that say which tool wrote them; others have YAML and JSON too
_TOOLS = {
    "an Axolotl config": ("adapter", "lora_r", "lora_target_linear", "micro_batch_size", "sequence_len"),
    "a LLaMA-Factory config": ("finetuning_type", "lora_rank", "lora_target", "cutoff_len"),
    "a TRL config": ("use_peft", "model_name_or_path", "lora_task_type"),
    "a PEFT config": ("peft_type", "target_modules", "lora_alpha"),
}
_YAML = re.compile(r"^([A-Za-z_][\w-]*):(?=[ \t\r]|$)", re.MULTILINE)
_JSON = re.compile(r'"([A-Za-z_][\w-]*)"\s*:')
_STATEMENT = re.compile(rf"^[ \t]*(?:{'|'.join(STATEMENTS)})[ \t]+[^\s:=]", re.MULTILINE)
# fields in a row that nobody writes by mistake
_ENOUGH = 2


class OtherFormat(NamedTuple):
    """What a text is instead of a spec, in words, whether lorakit reads that, and the offsets of what shows it."""

    kind: str
    is_read: bool
    start: int
    end: int


def other_format(text: str) -> OtherFormat | None:
    """Return what a text is where it is YAML or JSON; None where it may be a spec, with mistakes or without."""
    begun = text[:_SIGHT]
    is_json = begun.lstrip().startswith("{")
    fields = list((_JSON if is_json else _YAML).finditer(begun))
    if len(fields) < _ENOUGH or (not is_json and _STATEMENT.search(begun)):
        return None
    names = {field[1] for field in fields}
    counts = {tool: len(names.intersection(marks)) for tool, marks in _TOOLS.items()}
    tool = max(counts, key=lambda one: counts[one])
    language, is_read = "JSON" if is_json else "YAML", counts[tool] > 0
    start = begun.index("{") if is_json else fields[0].start()
    end = start + 1 if is_json else fields[0].end()
    return OtherFormat(f"{tool} in {language}" if is_read else language, is_read, start, end)
