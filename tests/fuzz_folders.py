"""Mutations of adapter folders: `python fuzz_folders.py 5000 [SEED]` prints how many were tried and what was found.

A folder that is read ends in a model that computes, or in a LorakitError of a screen with the model as it was.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

import lorakit
from lorakit.artifacts.inspection import inspect_adapter
from lorakit.planning.plan import Plan

CONFIG, PLAN, WEIGHTS = "adapter_config.json", "plan.json", "adapter_model.safetensors"
MAX_CHARACTERS = 8_000
# processor time of one folder, with room for a machine that is busy
SECONDS = 1.0

DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn,
    torch.complex64,
)  # fmt: skip
DEEP = json.loads("[" * 400 + "]" * 400)
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e38, 1e39, 1e308, math.inf, -math.inf, math.nan, 2**31, 2**63,
    10**30, 10**400, "", "x", "x" * 100_000, "\ud800", "\x00", "é", "[" * 50, "../..", "float64",
    "float16", "bfloat16", "float8_e4m3fn", "F8_E4M3", "linear", "linear_transposed", "embedding", "stack", "int8",
    "layers.1", "layers.0", "norm", "norm.weight", "layers.9", "lora_A", "lora_B", "bias", "weight", "adapter", "none",
    "standard", "kaiming", "zeros", "lora", "vera", "adamw", "sgd", "strength", "base_layer", "lora_B.weight",
    "F64", "I64", "C64", "F4", "([a-z0-9_.]+)+!", "*a" * 30, "0", "1", "nf4", "gaussian", "dora", "LORA", "rslora",
    "base_model.model.0", [], {}, [1], [0, -1], [[]], {"a": 1}, {"lora": 1}, {"(": 1}, {"(a*)*b": 2}, DEEP,
]  # fmt: skip


class Small(nn.Module):
    """Two linear layers, of which one is in a numbered container, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 6, bias=False)])
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layers[1](self.layers[0](x)))


SPECS = (
    "adapt layers[0..1] rank 2 alpha 8\ntrain norm",
    "adapt layers[0] rank 2 alpha 3 dropout 0.1\nadapt layers[1] rank 3 scaling rslora lr_ratio 4",
    "adapt layers[0..1] rank 2 quant int8\noptimizer adamw lr 1e-3",
)


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def folders(root: Path) -> Iterator[Path]:
    """Yield the folders to begin with: each spec's as lorakit writes it, and the first two as PEFT would."""
    for number, spec in enumerate(SPECS):
        model = lorakit.apply(spec, small())
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.fill_(0.1)
        folder = lorakit.save(model, root / f"own{number}")
        yield folder
        if number < 2:
            bare = root / f"peft{number}"
            bare.mkdir()
            for name in (CONFIG, WEIGHTS):
                (bare / name).write_bytes((folder / name).read_bytes())
            yield bare


def mutated(data: bytes, name: str, dice: random.Random) -> bytes:
    """Return a file's bytes with something else in them."""
    if dice.random() < 0.15:
        return _bytes(data, dice)
    if name != WEIGHTS:
        return _text(_json(json.loads(data), dice))
    if dice.random() < 0.6:
        return _tensors(load(data), dice)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    written = _text(_json(header, dice))
    return struct.pack("<Q", len(written)) + written + (_bytes(body, dice) if dice.random() < 0.2 else body)


def _tensors(tensors: dict[str, torch.Tensor], dice: random.Random) -> bytes:
    """Return a sound file that holds other tensors."""
    for _ in range(dice.randint(1, 2)):
        name = dice.choice(list(tensors))
        match dice.randint(0, 6):
            case 0 if len(tensors) > 1:
                del tensors[name]
            case 1:
                endings = (
                    "lora_A.weight",
                    "lora_B.weight",
                    "lora_embedding_A",
                    "weight",
                    "bias",
                    "base_layer.bias",
                    "",
                )
                start = dice.choice(("base_model.model.", "base_model.", "", ".", name, f"{name.rpartition('.')[0]}."))
                path = dice.choice(
                    ("", "norm.", "layers.", "layers.0.", "layers.1.", "layers.9.", "layers.0.base_layer.")
                )
                tensors[start + path + dice.choice(endings)] = tensors[name].clone()
            case 2:
                tensors[name] = tensors[name].to(dice.choice(DTYPES))
            case 3:
                shape = dice.choice(
                    ((), (0,), (1,), (2,), (0, 8), (8, 0), (1, 8), (3, 8), (8, 3), (2, 8, 1), (2, 2, 2, 2))
                )
                tensors[name] = torch.ones(shape)
            case 4 if tensors[name].is_floating_point():
                tensors[name] = torch.full(tensors[name].shape, dice.choice((math.nan, math.inf, 1e30, 3e38)))
            case 5:
                tensors[name] = tensors[name].flatten().contiguous()
            case _:
                other = dice.choice(list(tensors))
                tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
    return save(tensors)


def _text(value: Any) -> bytes:
    text = json.dumps(value)
    # Python's json writes no number of so many digits, and reads none
    return text.replace('"digits"', "9" * 5_000).encode()


