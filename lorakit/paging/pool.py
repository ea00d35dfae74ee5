"""The pages of one device: which are near, which left longest ago, and what makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.errors import ModelError, WriteError
from lorakit.paging.links import Link, Mark
from lorakit.paging.pages import Page


@dataclass(slots=True)
class Traffic:
    """What moved so far: pages, and their bytes."""

    pages_in: int = 0
    pages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.pages_in + other.pages_in, self.pages_out + other.pages_out,
            self.bytes_in + other.bytes_in, self.bytes_out + other.bytes_out,
        )  # fmt: skip


class Pool:
    """Pages near and far, with at most `budget` bytes of them near; without one, as many as memory takes."""

    def __init__(self, link: Link, budget: int | None) -> None:
        self._link = link
        self._budget = budget
        self._pages: list[Page] = []
        # by last use, the least recent first
        self._near: OrderedDict[Page, None] = OrderedDict()
        self.traffic = Traffic()

    @property
    def near_bytes(self) -> int:
        """The bytes of the pages that are near."""
        return sum(page.size for page in self._near)

    @property
    def far_bytes(self) -> int:
        """The bytes of the pages that are far."""
        return sum(page.size for page in self._pages) - self.near_bytes

    def add(self, pages: Iterable[Page]) -> None:
        """Take pages in, and allocate what they need before any step does: near while the budget lasts, then far.

        Raises: ModelError if one is larger than the budget, WriteError if the far side has no room for what must leave.
        """
        fresh = list(pages)
        largest = max((page.size for page in fresh), default=0)
        if self._budget is not None and largest > self._budget:
            raise ModelError(
                f"paged: the budget of {self._budget:,} bytes has no room for a page of {largest:,}, which the state "
                "of one parameter needs; give at least that"
            )
        whole = sum(page.size for page in (*self._pages, *fresh))
        if self._budget is not None and whole > self._budget:
            self._reserve([*self._pages, *fresh])
        self._pages += fresh
        for page in fresh:
            if self._budget is None or self.near_bytes + page.size <= self._budget:
                try:
                    page.near = self._link.near.allocate(page.size)
                except torch.OutOfMemoryError:
                    break
                self._near[page] = None

    def drop(self, page: Page) -> None:
        """Give a page up, whose state lies elsewhere now."""
        self._pages.remove(page)
        self._near.pop(page, None)
        self._link.join(page.leaving)
        self._link.join(page.arriving)

    def bring(self, pages: Collection[Page]) -> None:
        """Let these pages be near, whatever leaves for them; what the device is asked next may use them.

        Raises: torch.OutOfMemoryError if there is no room even when all others are far, WriteError if those cannot go.
        """
        for page in pages:
            self._fetch(page, keep=pages, ahead=False)
        for page in pages:
            self._link.join(page.arriving)
            page.arriving, page.blank, page.stored = None, False, False

    def prefetch(self, pages: Iterable[Page], keep: Collection[Page]) -> None:
        """Start bringing pages in while those to keep are in use, as far as there is room."""
        arriving = [*keep]
        for page in pages:
            arriving.append(page)
            if not self._fetch(page, keep=arriving, ahead=True):
                break

    def page_out(self, keep: Collection[Page] = ()) -> int:
        """Send every page out but those to keep, and let go of their memory. Returns their bytes.

        Raises: WriteError if the far side has no room; what has not left is still near.
        """
        left = 0
        for page in [page for page in self._near if page not in keep]:
            # what is allocated next may lie where the page did
            self._link.join(self._send(page)[1])
            left += page.size
        return left

    def settle(self) -> None:
        """Wait until what was sent out has arrived."""
        for page in self._pages:
            if page.leaving is not None and page.near is None:
                self._link.settle(page.leaving)
                page.leaving = None

    def _fetch(self, page: Page, keep: Collection[Page], ahead: bool) -> bool:
        """Let a page be near or on its way; ahead of its use only where that takes no more than the budget."""
        if page in self._near:
            self._near.move_to_end(page)
            return True
        frame = self._frame(page.size, keep, ahead)
        if frame is None:
            return False
        memory, guard = frame
        if page.blank:
            self._link.join(guard)
        else:
            assert page.far is not None
            page.arriving = self._link.fetch(page.far, memory, (guard, page.leaving))
            self.traffic += Traffic(pages_in=1, bytes_in=page.size)
        page.near = memory
        self._near[page] = None
        page.point()
        return True

    def _frame(self, size: int, keep: Collection[Page], ahead: bool) -> tuple[Tensor, Mark] | None:
        """Return memory for a page, with the mark of the copy that may still use it."""
        while self._budget is not None and self.near_bytes + size > self._budget:
            oldest = next(self._leaving(keep), None)
            if oldest is None:
                if ahead:
                    return None
                raise torch.OutOfMemoryError(
                    f"paged: the budget of {self._budget:,} bytes has no room for another page of {size:,}"
                )
            frame = self._send(oldest)
            if oldest.size == size:
                return frame
            self._link.join(frame[1])
        try:
            return self._link.near.allocate(size), None
        except torch.OutOfMemoryError:
            same = next((page for page in self._leaving(keep) if page.size == size), None)
            if same is not None:
                return self._send(same)
            if ahead:
                return None
            self.page_out(keep)
            return self._link.near.allocate(size), None

    def _leaving(self, keep: Collection[Page]) -> Iterator[Page]:
        return (page for page in self._near if page not in keep)

    def _send(self, page: Page) -> tuple[Tensor, Mark]:
        """Start a page on its way out, if it has changed since it last was far. Returns the memory that it leaves."""
        memory, mark = page.near, page.arriving
        assert memory is not None
        if not (page.blank or page.stored):
            if page.far is None:
                self._reserve([page])
            assert page.far is not None
            mark = page.leaving = self._link.send(memory, page.far, (page.arriving, page.leaving))
            page.stored = True
            self.traffic += Traffic(pages_out=1, bytes_out=page.size)
        page.near, page.arriving = None, None
        del self._near[page]
        page.point()
        return memory, mark

    def _reserve(self, pages: Iterable[Page]) -> None:
        short = [page for page in pages if page.far is None]
        try:
            memory = [self._link.far.allocate(page.size) for page in short]
        except (OSError, torch.OutOfMemoryError) as error:
            wanted = sum(page.size for page in short)
            raise WriteError(
                f"paged: no room for {wanted:,} bytes of optimizer state to leave to: {error}; nothing has moved"
            ) from error
        for page, far in zip(short, memory, strict=True):
            page.far = far
