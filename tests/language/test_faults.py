"""What is wrong with programs that are not sound: the code, the words under the carets, and the text of the message."""

from __future__ import annotations

import pytest
from language_helpers import codes, marked, only

SYNTAX = [
    ("adapt", "L004", "adapt"),
    ("adapt q rank", "L004", "rank"),
    ("adapt q rank 16 +", "L004", "+"),
    ("adapt q rank=16", "L004", "="),
    ("adapt q rank: 16", "L004", ":"),
    ("adapt q v rank 16", "L003", "v"),
    ("adapt q, rank 16", "L001", "16"),
    ("adapt rank 16", "L001", "16"),
    ("adapt q rank 16, alpha 3", "L001", ","),
    ("adapt q rank16", "L003", "rank16"),
    ("adapt q rnak 16", "L003", "rnak"),
    ("adapt q rank 16 adapt k rank 4", "L003", "adapt"),
    ("adapt q rank 16 double", "L013", "double"),
    ("adapt q rank 16 quant nf4 paged double", "L013", "double"),
    ("adapt q rank 16 init gaussian double", "L013", "double"),
    ("adapt q rank 24gib", "L008", "24gib"),
    ("adapt q rank 24 GiB", "L008", "24 GiB"),
    ("adapt q rank .5", "L008", ".5"),
    ("adapt q rank 5.", "L008", "5."),
    ("adapt q rank 1.2.3", "L008", "1.2.3"),
    ("adapt q rank 1_000", "L008", "1_000"),
    ("adapt q rank 16x", "L008", "16x"),
    ("adapt q rank (2", "L005", "("),
    ("adapt q rank 2)", "L001", ")"),
    ("adapt q rank ((2)", "L005", "("),
    ("adapt q {rank 4", "L005", "{"),
    ("adapt q rank 4 }", "L001", "}"),
    ("adapt q {rank 4} paged", "L001", "paged"),
    ("adapt q rank 4 quant nf4(", "L005", "("),
    ("adapt q rank 4 quant nf4(64)", "L014", "64"),
    ("adapt q rank 4 quant nf4(double)", "L014", "double"),
    ("adapt q rank 4 quant nf4(blocksize=)", "L004", ")"),
    ("adapt q rank 4 quant wide(pair=(1,))", "L014", ")"),
    ("adapt q rank 4 quant wide(count=1 scale=2)", "L001", "scale"),
    ("adapt q layers 0..", "L009", ".."),
    ("adapt q layers ..3", "L009", ".."),
    ("adapt q layers 0-3", "L009", "-"),
    ("adapt q layers 0:3", "L009", ":"),
    ("adapt layers[0:3].q rank 4", "L009", "[0:3].q"),
    ("adapt layers[] rank 4", "L009", "[]"),
    ("adapt layers[0.. rank 4", "L009", "[0.. rank 4"),
    ("adapt layers [0].q rank 4", "L007", "[0].q"),
    ("adapt a. b rank 4", "L007", "a."),
    ("adapt a..b rank 4", "L007", "a..b"),
    ("adapt .a rank 4", "L007", ".a"),
    ("adapt @mlp.q rank 4", "L007", "@mlp.q"),
    ("adapt q@mlp rank 4", "L007", "q@mlp"),
    ("adapt :a.b rank 4", "L007", ":a.b"),
    ("adapt @ rank 4", "L007", "@"),
    ("adapt /abc rank 4", "L007", "/abc rank 4"),
    ("adapt // rank 4", "L007", "//"),
    ('adapt "q" rank 4', "L007", '"q"'),
    ("adapt 'q' rank 4", "L007", "'q'"),
    ("adapt [q, k] rank 4", "L007", "["),
    ("adapt q {} rank 4", "L001", "rank"),
    ("adpat q rank 4", "L002", "adpat"),
    ("rank 4", "L002", "rank"),
    ("\u201cq\u201d", "L010", "\u201c"),
    ("adapt q\u00a0rank 4", "L010", "\u00a0"),
    ("adapt q，k rank 4", "L010", "，"),
    ("adapt q rank 4 \x00", "L010", "\x00"),
    ("{ rank 4 }", "L001", "{"),
    ("}", "L001", "}"),
    ("quantize @mlp", "L004", "@mlp"),
    ("quantize @mlp, nf4", "L004", "nf4"),
    ("quantize @mlp layers 0 nf4", "L004", "layers"),
    ("optimizer", "L004", "optimizer"),
    ("step batch", "L004", "batch"),
    ("step 2", "L001", "2"),
    ("step bacth 2", "L003", "bacth"),
    ("batch 2", "L002", "batch"),
    ("let", "L004", "let"),
    ("let x", "L004", "x"),
    ("let x =", "L004", "="),
    ("let 3 = 4", "L004", "3"),
    ("let x = [a b]", "L001", "b"),
    ("let x = []", "L004", "]"),
    ('let x = "a', "L006", '"a'),
    ('let x = "a\\n"', "L006", "\\n"),
    ("include 'a.lora'", "L006", "'a.lora'"),
    ("include a", "L004", "a"),
    ("require trainable", "L004", "trainable"),
    ("require trainable = 1%", "L015", "="),
    ("require trainable => 1%", "L015", "=>"),
    ("require 0 < trainable < 1%", "L015", "<"),
    ("use lark == 1", "L001", "=="),
    ("use lark >=", "L004", ">="),
]

