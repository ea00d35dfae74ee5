"""Pages, and the places in them where an optimizer's state tensors lie."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.paging.leaves import Leaf, Path
from lorakit.paging.links import Mark

# where tensors begin in a page, in bytes: as wide as the widest loads of kernels, and a multiple of every element
ALIGNMENT = 64
# what a page that is longer than others is a multiple of
UNIT = 64 << 10
# of how many pages a frame keeps the views: where steps go forth and back, few take turns in it
REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Form:
    """The shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Return the form of a tensor; one with holes or overlaps is laid out anew."""
        return cls(tuple(tensor.shape), torch.empty_like(tensor, device="meta").stride(), tensor.dtype)

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def room(self) -> int:
        """The bytes that it takes in a page."""
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT

    def view(self, memory: Tensor, offset: int) -> Tensor:
        """Return a tensor of this form that lies in memory."""
        return memory[offset : offset + self.bytes].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one state tensor in its page; `tensor` is the view that stands in the state, once there is one."""

    form: Form
    offset: int
    holder: Any = None
    key: Any = None
    tensor: Tensor | None = None

    def adopt(self, leaf: Leaf, memory: Tensor) -> None:
        """Copy a tensor into the page's memory, and let the state hold the view."""
        self.holder, self.key = leaf.holder, leaf.key
        view = self.form.view(memory, self.offset)
        view.copy_(leaf.tensor)
        self.tensor = self.holder[self.key] = view

    def point(self, view: Tensor) -> None:
        """Let the state hold the view into where the page lies, unless it holds something else by now."""
        if self._stands():
            self.tensor = self.holder[self.key] = view
        else:
            self.tensor = None

    def release(self, device: torch.device) -> None:
        """Let the state hold a copy on a device instead of the view."""
        if self._stands():
            assert self.tensor is not None
            self.holder[self.key] = self.tensor.to(device, copy=True)
        self.tensor = None

    def _stands(self) -> bool:
        """Return whether the state holds the view."""
        if self.tensor is None:
            return False
        try:
            return self.holder[self.key] is self.tensor
        except LookupError:
            return False


class Frame:
    """Memory for one page at a time, and the views into it of those that it held last."""

    __slots__ = ("_views", "memory")

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        # by the list of a page's slots, and not by the page, which may hold this frame
        self._views: OrderedDict[int, tuple[list[Slot], list[Tensor]]] = OrderedDict()

    def views(self, slots: list[Slot]) -> list[Tensor]:
        """Return the tensors of a page's slots, where the page lies here."""
        known = self._views.get(id(slots))
        if known is None:
            known = slots, [slot.form.view(self.memory, slot.offset) for slot in slots]
            self._views[id(slots)] = known
            if len(self._views) > REMEMBERED:
                self._views.popitem(last=False)
        return known[1]


@dataclass(slots=True, eq=False)
class Page:
    """Bytes that move together: near, where the optimizer steps, or far.

    `arriving` and `leaving` mark the last copy each way. A page is `blank` until it is first used, and `stored` while
    what is far is what it holds. `moves` counts how often it came to lie elsewhere.
    """

    size: int
    device: torch.device
    slots: list[Slot] = field(default_factory=list)
    near: Frame | None = None
    far: Frame | None = None
    arriving: Mark = None
    leaving: Mark = None
    blank: bool = True
    stored: bool = False
    moves: int = 0

    def point(self) -> None:
        """Let the state's tensors be views into where the page lies."""
        self.moves += 1
        frame = self.near or self.far
        if frame is not None:
            for slot, view in zip(self.slots, frame.views(self.slots), strict=True):
                slot.point(view)


@dataclass(slots=True, eq=False)
class Piece:
    """One parameter, with its page and the slots of its state by path; no page if its state stays where it is.

    `seen` says where every value of its state lay when all of it was in place: in a slot, or elsewhere as it is; `ids`
    are those of the values then, behind the moves of the page.
    """

    parameter: nn.Parameter
    paged: bool
    page: Page | None = None
    slots: dict[Path, Slot] = field(default_factory=dict)
    seen: Sequence[Slot | Tensor | None] = ()
    ids: Sequence[int] = ()

    def see(self, state: Mapping[str, Any]) -> None:
        """Note where the state's values lie, now that its tensors are in the slots."""
        nested = any(isinstance(value, dict | list | tuple) for value in state.values())
        self.seen = () if nested else [self._place(name, value) for name, value in state.items()]
        self.ids = ()

    def stands(self, state: Mapping[str, Any]) -> bool:
        """Return whether the state's tensors are where they were seen."""
        # ids tell tensors apart while they live, and until the page moves the slots keep them
        ids = (self.page.moves if self.page else 0, *map(id, state.values()))
        if ids == self.ids:
            return True
        stands = len(state) == len(self.seen) and all(
            value is (place.tensor if isinstance(place, Slot) else place) or type(value) in (int, float, bool)
            for value, place in zip(state.values(), self.seen, strict=True)
        )
        if stands:
            self.ids = ids
        return stands

    def _place(self, name: str, value: Any) -> Slot | Tensor | None:
        slot = self.slots.get((name,))
        if slot is not None and slot.tensor is value:
            # the view itself would keep the memory of a page that left
            return slot
        return value if isinstance(value, Tensor) else None

    @property
    def size(self) -> int:
        """The bytes that a step of it alone brings in, or takes: about two moments where nobody knows."""
        return self.page.size if self.page else 2 * self.parameter.numel() * self.parameter.element_size()


def pack(pieces: Iterable[tuple[Piece, Mapping[Path, Form]]], page_size: int) -> list[Page]:
    """Give the state of parameters its places, in their order; one that is larger than a page has a longer one.

    Returns the new pages, each of one device.
    """
    unit = min(UNIT, page_size)
    made: list[Page] = []
    open_pages: dict[torch.device, tuple[Page, int]] = {}
    for piece, forms in pieces:
        room = sum(form.room for form in forms.values())
        piece.page, piece.slots = None, {}
        if not room:
            continue
        device = piece.parameter.device
        page, used = open_pages.get(device, (None, 0))
        if page is None or used + room > page.size:
            page, used = Page(page_size if room <= page_size else -(-room // unit) * unit, device), 0
            made.append(page)
        piece.page = page
        for path, form in forms.items():
            piece.slots[path] = slot = Slot(form, used)
            page.slots.append(slot)
            used += form.room
        open_pages[device] = page, used
    return made
