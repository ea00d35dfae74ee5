"""What a compiled block keeps for its backward pass, and what it computes again there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy


class Partitioner(CustomPartitionerFn):
    """Torch's own, which writes merged weights again where it would keep them."""

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **given: Any) -> Any:
        for node in gm.graph.nodes:
            if node.target is torch.ops.lorakit.merged_4bit.default:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
                node.meta["ac_graph_id"] = 0
        return min_cut_rematerialization_partition(gm, joint_inputs, **given)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))
