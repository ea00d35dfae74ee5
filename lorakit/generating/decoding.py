"""transformers' `generate` with each token after the prompt as one CUDA graph.

While it generates, the model's own `prepare_inputs_for_generation` and `forward` are stood before: whatever loop asks
for a token, by search, sampling or with a streamer, is answered by a graph where there is one.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lorakit.generating import cache_state
from lorakit.generating.fusing import fused
from lorakit.generating.model_state import model_state
from lorakit.generating.pieces import Compile, inductor
from lorakit.generating.places import is_plain, put_back, taken
from lorakit.generating.token import Capture, Token
from lorakit.stepping.graphs import reason
from lorakit.stepping.shortage import free_caches, let_go

# graphs and caches that are kept: the next answer, of about as many tokens, needs no new ones
MOST_TOKENS, MOST_CACHES = 8, 2
# a cache holds a multiple of so many tokens
STEP = 256
# what `generate` makes longer with each token
GROWING = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
# forms of one answer's tokens; what has more has a new one for each
MOST_FORMS = 4
ONE_BY_ONE = "tokens run one operation after the other"

_MODELS: weakref.WeakKeyDictionary[nn.Module, Decoding] = weakref.WeakKeyDictionary()


def decoding(model: nn.Module, say: Callable[[str], None]) -> Decoding:
    """Return what captures a model's tokens, the same for the same model."""
    if model not in _MODELS:
        _MODELS[model] = Decoding(say, Capture())
    return _MODELS[model]


# makes a pass and the tensors that it reads
Make = Callable[[], tuple[Callable[[], Any], Mapping[Any, Tensor]]]


