"""The head and the loss of a language model by chunks of rows, so that the logits of all of them never exist together.

The model's own forward computes both, whatever it does to logits and with whatever loss function: it runs once for each
chunk, with what its body computed in the body's place. Gradients of a chunk are taken at once, as fused losses do
(Hsu et al. 2024, Liger Kernel, section 3.2), so that nothing is computed twice. Whether a model's loss is the same then
is measured before it is relied on: none is known by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.application.sharding import is_sharded
from lorakit.compiling.loss import loss_as_blocks
from lorakit.data.tokens import IGNORED
from lorakit.planning.head import chunk_of, rows_at_once

Output = Any
Forward = Callable[..., Output]
# of what a head adds to a loss of its own by other labels
NEAR = 0.01
# rows and tokens of the batch that a model is tried on, and rows of a chunk then: the last chunk is a smaller one
TRIED, TRIED_ROWS = (2, 12), 7


class HeadByChunks:
    """Computes the losses of one model by chunks of rows where there are more rows than `rows`.

    `rows` of 0 takes what the plan takes. A model whose loss it cannot take apart computes as ever.
    """

    def __init__(self, model: nn.Module, rows: int = 0) -> None:
        self._model = model
        self._rows = rows or rows_at_once(vocabulary_of(model))
        self._agrees: bool | None = None

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Have the model's forward compute by chunks inside the block; its output has a loss and no logits then."""
        if (
            self._body is None
            or is_sharded(self._model)
            or getattr(self._model, "_compiled_call_impl", None) is not None
        ):
            yield
            return
        own, was = self._model.forward, self._model.__dict__.get("forward")

        def forward(*args: Any, **kwargs: Any) -> Output:
            rows = self._rows_of(own, args, kwargs)
            if not rows:
                return own(*args, **kwargs)
            try:
                return self._by_chunks(own, kwargs, rows)
            except _UnlikeError:
                self._agrees = False
                return own(*args, **kwargs)

        self._model.forward = forward
        try:
            yield
        finally:
            if was is None:
                del self._model.forward
            else:
                self._model.forward = was

    @property
    def _body(self) -> nn.Module | None:
        body = self._model._modules.get(getattr(self._model, "base_model_prefix", ""))
        return body if isinstance(body, nn.Module) else None

    def _rows_of(self, own: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Return how many rows a chunk of this call has; 0 where it is not computed by chunks."""
        labels = kwargs.get("labels")
        if args or not isinstance(labels, Tensor) or labels.numel() <= self._rows:
            return 0
        if self._agrees is None:
            self._agrees = self._is_own_loss(own, labels.device)
        return chunk_of(labels.numel(), self._rows) if self._agrees else 0

    def _by_chunks(self, own: Forward, kwargs: Mapping[str, Any], rows: int) -> Any:
        targets = kwargs["shift_labels"] if kwargs.get("shift_labels") is not None else following(kwargs["labels"])
        targets = targets.flatten()
        learned = (targets != IGNORED).sum()
        items = kwargs.get("num_items_in_batch")
        left_out = ("labels", "shift_labels", "logits_to_keep", "num_items_in_batch")
        given: dict[str, Any] = {name: value for name, value in kwargs.items() if name not in left_out}
        given["num_items_in_batch"] = learned if items is None else items
        chunks = targets.split(rows)
        body = _Recalled(self._body, kwargs.get("logits_to_keep"), [len(one) for one in chunks])
        trained: list[nn.Parameter] = []
        total: Tensor | None = None
        lift = 1.0
        gradients: list[Tensor | None] = []
        kind: Any = tuple
        with loss_as_blocks(self._model), _in_place_of(self._model, str(self._model.base_model_prefix), body):
            for chunk in chunks:
                output = own(**given, labels=chunk.unsqueeze(0), shift_labels=chunk.unsqueeze(0))
                kind = type(output)
                loss = output["loss"] if isinstance(output, Mapping) else output[0]
                # the logits go before their gradients come
                del output
                if loss.requires_grad:
                    trained = trained or self._trained()
                    lift = lift_for(body.hidden, len(targets))
                    found = torch.autograd.grad(loss * lift, [body.chunk, *trained], allow_unused=True)
                    body.take(found[0])
                    gradients = _added(gradients, found[1:])
                    loss = loss.detach()
                total = loss if total is None else total + loss
        assert total is not None
        if body.gradient is not None:
            total = _Known.apply(total, lift, [body.gradient, *gradients], body.hidden, *trained)
        return (total,) if issubclass(kind, tuple) else kind(loss=total)

    def _trained(self) -> list[nn.Parameter]:
        """Return what trains behind the body, or in its place too, as tied weights do."""
        inside = set(self._body.parameters()) if self._body is not None else set()
        model: Any = self._model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        behind = [one for one in self._model.parameters() if one not in inside]
        behind += list(head.parameters()) if isinstance(head, nn.Module) else []
        return [one for one in dict.fromkeys(behind) if one.requires_grad]

    def _is_own_loss(self, own: Forward, device: torch.device) -> bool:
        """Return whether a small batch has the loss by chunks that the model gives it."""
        modes = {module: module.training for module in self._model.modules()}
        ids = torch.randint(vocabulary_of(self._model), TRIED, generator=torch.Generator().manual_seed(0)).to(device)
        labels = ids.clone()
        labels[0, :5] = IGNORED
        try:
            for module in modes:
                module.training = False
            with torch.no_grad():
                whole = own(input_ids=ids, labels=labels, use_cache=False).loss
                other = own(input_ids=ids, labels=labels.clamp(max=0), use_cache=False).loss
                given = {"input_ids": ids, "labels": labels, "use_cache": False}
                apart = self._by_chunks(own, given, TRIED_ROWS).loss
            off, wrong = (abs(float(one) - float(whole)) for one in (apart, other))
            return off <= NEAR * wrong
        except Exception:
            # a model may know none of these arguments, and computes as it does
            return False
        finally:
            for module, training in modes.items():
                module.training = training


class _UnlikeError(Exception):
    """A body gives other rows than there are labels for: which belong together, the model's own forward knows."""


class _Recalled(nn.Module):
    """Stands in the place of a body: computes what it computes once, and gives one chunk of it after the other."""

    def __init__(self, body: nn.Module | None, kept: Any, sizes: Sequence[int]) -> None:
        super().__init__()
        # its parameters are not this module's
        object.__setattr__(self, "_own", body)
        self._kept = kept
        self._sizes = iter(sizes)
        self._rows = sum(sizes)
        self._output: Any = None
        self._done = 0
        self.hidden = torch.empty(0)
        self.chunk = torch.empty(0)
        self.gradient: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_own"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the body's output with the next chunk (1, rows, width) for its last hidden states."""
        if self._output is None:
            own: Any = self.__dict__["_own"]
            self._output = own(*args, **kwargs)
            self.hidden = kept_rows(self._output[0], self._kept)
            if len(self.hidden) != self._rows:
                raise _UnlikeError
        size = next(self._sizes)
        self.chunk = self.hidden[self._done : self._done + size].detach()
        if torch.is_grad_enabled():
            self.chunk.requires_grad_()
        self._done += size
        shown = self.chunk.unsqueeze(0)
        if isinstance(self._output, Mapping):
            return type(self._output)(**{**self._output, "last_hidden_state": shown})
        return (shown, *self._output[1:])

    def take(self, gradient: Tensor | None) -> None:
        """Keep the gradient of the chunk that was given last."""
        if self.gradient is None:
            self.gradient = torch.zeros_like(self.hidden)
        if gradient is not None:
            self.gradient[self._done - len(gradient) : self._done] = gradient


class _Known(torch.autograd.Function):
    """Gives a loss whose gradients are known already, `lift` times as large."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, lift: float, gradients: Sequence[Tensor | None], *of: Tensor) -> Tensor:
        ctx.lift = lift
        ctx.dtypes = [one.dtype for one in of]
        ctx.save_for_backward(*gradients)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        factor = outer[0] / ctx.lift
        found = [
            None if one is None else one.mul(factor.to(one.device)).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, None, *found)


def following(labels: Tensor) -> Tensor:
    """Return of each token the label of the next; labels (rows, tokens)."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def kept_rows(hidden: Tensor, kept: Any) -> Tensor:
    """Return the hidden states (rows, width) that logits are asked for, of (batch, tokens, width)."""
    if isinstance(kept, Tensor):
        hidden = hidden[kept] if kept.dtype == torch.bool and kept.dim() == 2 else hidden[:, kept]
    elif kept:
        hidden = hidden[:, -kept:]
    return hidden.reshape(-1, hidden.shape[-1])


def lift_for(hidden: Tensor, rows: int) -> float:
    """Return what a loss is multiplied by for the time of its gradients: in fp16 those of a mean would vanish."""
    return 2.0 ** math.ceil(math.log2(max(rows, 1))) if hidden.dtype == torch.float16 else 1.0


def vocabulary_of(model: nn.Module) -> int:
    """Return how many logits a model gives a row; 0 where it has no head."""
    own: Any = model
    head = own.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    width = getattr(head, "out_features", None) or getattr(head, "weight", torch.empty(0)).shape[0]
    return int(width)


@contextmanager
def _in_place_of(model: nn.Module, name: str, stand: nn.Module) -> Iterator[None]:
    own = model._modules[name]
    model._modules[name] = stand
    try:
        yield
    finally:
        model._modules[name] = own


def _added(totals: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return sums in float32: many small ones to a sum of 16 bits would be lost."""
    if not totals:
        return [None if one is None else one.float() for one in more]
    return [
        one if other is None else other.float() if one is None else one.add_(other)
        for one, other in zip(totals, more, strict=True)
    ]
