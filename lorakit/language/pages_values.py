"""Pages on clauses and their values, on whole programs, files and installed packages."""

from __future__ import annotations

from lorakit.language.codes import Code
from lorakit.language.pages import Page

VALUES = (
    Page(
        Code.CLAUSE_TWICE,
        "a clause given twice",
        "Each clause stands once in a statement, on its line or in its block.",
        "adapt q_proj rank 16 rank 8",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.FOREIGN_CLAUSE,
        "a clause of another statement",
        "`adapt` takes every clause; `quantize` takes `layers`, `except` and `optional`; `train` takes those and "
        "`lr`; `optimizer` takes `lr` and `paged`.",
        "train @norm rank 16",
        "train @norm lr 1e-4",
    ),
    Page(
        Code.RANK_MISSING,
        "a rule without a rank",
        "The method of this rule adds matrices of a rank, and the rule names none. 16 is a usual start for one "
        "domain, 64 for several.",
        "adapt q_proj quant nf4",
        "adapt q_proj rank 16 quant nf4",
    ),
    Page(
        Code.BAD_RANK,
        "a rank that is none",
        "A rank is a whole number, at least 1. Expressions may come to one: `rank r/2`.",
        "adapt q_proj rank 0.5",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.OUT_OF_BOUNDS,
        "a value out of bounds",
        "`dropout` is at least 0 and below 1; `alpha`, `lr` and `lr_ratio` are above 0; `batch` "
        "and `tokens` are whole numbers, at least 1.",
        "adapt q_proj rank 16 dropout 1.5",
        "adapt q_proj rank 16 dropout 0.1",
    ),
    Page(
        Code.BAD_UNIT,
        "a unit where none is meant",
        "Bytes and shares measure something. They stand where that is meant, as in `require`, and cannot be mixed "
        "freely.",
        "adapt q_proj rank 24GiB",
        "adapt q_proj rank 24\nrequire peak_memory <= 24GiB",
    ),
    Page(
        Code.DIVISION_BY_ZERO,
        "division by zero",
        "An expression divides by something that comes to zero.",
        "let half = 0\nadapt q_proj rank 16/half",
        "let half = 2\nadapt q_proj rank 16/half",
    ),
    Page(
        Code.REVERSED_RANGE,
        "a range that ends before it begins",
        "The first index of a range is the smaller one. `-4..-1` are the last four.",
        "adapt q_proj rank 16 layers 7..0",
        "adapt q_proj rank 16 layers 0..7",
    ),
    Page(
        Code.NO_RANK_TAKEN,
        "a rank that the method does not take",
        "The method of this rule adds no matrices of a rank.",
        "adapt q_proj rank 16 method rankless",
        "adapt q_proj method rankless",
    ),
    Page(
        Code.NOT_YET,
        "a word that lorakit does not act on yet",
        "The language has this word, and this version of lorakit does not do what it says. Rather than pass over it "
        "in silence, the spec is refused, and the error says what to write in its place.",
        "step batch 2 compute fp8",
        "step batch 2 compute bf16",
    ),
    Page(
        Code.TWO_OPTIMIZERS,
        "more than one optimizer",
        "A program has one optimizer at most, included files among it. `lr` on a rule sets the learning rate of its "
        "parameters alone.",
        "optimizer adamw\noptimizer sgd",
        "optimizer adamw lr 2e-4",
    ),
    Page(
        Code.UNKNOWN_QUANTITY,
        "unknown quantity",
        "`require` compares figures of the plan: `trainable`, the share of trainable parameters, and "
        "`peak_memory`, in bytes; plugins add more.",
        "require trainabel < 1%",
        "require trainable < 1%",
    ),
    Page(
        Code.INCOMPARABLE,
        "a comparison of different things",
        "Bytes compare with bytes, shares with shares or plain numbers.",
        "require peak_memory <= 24",
        "require peak_memory <= 24GiB",
    ),
    Page(
        Code.TWO_STEPS,
        "more than one step",
        "A program says once how a training step runs, included files among it. All of its clauses go into one `step`.",
        "step batch 2\nstep tokens 2048",
        "step batch 2 tokens 2048",
    ),
    Page(
        Code.UNREADABLE,
        "a file that cannot be read",
        "The path of an `include` is relative to the folder of the file that includes it.",
        'include "nroms.lora"',
        'include "norms.lora"',
        files={"norms.lora": "train @norm"},
    ),
    Page(
        Code.INCLUDE_CYCLE,
        "a file that includes itself",
        "Following the includes leads back to a file that is being read already; the message shows the way. A "
        "file that is included twice without a cycle counts once.",
        'include "a.lora"',
        'include "norms.lora"',
        files={"a.lora": 'include "b.lora"', "b.lora": 'include "a.lora"', "norms.lora": "train @norm"},
    ),
    Page(
        Code.INCLUDE_DEPTH,
        "includes that go too deep",
        "Each file includes the next, beyond any depth that a reader could follow.",
        'include "1.lora"',
        'include "69.lora"',
        files={f"{number}.lora": f'include "{number + 1}.lora"' for number in range(1, 70)}
        | {"70.lora": "train @norm"},
    ),
    Page(
        Code.NOT_INSTALLED,
        "a distribution that is not there",
        "`use` names a distribution that the spec needs, and this environment has none of that name: the message holds "
        "the command that installs it. Or it is installed and its plugins did not load (`lorakit plugins` says why), "
        "or they are switched off by `--no-plugins` or LORAKIT_PLUGINS.",
        "use lorakit-of-tomorrow",
        "use lark",
    ),
    Page(
        Code.TOO_OLD,
        "a distribution that is too old",
        "`use DISTRIBUTION >= VERSION` asks for a later version than is installed.",
        "use lark >= 99999",
        "use lark >= 1.0",
    ),
    Page(
        Code.BAD_VERSION,
        "a version that cannot be read",
        "Versions are those of Python packages, such as `1.2` or `2.0rc1`.",
        "use lark >= 1..2",
        "use lark >= 1.0",
    ),
)
