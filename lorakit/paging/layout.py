"""Which page holds which parameter's state, and the slices in which an optimizer goes through its parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lorakit.dtypes import dtype_of
from lorakit.errors import ModelError
from lorakit.paging.leaves import Leaf, Path, leaves
from lorakit.paging.links import Link
from lorakit.paging.pages import UNIT, Form, Page, Piece, pack
from lorakit.paging.pool import Pool, Traffic

# bytes: small enough that little waits behind a page, large enough that a link is busy; moments are often of sizes that
# fill four MiB, and counters lie beside them
PAGE = (4 << 20) + (64 << 10)
# the most state that one slice of a step takes: while it is computed, others' comes and goes
SLICE = 64 << 20
# and where it is copied, in case the step fails
COPIED = 16 << 20

# the tensors that an optimizer keeps for a parameter, as `OptimizerFactory.state` has them
State = Callable[[nn.Parameter], Mapping[str, tuple[tuple[int, ...], str]]]


def page_for(budget: int | None) -> int:
    """Return the size of a page, of which a small budget has room for several."""
    return PAGE if budget is None else max(UNIT, min(PAGE, budget // 4 // UNIT * UNIT))


class Layout:
    """The parameters of an optimizer, the pages of their state, and a pool of pages for each device."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        budget: int | None,
        page_size: int,
        link: Callable[[torch.device], Link],
        shared: Collection[str] = (),
    ) -> None:
        self.shared = shared
        self.optimizer = optimizer
        self.budget = budget
        self.page_size = page_size
        self._link = link
        self._pools: dict[torch.device, Pool] = {}
        self._pieces: dict[nn.Parameter, Piece] = {}

    @property
    def pieces(self) -> list[Piece]:
        """Every parameter, in the order of the groups."""
        return list(self._pieces.values())

    @property
    def traffic(self) -> Traffic:
        """What moved so far, on all devices."""
        pools = self._pools.values()
        return sum((pool.traffic for pool in pools), Traffic(stalled=sum(pool.stalled for pool in pools)))

    @property
    def near_bytes(self) -> int:
        """The bytes of pages on the devices."""
        return sum(pool.near_bytes for pool in self._pools.values())

    @property
    def far_bytes(self) -> int:
        """The bytes of pages elsewhere."""
        return sum(pool.far_bytes for pool in self._pools.values())

    def add(self, parameters: Iterable[nn.Parameter], paged: Collection[nn.Parameter], state: State) -> None:
        """Take parameters in, and allocate pages for what the optimizer will keep for those that page.

        Raises: ModelError for a parameter that is no plain tensor, such as a sharded one, and ModelError and WriteError
        as `Pool.add` does.
        """
        fresh = [Piece(parameter, parameter in paged) for parameter in parameters]
        for piece in fresh:
            if piece.paged and type(piece.parameter.data) is not Tensor:
                named = type(piece.parameter.data).__name__
                raise ModelError(
                    f"paged: a parameter is a {named}, whose state no page can hold; step it without paging"
                )
        self._place([(piece, self._forms(piece.parameter, state)) for piece in fresh if piece.paged])
        self._pieces |= {piece.parameter: piece for piece in fresh}
        for piece in fresh:
            if piece.parameter in self.optimizer.state:
                self.bring([piece])
                self.adopt([piece])

    def bring(self, pieces: Sequence[Piece]) -> None:
        """Let the state of these parameters be near. Raises: torch.OutOfMemoryError, WriteError."""
        for pool, pages in self.by_pool(pages_of(pieces)).items():
            pool.bring(pages)

    def prefetch(self, pages: Iterable[Page], keep: Collection[Page]) -> None:
        """Start bringing pages in, in order, as far as there is room or pages not to keep make some."""
        for pool, own in self.by_pool(pages).items():
            pool.prefetch(own, keep)

    def follow(self) -> None:
        """Let the state of parameters that moved to another device move there too, into pages of that device."""
        moved = [piece for piece in self._pieces.values() if piece.page and piece.page.device != piece.parameter.device]
        if not moved:
            return
        self.settle()
        forms = [(piece, {path: slot.form for path, slot in piece.slots.items()}) for piece in moved]
        for piece in moved:
            for slot in piece.slots.values():
                slot.release(piece.parameter.device)
            self._leave(piece)
        self._place(forms)
        for held in self.slices([piece for piece in moved if piece.parameter in self.optimizer.state]):
            self.bring(held)
            self.adopt(held)

    def adopt(self, pieces: Iterable[Piece]) -> None:
        """Let what the optimizer keeps for parameters whose pages are near lie in those pages."""
        members = list(pieces)
        misfits: list[tuple[Piece, dict[Path, Leaf]]] = []
        for piece in members:
            state = self.optimizer.state.get(piece.parameter)
            if not piece.paged or state is None or piece.stands(state):
                continue
            found = {leaf.path: leaf for leaf in self._leaves(piece.parameter)}
            new = [leaf for path, leaf in found.items() if not _stands(piece, path, leaf)]
            if all(leaf.path in piece.slots and piece.slots[leaf.path].form == Form.of(leaf.tensor) for leaf in new):
                self._take(piece, new)
                piece.see(state)
            else:
                misfits.append((piece, found))
        if misfits:
            self._replace(misfits, keep=members)

    def slices(self, pieces: Sequence[Piece], most: int = SLICE) -> list[Sequence[Piece]]:
        """Return parameters in order, as many together as a slice of so many bytes takes, but one at least."""
        limit = min(most, self.budget // 3) if self.budget is not None else most
        made: list[Sequence[Piece]] = []
        current: list[Piece] = []
        pages: set[Page] = set()
        size = 0
        for piece in pieces:
            more = 0 if piece.page in pages else piece.size
            if current and size + more > limit:
                made.append(current)
                current, pages, size, more = [], set(), 0, piece.size
            current.append(piece)
            size += more
            if piece.page:
                pages.add(piece.page)
        return [*made, *[current] * bool(current)]

    def by_pool(self, pages: Iterable[Page]) -> dict[Pool, list[Page]]:
        """Return pages by the pool that holds them."""
        found: dict[Pool, list[Page]] = {}
        for page in pages:
            found.setdefault(self._pools[page.device], []).append(page)
        return found

    def page_out(self) -> int:
        """Send every page out. Returns their bytes."""
        return sum(pool.page_out() for pool in self._pools.values())

    def settle(self) -> None:
        """Wait until what was sent out has arrived."""
        for pool in self._pools.values():
            pool.settle()

    def _forms(self, parameter: nn.Parameter, state: State) -> dict[Path, Form]:
        forms: dict[Path, Form] = {}
        declared = {name: tensor for name, tensor in state(parameter).items() if name not in self.shared}
        for name, (shape, dtype) in declared.items():
            like = parameter if tuple(shape) == tuple(parameter.shape) else torch.empty(shape, device="meta")
            forms[name,] = Form.of(like.detach().to("meta", dtype_of(dtype)))
        return forms | {leaf.path: Form.of(leaf.tensor) for leaf in self._leaves(parameter)}

    def _leaves(self, parameter: nn.Parameter) -> Iterator[Leaf]:
        """Yield what the optimizer keeps for a parameter alone, on its device."""
        held = leaves(self.optimizer.state.get(parameter, {}), parameter.device)
        return (leaf for leaf in held if leaf.path[0] not in self.shared)

    def _place(self, pieces: Sequence[tuple[Piece, Mapping[Path, Form]]]) -> None:
        pages: dict[torch.device, list[Page]] = {}
        for page in pack(pieces, self.page_size):
            pages.setdefault(page.device, []).append(page)
        for device, fresh in pages.items():
            if device not in self._pools:
                self._pools[device] = Pool(self._link(device), self.budget)
            self._pools[device].add(fresh)

    def _take(self, piece: Piece, found: Iterable[Leaf]) -> None:
        for leaf in found:
            assert piece.page is not None and piece.page.near is not None
            piece.slots[leaf.path].adopt(leaf, piece.page.near.memory)

    def _replace(self, misfits: Sequence[tuple[Piece, Mapping[Path, Leaf]]], keep: Sequence[Piece]) -> None:
        """Give other pages to what the optimizer keeps otherwise than was known."""
        for piece, _ in misfits:
            self._leave(piece)
        forms = {
            piece.parameter: {path: Form.of(leaf.tensor) for path, leaf in found.items()} for piece, found in misfits
        }
        self._place([(piece, forms[piece.parameter]) for piece, _ in misfits])
        self.bring(keep)
        for piece, found in misfits:
            self._take(piece, found.values())

    def _leave(self, piece: Piece) -> None:
        """Take a parameter out of its page, and give the page up if it was the last."""
        if (page := piece.page) is not None:
            gone = {id(slot) for slot in piece.slots.values()}
            page.slots = [slot for slot in page.slots if id(slot) not in gone]
            if not page.slots:
                self._pools[page.device].drop(page)


def pages_of(pieces: Iterable[Piece]) -> list[Page]:
    """Return the pages of parameters, each once."""
    return list(dict.fromkeys(piece.page for piece in pieces if piece.page))


def _stands(piece: Piece, path: Path, leaf: Leaf) -> bool:
    """Return whether the state holds the very view into its page."""
    slot = piece.slots.get(path)
    return slot is not None and slot.tensor is leaf.tensor
