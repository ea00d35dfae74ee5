"""What `trainers.py` asks of every trainer: four steps on the same rows, and the same few questions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import lorakit

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from helpers import byte_tokenizer, make_llama

STEPS, EVERY, LR = 4, 2, 1e-2
TEXTS = [f"say {number} again {number * 3 % 8}" for number in range(8)]
HELD_OUT = [f"say {number} never {number * 5 % 8}" for number in range(8)]
PAIRS = [{"prompt": f"say {number} ", "chosen": f"yes {number}", "rejected": f"nay {number}"} for number in range(8)]
PROMPT, ANSWER = "say 3", 6


def make_base(folder: Path) -> Path:
    """Write a random Llama of two layers with a tokenizer of bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    make_llama(vocab_size=320, hidden_size=128, intermediate_size=384).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Setting:
    """What a run is given: a base model, a spec, a folder to write to, and whether the best model is to come back."""

    base: Path
    spec: str
    work: Path
    keeps_best: bool = False


class Run:
    """One run of a trainer on a model of its own.

    `lacks` says of what such a trainer has nothing of its own, and why; `notes` what is done beside it.
    """

    name: ClassVar[str]
    lacks: ClassVar[Mapping[str, str]] = {}
    notes: ClassVar[Mapping[str, str]] = {}
    model: Any

    def __init__(self, setting: Setting) -> None:
        from transformers import AutoTokenizer

        self.setting = setting
        self.tokenizer: Any = AutoTokenizer.from_pretrained(setting.base)
        self.model = lorakit.apply(setting.spec, self.fresh())

    def fresh(self) -> Any:
        """Return the base model as its files have it."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.setting.base)

    def train(self, resume: Path | None = None) -> None:
        """Train to the end, from the start or from a checkpoint."""
        raise NotImplementedError

    def evaluate(self) -> float:
        """Return the trainer's own loss on what is held out."""
        raise NotImplementedError

    def predict(self) -> Tensor:
        """Return the trainer's own logits of what is held out."""
        raise NotImplementedError

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.setting.work / f"checkpoint-{step}"

    def last(self) -> Path:
        """Return the checkpoint from which a run goes on that ended half-way."""
        return Path(str(lorakit.last_checkpoint(self.setting.work)))

    def opened(self, checkpoint: Path) -> Any:
        """Return a base model with the adapter of a checkpoint."""
        return lorakit.load(checkpoint, self.fresh())

    def files(self, checkpoint: Path) -> list[Path]:
        """Return all files of a checkpoint."""
        return [path for path in [checkpoint, *checkpoint.rglob("*")] if path.is_file()]

    def held_out(self) -> dict[str, Tensor]:
        """Return what is held out as one batch."""
        return self.batch(HELD_OUT)

    def batch(self, texts: list[str]) -> dict[str, Tensor]:
        made = self.tokenizer(texts, return_tensors="pt")
        return {"input_ids": made["input_ids"], "labels": made["input_ids"]}

    def rows(self, texts: list[str]) -> list[dict[str, Tensor]]:
        batch = self.batch(texts)
        return [{name: value[row] for name, value in batch.items()} for row in range(len(texts))]

    def direct_loss(self) -> float:
        """Return the loss that the model itself gives."""
        with torch.no_grad():
            return float(self.model.eval()(**self.held_out()).loss)

    def direct_logits(self) -> Tensor:
        """Return the logits that the model itself gives."""
        with torch.no_grad():
            return self.model.eval()(**self.held_out()).logits

    def prompt(self) -> Tensor:
        return self.tokenizer(PROMPT, return_tensors="pt")["input_ids"]

    def generate(self) -> Any:
        """Return the likeliest next tokens as `generate` of the trainer's model finds them."""
        prompt = self.prompt()
        made = self.generator().generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ANSWER, do_sample=False
        )
        return made[0, prompt.shape[1] :].tolist()

    def generator(self) -> Any:
        """Return the trainer's model, as it is given to whoever generates."""
        return self.model.eval()

    def direct_answer(self, most: int = ANSWER) -> Any:
        """Return the likeliest next tokens, each by a whole forward of the model itself."""
        tokens = self.prompt()
        length = tokens.shape[1]
        with torch.no_grad():
            while tokens.shape[1] < length + most and tokens[0, -1] != self.tokenizer.eos_token_id:
                best = self.model.eval()(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, best], 1)
        return tokens[0, length:].tolist()

    def frozen(self) -> dict[str, Tensor]:
        """Return copies of all that must not change, by name."""
        trained = self.trained()
        return {name: value.clone() for name, value in self.model.state_dict().items() if name not in trained}

    def trained(self) -> dict[str, Tensor]:
        """Return copies of all that trains, by name."""
        return {name: one.detach().clone() for name, one in self.model.named_parameters() if one.requires_grad}


class EndedError(Exception):
    """Ends a run on purpose."""


@contextmanager
def after_step(number: int, act: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Do something after the n-th step of the optimizers inside the block, those within others not counted."""
    depth = steps = 0

    def before(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal depth, steps
        depth -= 1
        if depth == 0:
            steps += 1
            if steps == number:
                act(optimizer)

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def interrupt(_: torch.optim.Optimizer) -> None:
    raise EndedError


def spoil(optimizer: torch.optim.Optimizer) -> None:
    """Leave nothing of what was learned, so that the best model is not the last."""
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in optimizer.param_groups:
            for value in group["params"]:
                value.normal_(std=3.0, generator=drawn)