VALUES = [
    ("adapt q", "L042", "adapt"),
    ("adapt q rank 0.5", "L043", "0.5"),
    ("adapt q rank 0", "L043", "0"),
    ("adapt q rank -4", "L043", "-4"),
    ("adapt q rank 16/3", "L043", "16/3"),
    ("adapt q rank 1%", "L045", "1%"),
    ("adapt q rank 24GiB", "L045", "24GiB"),
    ("adapt q rank 4 alpha 1%", "L045", "1%"),
    ("adapt q rank 4 alpha 0", "L044", "0"),
    ("adapt q rank 4 lr -1e-4", "L044", "-1e-4"),
    ("adapt q rank 4 lr_ratio 0*rank", "L044", "0*rank"),
    ("adapt q rank 4 dropout 1", "L044", "1"),
    ("adapt q rank 4 dropout -0.1", "L044", "-0.1"),
    ("adapt q rank 4 dropout 100%", "L044", "100%"),
    ("adapt q rank 4 alpha 1e400", "L012", "1e400"),
    ("adapt q rank 4 alpha 1e401", "L012", "1e401"),
    ("adapt q rank 4 alpha 1e-400", "L012", "1e-400"),
    ("adapt q rank 1/0", "L046", "0"),
    ("adapt q rank x", "L020", "x"),
    ("adapt q rank rank", "L020", "rank"),
    ("adapt q method rankless lr rank", "L020", "rank"),
    ("adapt q method rankless alpha rank", "L048", "alpha"),
    ("adapt q method rankless lr_ratio 0", "L048", "lr_ratio"),
    ("adapt q method rankless init zeros", "L048", "init"),
    ("adapt q scaling fast method rankless", "L048", "scaling"),
    ("adapt q method rankless dropout 7", "L044", "7"),
    ("adapt q rank 4 rank 8", "L040", "rank"),
    ("adapt q rank 4 { rank 8 }", "L040", "rank"),
    ("train q rank 4", "L041", "rank"),
    ("quantize q nf4 lr 1", "L041", "lr"),
    ("optimizer adamw optional", "L041", "optional"),
    ("adapt q rank 4 scaling fast", "L038", "fast"),
    ("adapt q rank 4 dtype float16", "L038", "float16"),
    ("adapt q rank 4 bias all", "L038", "all"),
    ("adapt q rank 4 quant nf5", "L030", "nf5"),
    ("adapt q rank 4 quant double", "L030", "double"),
    ("adapt q rank 4 quant none", "L030", "none"),
    ("quantize q none double", "L034", "double"),
    ("quantize q none(block=64)", "L031", "block"),
    ("quantize q none lr 1", "L041", "lr"),
    ("adapt q rank 4 method nf4", "L030", "nf4"),
    ("optimizer gaussian", "L030", "gaussian"),
    ("adapt q rank 4 init zeros", "L035", "zeros"),
    ("adapt q rank 4 quant int8 double", "L034", "double"),
    ("adapt q rank 4 quant nf4(double=true)", "L031", "double"),
    ("adapt q rank 4 quant nf4(block=64)", "L031", "block"),
    ("adapt q rank 4 quant nf4(blocksize=64, blocksize=64)", "L033", "blocksize"),
    ("adapt q rank 4 quant nf4(blocksize=65)", "L032", "65"),
    ('adapt q rank 4 quant nf4(blocksize="64")', "L032", '"64"'),
    ("adapt q rank 4 quant wide(count=true)", "L032", "true"),
    ("adapt q rank 4 quant wide(count=1.5)", "L032", "1.5"),
    ("adapt q rank 4 quant wide(pair=(1, 2, 3))", "L032", "(1, 2, 3)"),
    ("adapt q rank 4 quant wide(scale=5%)", "L045", "5%"),
    ("adapt q rank 4 quant wide(share=5KB)", "L045", "5KB"),
    ("adapt q rank 4 init strict", "L032", "strict"),
    ("adapt q rank 4 init strict(level=10)", "L032", "10"),
    ("adapt q rank 4 method rankless", "L048", "rank"),
    ("adapt @atention rank 4", "L036", "atention"),
    ("adapt /a(/ rank 4", "L037", "("),
    (r"adapt /\/a[/ rank 4", "L037", "["),
    ("adapt a**b rank 4", "L007", "a**b"),
    ("adapt x.**[0] rank 4", "L007", "**"),
    ("adapt layers[3,7..0].q rank 4", "L047", "7..0"),
    ("adapt q rank 4 layers 0,-1..-4", "L047", "-1..-4"),
    ("adapt l[1234567890] rank 4", "L012", "1234567890"),
    ("let r = 1\nlet r = 2", "L021", "r"),
    ("let rank = 1", "L022", "rank"),
    ("let t = [q]\nadapt q rank t", "L025", "t"),
    ('let t = "q"\nadapt q rank t', "L025", "t"),
    ("adapt q rank x\nlet x = 4", "L020", "x"),
    ("adapt t rank 4\nlet t = [q]", "L020", "t"),
    ("optimizer adamw\noptimizer adamw", "L050", "optimizer"),
    ("step batch 2\nstep tokens 4", "L053", "step"),
    ("step batch 2 { batch 4 }", "L040", "batch"),
    ("step batch 0", "L044", "0"),
    ("step tokens 0.5", "L044", "0.5"),
    ("step tokens 24GiB", "L045", "24GiB"),
    ("step batch rank", "L020", "rank"),
    ("step compute tf32", "L038", "tf32"),
    ("step compute fp8", "L049", "fp8"),
    ("step memory 22", "L045", "22"),
    ("step memory 0GiB", "L044", "0GiB"),
    ("step paged", "L041", "paged"),
    ("adapt q rank 4 batch 2", "L041", "batch"),
    ("require x < 1", "L051", "x"),
    ("require rank < 1", "L051", "rank"),
    ("require peak_memory < 24", "L052", "peak_memory < 24"),
    ("require trainable < 1GiB", "L052", "trainable < 1GiB"),
    ("require peak_memory + 1 < 24GiB", "L045", "peak_memory + 1"),
    ("require peak_memory*peak_memory < 24GiB", "L045", "peak_memory*peak_memory"),
    ("require 1/peak_memory < 1", "L045", "1/peak_memory"),
    ("require trainable/0 < 1", "L046", "0"),
    ("let trainable = 1\nrequire trainable < 1", "L022", "trainable"),
    ("use no-such-distribution-anywhere", "L070", "no-such-distribution-anywhere"),
    ("use lark >= 9999", "L071", "9999"),
    ("use lark >= 1..2", "L072", "1..2"),
    ('include "nowhere.lora"', "L060", '"nowhere.lora"'),
    ('include "a\x00b.lora"', "L060", '"a\x00b.lora"'),
]


