"""One call of an optimizer, such as its step, made on a few parameters at a time while others' pages move."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from lorakit.errors import ModelError
from lorakit.paging.layout import Layout, pages_of
from lorakit.paging.pages import Piece
from lorakit.paging.scene import Scene, narrowed
from lorakit.paging.undo import Undo

logger = logging.getLogger(__name__)


class Sweep:
    """A call that goes on where it stopped: what is done is done once, and what failed is as if never begun."""

    def __init__(self, call: Callable[[], object], pieces: Sequence[Piece], layout: Layout) -> None:
        self._call = call
        self._layout = layout
        self._scene = Scene(layout.optimizer)
        layout.follow()
        # no page comes in ahead any more once memory ran short
        self._short = False
        # what is left to do, in slices
        self._left = layout.slices(pieces)
        if not self._left:
            # groups may count the steps in which nothing has a gradient, too
            self._left = [()]

    def run(self) -> None:
        """Do what is left.

        Raises: what the call raises, torch.OutOfMemoryError where it fails for one parameter alone and every other
        page is out; ModelError if the parts of the call do not agree. Everything up to there is done.
        """
        while self._left:
            first, failed = self._left[0], False
            try:
                self._do(first)
            except torch.OutOfMemoryError:
                # what the failed call holds is let go of first
                failed = True
            if failed:
                self._short = True
                moved = self._layout.page_out()
                logger.info("paged: memory ran short in a step; %s bytes of optimizer state left it", f"{moved:,}")
                if len(first) > 1:
                    self._left[:1] = [(piece,) for piece in first]
                    continue
                self._do(first)
            del self._left[0]

    def _do(self, pieces: Sequence[Piece]) -> None:
        self._layout.bring(pieces)
        if len(self._left) > 1 and not self._short:
            # the call takes a while on the device, and what comes next arrives meanwhile
            self._layout.prefetch(self._left[1], keep=pieces)
        undo = Undo(pieces, pages_of(pieces), self._layout.optimizer.state)
        self._scene.set()
        try:
            with narrowed(self._layout.optimizer.param_groups, [piece.parameter for piece in pieces]):
                self._call()
            self._layout.adopt(pieces)
            if difference := self._scene.differing():
                raise ModelError(f"paged: {type(self._layout.optimizer).__name__} couples parameters: {difference}")
        except BaseException:
            undo.restore()
            self._scene.set()
            raise
