"""What sound programs mean."""

from __future__ import annotations

import pytest
from language_helpers import EXAMPLE, read, rule

from lorakit.diagnostics import Span
from lorakit.language.spec import Spec
from lorakit.language.statements import (
    Adapt,
    IndexRange,
    Number,
    Operation,
    Optimizer,
    PluginCall,
    Quantity,
    Quantize,
    Require,
    Segment,
    Step,
    Target,
    Train,
)


def path(*names: str) -> Target:
    return Target(tuple(map(Segment, names)))


def test_the_line_that_must_always_work() -> None:
    spec = read("adapt q_proj,v_proj rank 16 quant nf4 double paged")
    assert spec == Spec(
        (Adapt((path("q_proj"), path("v_proj")), 16, quant=PluginCall("nf4", double=True), paged=True),)
    )
    (adapt,) = spec.rules
    assert isinstance(adapt, Adapt)
    assert adapt.alpha is None and adapt.init == PluginCall("gaussian") and adapt.method == PluginCall("lora")


def test_the_example() -> None:
    nf4 = PluginCall("nf4", double=True)
    assert read(EXAMPLE) == Spec(
        (
            Adapt((Target(role="attention"),), 16, 32.0, init=PluginCall("gaussian", (("sigma", 0.02),)), quant=nf4),
            Adapt((Target((Segment("layers", (IndexRange(0, 7),)),), role="mlp"),), 8, quant=nf4),
            Quantize((Target(role="linear"),), nf4),
        ),
        Optimizer(PluginCall("adamw", (("betas", (0.9, 0.999)), ("weight_decay", 0))), 2e-4, True),
        Step(2, 2048, "bf16"),
        (
            Require(Quantity("trainable"), "<", Number(2, "%")),
            Require(Quantity("peak_memory"), "<=", Number(24, "GiB")),
        ),
    )


def test_spans() -> None:
    spec = read(EXAMPLE)
    first, second, third = spec.rules
    assert first.span == Span("<text>", 3, 1, 8, 2)
    assert second.span == Span("<text>", 9, 1, 9, 50)
    assert isinstance(second, Adapt) and second.rank_span == Span("<text>", 9, 30, 9, 33)
    assert second.targets[0].span == Span("<text>", 9, 7, 9, 24)
    assert isinstance(third, Quantize) and third.quant and third.quant.span == Span("<text>", 10, 18, 10, 21)
    assert spec.source == EXAMPLE and spec.sources == {"<text>": EXAMPLE}


def test_every_clause() -> None:
    text = (
        "adapt a,b rank 8 alpha 4 scaling rslora dropout 0.1 method lora init kaiming quant nf4(blocksize=128) double "
        "dtype fp16 bias adapter lr 1e-4 lr_ratio 16 paged layers 0..3,-1 except c,@head optional"
    )
    assert rule(text) == Adapt(
        (path("a"), path("b")),
        8,
        4.0,
        "rslora",
        0.1,
        init=PluginCall("kaiming"),
        quant=PluginCall("nf4", (("blocksize", 128),), True),
        dtype="fp16",
        bias="adapter",
        lr=1e-4,
        lr_ratio=16.0,
        paged=True,
        layers=(IndexRange(0, 3), IndexRange(-1, -1)),
        excepts=(path("c"), Target(role="head")),
        optional=True,
    )
    assert read("train @norm lr 1e-3 layers 2 except x optional").rules == (
        Train((Target(role="norm"),), 1e-3, (IndexRange(2, 2),), (path("x"),), True),
    )
    assert read("quantize a int8(threshold=0) layers -4..-1 except x optional").rules == (
        Quantize((path("a"),), PluginCall("int8", (("threshold", 0),)), (IndexRange(-4, -1),), (path("x"),), True),
    )
    assert read("quantize a none layers 2 optional; quantize a none()").rules == (
        Quantize((path("a"),), None, (IndexRange(2, 2),), optional=True),
        Quantize((path("a"),), None),
    )
    assert read("use lark\nuse lark >= 1.0").uses == (("lark", None), ("lark", "1.0"))