@pytest.mark.parametrize(("text", "code", "words"), SYNTAX + VALUES)
def test_each_fault_is_one_diagnostic_under_its_words(text: str, code: str, words: str) -> None:
    assert marked(text) == [(code, words)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapt q rank", "expected a number behind `rank`"),
        ("adapt q method rankless alpha 2", "`rankless` takes no `alpha` | it takes `dropout`"),
        ("step compute", "expected `bf16`, `fp16` or `fp32` behind `compute`"),
        ("step paged", "`step` takes no `paged` | it takes `batch`, `tokens`, `memory`, `compute` and `capture`"),
        ("step batch 1/2", "`batch` takes a whole number and at least 1, not 0.5"),
        ("step batch 1 memory 2", "`memory` takes bytes | bytes are written with a unit, as in `24GiB`"),
        ("step compute fp8", "`compute fp8` is a word of the language, but this lorakit does not do it yet | write "
         "`compute bf16`"),
        ("step batch 1; step batch 2", "a program has one step at most | the first one is at <text>:1:1"),
        ("adapt q rank nf4(", "expected a clause or the end of the line behind `nf4`, found `(` | an expression calls "
         "nothing: options belong to the names of plugins"),
        ("adapt q rnak 16", "`rnak` is no clause | did you mean `rank`?"),
        ("adapt q v rank 4", "`v` is no clause | targets are parted by commas: `q,v`"),
        ("adapt q, rank 4", "expected `,`, a clause or the end of the line behind `rank`, found `4` | the comma makes "
         "`rank` a target; leave the comma out"),
        ("adpat q rank 4", "`adpat` is no statement | did you mean `adapt`?"),
        ("quantize @mlp", "expected a quantizer behind `@mlp`"),
        ("optimizer", "expected an optimizer behind `optimizer`"),
        ("adapt q rank 4 quant", "expected a quantizer behind `quant`"),
        ("adapt q rank 4 init", "expected an initializer behind `init`"),
        ("adapt q rank 4 bias", "expected `none` or `adapter` behind `bias`"),
        ("let x =", "expected a number, a string in double quotes or a list in brackets behind `=`"),
        ("adapt q rank (2", "`(` is never closed | close it with `)`"),
        ("adapt q rank 24gib", "`24gib` is not a number | did you mean `24GiB`? | numbers are written `16`, `2e-4`, "
         "`0.05`, `1%` or `24GiB` | units are case-sensitive"),
        ("adapt q", "this rule has no rank, and `lora` needs one | add a clause such as `rank 16`"),
        ("adapt q rank 24GiB", "`rank` takes a plain number, not bytes"),
        ("adapt q rank 0.5", "a rank is a whole number and at least 1, not 0.5"),
        ("adapt q rank 4 dropout 1", "`dropout` takes a number from 0 up to, but not including, 1; not 1"),
        ("adapt q rank 4 init zeros", "`init zeros` does not exist: with A and B both zero nothing ever learns | did "
         "you mean `gaussian`? | the gradient of A is a product with B, and that of B one with A; one of the two must "
         "not be zero"),
        ("adapt q rank 4 quant int8 double", "`int8` has no double quantization | `fp4`, `nf4` and `wide` have it"),
        ("adapt q rank 4 quant nf5", "there is no quantizer `nf5` | did you mean `nf4`?"),
        (
            "adapt q rank 4 quant none",
            "no clause says `none`: an `adapt` rule without `quant` leaves its modules as they are | leave out "
            "`quant none`",
        ),
        ("optimizer lion", "there is no optimizer `lion` | there are `adamw`, `adamw8bit` and `sgd`"),
        ("optimizer adamw(lr=1)", "`adamw` has no option `lr` | `lr` stands behind the parentheses, as in `adamw lr`"),
        ("train q rank 4", "`train` takes no `rank` | it takes `lr`, `layers`, `except` and `optional`"),
        ("adapt q rank 4 rank 8", "`rank` is given twice | it is first given at <text>:1:9"),
        ("let r = 1\nlet r = 2", "`r` is defined twice | it is first defined at <text>:1:5"),
        ("adapt q rank x\nlet x = 4", "`x` is used above its definition | it is defined at <text>:2:5"),
        ("adapt t rank 4\nlet t = [q]", "`t` is used above its definition | for a module of that name write `**.t`"),
        ("let rnk = 4\nadapt q rank rk", "there is no name `rk` here | did you mean `rnk`?"),
        ("require peak_memory < 24", "cannot compare bytes with a plain number | bytes are written with a unit, as in "
         "`24GiB`"),
        ("use torchao-of-tomorrow >= 1.0", "`torchao-of-tomorrow` is not installed | pip install "
         "'torchao-of-tomorrow>=1.0'"),
        ("adapt @atention rank 4", "there is no role `@atention` | did you mean `attention`?"),
        ("adapt q rank 4 layers 7..0", "the range `7..0` ends before it begins | write `0..7`"),
        ("adapt q\u00a0rank 4", "the character U+00A0 (NO-BREAK SPACE) has no place here | write a plain blank"),
    ],
)  # fmt: skip
def test_messages(text: str, message: str) -> None:
    assert only(text) == message


