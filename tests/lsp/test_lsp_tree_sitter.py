"""The tree-sitter grammar: it takes what the parser takes, and its colours are the server's."""

from __future__ import annotations

import ctypes
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from specs import ROOT, examples, right, texts
from test_lsp_grammar import TRICKY

from lorakit.diagnostics import Code, Diagnostic
from lorakit.language.files import read_file
from lorakit.language.parser import parse_syntax
from lorakit.language.source import SourceText
from lorakit.language.words import CLAUSES, KEYWORDS, STATEMENTS
from lorakit.lsp.document import read_document
from lorakit.lsp.names import names_of
from lorakit.lsp.tokens import tokens
from lorakit.plugins import default_plugins

tree_sitter = pytest.importorskip("tree_sitter")

FOLDER = ROOT / "grammar" / "tree-sitter"
SOURCES = FOLDER / "src"

# How an editor's captures are called by the server
SERVERS = {
    "keyword": "keyword", "boolean": "keyword", "function": "function", "constant": "enumMember", "module": "namespace",
    "variable.parameter": "parameter", "variable": "variable", "variable.builtin": "variable", "property": "property",
    "attribute": "decorator", "type": "class", "number": "number", "string": "string", "string.regexp": "regexp",
    "operator": "operator", "comment": "comment",
}  # fmt: skip


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The committed parser, compiled."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("tree-sitter") / "lora.so"
    sources = [str(SOURCES / "parser.c"), str(SOURCES / "scanner.c")]
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-I", str(SOURCES), *sources, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).tree_sitter_lora
    function.restype = ctypes.c_void_p
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return tree_sitter.Language(capsule(function(), b"tree_sitter.Language", None))


def root(language: Any, text: str) -> Any:
    return tree_sitter.Parser(language).parse(text.encode("utf-8", "replace")).root_node


def complaints(text: str) -> tuple[Diagnostic, ...]:
    return parse_syntax(SourceText("spec", text)).diagnostics


def is_exception(found: Diagnostic) -> bool:
    """Return whether it is something that only the parser refuses."""
    return (
        found.code == Code.LIMIT
        or found.message.startswith("expected a quantizer behind")
        or (found.message.startswith("cannot read the indices") and "#" in found.message)
    )  # fmt: skip


def agree(language: Any, text: str) -> bool:
    """Return whether both take a text or both refuse it, but for what only the parser refuses."""
    found = complaints(text)
    return bool(root(language, text).has_error == bool(found) or (found and all(map(is_exception, found))))


def test_it_takes_what_the_parser_takes_and_nothing_else(language: Any) -> None:
    assert len(texts()) > 1000 and len(right()) > 500
    for text in texts():
        assert agree(language, text), text


def test_nor_where_words_are_put_in_and_left_out(language: Any) -> None:
    chance, short = random.Random(0), [text for text in right() if len(text) < 600]
    more = ["\n", " ", ";", ",", "(", ")", "[", "]", "{", "}", "rank", "x", "3", "..", "=", ".", "*", "-", "/", "# c\n"]
    for _ in range(2000):
        words = re.findall(r"\w+|\s+|.", chance.choice(short))
        for _ in range(chance.randint(1, 2)):
            place = chance.randrange(len(words) + 1)
            words[place : place + chance.randint(0, 1)] = chance.choice([[], [chance.choice(more)]])
        assert agree(language, "".join(words)), "".join(words)


@pytest.mark.parametrize(
    "text",
    [
        # a word of the language in the place of a quantizer: here it is a name, since states are not merged
        "quantize q optional",
        # a comment between the brackets of an index, where blanks may stand
        "adapt layers[0..3 # the first\n] rank 4",
        # deeper than every walk over the nodes may recurse
        f"adapt q rank {'(' * 101}4{')' * 101}",
    ],
)
def test_what_only_the_parser_refuses(language: Any, text: str) -> None:
    found = complaints(text)
    assert found and all(map(is_exception, found))
    assert not root(language, text).has_error


def test_an_error_leaves_the_next_statement_alone(language: Any) -> None:
    tree = root(language, "adapt q rank 4 quant nf4(\nadapt v rank 2\ntrain @norm\n")
    assert tree.has_error
    assert [node.type for node in tree.children][-1] == "train"


def captured(language: Any, text: str) -> dict[tuple[int, int], str]:
    """Return what the query says of each word, by its offsets in code points."""
    query = tree_sitter.Query(language, (FOLDER / "queries" / "highlights.scm").read_text("utf-8"))
    data = text.encode()
    return {
        (len(data[: node.start_byte].decode()), len(data[: node.end_byte].decode())): SERVERS[name]
        for name, nodes in tree_sitter.QueryCursor(query).captures(root(language, text)).items()
        for node in nodes
        if not name.startswith("punctuation.")
    }


def test_its_colours_are_those_of_the_server(language: Any) -> None:
    plugins = default_plugins()
    for text in [*examples(), TRICKY, *right()]:
        document = read_document("file:///spec.lora", None, 1, text, "utf-8", plugins, read_file)
        lists = {name for name, found in names_of(document).items() if isinstance(found.value, tuple)}
        wanted = {
            # which target is a list says a `let`, which a query cannot look up
            (start, end): "property" if kind == "variable" and text[start:end] in lists else kind
            for start, end, kind, _ in tokens(document)
        }
        found = {
            place: "property" if kind == "variable" and text[slice(*place)] in lists else kind
            for place, kind in captured(language, text).items()
        }
        assert found == wanted, text


@pytest.mark.parametrize("query", ["folds", "locals"])
def test_the_other_queries_can_be_read(language: Any, query: str) -> None:
    text = (FOLDER / "queries" / f"{query}.scm").read_text("utf-8")
    found = tree_sitter.QueryCursor(tree_sitter.Query(language, text)).captures(root(language, TRICKY))
    assert found


def test_its_words_are_those_of_the_language() -> None:
    grammar = json.loads((SOURCES / "grammar.json").read_text("utf-8"))
    spelled = set(re.findall(r'"type": "STRING", "value": "(\w+)"', json.dumps(grammar)))
    assert spelled == {*STATEMENTS, *CLAUSES, *KEYWORDS}


def test_the_committed_parser_is_what_the_generator_makes(tmp_path: Path) -> None:
    generator = shutil.which("tree-sitter")
    if generator is None or shutil.which("node") is None:
        pytest.skip("tree-sitter and node are not installed")
    package = json.loads((FOLDER / "package.json").read_text("utf-8"))
    version = subprocess.run([generator, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if version != package["devDependencies"]["tree-sitter-cli"]:
        pytest.skip(f"another version than tree-sitter {version} made the parser")
    for name in ("grammar.js", "package.json", "tree-sitter.json"):
        shutil.copy(FOLDER / name, tmp_path)
    command = [generator, *package["scripts"]["generate"].split()[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [path.relative_to(tmp_path / "src") for path in (tmp_path / "src").rglob("*") if path.is_file()]
    assert Path("parser.c") in made
    for path in made:
        assert (tmp_path / "src" / path).read_bytes() == (SOURCES / path).read_bytes(), path
