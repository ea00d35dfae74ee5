"""One forward on meta tensors: which tensor enters each layer, and what autograd would keep for the backward pass.

The model itself is not run: stand-ins of its modules are, of the same classes, that hold meta tensors in place of every
parameter and buffer, and none of the hooks. So no value is read, nothing is computed, and no attribute changes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorakit.planning.stand_ins import Opaque, on_meta, stand_ins_of
from lorakit.planning.targets import block_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# the arguments of a forward, by name or in order, or its only one
Example = Any


@dataclass(frozen=True)
class Kept:
    """What a step keeps for the backward pass in bytes for each row, a token of a text, without any adapter.

    `blocks` are the members of the outermost numbered containers, and '' all that is outside; `entering` are the
    tensors that enter blocks. `inputs` are the inputs, by number, that are kept without an adapter too.
    """

    blocks: Mapping[str, int] = field(default_factory=dict)
    entering: int = 0
    inputs: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Dataflow:
    """What a forward showed: layers with equal numbers in `inputs` read the same tensor.

    `uncalled` are the layers that were never called, while something else computed with their weight.
    """

    inputs: Mapping[str, int]
    uncalled: frozenset[str]
    kept: Kept


def observed(model: nn.Module, examples: Iterable[Example], opaque: Sequence[Opaque]) -> Dataflow | None:
    """Return what the first of these examples shows that the model takes, or None if it takes none on meta tensors.

    Each of `opaque` is tried in turn.
    """
    for example in examples:
        for hidden in opaque:
            try:
                return _run(model, example, hidden)
            except Exception:
                # a branch on a value, an operation that has no meta form, inputs that this model does not take
                continue
    return None


def _run(model: nn.Module, example: Example, hidden: Opaque) -> Dataflow:
    import torch

    paths = stand_ins_of(model, hidden)
    watch = _Watch(paths)
    named: dict[str, Any] = on_meta(dict(example), {}) if isinstance(example, Mapping) else {}
    ordered = () if named else on_meta(tuple(example) if isinstance(example, list | tuple) else (example,), {})
    for tensor in _tensors_in((*ordered, *named.values())):
        # as if something before it trained, so that autograd keeps what it keeps behind an adapter
        tensor.requires_grad_(tensor.is_floating_point())
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_silence())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(watch.watching())
        paths[""](*ordered, **named)
    return watch.found()


class _Watch:
    """Takes note while stand-ins run; it holds every tensor that it saw, so that no identity is used twice."""

    def __init__(self, paths: Mapping[str, nn.Module]) -> None:
        self._paths = paths
        self._own = {_storage(tensor) for tensor in _tensors_of(paths[""])}
        self._entered: dict[str, list[tuple[int, int, int]]] = {}
        self._entering: dict[int, Tensor] = {}
        self._saved: dict[int, tuple[str, Tensor]] = {}
        self._computed_with: set[int] = set()
        self._seen: list[Tensor] = []
        self._blocks: list[str] = [""]
        self._rows = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every module, operation and saved tensor."""
        import torch

        for path, module in self._paths.items():
            block = block_of(path)
            if block and block == path:
                module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
                module.register_forward_hook(self._leave, always_call=True)
            module.register_forward_pre_hook(self._note(path), with_kwargs=True)
        with (
            torch.autograd.graph.saved_tensors_hooks(self._save, lambda nothing: nothing),
            _function_mode(),
            _dispatch_mode(self._compute),
        ):
            yield

    def found(self) -> Dataflow:
        """Return what was seen."""
        numbers: dict[tuple[tuple[int, int, int], ...], int] = {}
        inputs = {path: numbers.setdefault(tuple(key), len(numbers)) for path, key in self._entered.items()}
        called = {_storage(weight) for path in inputs for weight in _weights(self._paths[path])}
        uncalled = frozenset(
            path
            for path, module in self._paths.items()
            if path not in inputs
            and any(
                (key := _storage(weight)) in self._computed_with and key not in called for weight in _weights(module)
            )
        )
        rows = self._rows or 1
        blocks: dict[str, int] = {}
        for block, tensor in self._saved.values():
            blocks[block] = blocks.get(block, 0) + tensor.untyped_storage().nbytes()
        kept = frozenset(
            number for key, number in numbers.items() if all(storage in self._saved for _, _, storage in key)
        )
        entering = sum(tensor.untyped_storage().nbytes() for tensor in self._entering.values())
        return Dataflow(
            inputs,
            uncalled,
            Kept({block: -(-size // rows) for block, size in blocks.items()}, -(-entering // rows), kept),
        )

    def _note(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = next(_tensors_in((*args, *kwargs.values())), None)
            if tensor is None:
                return
            self._seen.append(tensor)
            # what is written to in place between two calls is another input
            self._entered.setdefault(path, []).append((id(tensor), tensor._version, _storage(tensor)))
            if not self._rows and block_of(path) and tensor.is_floating_point() and tensor.ndim > 1:
                self._rows = tensor.numel() // tensor.shape[-1]

        return note

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._blocks.append(path)
            for tensor in _tensors_in((*args, *kwargs.values())):
                if _storage(tensor) not in self._own:
                    self._entering.setdefault(_storage(tensor), tensor)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._blocks.pop()

    def _save(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key not in self._own:
            self._saved.setdefault(key, (self._blocks[-1], tensor.detach()))

    def _compute(self, args: tuple[Any, ...]) -> None:
        self._computed_with.update(_storage(tensor) for tensor in _tensors_in(args))


def _function_mode() -> Any:
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Attention(torch.autograd.Function):
        """Keeps what the fused kernels keep, whose meta form would multiply out the scores."""

        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            shape = (*query.shape[:-1], value.shape[-1])
            if len(shape) == 4:
                batch, heads, length, width = shape
                out = query.new_empty(batch, length, heads, width).transpose(1, 2)
            else:
                out = query.new_empty(shape)
            ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            raise NotImplementedError

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is functional.scaled_dot_product_attention:
                named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
                return Attention.apply(named["query"], named["key"], named["value"])
            if func is torch.Tensor.__bool__ or (func is torch.Tensor.item and args[0].dtype is torch.bool):
                # whether a mask is all ones, whether positions go up one by one: the example has no padding
                return True
            if func is torch.Tensor.__contains__:
                return False
            if func is functional.dropout:
                # as in training, where a layer behind dropout reads another tensor than one before it
                named = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
                if named.get("p", 0.5) == 0:
                    return named["input"]
                return func(named["input"], named.get("p", 0.5), True)
            return func(*args, **kwargs)

    return Mode()


def _dispatch_mode(compute: Callable[[tuple[Any, ...]], None]) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            compute(args)
            return func(*args, **(kwargs or {}))

    return Mode()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep to ourselves what a model logs about a run that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _tensors_in(values: Sequence[Any]) -> Iterator[Tensor]:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _weights(module: nn.Module) -> Iterator[Tensor]:
    weight = module._parameters.get("weight")
    if weight is not None:
        yield weight


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
