"""Runs of trainers for `trainers.py`: the same four steps on the same rows, and the same few questions to each."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
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

    `lacks` says of what such a trainer has nothing of its own, and why.
    """

    name: ClassVar[str]
    lacks: ClassVar[Mapping[str, str]] = {}
    model: Any

    def __init__(self, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.setting = setting
        self.tokenizer = AutoTokenizer.from_pretrained(setting.base)
        self.model = lorakit.apply(setting.spec, AutoModelForCausalLM.from_pretrained(setting.base))

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

    def adapter(self, checkpoint: Path) -> Path:
        """Return the folder of a checkpoint that `lorakit.load` opens."""
        return checkpoint

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


class OfTrainer(Run):
    """transformers' Trainer."""

    name = "Trainer"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        best = {"eval_strategy": "steps", "eval_steps": EVERY, "load_best_model_at_end": True}
        self.trainer = self.made(
            output_dir=str(setting.work), max_steps=STEPS, per_device_train_batch_size=2, per_device_eval_batch_size=8,
            save_strategy="steps", save_steps=EVERY, logging_steps=1, learning_rate=LR, report_to=[], use_cpu=True,
            disable_tqdm=True, **(best if setting.keeps_best else {}),
        )  # fmt: skip

    def made(self, **settings: Any) -> Any:
        from transformers import Trainer, TrainingArguments

        return Trainer(
            self.model, TrainingArguments(**settings), train_dataset=self.rows(TEXTS), eval_dataset=self.rows(HELD_OUT),
            optimizers=(lorakit.optimizer(self.model, lr=LR), None),
        )  # fmt: skip

    def train(self, resume: Path | None = None) -> None:
        self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    def evaluate(self) -> float:
        return float(self.trainer.evaluate()["eval_loss"])

    def predict(self) -> Tensor:
        return torch.from_numpy(self.trainer.predict(self.trainer.eval_dataset).predictions)

    def generator(self) -> Any:
        return self.trainer.model.eval()


class OfSFT(OfTrainer):
    """TRL's SFTTrainer, with the model as PEFT's."""

    name = "TRL SFT"

    def made(self, **settings: Any) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        train, held_out = (Dataset.from_list([{"text": text} for text in texts]) for texts in (TEXTS, HELD_OUT))
        return SFTTrainer(
            lorakit.peft(self.model), SFTConfig(bf16=False, **settings), train_dataset=train, eval_dataset=held_out,
            processing_class=self.tokenizer,
        )  # fmt: skip

    def held_out(self) -> dict[str, Tensor]:
        (batch,) = self.trainer.get_eval_dataloader()
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels") if name in batch}


class OfDPO(OfSFT):
    """TRL's DPOTrainer: its loss is of pairs, against the base alone."""

    name = "TRL DPO"

    def made(self, **settings: Any) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer(
            lorakit.peft(self.model), args=DPOConfig(bf16=False, disable_dropout=False, **settings),
            train_dataset=Dataset.from_list(PAIRS), eval_dataset=Dataset.from_list(PAIRS[::2]),
            processing_class=self.tokenizer,
        )  # fmt: skip

    def direct_logits(self) -> Tensor:
        # Trainer keeps as many as there are pairs: those of what was chosen
        return super().direct_logits()[: len(self.trainer.eval_dataset)]

    def direct_loss(self) -> float:
        def sums() -> Tensor:
            (batch,) = self.trainer.get_eval_dataloader()
            ids, counts = batch["input_ids"], batch["completion_mask"][:, 1:]
            logits = self.model.eval()(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
            return (logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * counts).sum(1)

        with torch.no_grad():
            policy = sums()
            with lorakit.adapters(self.model).disabled():
                chosen, rejected = (policy - sums()).chunk(2)
            return float(-functional.logsigmoid(self.trainer.beta * (chosen - rejected)).mean())


class OfLoop(Run):
    """A loop of one's own with `lorakit.Step`, as examples/site/pages/trainers.md has it."""

    name = "a loop"
    lacks: ClassVar[Mapping[str, str]] = {
        "evaluate": "the loop calls the model itself", "predict": "the loop calls the model itself",
    }  # fmt: skip

    def train(self, resume: Path | None = None) -> None:
        optimizer = lorakit.optimizer(self.model, lr=LR)
        step, begin, best = lorakit.Step(self.model, optimizer), 0, (float("inf"), 0)
        torch.manual_seed(0)
        if resume is not None:
            lorakit.adapters(self.model).swap("default", resume)
            state = torch.load(resume.with_name(f"{resume.name}.pt"))
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["drawn"])
            begin = state["step"]
        for number in range(begin + 1, STEPS + 1):
            self.model.train()
            drawn = torch.randint(0, len(TEXTS), (2,)).tolist()
            step(self.batch([TEXTS[row] for row in drawn]))
            if number % EVERY == 0:
                state = {"step": number, "optimizer": optimizer.state_dict(), "drawn": torch.get_rng_state()}
                self.setting.work.mkdir(parents=True, exist_ok=True)
                torch.save(state, self.setting.work / f"checkpoint-{number}.pt")
                lorakit.save(self.model, self.checkpoint(number))
                best = min(best, (self.direct_loss(), number))
        if self.setting.keeps_best:
            lorakit.adapters(self.model).swap("default", self.checkpoint(best[1]))

    def last(self) -> Path:
        return max(path for path in self.setting.work.iterdir() if path.is_dir())

    def files(self, checkpoint: Path) -> list[Path]:
        return [*super().files(checkpoint), checkpoint.with_name(f"{checkpoint.name}.pt")]


class OfCommand(Run):
    """`lorakit train`, within this process so that its model can be looked at."""

    name = "`lorakit train`"
    lacks: ClassVar[Mapping[str, str]] = {
        "best model": "it keeps the last two checkpoints", "predict": "it writes adapters, and `lorakit chat` answers",
    }  # fmt: skip

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.out, self.said = setting.work / "out", ""

    def train(self, resume: Path | None = None) -> None:
        from lorakit.cli.main import app

        self.setting.work.mkdir(parents=True, exist_ok=True)
        spec, data, held_out = (self.setting.work / name for name in ("spec.lora", "data.jsonl", "held-out.jsonl"))
        spec.write_text(self.setting.spec)
        for file, texts in ((data, TEXTS), (held_out, HELD_OUT)):
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        words = ["train", spec, self.setting.base, data, "-o", self.out, "--held-out-data", held_out]
        words += ["--steps", STEPS, "--batch", 2, "--save-every", EVERY, "--lr", LR, "--sample", PROMPT]
        said, kind = io.StringIO(), type(self.model)

        def look(module: Any, _: Any) -> None:
            if type(module) is kind:
                self.model = module

        hook = register_module_forward_pre_hook(look)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            try:
                app([*map(str, words), *["--resume"] * bool(resume)], standalone_mode=False)
            finally:
                hook.remove()
        self.said = said.getvalue()

    def checkpoint(self, step: int) -> Path:
        return self.setting.work / "out-checkpoints" / f"checkpoint-{step}"

    def last(self) -> Path:
        return Path(str(lorakit.last_checkpoint(self.setting.work / "out-checkpoints")))

    def evaluate(self) -> float:
        records = [json.loads(line) for line in (self.out / "history.jsonl").read_text().splitlines()]
        return float([record["eval_loss"] for record in records if "eval_loss" in record][-1])

    def held_out(self) -> dict[str, Tensor]:
        return self.batch([f"{text}{self.tokenizer.eos_token}" for text in HELD_OUT])

    def prompt(self) -> Tensor:
        turns = [{"role": "user", "content": PROMPT}]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]

    def generate(self) -> Any:
        _, _, after = self.said.partition("sample after training")
        return ast.literal_eval(after.splitlines()[1].strip())

    def direct_answer(self, most: int = 48) -> Any:
        # as many tokens as the command takes, and as the model has positions for
        room = self.model.config.max_position_embeddings - self.prompt().shape[1]
        return self.tokenizer.decode(super().direct_answer(min(most, room)), skip_special_tokens=True).strip()


KINDS: dict[str, type[Run]] = {kind.name: kind for kind in (OfTrainer, OfSFT, OfDPO, OfLoop, OfCommand)}


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
