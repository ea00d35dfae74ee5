"""What every word of the language means: the one place that hover and completion take it from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word of the language: how it is written with what belongs to it, and what it says."""

    form: str
    meaning: str


KEYWORDS: Mapping[str, Keyword] = {
    "adapt": Keyword(
        "adapt TARGETS clause…",
        "Attaches an adapter to every module that the targets select. A later `adapt` rule that selects a module "
        "replaces this one there, whole.",
    ),
    "quantize": Keyword(
        "quantize TARGETS NAME[(options)] [double]",
        "Quantizes frozen modules without adapting them. It leaves alone what an `adapt` or a `train` rule decides.",
    ),
    "train": Keyword(
        "train TARGETS [lr X]",
        "Keeps the parameters of these modules trainable in full; they are saved with the adapter.",
    ),
    "optimizer": Keyword(
        "optimizer NAME[(options)] [lr X] [paged]",
        "The optimizer that `lorakit.optimizer(model)` builds; one a program.",
    ),
    "step": Keyword(
        "step [batch N] [tokens N] [compute bf16|fp16|fp32]",
        "How one training step runs, which the forecast of memory and the training go by; one a program.",
    ),
    "let": Keyword(
        "let NAME = VALUE",
        "Names a number, a string, or a list of targets in brackets. `--set NAME=VALUE` on the command line gives it "
        "another value.",
    ),
    "include": Keyword(
        'include "FILE.lora"', "Puts the statements of another file in this place; its path is relative to this file."
    ),
    "require": Keyword(
        "require EXPRESSION COMPARISON EXPRESSION",
        "A promise that the plan must keep, such as `require trainable < 1%`.",
    ),
    "use": Keyword(
        "use DISTRIBUTION [>= VERSION]", "The plugin that this program needs; an error where it is not installed."
    ),
    "rank": Keyword(
        "rank N",
        "The inner width of the two matrices: A is N × in, B is out × N. A whole number, at least 1. In the other "
        "clauses of the rule, `rank` is its value: `alpha 2*rank`.",
    ),
    "alpha": Keyword("alpha X", "The update is scaled by alpha / rank. Without this clause alpha is the rank."),
    "scaling": Keyword("scaling standard|rslora", "What the update is scaled by."),
    "dropout": Keyword(
        "dropout P", "The share of the adapter's inputs that training drops: 0 ≤ P < 1. Without this clause none."
    ),
    "method": Keyword(
        "method NAME[(options)]", "How the change of a weight is parametrized. Without this clause `lora`."
    ),
    "init": Keyword(
        "init NAME[(options)]", "The start values of an adapter. Without this clause `gaussian`: A random, B zero."
    ),
    "quant": Keyword("quant NAME[(options)] [double]", "Stores the frozen base weight in fewer bits."),
    "dtype": Keyword(
        "dtype bf16|fp16|fp32",
        "The type of the adapter's weights. Without this clause bf16 over a quantized base, else that of the base.",
    ),
    "bias": Keyword(
        "bias none|adapter", "Whether the biases of the adapted modules train. Without this clause `none`."
    ),
    "lr": Keyword("lr X", "The learning rate of what this statement decides, in the place of the optimizer's."),
    "lr_ratio": Keyword("lr_ratio X", "The learning rate of B over that of A (LoRA+). Without this clause 1."),
    "paged": Keyword("paged", "Optimizer state moves to CPU memory when the accelerator's runs short."),
    "layers": Keyword(
        "layers RANGE",
        "Takes only modules in these layers of the outermost numbered container: `0..15`, `0,2,-1`. Both ends count, "
        "negative ones from the end.",
    ),
    "except": Keyword("except TARGETS", "Leaves out what these targets select, and everything inside it."),
    "optional": Keyword("optional", "A target that matches nothing is no error in this rule."),
    "batch": Keyword("batch N", "So many rows of data go through a device in one step. A whole number, at least 1."),
    "tokens": Keyword("tokens N", "So many tokens has the longest row of a step. A whole number, at least 1."),
    "memory": Keyword("memory SIZE", "The most memory that a step may hold on a device. Not done by this lorakit yet."),
    "compute": Keyword(
        "compute bf16|fp16|fp32",
        "What the frozen weights are multiplied in. Without this clause bf16 where the device has it in hardware, else "
        "fp16 on a GPU and fp32 on a CPU.",
    ),
    "capture": Keyword("capture", "The whole step runs as one graph. Not done by this lorakit yet."),
    "double": Keyword(
        "NAME double", "Quantizes the scales of the quantizer once more; it stands directly behind the quantizer."
    ),
    "true": Keyword("true", "The option is on."),
    "false": Keyword("false", "The option is off."),
}

CHOICES: Mapping[str, Mapping[str, str]] = {
    "scaling": {"standard": "alpha / rank", "rslora": "alpha / √rank (rsLoRA)"},
    "dtype": {
        "bf16": "bfloat16: the range of fp32 in 16 bits",
        "fp16": "float16: more digits than bf16, less range",
        "fp32": "float32",
    },
    "compute": {
        "bf16": "bfloat16 tensor cores, where the device has them",
        "fp16": "float16; the adapters stay in float32",
        "fp32": "float32",
    },
    "bias": {"none": "biases stay frozen", "adapter": "the biases of the adapted modules train"},
}

QUANTITIES: Mapping[str, str] = {
    "trainable": "the parameters that train, as a share of all",
    "peak_memory": "the most memory that a training step holds, in bytes, as the plan forecasts it",
}

RANK = Keyword("rank", "The rank of this rule.")
