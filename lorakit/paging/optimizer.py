"""An optimizer whose state pages: any torch optimizer, wrapped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.paging.layout import Layout, State, page_for
from lorakit.paging.leaves import copied
from lorakit.paging.links import Link, link_for
from lorakit.paging.loading import load_in_slices
from lorakit.paging.pool import Traffic
from lorakit.paging.probing import check_apart, is_quiet, kept_by, unhooked
from lorakit.paging.sweep import Sweep

HOOKS = (
    "step_pre_hooks", "step_post_hooks", "state_dict_pre_hooks", "state_dict_post_hooks",
    "load_state_dict_pre_hooks", "load_state_dict_post_hooks",
)  # fmt: skip
# methods that some optimizers have, which go through all parameters and their state as a step does
SWITCHES = ("train", "eval")


class Paged(torch.optim.Optimizer):
    """An optimizer that steps as the wrapped one does, to the bit, with its state in pages near and far.

    A page is near while a step needs it; the least recently used leave when more than `budget` bytes of them would be
    near, when an allocation fails, and by `page_out`. A step that fails, as for lack of memory, leaves what it has
    done done, and the rest as it was: the next call of `step` goes on from there, until gradients are set to zero.
    """

    # gradients are unscaled before a step by whoever scaled them
    _step_supports_amp_scaling = False

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        budget: int | None = None,
        *,
        parameters: Collection[nn.Parameter] | None = None,
        state: State | None = None,
        shared: Collection[str] = (),
        page_size: int | None = None,
        link: Callable[[torch.device], Link] = link_for,
    ) -> None:
        """Wrap an optimizer, and allocate its state; `parameters` are those whose state pages, all unless given.

        `state` says what the optimizer keeps for a parameter; without it a step aside finds out. What of it is `shared`
        by all parameters stays where it is. `budget` counts for each device, and a small one makes for small pages.
        Raises: ModelError for an optimizer that takes parameters together, or a budget that is too small for one;
        WriteError where what must be far finds no room.
        """
        if isinstance(optimizer, Paged):
            raise ModelError("paged: this optimizer's state pages already")
        draws = check_apart(optimizer)
        self.wrapped = optimizer
        for name in HOOKS:
            # a hook is about the whole step, so it is run around that
            setattr(self, f"_optimizer_{name}", getattr(optimizer, f"_optimizer_{name}"))
            setattr(optimizer, f"_optimizer_{name}", OrderedDict())
        self._state_of = state or kept_by(optimizer)
        self._layout = Layout(optimizer, budget, page_size or page_for(budget), link, shared)
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._layout.add(own, set(own if parameters is None else parameters), self._state_of)
        # by name, what failed on its way
        self._unfinished: dict[str, Sweep] = {}
        self._loss: Any = None
        # every other step goes through parameters from the end, for what was used last is still near then; but random
        # numbers are drawn in one order
        self._turns, self._backward = not draws, False
        self._quiet = is_quiet(optimizer)

    @property
    def state(self) -> Any:  # type: ignore[override]
        """What the wrapped optimizer keeps; of what is far, tensors on the far side."""
        self._layout.settle()
        return self.wrapped.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's groups."""
        return self.wrapped.param_groups

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.wrapped.defaults

    @property
    def traffic(self) -> Traffic:
        """What moved so far."""
        return self._layout.traffic

    @property
    def near_bytes(self) -> int:
        """The bytes of the pages on the devices."""
        return self._layout.near_bytes

    @property
    def far_bytes(self) -> int:
        """The bytes of the pages elsewhere."""
        return self._layout.far_bytes

    @property
    def least_budget(self) -> int:
        """The bytes of the largest page, below which no budget goes."""
        return max((piece.page.size for piece in self._layout.pieces if piece.page), default=0)

    @property
    def is_unfinished(self) -> bool:
        """Whether a step failed on its way, so that the next call goes on with it."""
        return "step" in self._unfinished

    def page_out(self) -> int:
        """Send every page out, so that its memory is free for others; a step brings back what it needs.

        Returns the bytes that left. Raises: WriteError if the far side has no room; what has not left is near.
        """
        return self._layout.page_out()

    @torch.optim.Optimizer.profile_hook_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, or what is left of one that failed; a closure computes the loss anew first, once.

        Raises: what the wrapped optimizer's step raises, torch.OutOfMemoryError if it fails for one parameter while
        every other page is far, WriteError if a page cannot leave.
        """
        if "step" not in self._unfinished:
            self._loss = None
            if closure is not None:
                with torch.enable_grad():
                    self._loss = closure()
            pieces = [piece for piece in self._layout.pieces if piece.parameter.grad is not None]
            pieces = pieces[:: -1 if self._backward else 1]
            self._unfinished["step"] = Sweep(unhooked(self.wrapped), pieces, self._layout, quiet=self._quiet)
        self._finish("step")
        self._backward = self._turns and not self._backward
        return self._loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters; a step that failed on its way is given up."""
        self._unfinished.pop("step", None)
        self.wrapped.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its state pages unless it says `"paged": False`. Raises: as making the optimizer does."""
        self._unfinished.clear()
        group = {name: value for name, value in param_group.items() if name != "paged"}
        self.wrapped.add_param_group(group)
        own = self.wrapped.param_groups[-1]["params"]
        try:
            self._turns = not check_apart(self.wrapped)
            self._quiet = is_quiet(self.wrapped)
            self._layout.add(own, set(own if param_group.get("paged", True) else ()), self._state_of)
        except BaseException:
            self.wrapped.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's own state dict, with tensors of its own in CPU memory."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._layout.settle()
        made: dict[str, Any] = self.wrapped.state_dict()
        # in the order of the parameters, whichever stepped first
        order = (key for group in made["param_groups"] for key in group["params"] if key in made["state"])
        state = {**dict.fromkeys(order), **made["state"]}
        made = {**made, "state": copied(state, torch.device("cpu"))}
        for after in self._optimizer_state_dict_post_hooks.values():
            made = after(self, made) or made
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of the wrapped kind of optimizer, made while its state paged or not.

        Raises: what the wrapped optimizer raises; ModelError for a state dict of an optimizer of another kind.
        """
        self._unfinished.clear()
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        load_in_slices(self._layout, state_dict, self._state_of)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped optimizer has beyond an optimizer's own."""
        if name == "wrapped":
            raise AttributeError(name)
        found = getattr(self.wrapped, name)
        return partial(self._switch, name, found) if name in SWITCHES else found

    def _switch(self, name: str, method: Callable[[], object]) -> None:
        if name not in self._unfinished:
            held = [piece for piece in self._layout.pieces if piece.parameter in self.wrapped.state]
            self._unfinished[name] = Sweep(method, held, self._layout, quiet=False)
        self._finish(name)

    def _finish(self, name: str) -> None:
        with torch.no_grad():
            self._unfinished[name].run()
        del self._unfinished[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of the wrapped optimizer, and page as this one does."""
        self._layout.settle()
        own = [piece.parameter for piece in self._layout.pieces if piece.paged]
        layout = self._layout
        return _again, (self.wrapped, layout.budget, own, tuple(layout.shared), layout.page_size)

    def __repr__(self) -> str:
        return f"Paged({self.wrapped!r})"


def _again(
    wrapped: torch.optim.Optimizer, budget: int | None, own: list[nn.Parameter], shared: tuple[str, ...], page_size: int
) -> Paged:
    return Paged(wrapped, budget, parameters=own, shared=shared, page_size=page_size)
