"""Lightning's own Trainer with the callback, on modules that are adapted and modules that it adapts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from helpers import adapters, make_llama, run_page

pl: Any = pytest.importorskip("lightning.pytorch")
for name in ("lightning", "lightning.pytorch"):
    logging.getLogger(name).setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SPEC = "adapt q_proj,v_proj rank 4 quant nf4\ntrain model.norm\noptimizer adamw lr 0.01"
OTHER = SPEC.replace("rank 4", "rank 4 alpha 64")
ROWS = torch.randint(0, 128, (12, 12), generator=torch.Generator().manual_seed(1))


class Rows:
    """Batches that go on where they stood, as torchdata's StatefulDataLoader: Lightning begins any other anew."""

    def __init__(self) -> None:
        self.given = self.past = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[torch.Tensor]:
        past, self.past = self.past, 0
        for self.given, batch in enumerate(ROWS.split(2), 1):
            if self.given > past:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.past = state["given"]


class Lit(pl.LightningModule):  # type: ignore[misc]
    """A language model in Lightning; it adapts itself if given a spec."""

    def __init__(self, spec: str | None = None) -> None:
        super().__init__()
        self.model = make_llama() if spec is None else lorakit.apply(spec, make_llama())
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.model(input_ids=batch, labels=batch).loss)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=batch).logits
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return lorakit.optimizer(self)


def trainer(folder: Path, *callbacks: Any, **given: Any) -> Any:
    if not any(isinstance(one, pl.callbacks.ModelCheckpoint) for one in callbacks):
        given["enable_checkpointing"] = False
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, callbacks=list(callbacks), **given,
    )  # fmt: skip


def saved(folder: Path, file: str = "adapter.ckpt", spec: str = SPEC) -> tuple[Any, Path]:
    """Return a module after a step, and its checkpoint."""
    module = Lit()
    made = trainer(folder, lorakit.lightning_callback(spec), max_steps=1)
    made.fit(module, Rows())
    made.save_checkpoint(folder / file)
    return module, folder / file


@pytest.mark.parametrize("adapts_itself", [False, True])
def test_a_run_goes_on_bit_for_bit_from_a_checkpoint_of_the_adapter(adapts_itself: bool, tmp_path: Path) -> None:
    spec, own = (None, SPEC) if adapts_itself else (SPEC, None)
    keeps = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    module, again = Lit(own), Lit(own)
    given: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 1}
    trainer(tmp_path, lorakit.lightning_callback(spec), keeps, **given).fit(module, Rows())
    trainer(tmp_path, lorakit.lightning_callback(spec), **given).fit(again, Rows(), ckpt_path=tmp_path / "step=2.ckpt")
    assert again.losses == module.losses[2:] and len(again.losses) == 2
    trained, resumed = adapters(module), adapters(again)
    assert len(trained) == 9 and all(torch.equal(resumed[name], trained[name]) for name in trained)
    state = torch.load(tmp_path / "step=2.ckpt")["state_dict"]
    assert sum(one.nbytes for one in state.values()) < 8_000 and not any("embed_tokens" in name for name in state)


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_best_checkpoint_is_what_is_measured_and_saved(weights_only: bool, tmp_path: Path) -> None:
    best = pl.callbacks.ModelCheckpoint(
        tmp_path, "best", monitor="val_loss", save_weights_only=weights_only, enable_version_counter=False
    )
    module = Lit()
    made = trainer(tmp_path, lorakit.lightning_callback(SPEC), best, max_epochs=2, accumulate_grad_batches=2)
    made.fit(module, Rows(), Rows())
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "lora_B" in name:
                value.add_(1.0)
    (measured,) = made.validate(module, Rows(), ckpt_path="best", verbose=False)
    assert measured["val_loss"] == pytest.approx(float(best.best_model_score), abs=1e-6)
    answers = torch.cat(made.predict(module, Rows(), ckpt_path="best"))
    # a module that was not there while it trained
    fresh = trainer(tmp_path, lorakit.lightning_callback(SPEC))
    assert torch.equal(torch.cat(fresh.predict(Lit(), Rows(), ckpt_path=tmp_path / "best.ckpt")), answers)
    lorakit.save(module, tmp_path / "adapter")
    loaded: Any = lorakit.load(tmp_path / "adapter", make_llama())
    torch.testing.assert_close(loaded(ROWS).logits, answers, rtol=0, atol=1e-5)


def test_another_plan_is_refused(tmp_path: Path) -> None:
    _, file = saved(tmp_path)
    with pytest.raises(lorakit.AdapterError, match="had alpha 4, and has 64 now"):
        trainer(tmp_path, lorakit.lightning_callback(OTHER), max_steps=2).fit(Lit(), Rows(), ckpt_path=file)
    with pytest.raises(lorakit.AdapterError, match="had alpha 4, and has 64 now"):
        Lit.load_from_checkpoint(file, spec=OTHER)