def test_all_errors_in_one_pass() -> None:
    text = """\
adapt q rnak 16
let x = 1/0
adapt q rank x alpha 0 dropout 2 init zeros quant nf4(blocksize=7, foo=1)
adapt k {
  rank 4
  alhpa 8
  dropout
  lr 0
}
quantize @nothing nf5 double
nonsense
train @norm lr 0 rank 3
"""
    assert marked(text) == [
        ("L003", "rnak"), ("L046", "0"), ("L044", "0"), ("L044", "2"), ("L035", "zeros"), ("L032", "7"),
        ("L031", "foo"), ("L003", "alhpa"), ("L004", "dropout"), ("L044", "0"), ("L036", "nothing"), ("L030", "nf5"),
        ("L002", "nonsense"), ("L044", "0"), ("L041", "rank"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "adapt q rnak 16",
        "adapt q {\n  rnak 16\n}",
        "adapt q {\n  rank\n  alpha 2*rank\n}",
        "adapt q rank 0 alpha 2*rank lr rank",
        "let x = \nadapt q rank x alpha x",
        "let x = 1/0\nadapt q rank x\nlet y = x\nadapt k rank y",
        "let t = [@nothing]\nadapt t rank 4\nlet u = [t]\nadapt u rank 4",
        "let t = [\nadapt t rank t",
        'include "nowhere.lora"\nadapt q rank r\nadapt t rank 4',
        "adapt q method nothing",
        "adapt q method nothing(x=1)",
        "use nowhere-to-be-found\nadapt @role rank 4 quant its init its\noptimizer its\nrequire its < 3",
        "let let = \nadapt q rank let",
        "optimizer adamw(\nadapt q rank 4",
        "adpat q {\n  rank 4\n  alpha\n}\nadapt k rank 4",
        "adapt q {\n  rank 4\n",
        "adapt q {\n  rank 4\nadapt k rank 4\nlet x = 4",
    ],
)
def test_nothing_follows_from_another_error(text: str) -> None:
    assert len(codes(text)) == 1


