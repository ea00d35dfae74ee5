"""Pages on what comes out when a spec meets a model."""

from __future__ import annotations

from lorakit.language.codes import Code
from lorakit.language.pages import Page

PLAN = (
    Page(
        Code.MATCHES_NOTHING,
        "a target that matches nothing",
        "Every target of a list must select at least one module, so that a misspelled name never passes in silence. "
        "The error names the layers that the model has. A rule marked `optional` may come to nothing.",
        "# on a model without a module of this name\nadapt q_projection rank 16",
        "adapt q_proj rank 16\nadapt q_projection rank 16 optional",
        kind="plan",
    ),
    Page(
        Code.NOT_ADAPTABLE,
        "a module that cannot be adapted",
        "A module that is named outright has a class that no adapter fits. Globs, ranges, classes, regexes and "
        "roles pass over such modules. A plugin can add the class through `lorakit_describe_module` and "
        "`lorakit_adapt_module`.",
        "# on a model whose `norm` is a normalization\nadapt norm rank 16",
        "train norm",
        kind="plan",
    ),
    Page(
        Code.RANK_TOO_LARGE,
        "a rank larger than a layer allows",
        "A change of a matrix has at most the rank of its smaller side.",
        "# on a model whose layers have fewer rows\nadapt q_proj rank 100000",
        "adapt q_proj rank 16",
        kind="plan",
    ),
    Page(
        Code.SHADOWED,
        "a rule that decides nothing",
        "Among rules of one keyword the later replaces the earlier. Other rules took every module that this one "
        "selects; it is dead text, or stands in the wrong place. `optional` says that this is meant.",
        "adapt q_proj rank 8\nadapt q_proj rank 16",
        "adapt @attention rank 8\nadapt q_proj rank 16",
        kind="plan",
    ),
    Page(
        Code.PROMISE_BROKEN,
        "a promise that the plan does not keep",
        "A `require` compares figures of the plan, and the comparison came out false. Nothing was changed.",
        "# on a model of which this trains more\nadapt @linear rank 64\nrequire trainable < 0.01%",
        "adapt @linear rank 4\nrequire trainable < 5%",
        kind="plan",
    ),
    Page(
        Code.NOT_QUANTIZABLE,
        "a module that a quantizer cannot take",
        "The weight of this module cannot be stored by this quantizer: its shape does not fit, it is quantized "
        "already, or it is shared with a module that stays as it is.",
        "# on a model whose embedding shares its weight with the head\nquantize embed_tokens nf4",
        "quantize @linear nf4",
        kind="plan",
    ),
    Page(
        Code.NOT_POSSIBLE_HERE,
        "something that this module does not allow",
        "A rule asks for something that contradicts how this module is built or what another rule does with it: "
        "the bias of a module that has none, one end of a tied weight, or adapting what another rule trains in "
        "full.",
        "adapt lm_head rank 16\ntrain lm_head",
        "adapt lm_head rank 16",
        kind="plan",
    ),
)