@pytest.mark.parametrize(
    "text",
    [
        "adapt q rank 4 alpha 8 paged",
        "adapt q paged alpha 8 rank 4",
        "adapt q { rank 4 alpha 8 paged }",
        "adapt q rank 4 { alpha 8; paged }",
        "adapt q {\n  paged\n\n  # why\n  alpha 2*rank; rank 4\n}",
        "adapt q {rank 4\nalpha 8 # eight\npaged};",
        "\n\n;;adapt q rank 4 alpha 8 paged ; ; # end",
        "\ufeffadapt q rank 4 alpha 8 paged",
        "adapt q rank 4 alpha 8 paged\r\n",
        "adapt\tq\trank\t4\talpha\t8\tpaged",
        "adapt q rank (\n4\n) alpha (2 # two\n*rank) paged",
    ],
)
def test_one_meaning_in_many_forms(text: str) -> None:
    assert rule(text) == Adapt((path("q"),), 4, 8.0, paged=True)


@pytest.mark.parametrize(
    "text",
    [
        "step batch 4 tokens 2048 compute fp16",
        "step compute fp16 tokens 2048 batch 4",
        "step batch 4 {\n  compute fp16; tokens 2048\n}",
        "let rows = 2\nstep { tokens 2*1024 batch 2*rows compute fp16 }",
    ],
)
def test_a_step_says_how_it_runs_in_any_order(text: str) -> None:
    spec = read(text)
    assert spec.step == Step(4, 2048, "fp16") and not spec.rules
    assert read(str(spec)) == spec and str(spec) == "step batch 4 tokens 2048 compute fp16\n"


def test_a_step_says_only_what_is_written() -> None:
    assert read("adapt q rank 4").step is None
    assert read("step tokens 8").step == Step(tokens=8)
    step = read("let a = 1\nstep batch a").step
    assert step is not None and step.span == Span("<text>", 2, 1, 2, 13)


def test_no_statement_is_a_sound_program() -> None:
    for text in ("", "\n", "# nothing\n", ";;", "\ufeff", "let x = 1"):
        assert read(text) == Spec()


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("q_proj", path("q_proj")),
        ("self_attn.q_proj", path("self_attn", "q_proj")),
        ("model.layers.*.mlp.*", path("model", "layers", "*", "mlp", "*")),
        ("**.t", path("**", "t")),
        ("*_proj", path("*_proj")),
        ("layers.0.q_proj", path("layers", "0", "q_proj")),
        ("0", path("0")),
        ("down-proj", path("down-proj")),
        ("größe.値", path("größe", "値")),
        ("layers[0..15].q_proj", Target((Segment("layers", (IndexRange(0, 15),)), Segment("q_proj")))),
        ("h[0,2,-1]", Target((Segment("h", (IndexRange(0, 0), IndexRange(2, 2), IndexRange(-1, -1))),))),
        ("h[ 0 .. 3 ,\n -1 ].*", Target((Segment("h", (IndexRange(0, 3), IndexRange(-1, -1))), Segment("*")))),
        ("h[0..-1]", Target((Segment("h", (IndexRange(0, -1),)),))),
        ("@linear", Target(role="linear")),
        ("layers[0..7].@mlp", Target((Segment("layers", (IndexRange(0, 7),)),), role="mlp")),
        ("encoder.**.@attention", Target((Segment("encoder"), Segment("**")), role="attention")),
        (":Conv1D", Target(class_name="Conv1D")),
        ("h.*.:Conv1D", Target((Segment("h"), Segment("*")), class_name="Conv1D")),
        (r"/.*layers\.\d+\.q_proj/", Target(regex=r".*layers\.\d+\.q_proj")),
        (r"/a#;\"(b|c) d/", Target(regex=r"a#;\"(b|c) d")),
        (r"/a\/b/", Target(regex="a/b")),
    ],
)
def test_targets(words: str, target: Target) -> None:
    assert rule(f"adapt {words} rank 4").targets == (target,)
    assert rule(f"adapt x rank 4 except k,{words}").excepts == (path("k"), target)
    assert rule(f"let list = [{words}, k]\nadapt list rank 4").targets == (target, path("k"))
    assert rule(f"adapt {target} rank 4").targets == (target,)


def test_words_are_what_their_place_says() -> None:
    assert rule("adapt rank rank 16") == Adapt((path("rank"),), 16)
    assert rule("adapt adapt,let,paged,double rank 2 except except,optional optional").excepts == (
        path("except"), path("optional"),
    )  # fmt: skip
    keywords = [
        "adapt",
        "quantize",
        "train",
        "optimizer",
        "step",
        "let",
        "include",
        "require",
        "use",
        "alpha",
        "dropout",
        "lr",
        "except",
        "double",
        "paged",
        "batch",
        "memory",
        "true",
    ]
    for word in keywords:
        assert rule(f"let {word} = 4\nadapt {word} rank {word} alpha {word}/2") == Adapt((path(word),), 4, 2.0)
    assert rule("adapt 0,2 rank 4").targets == (path("0"), path("2"))
    assert rule("adapt ranks rank 4").targets == (path("ranks"),)


