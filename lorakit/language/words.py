"""The words of the language: one table that the parser's complaints, the checks, the printer and the editor read.

A new clause is a row here, a line in the grammar and a field in the Spec; `takes` says how its value is read and
printed, and a clause that takes something new needs a reader in `clauses` and a printer in `printer` for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PluginKind:
    """One of the registries of plugins, and what its members are called."""

    noun: str
    registry: str


QUANTIZER = PluginKind("quantizer", "quantizers")
INITIALIZER = PluginKind("initializer", "initializers")
OPTIMIZER = PluginKind("optimizer", "optimizers")
METHOD = PluginKind("method", "methods")


# what `quantize` says in the place of a quantizer, of modules that stay as they are
NONE = "none"


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word of the language and what it says.

    A clause names the `statements` that take it, the kind of value that it `takes`, and the field of the Spec that it
    `fills` unless that is called as the clause is. A name that stands behind the word is one of the `choices`, each
    with its meaning, or that of a plugin.
    """

    word: str
    meaning: str
    statements: tuple[str, ...] = ()
    takes: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    plugin: PluginKind | None = None
    fills: str = ""
    written: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fills", self.fills or self.word)

    @property
    def terminal(self) -> str:
        """What the grammar calls it."""
        return self.word.upper()

    @property
    def form(self) -> str:
        """How it is written with what belongs to it."""
        if self.written:
            return self.written
        argument = "|".join(self.choices) or _FORMS.get(self.takes, "")
        return " ".join(filter(None, (self.word, argument, "[double]" if self.plugin is QUANTIZER else "")))


# What stands behind a clause, by what it takes
_FORMS = {
    "rank": "N", "count": "N", "positive": "X", "probability": "P", "plugin": "NAME[(options)]", "ranges": "RANGE",
    "targets": "TARGETS",
}  # fmt: skip


def _by_word(*keywords: Keyword) -> Mapping[str, Keyword]:
    return {keyword.word: keyword for keyword in keywords}


_ADAPT, _RULES, _STEP = ("adapt",), ("adapt", "quantize", "train"), ("step",)

STATEMENTS = _by_word(
    Keyword(
        "adapt",
        "Attaches an adapter to every module that the targets select. A later `adapt` rule that selects a "
        "module replaces this one there, whole.",
        written="adapt TARGETS clause…",
    ),
    Keyword(
        "quantize",
        "Quantizes frozen modules without adapting them, or with `none` leaves them as they are. It leaves alone what "
        "an `adapt` or a `train` rule decides. In a program with such a statement just what rules name is quantized: "
        "`quantize @linear none` says 'nothing else'.",
        written="quantize TARGETS NAME[(options)] [double] | none",
        plugin=QUANTIZER,
    ),
    Keyword(
        "train",
        "Keeps the parameters of these modules trainable in full; they are saved with the adapter.",
        written="train TARGETS [lr X]",
    ),
    Keyword(
        "optimizer",
        "The optimizer that `lorakit.optimizer(model)` builds; one a program.",
        written="optimizer NAME[(options)] [lr X] [paged]",
        plugin=OPTIMIZER,
    ),
    Keyword(
        "step",
        "How one training step runs, which the forecast of memory and the training go by; one a program.",
        written="step [batch N] [tokens N] [compute bf16|fp16|fp32]",
    ),
    Keyword(
        "let",
        "Names a number, a string, or a list of targets in brackets. `--set NAME=VALUE` on the command line "
        "gives it another value.",
        written="let NAME = VALUE",
    ),
    Keyword(
        "include",
        "Puts the statements of another file in this place; its path is relative to this file.",
        written='include "FILE.lora"',
    ),
    Keyword(
        "require",
        "A promise that the plan must keep, such as `require trainable < 1%`.",
        written="require EXPRESSION COMPARISON EXPRESSION",
    ),
    Keyword(
        "use",
        "The plugin that this program needs; an error where it is not installed.",
        written="use DISTRIBUTION [>= VERSION]",
    ),
)