class Decoding:
    """The captured tokens of one model, and the caches that they read and write.

    `say` gets a line where a token cannot be captured; it is computed as ever then. `capture` makes a graph of a pass.
    """

    def __init__(
        self, say: Callable[[str], None], capture: Callable[..., Any], device: str = "cuda", compile: Compile = inductor
    ) -> None:
        self._say = say
        self._capture = capture
        self._compile = compile
        self.device = device
        self._tokens: OrderedDict[Any, Token | None] = OrderedDict()
        self._caches: OrderedDict[Any, Any] = OrderedDict()
        self._said: set[str] = set()
        self._states: dict[Any, int] = {}

    @contextmanager
    def standing_before(self, model: Any, compiles: bool = True) -> Iterator[None]:
        """Answer for the model's own methods; `compiles` is whether what stands between products is compiled."""
        stands = _Standing(self, model, compiles)
        replaced = {
            "prepare_inputs_for_generation": stands.prepare,
            "forward": stands.forward,
            "_prepare_static_cache": stands.cache,
        }
        before = {name: vars(model)[name] for name in replaced if name in vars(model)}
        for name, method in replaced.items():
            if hasattr(model, name):
                vars(model)[name] = _in_place_of(getattr(model, name), method)
        try:
            yield
        finally:
            for name in replaced:
                vars(model).pop(name, None)
            vars(model).update(before)

    def number(self, state: Any) -> int:
        """Return a number for a state of the model, the same for the same."""
        return self._states.setdefault(state, len(self._states))

    def forget_caches(self) -> None:
        """Make new caches from now on: those of before are somebody else's."""
        self._caches.clear()
        self._tokens.clear()

    def kept_cache(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return an empty cache, one of before where it fits."""
        if key in self._caches:
            self._caches.move_to_end(key)
            self._caches[key].reset()
            return self._caches[key]
        while len(self._caches) >= MOST_CACHES:
            # its graphs hold it too
            self._caches.popitem(last=False)
            self._tokens.clear()
        self._caches[key] = make()
        return self._caches[key]

    def token(self, key: Any, make: Make, cache: Any, compiles: bool) -> Token | None:
        """Return the graph of a key, captured, and compiled if asked for, if it is new; None where it cannot be."""
        key = key, compiles
        if key not in self._tokens:
            while len(self._tokens) >= MOST_TOKENS:
                self._tokens.popitem(last=False)
            self._tokens[key] = self._made(make, cache, compiles)
        self._tokens.move_to_end(key)
        return self._tokens[key]

    def _made(self, make: Make, cache: Any, compiles: bool) -> Token | None:
        ways = ((self._fuse, "what stands between products is not compiled"), (None, ONE_BY_ONE))
        for fuse, instead in ways[not compiles :]:
            try:
                run, inputs = make()
                made: Token = self._capture(run, inputs, cache, fuse)
                return made
            except Exception as error:
                why = reason(error)
                let_go(error)
            free_caches(thoroughly=True)
            self.say(f"generate: {instead}: {why}")
        return None

    def _fuse(self, run: Callable[[], Any], change: Any, restore: Any) -> tuple[Callable[[], Any], Sequence[Any]]:
        return fused(run, change, restore, self.say, self._compile)

    def say(self, line: str) -> None:
        """Say a line that was not said of this model yet."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def _in_place_of(original: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    # transformers reads signatures
    @functools.wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return called


class _Standing:
    """What answers for one model during one call of `generate`."""

    def __init__(self, decoding: Decoding, model: Any, compiles: bool) -> None:
        self._decoding = decoding
        self._compiles = compiles
        self._prepare = model.prepare_inputs_for_generation
        self._forward = model.forward
        self._static_cache = getattr(model, "_prepare_static_cache", None)
        self._model = model
        self._encodes = bool(getattr(model.config, "is_encoder_decoder", False))
        self._state: int | None = None
        # of this answer
        self._keys: set[Any] = set()
        self._same: tuple[Token, Any] | None = None
        self._next: tuple[Token, Mapping[Any, Tensor]] | None = None

    def cache(self, *args: Any, **kwargs: Any) -> Any:
        """Return a static cache of a rounded length, one of before where it fits."""
        make: Any = self._static_cache
        if "max_cache_len" not in kwargs or args or self._encodes:
            return make(*args, **kwargs)
        kwargs["max_cache_len"] = -(-kwargs["max_cache_len"] // STEP) * STEP
        key = tuple(kwargs.get(name) for name in ("cache_implementation", "batch_size", "max_cache_len"))
        # transformers makes each cache as long as the longest before
        vars(self._model).pop("_previous_max_cache_length", None)
        return self._decoding.kept_cache(key, lambda: make(**kwargs))

    def prepare(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the inputs of the next pass, or, where a graph computes it, keep them for the graph."""
        cache = kwargs.get("past_key_values")
        if (
            args
            or kwargs.get("is_first_iteration")
            or kwargs.get("next_sequence_length") != 1
            or not cache_state.is_static(cache)
            or input_ids.device.type != self._decoding.device
        ):
            return self._prepare(input_ids, *args, **kwargs)
        if self._same is None or self._same[1] is not cache:
            self._same = self._whole(input_ids, cache, kwargs)
        if self._same is not None:
            self._next = self._same[0], _last(input_ids, kwargs)
            return {}
        prepared = self._prepare(input_ids, **kwargs)
        self._next = self._prepared(prepared, cache)
        return prepared if self._next is None else {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        if self._next is None:
            return self._forward(*args, **kwargs)
        (token, values), self._next = self._next, None
        return token.replay(values)

    def _whole(self, input_ids: Tensor, cache: Any, given: Mapping[str, Any]) -> tuple[Token, Any] | None:
        """Return the graph that prepares its inputs too: masks and positions follow from what the device counts."""
        others = {name: value for name, value in given.items() if name not in GROWING and value is not cache}
        if self._encodes or not is_plain(others):
            return None
        if any(hasattr(layer, "cumulative_length_int") for layer in cache.layers):
            # masks follow from what Python counts
            return None
        last, mask = _last(input_ids, given), given.get("attention_mask")

        def make() -> tuple[Callable[[], Any], Mapping[Any, Tensor]]:
            inputs: dict[Any, Tensor] = {name: value.clone() for name, value in last.items()}
            if mask is not None:
                # what lies ahead is masked by its position
                inputs["attention_mask"] = mask.new_ones((mask.shape[0], cache_state.length(cache)))
            held = {name: value for name, value in inputs.items() if name}

            def run() -> Any:
                prepared = self._prepare(inputs[""], past_key_values=cache, **held, **others)
                if mask is not None and prepared.get("attention_mask") is inputs["attention_mask"]:
                    raise ValueError("its attention takes the mask as it is")
                return self._forward(**prepared, return_dict=True)

            return run, inputs

        token = self._token(self._key("whole", cache, last, others, None if mask is None else mask.shape), make, cache)
        if token is None:
            return None
        if mask is not None:
            token.inputs["attention_mask"].fill_(1)[:, : mask.shape[1]] = mask
        return token, cache

    def _prepared(self, prepared: Mapping[str, Any], cache: Any) -> tuple[Token, Mapping[Any, Tensor]] | None:
        """Return the graph of the model alone, and the inputs that were prepared as ever."""
        values: dict[Any, Tensor] = {}
        rest = {name: taken(value, (name,), values) for name, value in prepared.items()}
        others = {name: value for name, value in rest.items() if value is not cache}
        if not is_plain(others):
            return None

        def make() -> tuple[Callable[[], Any], Mapping[Any, Tensor]]:
            inputs = {place: value.clone() for place, value in values.items()}

            def run() -> Any:
                return self._forward(
                    **{name: put_back(value, inputs) for name, value in rest.items()}, return_dict=True
                )

            return run, inputs

        token = self._token(self._key("prepared", cache, values, others, None), make, cache)
        return None if token is None else (token, values)

    def _key(self, how: str, cache: Any, tensors: Mapping[Any, Tensor], others: Mapping[str, Any], more: Any) -> Any:
        if self._state is None:
            self._state = self._decoding.number(model_state(self._model))
        forms = tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
        plain = tuple(sorted((name, repr(value)) for name, value in others.items()))
        return how, self._state, cache_state.form(cache), forms, plain, more

    def _token(self, key: Any, make: Make, cache: Any) -> Token | None:
        self._keys.add(key)
        if len(self._keys) > MOST_FORMS:
            self._decoding.say(f"generate: {ONE_BY_ONE}: each has a form of its own")
            return None
        return self._decoding.token(key, make, cache, self._compiles)


def _last(input_ids: Tensor, given: Mapping[str, Any]) -> dict[Any, Tensor]:
    """Return what is new with a token, of everything that grows: the token itself, its position."""
    grown = {name: given[name] for name in GROWING if isinstance(given.get(name), Tensor) and "mask" not in name}
    return {"": input_ids[:, -1:]} | {name: value[..., -1:] for name, value in grown.items()}