def test_lists() -> None:
    text = "let a = [q, k]\nlet b = [a, @mlp,\n  v # last\n]\nadapt b,o rank 4 except a\nadapt **.a rank 2"
    first, second = read(text).rules
    assert first.targets == (path("q"), path("k"), Target(role="mlp"), path("v"), path("o"))
    assert first.excepts == (path("q"), path("k")) and second.targets == (path("**", "a"),)
    assert first.targets[0].span == Span("<text>", 1, 10, 1, 11)


@pytest.mark.parametrize(
    ("expression", "rank"),
    [
        ("16/2", 8), ("0.5*16", 8), ("8.0", 8), ("1e1", 10), ("2+3*4", 14), ("(2+3)*4", 20), ("10-2-3", 5), ("-2+3", 1),
        ("16/4/2", 2), ("-(-3)", 3), ("0.1*30", 3), ("x", 6), ("x/y", 3), ("2*(x+1)-y*-1", 16), ("7/7", 1),
    ],
)  # fmt: skip
def test_whole_numbers(expression: str, rank: int) -> None:
    assert rule(f"let x = 6; let y = x/3\nadapt q rank {expression}").rank == rank


def test_rank_in_expressions() -> None:
    assert rule("adapt q alpha 2*rank rank 8").alpha == 16.0
    assert rule("adapt q { init gaussian(sigma=1/rank)\n rank 4 }").init == PluginCall("gaussian", (("sigma", 0.25),))
    assert rule("adapt q rank 8 lr 1/(1000*rank)").lr == pytest.approx(1.25e-4)


def test_units() -> None:
    def right(text: str) -> object:
        return read(text).requires[0].right

    assert right("require peak_memory < 24GiB") == Number(24, "GiB")
    assert right("require trainable < 0.5%") == Number(0.5, "%")
    assert right("let m = 2*12GB\nrequire peak_memory < m") == Number(24, "GB")
    assert right("require peak_memory < 10% * 1TiB") == Operation("*", Number(10, "%"), Number(1, "TiB"))
    assert rule("adapt q rank 4 dropout 5%").dropout == 0.05
    for unit in ("B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"):
        assert right(f"require peak_memory < 3{unit}") == Number(3, unit)
    assert rule("adapt q rank 4 quant wide(share=5%, room=2KiB)").quant == PluginCall(
        "wide", (("share", 0.05), ("room", 2048))
    )


def test_require() -> None:
    text = "let x = -3\nrequire -trainable + x*2 >= (trainable - 1)/2"
    assert read(text).requires == (
        Require(
            Operation("+", Operation("-", Number(0), Quantity("trainable")), Operation("*", Number(-3), Number(2))),
            ">=",
            Operation("/", Operation("-", Quantity("trainable"), Number(1)), Number(2)),
        ),
    )
    for comparison in ("<", "<=", ">", ">=", "==", "!="):
        assert read(f"require trainable {comparison} 1").requires[0].comparison == comparison


def test_options() -> None:
    text = (
        'let s = "x"\nadapt q rank 4 quant wide(count=2*3, scale=-.5, label=s, flag=true, pair=(1, 2), many=(1, 2, 3))'
    )
    assert rule(text.replace("-.5", "-0.5")).quant == PluginCall(
        "wide",
        (("count", 6), ("flag", True), ("label", "x"), ("many", (1, 2, 3)), ("pair", (1, 2)), ("scale", -0.5)),
    )
    assert rule("adapt q rank 4 quant nf4()") == rule("adapt q rank 4 quant nf4")
    assert rule('adapt q rank 4 quant wide(label="a \\"b\\" \\\\ #;{")').quant == PluginCall(
        "wide", (("label", 'a "b" \\ #;{'),)
    )
    assert PluginCall("p", (("b", 1), ("a", 2))) == PluginCall("p", (("a", 2), ("b", 1)))
    assert rule("adapt q rank 4 quant wide(\n  count=2, # two\n  flag=false,\n)").quant == PluginCall(
        "wide", (("count", 2), ("flag", False))
    )
    assert rule("adapt q rank 4 init strict(level=3)").init == PluginCall("strict", (("level", 3),))
    assert rule("adapt q method rankless").rank is None
    assert rule("adapt q method rankless dropout 5% quant nf4 lr 1").dropout == 0.05