# in the order in which a statement is printed
CLAUSES = _by_word(
    Keyword(
        "method",
        "How the change of a weight is parametrized. Without this clause `lora`.",
        _ADAPT,
        "plugin",
        plugin=METHOD,
    ),
    Keyword(
        "rank",
        "The inner width of the two matrices: A is N × in, B is out × N. A whole number, at least 1. In the "
        "other clauses of the rule, `rank` is its value: `alpha 2*rank`.",
        _ADAPT,
        "rank",
    ),
    Keyword(
        "alpha", "The update is scaled by alpha / rank. Without this clause alpha is the rank.", _ADAPT, "positive"
    ),
    Keyword(
        "scaling",
        "What the update is scaled by.",
        _ADAPT,
        "choice",
        {"standard": "alpha / rank", "rslora": "alpha / √rank (rsLoRA)"},
    ),
    Keyword(
        "dropout",
        "The share of the adapter's inputs that training drops: 0 ≤ P < 1. Without this clause none.",
        _ADAPT,
        "probability",
    ),
    Keyword(
        "init",
        "The start values of an adapter. Without this clause `gaussian`: A random, B zero.",
        _ADAPT,
        "plugin",
        plugin=INITIALIZER,
    ),
    Keyword(
        "quant",
        "Stores the frozen base weight in fewer bits. In a program without a `quantize` statement the linear layers "
        "that no rule decides are stored so too, unless its `adapt` rules name different quantizers.",
        _ADAPT,
        "plugin",
        plugin=QUANTIZER,
    ),
    Keyword(
        "dtype",
        "The type of the adapter's weights. Without this clause bf16 over a quantized base, else that of the base.",
        _ADAPT,
        "choice",
        {
            "bf16": "bfloat16: the range of fp32 in 16 bits",
            "fp16": "float16: more digits than bf16, less range",
            "fp32": "float32",
        },
    ),
    Keyword(
        "bias",
        "Whether the biases of the adapted modules train. Without this clause `none`.",
        _ADAPT,
        "choice",
        {"none": "biases stay frozen", "adapter": "the biases of the adapted modules train"},
    ),
    Keyword(
        "lr",
        "The learning rate of what this statement decides, in the place of the optimizer's.",
        ("adapt", "train", "optimizer"),
        "positive",
    ),
    Keyword("lr_ratio", "The learning rate of B over that of A (LoRA+). Without this clause 1.", _ADAPT, "positive"),
    Keyword(
        "paged",
        "Optimizer state moves to CPU memory when the accelerator's runs short.",
        ("adapt", "optimizer"),
        "flag",
    ),
    Keyword(
        "layers",
        "Takes only modules in these layers of the outermost numbered container: `0..15`, `0,2,-1`. Both ends"
        " count, negative ones from the end.",
        _RULES,
        "ranges",
    ),
    Keyword(
        "except", "Leaves out what these targets select, and everything inside it.", _RULES, "targets", fills="excepts"
    ),
    Keyword("optional", "A target that matches nothing is no error in this rule.", _RULES, "flag"),
    Keyword(
        "batch", "So many rows of data go through a device in one step. A whole number, at least 1.", _STEP, "count"
    ),
    Keyword("tokens", "So many tokens has the longest row of a step. A whole number, at least 1.", _STEP, "count"),
    Keyword(
        "memory",
        "The most memory that a step may hold on a device. Not done by this lorakit yet.",
        _STEP,
        "not yet",
        written="memory SIZE",
    ),
    Keyword(
        "compute",
        "What the frozen weights are multiplied in. Without this clause bf16 where the device has it in "
        "hardware, else fp16 on a GPU and fp32 on a CPU.",
        _STEP,
        "choice",
        {
            "bf16": "bfloat16 tensor cores, where the device has them",
            "fp16": "float16; the adapters stay in float32",
            "fp32": "float32",
        },
    ),
    Keyword("capture", "The whole step runs as one graph. Not done by this lorakit yet.", _STEP, "not yet"),
)

KEYWORDS: Mapping[str, Keyword] = {
    **STATEMENTS,
    **CLAUSES,
    **_by_word(
        Keyword(
            "double",
            "Quantizes the scales of the quantizer once more; it stands directly behind the quantizer.",
            written="NAME double",
        ),
        Keyword("true", "The option is on."),
        Keyword("false", "The option is off."),
    ),
}

STATEMENT_TERMINALS = frozenset(keyword.terminal for keyword in STATEMENTS.values())
CLAUSE_TERMINALS = frozenset(keyword.terminal for keyword in CLAUSES.values())

# Clauses of `adapt` that are settings of its method: each method says which of them it takes
SETTINGS = frozenset({"rank", "alpha", "scaling", "dropout", "init", "lr_ratio"})

# What lorakit knows only the words of so far, each with what to write instead
NOT_YET = {
    "memory": "leave it out; `require peak_memory <= 24GiB` says what a step may need",
    "capture": "leave it out: a step runs one operation after the other",
    "compute fp8": "write `compute bf16`",
}

# as the grammar says NAME
_NAME = re.compile(r"[^\W\d]\w*")


def clauses_of(statement: str) -> Mapping[str, Keyword]:
    """Return the clauses that a statement takes."""
    return {
        word: clause for word, clause in CLAUSES.items() if statement in clause.statements and clause.takes != "not yet"
    }


def choices(clause: str) -> tuple[str, ...]:
    """Return the words that a clause chooses from."""
    return tuple(CLAUSES[clause].choices)


def name_fault(name: str) -> str:
    """Return why a plugin cannot be called so in a spec, or an empty string where it can."""
    if not _NAME.fullmatch(name):
        return "a name is letters, digits and underscores, and begins with no digit"
    if name in KEYWORDS:
        return f"`{name}` is a word of the language"
    if name == NONE:
        return "`none` says that modules stay as they are"
    return ""