def test_load_from_checkpoint_of_a_module_that_adapts_itself(tmp_path: Path) -> None:
    module, file = saved(tmp_path)
    again = Lit.load_from_checkpoint(file, spec=SPEC)
    trained = adapters(module)
    assert all(torch.equal(trained[name], value) for name, value in adapters(again).items())
    # one that does not is told so by torch
    with pytest.raises(RuntimeError, match="lorakit_plan"):
        Lit.load_from_checkpoint(file)


def test_checkpoints_of_whole_models_are_taken(tmp_path: Path) -> None:
    module = Lit(SPEC)
    made = trainer(tmp_path, max_steps=1)
    made.fit(module, Rows())
    made.save_checkpoint(tmp_path / "whole.ckpt")
    again, file = Lit(), tmp_path / "whole.ckpt"
    trainer(tmp_path, lorakit.lightning_callback(SPEC), max_steps=1).fit(again, Rows(), ckpt_path=file)
    assert all(torch.equal(adapters(module)[name], value) for name, value in adapters(again).items())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    module = Lit()
    trainer(tmp_path, lorakit.lightning_callback(SPEC), max_steps=1, precision=precision).fit(module, Rows())
    assert module.losses and any(bool(value.any()) for name, value in adapters(module).items() if "lora_B" in name)


def test_averaged_weights_are_adapters_too(tmp_path: Path) -> None:
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    def made(steps: int) -> Any:
        average = pl.callbacks.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.5))
        return trainer(tmp_path, lorakit.lightning_callback(SPEC), average, max_steps=steps)

    first = made(2)
    first.fit(Lit(), Rows())
    first.save_checkpoint(tmp_path / "average.ckpt")
    held = torch.load(tmp_path / "average.ckpt")
    assert not any("embed_tokens" in name for name in (*held["state_dict"], *held["current_model_state"]))
    made(3).fit(Lit(), Rows(), ckpt_path=tmp_path / "average.ckpt")


class Two(Lit):
    """A model, a part of it under another name, and a head that is no adapter's."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = self.model.model
        self.head = nn.Linear(64, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(batch, index) + self.head(self.body(batch).last_hidden_state).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = lorakit.optimizer(self)
        optimizer.add_param_group({"params": list(self.head.parameters()), "lr": 0.1})
        return optimizer


def test_what_is_not_in_the_model_stays_in_the_checkpoint(tmp_path: Path) -> None:
    module, again = Two(), Two()
    made = trainer(tmp_path, lorakit.lightning_callback(SPEC, path="model"), max_steps=1)
    made.fit(module, Rows())
    made.save_checkpoint(tmp_path / "two.ckpt")
    state = torch.load(tmp_path / "two.ckpt")["state_dict"]
    assert "head.weight" in state and not any("embed_tokens" in name for name in state)
    callback = lorakit.lightning_callback(SPEC, path="model")
    trainer(tmp_path, callback, max_steps=1).fit(again, Rows(), ckpt_path=tmp_path / "two.ckpt")
    assert all(torch.equal(adapters(module)[name], value) for name, value in adapters(again).items())


def test_what_cannot_be_adapted_is_said(tmp_path: Path) -> None:
    def fit(module: Any, *given: Any, **more: Any) -> None:
        trainer(tmp_path, lorakit.lightning_callback(*given, **more), max_steps=1).fit(module, Rows())

    with pytest.raises(lorakit.SpecError):
        lorakit.lightning_callback("adapt")
    with pytest.raises(lorakit.ModelError, match="several modules with parameters, `model`, `body`, `head`"):
        fit(Two(), SPEC)
    with pytest.raises(lorakit.ModelError, match="has no `modle` to adapt"):
        fit(Two(), SPEC, path="modle")
    with pytest.raises(lorakit.ModelError, match=r"adapted already.*had alpha 64, and has 4 now"):
        fit(Lit(SPEC), OTHER)
    plain: Any = Lit()
    plain.configure_optimizers = lambda: torch.optim.SGD(plain.parameters(), lr=0.1)
    with pytest.raises(lorakit.ModelError, match="give the callback a spec"):
        fit(plain)


def test_the_other_package_of_lightning(tmp_path: Path) -> None:
    other: Any = pytest.importorskip("pytorch_lightning")

    class Plain(other.LightningModule):  # type: ignore[misc]
        training_step, configure_optimizers = Lit.training_step, Lit.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.model = make_llama()
            self.losses: list[float] = []

    made = other.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=1,
        enable_checkpointing=False, callbacks=[lorakit.lightning_callback(SPEC)],
    )  # fmt: skip
    made.fit(Plain(), Rows())
    made.save_checkpoint(tmp_path / "adapter.ckpt")
    assert not any("embed_tokens" in name for name in torch.load(tmp_path / "adapter.ckpt")["state_dict"])


def test_the_page(llama_folder: Path, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    names = run_page("Lightning", llama_folder, batches=torch.utils.data.DataLoader(rows))  # type: ignore[arg-type]
    assert names["module"].model.training
    assert lorakit.load("adapter", str(llama_folder))
    (file,) = tmp_path.rglob("*.ckpt")
    assert not any("embed_tokens" in name for name in torch.load(file)["state_dict"])