def test_recovery() -> None:
    assert marked("adapt q rank (16\nadapt k rnak 4") == [("L005", "("), ("L003", "rnak")]
    assert marked("let t = [q,\n  k\nadapt t rnak 4") == [("L005", "["), ("L003", "rnak")]
    assert marked("let t = [q,\nadapt k rnak 4") == [("L005", "["), ("L003", "rnak")]
    assert marked("adapt q,\nadapt k rnak 4") == [("L004", ","), ("L003", "rnak")]
    assert marked("adapt q {\n  rank (4\n  alpha 3 y\n}\nadapt k rnak 4") == [
        ("L005", "("), ("L003", "y"), ("L003", "rnak"),
    ]  # fmt: skip
    assert marked("adapt q {\n  rank (4\n  alhpa 3\n}\nadapt k rnak 4") == [("L001", "alhpa"), ("L003", "rnak")]
    assert marked("adapt q {\n  rank (4\n}\nadapt k rnak 4") == [("L005", "("), ("L003", "rnak")]
    assert marked("adapt q {\n  rank 4\n  let x = 3\n  alpha x y\n}\nx") == [
        ("L003", "let"), ("L003", "y"), ("L002", "x"),
    ]  # fmt: skip
    assert marked("adapt q rnak 3; adapt k rnak 4 ; rnak") == [("L003", "rnak"), ("L003", "rnak"), ("L002", "rnak")]
    assert marked('adapt q "a;b" # c;d\nx') == [("L001", '"a;b"'), ("L002", "x")]
    assert marked("adapt q { rank 4 } alpha { 3 }\nx") == [("L001", "alpha"), ("L002", "x")]
    assert marked("adapt q rank 4\n{ alpha 3\n}\nx") == [("L001", "{"), ("L002", "x")]
    assert marked("config { a: 1; b: 2 }\nx") == [("L002", "config"), ("L002", "x")]
    assert marked("adapt q nope {\n  alhpa 3\n}") == [("L003", "nope"), ("L003", "alhpa")]


def test_a_statement_beside_a_broken_clause_is_still_checked() -> None:
    assert marked("adapt @nothing {\n  alhpa 3\n  dropout 7\n}") == [
        ("L036", "nothing"), ("L003", "alhpa"), ("L044", "7"),
    ]  # fmt: skip
