"""The Pygments lexer: it reads every valid spec without an error, and its words are the language's."""

from __future__ import annotations

import pytest
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Error, Keyword, Name
from specs import right

from lorakit.highlighting import LoraLexer
from lorakit.language.parser import parse_syntax
from lorakit.language.source import SourceText
from lorakit.language.words import CLAUSE_TERMINALS, STATEMENT_TERMINALS


def test_there_is_no_error_in_a_valid_spec() -> None:
    assert len(right()) > 100
    for text in right():
        found = list(LoraLexer(ensurenl=False, stripnl=False).get_tokens(text))
        assert "".join(words for _, words in found) == text
        assert [words for kind, words in found if kind is Error] == [], text


def test_keywords_are_where_the_parser_sees_them() -> None:
    for text in right():
        tree = parse_syntax(SourceText("spec", text))
        wanted = {token.start for token in tree.tokens if token.type in STATEMENT_TERMINALS | CLAUSE_TERMINALS}
        found = LoraLexer().get_tokens_unprocessed(text)
        marked = {place for place, kind, words in found if kind in Keyword and words not in ("double", "true", "false")}
        assert marked == wanted, text


@pytest.mark.parametrize(
    ("text", "word", "kind"),
    [
        ("adapt rank rank 16", "rank", Name.Attribute),
        ("adapt @mlp rank 4", "@mlp", Name.Class),
        ("adapt q rank 4 quant nf4 double", "nf4", Name.Function),
        ("let r = 3", "r", Name.Variable),
    ],
)
def test_the_place_decides(text: str, word: str, kind: object) -> None:
    assert next(found for found, words in LoraLexer().get_tokens(text) if words == word) is kind


@pytest.mark.parametrize("name", ["lora", "lorakit"])
def test_pygments_finds_it_by_name(name: str) -> None:
    assert isinstance(get_lexer_by_name(name), LoraLexer)


def test_pygments_finds_it_by_file() -> None:
    assert isinstance(get_lexer_for_filename("spec.lora"), LoraLexer)
