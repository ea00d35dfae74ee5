"""Pages on names: of `let`, of plugins and their options, of roles."""

from __future__ import annotations

from lorakit.language.codes import Code
from lorakit.language.pages import Page

NAMES = (
    Page(
        Code.UNKNOWN_NAME,
        "unknown name",
        "An expression uses a name that no `let` above it defines. `rank` is known inside a rule that gives one.",
        "adapt q_proj rank r",
        "let r = 16\nadapt q_proj rank r",
    ),
    Page(
        Code.DEFINED_TWICE,
        "a name defined twice",
        "A name has one definition in a program, included files among it. `--set NAME=VALUE` gives it another value.",
        "let r = 16\nlet r = 8\nadapt q_proj rank r",
        "let r = 16\nadapt q_proj rank r",
    ),
    Page(
        Code.RESERVED_NAME,
        "a name that means something else",
        "`rank` is the rank of the rule that it stands in, so no `let` defines it. In `require`, a `let` name may "
        "not hide a quantity.",
        "let rank = 16",
        "let r = 16",
    ),
    Page(
        Code.UNKNOWN_VARIABLE,
        "`--set` of an unknown name",
        "`--set NAME=VALUE` replaces the value of a `let`; the spec has none of that name.",
        "let r = 16\nadapt q_proj rank r",
        "let r = 16\nadapt q_proj rank r",
        settings={"s": "8"},
    ),
    Page(
        Code.BAD_VARIABLE,
        "a value of `--set` that cannot be read",
        "The value is written as in the language: a number, a string in double quotes, or a list of targets in "
        "brackets. Quote it for the shell: `--set 'targets=[q_proj, @mlp]'`.",
        "let r = 16\nadapt q_proj rank r",
        "let r = 16\nadapt q_proj rank r",
        settings={"r": "16x"},
    ),
    Page(
        Code.WRONG_KIND,
        "a name of another kind",
        "An expression needs numbers, and this name holds a string or a list of targets.",
        "let r = [q_proj]\nadapt q_proj rank r",
        "let r = 16\nadapt q_proj rank r",
    ),
    Page(
        Code.UNKNOWN_PLUGIN,
        "unknown plugin",
        "No quantizer, initializer, optimizer or method of this name is installed. `lorakit plugins` lists them; "
        "`use DISTRIBUTION` in a spec says which distribution it needs.",
        "adapt q_proj rank 16 quant nf5",
        "adapt q_proj rank 16 quant nf4",
    ),
    Page(
        Code.UNKNOWN_OPTION,
        "unknown option",
        "A plugin declares its options, and this is none of them.",
        "adapt q_proj rank 16 init gaussian(sgima=0.02)",
        "adapt q_proj rank 16 init gaussian(sigma=0.02)",
    ),
    Page(
        Code.BAD_OPTION,
        "an option's value does not fit",
        "A plugin declares the type of each option and may refuse values, and an option without a default must be "
        "given.",
        "adapt q_proj rank 16 init gaussian(sigma=-1)",
        "adapt q_proj rank 16 init gaussian(sigma=0.02)",
    ),
    Page(
        Code.OPTION_TWICE,
        "an option given twice",
        "Each option has one value.",
        "adapt q_proj rank 16 init gaussian(sigma=0.02, sigma=0.01)",
        "adapt q_proj rank 16 init gaussian(sigma=0.02)",
    ),
    Page(
        Code.NO_DOUBLE,
        "a quantizer without double quantization",
        "`double` quantizes the scales of a quantizer once more; this quantizer cannot do that.",
        "adapt q_proj rank 16 quant int8 double",
        "adapt q_proj rank 16 quant nf4 double",
    ),
    Page(
        Code.INIT_ZEROS,
        "`init zeros` does not exist",
        "The change of a weight is B·A. The gradient of A is a product with B, and that of B one with A: with "
        "both zero, both gradients are zero and nothing ever learns. `gaussian`, the default, draws A at random "
        "and sets B to zero, so that a fresh adapter changes nothing and still learns.",
        "adapt q_proj rank 16 init zeros",
        "adapt q_proj rank 16 init gaussian",
    ),
    Page(
        Code.UNKNOWN_ROLE,
        "unknown role",
        "Roles such as `@linear` and `@attention` are found from a model's structure; plugins add more.",
        "adapt @atention rank 16",
        "adapt @attention rank 16",
    ),
    Page(
        Code.BAD_REGEX,
        "a regex that cannot be read",
        "Between slashes stands a Python regular expression, which must match a module's whole path. A slash in "
        "it is written `\\/`.",
        "adapt /layers\\.(\\d+/ rank 16",
        "adapt /.*layers\\.\\d+\\.q_proj/ rank 16",
    ),
    Page(
        Code.UNKNOWN_CHOICE,
        "unknown choice",
        "This clause takes one of a few words.",
        "adapt q_proj rank 16 dtype float16",
        "adapt q_proj rank 16 dtype fp16",
    ),
)
