"""Pages on how a spec is written."""

from __future__ import annotations

from lorakit.language.codes import Code
from lorakit.language.pages import Page

SYNTAX = (
    Page(
        Code.UNEXPECTED,
        "unexpected words",
        "Something stands where it cannot. The message names what could stand there. A statement ends at the end "
        "of its line or at `;`; only a newline inside `( )` or `[ ]`, or behind a comma, says nothing.",
        "adapt q_proj rank 16, 32",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.UNKNOWN_STATEMENT,
        "unknown statement",
        "A line begins with one of `adapt`, `quantize`, `train`, `optimizer`, `let`, `include`, `require` and "
        "`use`. A clause such as `rank 16` belongs on the line of its statement, or in the `{ }` block that opens "
        "on it.",
        "adpat q_proj rank 16",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.UNKNOWN_CLAUSE,
        "unknown clause",
        "Behind its targets a rule holds clauses, each a keyword with its value. Several targets are parted by "
        "commas, not by blanks.",
        "adapt q_proj rnak 16",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.VALUE_EXPECTED,
        "something is missing",
        "A keyword, an operator or a comma has nothing behind it that it could work on.",
        "adapt q_proj rank",
        "adapt q_proj rank 16",
    ),
    Page(
        Code.NEVER_CLOSED,
        "a bracket is never closed",
        "Every `(`, `[` and `{` needs its counterpart. The carets stand under the one that has none.",
        "adapt q_proj rank (2 + 2",
        "adapt q_proj rank (2 + 2)",
    ),
    Page(
        Code.BAD_STRING,
        "a string that cannot be read",
        'A string stands in double quotes on one line. Inside, `\\"` is a quote and `\\\\` a backslash; there are no '
        "other escapes.",
        'let path = "a\\b"',
        'let path = "a\\\\b"',
    ),
    Page(
        Code.BAD_TARGET,
        "a target that cannot be read",
        "A target is a path of segments parted by dots, without quotes and without blanks outside of `[ ]`: "
        "`q_proj`, `self_attn.q_proj`, `model.layers.*.mlp.*`, `layers[0..15].q_proj`. A role (`@mlp`) or a class "
        "(`:Linear`) can only be its last segment; a regex (`/…/`) stands alone. `**` is a whole segment.",
        "adapt @attention.q_proj rank 16",
        "adapt layers[0..15].@attention rank 16",
    ),
    Page(
        Code.BAD_NUMBER,
        "a number that cannot be read",
        "Numbers are written `16`, `2e-4` or `0.05`, with digits on both sides of a point. A unit follows without a "
        "blank: `%`, `B`, `KB` to `TB`, `KiB` to `TiB`; case counts.",
        "adapt q_proj rank 16 dropout .05",
        "adapt q_proj rank 16 dropout 0.05",
    ),
    Page(
        Code.BAD_RANGE,
        "a range that cannot be read",
        "A range has both of its ends, and both count: `0..15` are sixteen layers. Negative indices count from "
        "the end: `-4..-1` are the last four. Several are parted by commas.",
        "adapt layers[0..].q_proj rank 16",
        "adapt layers[0..-1].q_proj rank 16",
    ),
    Page(
        Code.BAD_CHARACTER,
        "a character that has no place in a spec",
        "Word processors and web pages put look-alikes in the place of plain characters: no-break blanks, curly "
        "quotes, long dashes, full-width commas. Outside of strings, regexes and comments only plain ones mean "
        "anything.",
        "adapt q_proj，v_proj rank 16",
        "adapt q_proj,v_proj rank 16",
    ),
    Page(
        Code.NOT_UTF8,
        "a file that is not UTF-8",
        "A spec is a UTF-8 text, with or without a byte order mark. Save it again in that encoding.",
        "# from a café\nadapt q_proj rank 16",
        "# from a café\nadapt q_proj rank 16",
        encoding="latin-1",
    ),
    Page(
        Code.LIMIT,
        "beyond a limit of the language",
        "Nesting depth, the length of numbers, their size and the size of target lists have limits far beyond what a "
        "spec needs, so that no input can stall or crash the tools that read it.",
        "adapt q_proj rank 16 alpha 1e9999",
        "adapt q_proj rank 16 alpha 32",
    ),
    Page(
        Code.MISPLACED_DOUBLE,
        "`double` away from its quantizer",
        "`double` quantizes the scales of a quantizer once more, and stands directly behind the quantizer that it "
        "means.",
        "adapt q_proj rank 16 quant nf4 paged double",
        "adapt q_proj rank 16 quant nf4 double paged",
    ),
    Page(
        Code.BAD_OPTION_FORM,
        "options that cannot be read",
        "Options are written `NAME=VALUE`, parted by commas. A value is an expression, a string, `true`, `false`, "
        "or a tuple of two values or more.",
        "adapt q_proj rank 16 init gaussian(0.02)",
        "adapt q_proj rank 16 init gaussian(sigma=0.02)",
    ),
    Page(
        Code.BAD_COMPARISON,
        "a comparison that cannot be read",
        "`require` compares two expressions exactly once, with `<`, `<=`, `>`, `>=`, `==` or `!=`.",
        "require 0% < trainable < 1%",
        "require trainable > 0%\nrequire trainable < 1%",
    ),
)
