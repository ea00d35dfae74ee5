"""One call of an optimizer, such as its step, made on a few parameters at a time while others' pages move."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.paging.layout import COPIED, SLICE, Layout, pages_of
from lorakit.paging.pages import Page, Piece
from lorakit.paging.scene import Scene, narrowed
from lorakit.paging.undo import Undo, Untouched

logger = logging.getLogger(__name__)
HALFWAY = (
    "paged: the optimizer's step failed half-way, with some parameters changed and others not, where no step before "
    "had asked for memory; go on from the last checkpoint"
)


class Sweep:
    """A call that goes on where it stopped: what is done is done once, and what failed is as if never begun.

    A `quiet` call asks for no memory but for what it keeps from then on. So nothing is copied for its sake, and where
    nothing has to move it is made as a whole.
    """

    def __init__(self, call: Callable[[], object], pieces: Sequence[Piece], layout: Layout, *, quiet: bool) -> None:
        self._call = call
        self._layout = layout
        self._scene = Scene(layout.optimizer)
        layout.follow()
        # no page comes in ahead any more once memory ran short
        self._short = False
        self._quiet = quiet and all(piece.parameter in layout.optimizer.state for piece in pieces)
        self._whole = self._quiet and all(page.near for page in pages_of(pieces))
        # what is left to do, in slices; groups may count the steps in which nothing has a gradient, too
        self._left = [pieces] if self._whole else layout.slices(pieces, SLICE if self._quiet else COPIED) or [()]
        # whether a call failed that had changed something by then
        self._broken = False

    def run(self) -> None:
        """Do what is left.

        Raises: what the call raises, torch.OutOfMemoryError where it fails for one parameter alone and every other
        page is out; ModelError if the parts of the call do not agree, or a quiet one ran out of memory half-way.
        Everything up to there is done.
        """
        if self._broken:
            raise ModelError(HALFWAY)
        coming = list(dict.fromkeys(page for pieces in self._left[1:] for page in pages_of(pieces)))
        while self._left:
            first, failed = self._left[0], False
            try:
                self._do(first, coming)
            except torch.OutOfMemoryError:
                # what the failed call holds is let go of first
                failed = True
            if failed:
                self._short = True
                moved = self._layout.page_out()
                logger.info("paged: memory ran short in a step; %s bytes of optimizer state left it", f"{moved:,}")
                if len(first) > 1:
                    self._whole = False
                    self._left[:1] = [(piece,) for piece in first]
                    continue
                self._do(first, coming)
            del self._left[0]

    def _do(self, pieces: Sequence[Piece], coming: list[Page]) -> None:
        pages = pages_of(pieces)
        self._layout.bring(pieces)
        if coming and not self._short:
            # the call takes a while on the device, and what comes next arrives meanwhile
            del coming[: next((index for index, page in enumerate(coming) if page not in pages), len(coming))]
            self._layout.prefetch((page for page in coming if page.near is None), keep={*pages, *coming})
        undo = (Untouched if self._quiet else Undo)(pieces, pages, self._layout.optimizer.state)
        self._scene.set()
        try:
            with nullcontext() if self._whole else self._narrowed(pieces):
                self._call()
            self._layout.adopt(pieces)
            if difference := self._scene.differing():
                raise ModelError(f"paged: {type(self._layout.optimizer).__name__} couples parameters: {difference}")
        except BaseException as error:
            self._broken = not undo.restore()
            self._scene.set()
            if self._broken and isinstance(error, torch.OutOfMemoryError):
                raise ModelError(HALFWAY) from error
            raise

    @cached_property
    def _places(self) -> dict[nn.Parameter, tuple[int, int]]:
        """The group of each parameter, and its place in it."""
        return {
            parameter: (number, index)
            for number, group in enumerate(self._layout.optimizer.param_groups)
            for index, parameter in enumerate(group["params"])
        }

    def _narrowed(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        """Let the groups hold these parameters alone, in their order."""
        groups = self._layout.optimizer.param_groups
        members: list[list[nn.Parameter]] = [[] for _ in groups]
        for parameter in sorted((piece.parameter for piece in pieces), key=self._places.__getitem__):
            members[self._places[parameter][0]].append(parameter)
        return narrowed(groups, members)
