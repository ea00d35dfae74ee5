"""Loops of one's own of `trainers.py`: with Accelerate, in Lightning, with `lorakit.Step` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from trainer_runs import EVERY, HELD_OUT, LR, STEPS, TEXTS, Run, Setting

import lorakit


class OfAccelerate(Run):
    """A loop of one's own around an Accelerator."""

    name = "Accelerate"

    def __init__(self, setting: Setting) -> None:
        from accelerate import Accelerator

        super().__init__(setting)
        self.accelerator = Accelerator(cpu=True)
        lorakit.checkpoint_adapters(self.accelerator)
        made = self.model, lorakit.optimizer(self.model, lr=LR), self.loader(TEXTS, 2), self.loader(HELD_OUT, 8)
        self.prepared, self.optimizer, self.batches, self.measured = self.accelerator.prepare(*made)

    def loader(self, texts: list[str], size: int) -> Any:
        return torch.utils.data.DataLoader(self.rows(texts), batch_size=size)  # type: ignore[arg-type]

    def train(self, resume: Path | None = None) -> None:
        torch.manual_seed(0)
        begin, losses, batches = 0, {}, self.batches
        if resume is not None:
            begin = int(resume.name.rpartition("-")[2])
            batches = self.accelerator.skip_first_batches(batches, begin)
            self.accelerator.load_state(resume)
        for number, batch in enumerate(batches, begin + 1):
            self.prepared.train()
            self.accelerator.backward(self.prepared(**batch).loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if number % EVERY == 0:
                self.accelerator.save_state(self.checkpoint(number))
                losses[number] = self.evaluate()
        if self.setting.keeps_best:
            self.accelerator.load_state(self.checkpoint(min(losses, key=losses.__getitem__)))

    def last(self) -> Path:
        return max(self.setting.work.iterdir())

    def opened(self, checkpoint: Path) -> Any:
        return super().opened(checkpoint / "adapter")

    def evaluate(self) -> float:
        (outputs,) = self.outputs()
        return float(self.accelerator.gather_for_metrics(outputs.loss))

    def predict(self) -> Tensor:
        (outputs,) = self.outputs()
        return self.accelerator.gather_for_metrics(outputs.logits)

    def outputs(self) -> list[Any]:
        self.prepared.eval()
        with torch.no_grad():
            return [self.prepared(**batch) for batch in self.measured]

    def generator(self) -> Any:
        return self.accelerator.unwrap_model(self.prepared).eval()


class Batches:
    """Batches that go on where they stood, as torchdata's StatefulDataLoader: Lightning begins any other anew."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self._batches = batches
        self._given = self._past = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        past, self._past = self._past, 0
        for number, batch in enumerate(self._batches, 1):
            self._given = number
            if number > past:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._past = state["given"]


def lit(model: Any) -> Any:
    """Return a module of Lightning's around a model."""
    import lightning.pytorch as pl

    class Lit(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            # Lightning keeps no generator, and dropout is to go on as it would have
            torch.manual_seed(self.global_step)
            return self.model(**batch).loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.model(**batch).loss)

        def predict_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).logits

        def configure_optimizers(self) -> Any:
            return lorakit.optimizer(self, lr=LR)

    return Lit()


class OfLightning(Run):
    """Lightning's Trainer, with the callback."""

    name = "Lightning"
    notes: ClassVar[Mapping[str, str]] = {
        "checkpoint": "a file of Lightning's, which opens in Lightning; `lorakit.save` writes a folder",
        "resume": "the batches keep their place, and the module seeds each step: Lightning keeps no generators",
        "best model": "by `validate(ckpt_path=\"best\")`",
    }  # fmt: skip

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.module, self.trainer = lit(self.model), self.made()
        self.measured = Batches([self.held_out()])

    def made(self) -> Any:
        import lightning.pytorch as pl

        best: dict[str, Any] = {"monitor": "val_loss"} if self.setting.keeps_best else {"every_n_train_steps": EVERY}
        keeps = pl.callbacks.ModelCheckpoint(
            self.setting.work, "checkpoint-{step}", auto_insert_metric_name=False, save_top_k=-1, **best
        )
        return pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=STEPS,
            num_sanity_val_steps=0, val_check_interval=EVERY, callbacks=[lorakit.lightning_callback(), keeps],
        )  # fmt: skip

    def train(self, resume: Path | None = None) -> None:
        batches = Batches([self.batch(TEXTS[row : row + 2]) for row in range(0, len(TEXTS), 2)])
        self.trainer.fit(self.module, batches, self.measured, ckpt_path=resume)
        if self.setting.keeps_best:
            self.trainer.validate(self.module, self.measured, ckpt_path="best", verbose=False)

    def checkpoint(self, step: int) -> Path:
        return self.setting.work / f"checkpoint-{step}.ckpt"

    def last(self) -> Path:
        return max(self.setting.work.iterdir())

    def opened(self, checkpoint: Path) -> Any:
        module = lit(lorakit.apply(self.setting.spec, self.fresh(), seed=1))
        self.made().predict(module, self.measured, ckpt_path=checkpoint)
        return module.model

    def evaluate(self) -> float:
        return float(self.trainer.validate(self.module, self.measured, verbose=False)[0]["val_loss"])

    def predict(self) -> Tensor:
        return torch.cat(self.trainer.predict(self.module, self.measured))

    def generator(self) -> Any:
        return self.module.model.eval()


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