def _bytes(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randint(0, max(len(changed) - 1, 0))
        match dice.randint(0, 4):
            case 0 if changed:
                changed[place] ^= 1 << dice.randint(0, 7)
            case 1:
                del changed[place : place + dice.choice((1, 8, 100))]
            case 2:
                del changed[place:]
            case 3:
                changed[place:place] = bytes(dice.choices(range(256), k=dice.choice((1, 8))))
            case _:
                changed[place:place] = changed[place : place + 40]
    return bytes(changed)


def _json(value: Any, dice: random.Random) -> Any:
    for _ in range(dice.choice((1, 1, 1, 2))):
        places = list(_places(value))
        if not places:
            return dice.choice(VALUES)
        holder, key = dice.choice(places)
        match dice.randint(0, 6):
            case 0:
                del holder[key]
            case 1:
                other, there = dice.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    holder[key], other[there] = other[there], holder[key]
            case 2 if isinstance(holder, dict):
                holder[dice.choice(["x", "", "\ud800", "x" * 5_000, *holder])] = dice.choice(VALUES)
            case 3 if isinstance(holder, list):
                holder.insert(key, dice.choice(VALUES))
            case 4 if type(holder[key]) in (int, float):
                holder[key] = holder[key] * dice.choice((-1, 0, 2, 0.5, 10**9))
            case 5 if dice.random() < 0.1:
                holder[key] = "digits"
            case _:
                alike = [one for one in VALUES if type(one) is type(holder[key])]
                holder[key] = dice.choice(alike if alike and dice.random() < 0.7 else VALUES)
        # a value may now stand at two places
        value = json.loads(json.dumps(value))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if inner is not DEEP:
            yield value, key
            yield from _places(inner) if not isinstance(inner, list) or len(inner) != 1 else ()


def uses(folder: Path) -> dict[str, Callable[[nn.Module], object]]:
    """Return what may be done with a folder, by name."""

    def loaded(model: nn.Module) -> object:
        return lorakit.load(folder, model)

    def inspected(model: nn.Module) -> object:
        return inspect_adapter(folder)

    def planned(model: nn.Module) -> object:
        return lorakit.apply(Plan.from_json((folder / PLAN).read_text("utf-8", "surrogateescape")), model)

    found: dict[str, Callable[[nn.Module], object]] = {"load": loaded, "inspect": inspected}
    return found | ({"apply": planned} if (folder / PLAN).exists() else {})


def faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with how a folder is taken."""
    for use, call in uses(folder).items():
        model = small()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modules = [type(module) for module in model.modules()]
        begun = time.process_time()
        try:
            done = call(model)
        except lorakit.LorakitError as error:
            if len(str(error)) > MAX_CHARACTERS or not str(error).strip():
                yield f"{use}: the message has {len(str(error))} characters"
            after = model.state_dict()
            if [type(module) for module in model.modules()] != modules or before.keys() != after.keys():
                yield f"{use}: the model has other modules, after {error}"
            elif not all(torch.equal(value, after[name]) for name, value in before.items()):
                yield f"{use}: the model has other weights, after {error}"
        except Exception:
            yield f"{use}: {traceback.format_exc()}"
        else:
            if isinstance(done, nn.Module):
                yield from _broken(use, done)
        if (spent := time.process_time() - begun) > SECONDS:
            yield f"{use}: took {spent:.1f} s"


def _broken(use: str, model: nn.Module) -> Iterator[str]:
    try:
        # a plan may say what the model computes in, and that nothing trains
        x = torch.ones(2, 8, dtype=model.layers[0].weight.dtype)  # type: ignore[union-attr, index]
        if (y := model(x).sum()).requires_grad:
            y.backward()
        lorakit.merge(model)
    except lorakit.LorakitError:
        pass
    except Exception:
        yield f"{use}, then a step: {traceback.format_exc()}"


def fuzz(count: int, seed: int, place: Path) -> Iterator[tuple[str, bytes, str]]:
    """Try so many mutations; yield the folder and file, the file's bytes, and what went wrong."""
    dice, root = random.Random(seed), place
    known = list(folders(root))
    contents = {path: path.read_bytes() for folder in known for path in folder.iterdir()}
    for _ in range(count):
        folder = dice.choice(known)
        path = folder / dice.choice([name for name in (CONFIG, PLAN, WEIGHTS) if (folder / name) in contents])
        data = mutated(contents[path], path.name, dice)
        path.write_bytes(data)
        for fault in faults(folder):
            yield f"{folder.name}/{path.name}", data, fault
        path.write_bytes(contents[path])


def every_value(folder: Path, name: str) -> Iterator[tuple[str, bytes, str]]:
    """Put every value in every place of a JSON file; yield as `fuzz` does."""
    path = folder / name
    data = path.read_bytes()
    for number in range(len(list(_places(json.loads(data))))):
        for one in VALUES:
            value = json.loads(data)
            holder, key = list(_places(value))[number]
            holder[key] = one
            path.write_bytes(_text(value))
            for fault in faults(folder):
                yield f"{folder.name}/{name}", _text(value), fault
    path.write_bytes(data)


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        for where, data, fault in fuzz(count, seed, Path(place)):
            kind = fault.strip().splitlines()[-1][:100]
            kinds[kind] += 1
            if kinds[kind] == 1:
                found = Path(tempfile.gettempdir()) / f"found-{len(kinds)}"
                found.write_bytes(data)
                print(f"{where} in {found}: {fault[-1500:]}", flush=True)
    print(f"{count} mutations, {sum(kinds.values())} faults")
    for kind, number in kinds.most_common():
        print(number, kind)
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()
