"""The loss by chunks: that of the model to rounding, its gradients too, and never all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import spawn
from test_condensed import chats, make_capped, make_mixtral, own_loss, padded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from architectures import ARCHITECTURES, Architecture
from helpers import make_gpt2, make_llama, randomize
from lorakit.data.tokens import IGNORED
from lorakit.planning.head import LOGITS, TILE, chunk_of, rows_at_once
from lorakit.stepping.head import HeadByChunks
from lorakit.trainers.condensed import learned_only, learned_places, one_row

VOCABULARY = 128
ROWS = 16
# what the trial finds to have a body that its head does not read alone, another loss, or no head
WHOLE = {
    "llama4", "opt", "t5", "bart", "bert", "roberta", "roberta_classifier", "bert_classifier", "llama_classifier",
    "vit", "clip", "whisper",
}  # fmt: skip


class Sizes(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return made


def adapted(model: nn.Module, spec: str = "adapt @attention rank 4 dtype fp32") -> nn.Module:
    randomize(lorakit.apply(spec, model))
    return model.train()


def learned(model: nn.Module, batch: Any, head: HeadByChunks | None = None) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return the loss of a batch, its gradients, and the largest tensor of a step."""
    model.zero_grad()
    # GPT-2 drops out
    torch.manual_seed(0)
    with Sizes() as sizes, head.standing() if head else nullcontext():
        loss = model(**batch).loss
        # as where batches are accumulated
        (loss * 0.25).backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), gradients, sizes.largest


def assert_same(model: nn.Module, batch: Any, head: HeadByChunks) -> None:
    wanted, wanted_gradients, _ = learned(model, batch)
    got, gradients, _ = learned(model, batch, head)
    assert float(got) == pytest.approx(float(wanted), rel=2e-6)
    assert gradients.keys() == wanted_gradients.keys() and any(bool(one.any()) for one in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=2e-5, atol=1e-7, msg=name)


def batch_of(rows: int = 3, tokens: int = 20) -> dict[str, Tensor]:
    ids = torch.randint(VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, : tokens // 3] = IGNORED
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("items", [None, 41, torch.tensor(41)])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_capped])
def test_loss_and_gradients_are_those_of_the_whole(make: Callable[[], nn.Module], items: Any) -> None:
    model = adapted(make())
    batch = batch_of() | ({} if items is None else {"num_items_in_batch": items})
    assert_same(model, batch, HeadByChunks(model, ROWS))


@pytest.mark.parametrize(
    "spec",
    [
        "adapt lm_head rank 4 dtype fp32",
        "adapt q_proj,lm_head rank 4 dtype fp32",
        "adapt q_proj rank 4 dtype fp32\ntrain lm_head",
        "adapt q_proj rank 4 dtype fp32 quant nf4",
    ],
)
def test_a_head_that_trains(spec: str) -> None:
    model = adapted(make_llama(), spec)
    assert_same(model, batch_of(), HeadByChunks(model, ROWS))


def test_a_head_that_is_tied_to_the_embedding_and_trains() -> None:
    model = adapted(make_llama(tie_word_embeddings=True), "adapt q_proj rank 4 dtype fp32\ntrain embed_tokens,lm_head")
    head: Any = model.get_output_embeddings
    assert head().weight.grad is None
    assert_same(model, batch_of(), HeadByChunks(model, ROWS))


@pytest.mark.parametrize("way", [one_row, learned_only, learned_places])
def test_batches_that_are_condensed(way: Callable[[Any], Any]) -> None:
    model = adapted(make_llama())
    model.config.use_cache = False  # type: ignore[union-attr]
    assert_same(model, way(padded(chats(27, 32, 15))), HeadByChunks(model, 7))


def test_all_logits_never_exist_together() -> None:
    model = adapted(make_llama())
    batch = batch_of(4, 64)
    _, _, whole = learned(model, batch)
    _, _, largest = learned(model, batch, HeadByChunks(model, ROWS))
    assert whole >= 4 * 64 * VOCABULARY
    # beside them the widest is the MLP's
    config: Any = model.config
    assert largest == 4 * 64 * config.intermediate_size > ROWS * VOCABULARY


