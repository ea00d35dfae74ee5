"""Plan and apply on a model of very many layers, against PEFT's get_peft_model on the same model in the same run.

    python benchmarks/many_modules.py [--modules 50000] [--rounds 1]

Each side runs in a process of its own, in turns: seconds of CPU time from the built model to the adapted one, which
other work on the machine does not stretch, and how far peak memory rose. Of several rounds the median counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8, bias=False)
        self.v_proj = nn.Linear(8, 8, bias=False)


class Deep(nn.Module):
    def __init__(self, modules: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(modules // 2))


def ours(model: nn.Module) -> None:
    import lorakit

    lorakit.apply(lorakit.plan("adapt q_proj,v_proj rank 4", model), model)


def theirs(model: nn.Module) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


SIDES = {"lorakit": ours, "peft": theirs}


def run(side: str, modules: int) -> None:
    """Measure one side in this process, its imports not counted, and print the figures as JSON."""
    SIDES[side](Deep(4))
    model = Deep(modules)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    SIDES[side](model)
    seconds = time.process_time() - start
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "rise_mib": rise}))


def compare(modules: int, rounds: int) -> None:
    """Print the figures of both sides, medians of what each gave in its rounds, and their ratios."""
    given: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--modules", str(modules), "--side", side]
            given[side].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    figures = {
        side: {name: statistics.median(one[name] for one in every) for name in every[0]}
        for side, every in given.items()
    }
    for side, one in figures.items():
        print(f"{modules:7,} modules  {side:8} {one['seconds']:7.2f} s {one['rise_mib']:7.0f} MiB")
    mine, peer = figures["lorakit"], figures["peft"]
    print(
        f"{modules:7,} modules  ratio    {mine['seconds'] / peer['seconds']:7.2f}   "
        f"{mine['rise_mib'] / peer['rise_mib']:7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modules", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.side:
        run(arguments.side, arguments.modules)
        return
    for modules in (arguments.modules // 4, arguments.modules):
        compare(modules, arguments.rounds)


if __name__ == "__main__":
    main()
