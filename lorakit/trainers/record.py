"""What an adapter folder says of its training: every logged figure, the spec and settings, and a model card."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit.artifacts.model_card import CARD, marked
from lorakit.artifacts.peft_config import FOREIGN_TYPE
from lorakit.language.printer import call_text
from lorakit.planning.plan import Plan
from lorakit.planning.report import show_bytes
from lorakit.trainers.display import duration, perplexity, rate
from lorakit.trainers.settings import Outcome, Settings
from lorakit.version import __version__

HISTORY, TRAINING = "history.jsonl", "training.json"
# what decides, beside lorakit and its plugins, which bits come out
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run that came to its end: `specs` are the texts of the spec's files by name, `data` is told in words."""

    command: str
    specs: Mapping[str, str]
    plan: Plan
    settings: Settings
    words: str
    data: str
    outcome: Outcome
    plugins: Mapping[str, str]
    is_text: bool

    def write(self, folder: Path, name: str) -> None:
        """Write history.jsonl, training.json and README.md into a folder that has an adapter, and will have this name.

        Raises: OSError.
        """
        lines = "".join(json.dumps(record) + "\n" for record in self.outcome.history)
        (folder / HISTORY).write_text(lines, encoding="utf-8")
        (folder / TRAINING).write_text(json.dumps(self._facts(), indent=2) + "\n", encoding="utf-8")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / CARD).write_text(self._card(name, config), encoding="utf-8")

    def _facts(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "command": self.command,
            "seed": self.settings.seed,
            "settings": asdict(self.settings),
            "training": self.words.removeprefix("training: "),
            "optimizer": {"name": call_text(self.plan.optimizer.call), "lr": self.plan.optimizer.lr},
            "data": self.data.splitlines(),
            "spec": dict(self.specs),
            "result": {
                "steps": outcome.steps,
                "held_out_before": outcome.held_out_before,
                "held_out_after": outcome.held_out_after,
                "seconds": round(outcome.seconds, 3),
                outcome.unit: outcome.count,
            },
            "versions": versions() | dict(self.plugins),
        }

    def _card(self, name: str, config: Mapping[str, Any]) -> str:
        base = config.get("base_model_name_or_path")
        is_peft = not str(config["peft_type"]).startswith(FOREIGN_TYPE)
        return marked(_front(base, is_peft, self.is_text), self._body(name, base, is_peft))

    def _body(self, name: str, base: str | None, is_peft: bool) -> str:
        plan, outcome = self.plan, self.outcome
        words = f" (perplexity {perplexity(outcome.held_out_after)})" if self.is_text and outcome.held_out_after else ""
        losses = (outcome.held_out_before, outcome.held_out_after)
        rows = {
            "base model": f"`{base or plan.model_class}`, {plan.model_class}, {plan.model_parameters:,} parameters",
            "trainable": f"{plan.trainable:,} parameters ({plan.trainable_share:.2%})",
            "adapter": show_bytes(plan.memory.gradients),
            "rules": "; ".join(f"`{rule.keyword} {rule.targets}` ({rule.modules} modules)" for rule in plan.rules),
            "data": self.data.splitlines()[0],
            "training": self.words.removeprefix("training: "),
            "steps": f"{outcome.steps} in {duration(outcome.seconds)}, "
            + rate(outcome.count, outcome.unit, outcome.seconds),
        }
        if None not in losses:
            rows["held-out loss"] = f"{losses[0]:.4f} before, {losses[1]:.4f} after{words}"
        table = "".join(f"| {key} | {value.replace('|', chr(92) + '|')} |\n" for key, value in rows.items())
        specs = "".join(f"```lora\n{text.rstrip()}\n```\n\n" for text in self.specs.values())
        return (
            f"# {name}\n\nA low-rank adapter, trained with lorakit {__version__}.\n"
            f"\n| | |\n|---|---|\n{table}\n{'## Spec' + chr(10) * 2 if specs else ''}{specs}"
            f"## Use\n\n```python\n{_use(name, base, is_peft, self.is_text)}```\n\n"
            f"`{HISTORY}` holds what was logged, `{TRAINING}` the command, settings, spec and versions, `plan.json` "
            "what was done to each module.\n"
        )


def versions() -> dict[str, str]:
    """Return the versions of Python, lorakit and what computes."""
    found = {"python": platform.python_version(), "lorakit": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _front(base: str | None, is_peft: bool, is_text: bool) -> str:
    """Return the metadata that the hub reads, as PEFT writes it."""
    from huggingface_hub import ModelCardData

    tags = ["lora", "lorakit", *(["transformers"] if is_text else [])]
    if base and not Path(base).exists():
        tags.insert(0, f"base_model:adapter:{base}")
    fields: dict[str, Any] = {"base_model": base} if base else {}
    if is_text:
        fields["pipeline_tag"] = "text-generation"
    data = ModelCardData(library_name="peft" if is_peft else "lorakit", tags=tags, **fields)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _use(name: str, base: str | None, is_peft: bool, is_text: bool) -> str:
    if not is_text or base is None:
        return f"import lorakit\n\nmodel = lorakit.load({name!r}, base)  # the model that it was trained on\n"
    lines = f"import lorakit\n\nmodel = lorakit.load({name!r}, {base!r})\n"
    if is_peft:
        lines += (
            "\n# or without lorakit\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {name!r})\n"
        )
    return lines