def test_a_body_that_gives_more_rows_than_there_are_labels_is_left_to_the_model() -> None:
    model: Any = adapted(make_llama())
    own = model.forward

    def forward(input_ids: Tensor, labels: Tensor, **given: Any) -> Any:
        # as models do that put an image's tokens before a text's
        if len(input_ids) > 2:
            ids = torch.cat([input_ids[:, :4], input_ids], 1)
            labels = torch.cat([torch.full_like(labels[:, :4], IGNORED), labels], 1)
            return own(ids, labels=labels, **{**given, "shift_labels": None})
        return own(input_ids, labels=labels, **given)

    wanted = forward(**batch_of()).loss
    model.forward = forward
    head = HeadByChunks(model, ROWS)
    for _ in range(2):
        with head.standing():
            output = model(**batch_of())
        assert output.logits is not None and float(output.loss) == float(wanted)


def check_data_parallel(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = adapted(make_llama(), "adapt q_proj,lm_head rank 4 dtype fp32")
    found = []
    batch = batch_of()
    batch = {name: value.roll(rank, 1) for name, value in batch.items()}
    wrapped: Any = nn.parallel.DistributedDataParallel(model)
    for head in (nullcontext(), HeadByChunks(model, ROWS).standing()):
        model.zero_grad()
        with head:
            output = wrapped(**batch)
        output.loss.backward()
        found.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert output.logits is None and found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=2e-5, atol=1e-7, msg=name)
    # gloo's thread is done with the last gradients then: it asks for the interpreter, which waits for it in the end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_gradients_that_several_processes_average(tmp_path: Path) -> None:
    spawn(check_data_parallel, (str(tmp_path),), 2)


def test_few_rows_are_computed_as_ever() -> None:
    model = adapted(make_llama())
    with HeadByChunks(model, 60).standing():
        assert model(**batch_of()).logits is not None
    with HeadByChunks(model, 59).standing():
        assert model(**batch_of()).logits is None
    assert "forward" not in vars(model) and "model" in model._modules


def test_evaluation() -> None:
    model = adapted(make_llama()).eval()
    with torch.no_grad():
        wanted = model(**batch_of()).loss
        with HeadByChunks(model, ROWS).standing():
            output = model(**batch_of())
    assert output.logits is None and float(output.loss) == pytest.approx(float(wanted), rel=2e-6)


def test_blocks_that_are_computed_again() -> None:
    model = adapted(make_llama())
    batch = batch_of()
    wanted, wanted_gradients, _ = learned(model, batch)
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    got, gradients, _ = learned(model, batch, HeadByChunks(model, ROWS))
    assert float(got) == pytest.approx(float(wanted), rel=2e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=2e-5, atol=1e-7)


def test_small_gradients_do_not_vanish_in_fp16() -> None:
    model = make_llama().half()
    lorakit.apply("adapt q_proj rank 4 dtype fp32\nstep compute fp16", model)
    randomize(model)
    model.train()
    batch = batch_of(8, 64) | {"num_items_in_batch": torch.tensor(1 << 22)}
    scale = 2.0**16
    found = []
    for head in (nullcontext(), HeadByChunks(model, ROWS).standing()):
        model.zero_grad()
        with head:
            loss = model(**batch).loss
            (loss * scale).backward()
        found.append(model.model.layers[0].self_attn.q_proj.lora_B.grad.clone())
    assert found[0].abs().max() > 0
    assert (found[1] - found[0]).abs().max() < 0.02 * found[0].abs().max()


@pytest.mark.parametrize("make", [own_loss, lambda: make_mixtral(output_router_logits=True, router_aux_loss_coef=1.0)])
def test_a_loss_that_cannot_be_taken_apart_is_computed_whole(make: Callable[[], nn.Module]) -> None:
    model = adapted(make())
    batch = batch_of()
    wanted, _, _ = learned(model, batch)
    with HeadByChunks(model, ROWS).standing():
        output = model(**batch)
    assert output.logits is not None and float(output.loss) == float(wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_architecture_has_its_own_loss(architecture: Architecture) -> None:
    model = architecture.build().train()
    inputs = architecture.inputs()
    torch.manual_seed(0)
    wanted = model(**inputs).loss
    wanted.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    head = HeadByChunks(model, 5)
    with head.standing():
        output = model(**inputs)
    loss = output.loss
    loss.backward()
    is_apart = "logits_per_image" not in output and output.get("logits") is None
    assert is_apart == (architecture.name not in WHOLE)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_rows_at_once_are_of_a_size_that_is_known() -> None:
    assert [chunk_of(rows, 1024) for rows in (1, 1024, 1025, 1536, 4096)] == [1, 1024, 513, 768, 1024]
    for vocabulary in (2, 49_152, 128_256, 262_144, 10**9):
        rows = rows_at_once(vocabulary)
        assert rows % TILE == 0 and (rows == TILE or rows * vocabulary <= LOGITS)
