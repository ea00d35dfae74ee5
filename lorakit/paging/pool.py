"""The pages of one device: which are near, which left longest ago, and what makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lorakit.errors import ModelError, WriteError
from lorakit.paging.links import Link, Mark
from lorakit.paging.pages import Frame, Page


@dataclass(slots=True)
class Traffic:
    """What moved so far: pages, their bytes, and for how many seconds the device waited for copies."""

    pages_in: int = 0
    pages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stalled: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.pages_in + other.pages_in, self.pages_out + other.pages_out,
            self.bytes_in + other.bytes_in, self.bytes_out + other.bytes_out, self.stalled + other.stalled,
        )  # fmt: skip


# bytes after which copies each way begin
CHUNK = 16 << 20
# pages that must make room, each with the frame that it leaves
Leaving = list[tuple[Page, Frame]]


class Pool:
    """Pages near and far, with at most `budget` bytes of them near; without one, as many as memory takes."""

    def __init__(self, link: Link, budget: int | None) -> None:
        self._link = link
        self._budget = budget
        self._pages: list[Page] = []
        # by last use, the least recent first
        self._near: OrderedDict[Page, None] = OrderedDict()
        # the bytes of the pages that are near
        self.near_bytes = 0
        self.traffic = Traffic()

    @property
    def stalled(self) -> float:
        """The seconds that the device waited for copies so far."""
        return self._link.stalled

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
                    self._enter(page, Frame(self._link.near.allocate(page.size)))
                except torch.OutOfMemoryError:
                    break

    def drop(self, page: Page) -> None:
        """Give a page up, whose state lies elsewhere now."""
        self._pages.remove(page)
        if page in self._near:
            del self._near[page]
            self.near_bytes -= page.size
        self._link.join(page.leaving)
        self._link.join(page.arriving)

    def bring(self, pages: Sequence[Page]) -> None:
        """Let these pages be near, whatever leaves for them; what the device is asked next may use them.

        Raises: torch.OutOfMemoryError if there is no room even when all others are far, WriteError if those cannot go.
        """
        self._fetch(pages, keep=set(pages), ahead=False)
        for mark in {page.arriving for page in pages if page.arriving is not None}:
            self._link.join(mark)
        for page in pages:
            self._near.move_to_end(page)
            page.arriving, page.blank, page.stored = None, False, False

    def prefetch(self, pages: Iterable[Page], keep: Collection[Page]) -> None:
        """Start bringing pages in, in order, as far as there is room or pages not to keep make some."""
        self._fetch(pages, keep, ahead=True)

    def page_out(self, keep: Collection[Page] = ()) -> int:
        """Send every page out but those to keep, and let go of their memory. Returns their bytes.

        Raises: WriteError if the far side has no room; what has not left is still near.
        """
        leaving: Leaving = []
        try:
            for page in [page for page in self._near if page not in keep]:
                self._leave(page, leaving)
        finally:
            left = sum(page.size for page, _ in leaving)
            self._let_go(leaving)
        return left

    def settle(self) -> None:
        """Wait until what was sent out has arrived."""
        for page in self._pages:
            if page.leaving is not None and page.near is None:
                self._link.settle(page.leaving)
                page.leaving = None

    def _enter(self, page: Page, frame: Frame) -> None:
        page.near = frame
        self._near[page] = None
        self.near_bytes += page.size

    def _leave(self, page: Page, leaving: Leaving) -> Frame:
        """Take a page out of its frame, for others once it is sent."""
        if page.far is None and not page.blank:
            self._reserve([page])
        frame, page.near = page.near, None
        assert frame is not None
        del self._near[page]
        self.near_bytes -= page.size
        leaving.append((page, frame))
        return frame

    def _fetch(self, pages: Iterable[Page], keep: Collection[Page], ahead: bool) -> None:
        """Let pages be near or on their way; ahead of their use only where that takes no more than the budget."""
        leaving: Leaving = []
        coming: list[Page] = []
        try:
            for page in pages:
                if page in self._near:
                    continue
                frame = self._frame(page.size, keep, ahead, leaving)
                if frame is None:
                    break
                self._enter(page, frame)
                coming.append(page)
                # what comes in need not wait for all that goes out
                if len(coming) * page.size >= CHUNK:
                    self._exchange(leaving, coming)
        finally:
            self._exchange(leaving, coming)

    def _exchange(self, leaving: Leaving, coming: list[Page]) -> None:
        """Start pages on their way out, and others on their way in behind them."""
        self._receive(coming, self._send(leaving))
        leaving.clear()
        coming.clear()

    def _frame(self, size: int, keep: Collection[Page], ahead: bool, leaving: Leaving) -> Frame | None:
        """Return a frame for a page, which those that leave may have to be sent from first."""
        while self._budget is not None and self.near_bytes + size > self._budget:
            oldest = next(self._going(keep), None)
            if oldest is None:
                if ahead:
                    return None
                raise torch.OutOfMemoryError(
                    f"paged: the budget of {self._budget:,} bytes has no room for another page of {size:,}"
                )
            frame = self._leave(oldest, leaving)
            if oldest.size == size:
                return frame
            del frame
            self._let_go(leaving)
        try:
            return Frame(self._link.near.allocate(size))
        except torch.OutOfMemoryError:
            same = next((page for page in self._going(keep) if page.size == size), None)
        if same is not None:
            return self._leave(same, leaving)
        if ahead:
            return None
        self._let_go(leaving)
        self.page_out(keep)
        return Frame(self._link.near.allocate(size))

    def _going(self, keep: Collection[Page]) -> Iterator[Page]:
        """Yield the pages that may leave."""
        return (page for page in self._near if page not in keep)

    def _send(self, leaving: Leaving) -> set[Mark]:
        """Start pages on their way out, where they changed since they last were far.

        Returns the marks of the copies that may still use the frames.
        """
        changed = [(page, frame) for page, frame in leaving if not (page.blank or page.stored)]
        marks = {page.arriving for page, _ in leaving if page.blank or page.stored}
        if changed:
            copies = [(frame.memory, page.far.memory) for page, frame in changed if page.far is not None]
            mark = self._link.send(copies, {one for page, _ in changed for one in (page.arriving, page.leaving)})
            marks.add(mark)
            for page, _ in changed:
                page.leaving, page.stored = mark, True
            self.traffic += Traffic(pages_out=len(changed), bytes_out=sum(page.size for page, _ in changed))
        for page, _ in leaving:
            page.arriving = None
            page.point()
        return marks

    def _receive(self, coming: Sequence[Page], guards: set[Mark]) -> None:
        """Start pages on their way into their frames, once those may be used."""
        stored = [page for page in coming if not page.blank]
        if stored:
            copies = [(page.far.memory, page.near.memory) for page in stored if page.far and page.near]
            mark = self._link.fetch(copies, guards | {page.leaving for page in stored})
            for page in stored:
                page.arriving = mark
            self.traffic += Traffic(pages_in=len(stored), bytes_in=sum(page.size for page in stored))
        if len(stored) < len(coming):
            for guard in guards:
                self._link.join(guard)
        for page in coming:
            page.point()

    def _let_go(self, leaving: Leaving) -> None:
        """Send pages, and give their frames back: what is allocated next may lie where they did."""
        for mark in self._send(leaving):
            self._link.join(mark)
        leaving.clear()

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
            page.far = Frame(far)
