"""In what order recorded operations may run so that those between two products stand together.

Levels are numbers: at even ones, what a compiler puts into few kernels; at odd ones, what is left as it is, such as
products. An operation is at the first level where all that it reads is there. What reads nothing that was computed
stays about where it was: dequantized weights would take memory for long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from lorakit.generating.recording import Operation, Recording, Value

# of aten, what libraries compute: compilers would call them too
LEFT = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "_scaled_dot_product", "_flash_attention",
    "_efficient_attention", "_grouped_mm", "_scaled_mm", "_int_mm", "_weight_int", "convolution", "sort", "topk",
    "nonzero", "unique", "bincount",
)  # fmt: skip

Levels = Mapping[int, Sequence[Operation]]


def levels(recording: Recording) -> Levels:
    """Return operations by level, each level's in the order that they ran in."""
    # by whose memory: where it was written last, and where it was read since
    written: dict[Value, int] = {}
    read: dict[Value, int] = defaultdict(int)
    made = {one for operation in recording.operations for one in operation.results if one is not None}
    made -= recording.found.keys()
    placed: dict[int, list[Operation]] = defaultdict(list)
    latest = 0
    for operation in recording.operations:
        bases = {recording.base(value) for value in operation.read}
        after = [written[base] for base in bases if base in written]
        after += [read[recording.base(value)] for value in operation.written]
        if not any(base in made for base in bases):
            after.append(latest & ~1)
        least = max(after, default=0)
        latest = level = least + (least % 2 != is_left(operation, recording))
        for base in bases:
            read[base] = max(read[base], level)
        for value in (*operation.written, *(one for one in operation.results if one is not None)):
            written[recording.base(value)] = level
        placed[level].append(operation)
    return dict(sorted(placed.items()))


def is_left(operation: Operation, recording: Recording) -> bool:
    """Return whether an operation runs as it is."""
    function = operation.function
    values = [*operation.read, *(one for one in operation.results if one is not None)]
    return (
        function.namespace not in ("aten", "prims")
        or function._schema.name.partition("::")[2].startswith(LEFT)
        or torch.Tag.nondeterministic_seeded in function.tags
        or torch.Tag.dynamic_output_shape in function.tags
        or not all(recording.forms[value].is_plain for value in values)
    )
