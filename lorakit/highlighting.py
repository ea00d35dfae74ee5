"""A Pygments lexer for `.lora` files, which reads the language's own words; Pygments finds it by its entry point."""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, default, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from lorakit.language.words import CLAUSES, QUANTITIES, STATEMENTS

_NAMED = [word for word, clause in CLAUSES.items() if clause.plugin or clause.choices]
_VALUED = ("rank", "alpha", "dropout", "lr_ratio", "lr", "batch", "tokens", "memory")
_TARGETED = ("adapt", "quantize", "train")


_TARGET = [
    (r"/(?:\\[^\n]|[^/\\\n])+/", String.Regex),
    (r"[@:][^\W\d]\w*", Name.Class),
    (r"(?<=[\w*-])\[[^\]]*\]", Number),
    (r"\*+", Operator),
    (r"[\w-]+", Name.Attribute),
    (r"\.", Punctuation),
]


class LoraLexer(RegexLexer):  # type: ignore[misc]
    """Tokens of `.lora` files: statements, clauses, targets, plugins, values."""

    name = "lorakit"
    aliases: ClassVar[list[str]] = ["lora", "lorakit"]
    filenames: ClassVar[list[str]] = ["*.lora"]
    mimetypes: ClassVar[list[str]] = ["text/x-lora"]
    url = ""

    tokens: ClassVar[dict[str, list[Any]]] = {
        "root": [
            (r"\n", Whitespace),
            (rf"({'|'.join(_TARGETED)})\b([ \t]*)", bygroups(Keyword.Declaration, Whitespace), "targets"),
            (r"(let)([ \t]+)([^\W\d]\w*)", bygroups(Keyword.Declaration, Whitespace, Name.Variable)),
            (
                r"(use)([ \t]+)([A-Za-z0-9][\w.-]*)(?:([ \t]*)(>=)([ \t]*)([0-9][\w.!+-]*))?",
                bygroups(Keyword.Declaration, Whitespace, Name.Namespace, Whitespace, Operator, Whitespace, Number),
            ),
            (r"(require)([ \t]+)(rank)\b", bygroups(Keyword.Declaration, Whitespace, Name)),
            (r"([^\W\d]\w*)([ \t]*)(=)(?!=)", bygroups(Name.Attribute, Whitespace, Operator)),
            (words(tuple(STATEMENTS), suffix=r"\b"), Keyword.Declaration),
            (r"(except)\b([ \t]*)", bygroups(Keyword, Whitespace), "targets"),
            (rf"({'|'.join(_NAMED)})\b([ \t]+)([^\W\d]\w*)", bygroups(Keyword, Whitespace, Name.Function)),
            # inside an expression it is the value of the clause
            (r"([-+*/(])([ \t]*)(rank)\b", bygroups(Operator, Whitespace, Name)),
            (rf"({'|'.join(_VALUED)})\b([ \t]+)(rank)\b", bygroups(Keyword, Whitespace, Name)),
            (words((*CLAUSES, "double"), suffix=r"\b"), Keyword),
            (words(tuple(QUANTITIES), suffix=r"\b"), Name.Builtin),
            (words(("true", "false"), suffix=r"\b"), Keyword.Constant),
            (r"\[", Punctuation, "list"),
            (r'"(?:\\["\\]|[^"\\\n])*"', String.Double),
            (r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?:%|[KMGT]i?B|B)?(?!\w)", Number),
            (r"\.\.|[<>=!]=|[-+*/<>=]", Operator),
            (r"[(){},;]", Punctuation),
            (r"[^\W\d]\w*", Name),
            (r"[ \t\r\f\ufeff]+", Whitespace),
            (r"#[^\n]*", Comment.Single),
        ],
        # a list of targets goes on behind a comma, on the next line too, and ends where none parts it from what follows
        "targets": [
            (r"[ \t\r\f]*,(?:\s|#[^\n]*)*", Punctuation),
            (r"(?<=[\w\]*/-])(?=[ \t\r\f]*(?:[\n;{#]|[^\s,]|$))(?![\w.*\[@:-])", Whitespace, "#pop"),
            (r"[ \t\r\f]+", Whitespace),
            *_TARGET,
            default("#pop"),
        ],
        "list": [
            (r"\]", Punctuation, "#pop"),
            (r",", Punctuation),
            (r"\s+", Whitespace),
            (r"#[^\n]*", Comment.Single),
            *_TARGET,
            default("#pop"),
        ],
    }
