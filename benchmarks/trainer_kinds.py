"""The trainers of `trainers.py`, each trained and asked in its own way."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
from trainer_loops import OfAccelerate, OfLightning, OfLoop
from trainer_runs import EVERY, HELD_OUT, LR, PAIRS, PROMPT, STEPS, TEXTS, Run, Setting

import lorakit


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


KINDS: dict[str, type[Run]] = {
    kind.name: kind for kind in (OfTrainer, OfSFT, OfDPO, OfAccelerate, OfLightning, OfLoop, OfCommand)
}
