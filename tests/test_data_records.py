"""Records: what each form of them is, what is left out of a file and why, and what `lorakit train` says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lorakit
from helpers import byte_tokenizer
from lorakit.cli.main import main
from lorakit.data.examples import Chat, Completion, Example, Text
from lorakit.data.shapes import read_columns
from lorakit.data.source import Data, Reading, read_data
from lorakit.data.tokens import IGNORED, tokenize
from lorakit.plugins import load_plugins

PLUGINS = load_plugins()
Write = Callable[[str, str], Path]

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "B"}
TALK = (USER, ANSWER)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Data]:
    def reader(*records: dict[str, Any], columns: str = "", max_left_out: float = 0.5) -> Data:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return read_data(path, PLUGINS, Reading(read_columns(columns, PLUGINS) if columns else {}, max_left_out))

    return reader


def bare(example: Example) -> Any:
    """Return what an example holds, without its place."""
    match example:
        case Text(_, text):
            return text
        case Completion(_, prompt, completion):
            return prompt, completion
        case Chat():
            return list(example.messages), list(example.learned), list(example.tools)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "a"}, "a"),
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"prompt": "", "completion": "b"}, ("", "b")),
        ({"messages": TALK}, ([*TALK], [False, True], [])),
        ({"messages": json.dumps(TALK)}, ([*TALK], [False, True], [])),
        ({"messages": TALK, "tools": [TOOL]}, ([*TALK], [False, True], [TOOL])),
        ({"messages": TALK, "tools": json.dumps([TOOL])}, ([*TALK], [False, True], [TOOL])),
        ({"messages": TALK, "tools": [json.dumps(TOOL)]}, ([*TALK], [False, True], [TOOL])),
        ({"messages": TALK, "tools": None, "system": None}, ([*TALK], [False, True], [])),
        ({"messages": [*TALK, *TALK]}, ([*TALK, *TALK], [False, True, False, True], [])),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
            ([*TALK, *TALK], [False, False, False, True], []),
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}, ANSWER]},
            ([USER, {"role": "assistant", "tool_calls": [CALL]}, ANSWER], [False, True, True], []),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]},
            ([*TALK], [False, True], []),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "B"}], "system": "s"},
            ([{"role": "system", "content": "s"}, *TALK], [False, False, True], []),
        ),
        (
            {"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "B"}]},
            ([*TALK], [False, True], []),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Oslo"}}'},
                    {"from": "observation", "value": "rain"},
                    {"from": "gpt", "value": "B"},
                ]
            },
            (
                [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "rain"}, ANSWER],
                [False, True, False, True],
                [],
            ),
        ),
        ({"prompt": TALK, "completion": [ANSWER]}, ([*TALK, ANSWER], [False, False, True], [])),
        ({"instruction": "a", "output": "B"}, ([*TALK], [False, True], [])),
        (
            {"instruction": "a", "input": "c", "output": "B", "system": "s"},
            (
                [{"role": "system", "content": "s"}, {"role": "user", "content": "a\n\nc"}, ANSWER],
                [False, False, True],
                [],
            ),
        ),
        ({"instruction": "a", "input": "", "output": "B", "text": "all of it"}, ([*TALK], [False, True], [])),
        # what is empty tells no form while another column does
        ({"messages": [], "text": "a"}, "a"),
        ({"messages": None, "prompt": "a", "completion": "b", "text": ""}, ("a", "b")),
    ],
)
def test_a_record_is_told_by_its_columns(data: Callable[..., Data], record: dict[str, Any], expected: Any) -> None:
    (example,) = data(record).examples
    assert bare(example) == expected
    assert example.place.endswith("data.jsonl:1")


@pytest.mark.parametrize(
    ("columns", "record", "expected"),
    [
        ("prompt=question,completion=answer", {"question": "a", "answer": "b", "text": "c"}, ("a", "b")),
        ("text=body", {"messages": TALK, "body": "a"}, "a"),
        ("messages=dialog", {"dialog": TALK, "tools": [TOOL], "text": "c"}, ([*TALK], [False, True], [TOOL])),
        ("instruction=q,output=a,input=context", {"q": "a", "a": "B", "context": None}, ([*TALK], [False, True], [])),
    ],
)
def test_columns_have_the_names_that_are_said(
    data: Callable[..., Data], columns: str, record: dict[str, Any], expected: Any
) -> None:
    (example,) = data(record, columns=columns).examples
    assert bare(example) == expected


@pytest.mark.parametrize(
    ("columns", "record", "complaint"),
    [
        ("prompt", {"text": "a"}, "--columns prompt: write NAME=COLUMN, such as prompt=question"),
        ("promt=a,completion=b", {"text": "a"}, "no name `promt`, did you mean `prompt`?; it knows `messages`,"),
        ("prompt=a", {"text": "a"}, "--columns prompt=a names no whole record; one is `messages`, "),
        (
            "prompt=qestion,completion=answer",
            {"question": "a", "answer": "b"},
            r"data.jsonl:1: no column `qestion`, did you mean `question`\?; it has `question`, `answer`",
        ),
        ("messages=m,tools=t", {"m": TALK}, "--columns tools=t, and no record has a column `t`"),
        (
            "",
            {"q": "a", "a": "b"},
            "data.jsonl:1: a record is `messages`, .*; this one has `q`, `a`; say which column is",
        ),
        ("", {"text": 7}, "data.jsonl:1: `text` is 7, where text belongs"),
        ("", {"instruction": "a", "output": ["b"]}, "`output` is a list of 1, where text belongs"),
        ("", {"messages": 7}, "`messages` is 7, where a list belongs"),
        ("", {"messages": "[{]"}, r"`messages` is '\[\{\]', which is no JSON"),
        ("", {"messages": [USER, 3]}, "data.jsonl:1: message 2 of `messages` is 3, and no object"),
        ("", {"messages": [{"content": "a"}]}, "message 1 of `messages` has no `role`; it has 'content'"),
        ("", {"messages": [USER, {"role": "assistant"}]}, r"message 2 of `messages` \(assistant\) has no `content`"),
        ("", {"messages": [USER, {**ANSWER, "weight": 0.5}]}, "message 2 of `messages` has the weight 0.5: 0 leaves"),
        (
            "",
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "message 1 of `messages` holds a part of the type 'image': `lorakit train` reads text alone",
        ),
        ("", {"messages": TALK, "tools": [7]}, "`tools` holds 7, where the object of a tool belongs"),
    ],
)
def test_what_is_no_record_is_said_with_its_place(
    data: Callable[..., Data], columns: str, record: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(lorakit.DataError, match=complaint.replace("?;", r"\?;").replace(r"\\?", r"\?")):
        data(record, columns=columns)


def test_what_is_left_out_is_counted_with_its_reason(data: Callable[..., Data]) -> None:
    records = [
        {"text": ""},
        {"messages": [USER, {"role": "bot!", "content": "B"}]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"text": None},
        *[{"text": "a", "id": 1}] * 4,
    ]
    found = data(*records)
    assert len(found.examples) == 4 and found.forms == {"texts": 6, "chats": 2}
    assert found.unread == ("id",)
    assert [(one.place[-2:], one.reason) for one in found.left_out] == [
        (":1", "with nothing in `text`"),
        (":2", "without a turn of the assistant (roles: user, bot!)"),
        (":3", "with no turn of the assistant that is learned"),
        (":4", "with nothing in `text`"),
    ]


def test_more_left_out_than_kept_is_an_error_unless_it_is_meant(data: Callable[..., Data]) -> None:
    records = [{"text": "a"}, {"text": ""}, {"text": ""}, {"messages": [USER]}]
    with pytest.raises(lorakit.DataError) as caught:
        data(*records)
    said = str(caught.value).splitlines()
    assert said[0].endswith("data.jsonl: 3 of 4 records have nothing to learn")
    assert said[1].startswith("  2: with nothing in `text` (first: ") and said[1].endswith("data.jsonl:2)")
    assert said[2].startswith("  1: without a turn of the assistant (roles: user) (first: ")
    assert said[3].endswith("if this is meant, --max-left-out 0.76")
    assert len(data(*records, max_left_out=0.76).examples) == 1
    with pytest.raises(lorakit.DataError, match="1 of 1 records have nothing to learn"):
        data({"text": ""}, max_left_out=1.0)


def learned(example: Example, tokenizer: Any, limit: int = 512) -> tuple[str, str]:
    """Return the whole text of an example, and what of it is learned."""
    (row,) = tokenize([example], tokenizer, limit).rows
    return tokenizer.decode(row.input_ids), tokenizer.decode([one for one in row.labels if one != IGNORED])


def test_what_is_learned_of_texts_and_completions() -> None:
    tokenizer = byte_tokenizer()
    assert learned(Text("", "abc"), tokenizer) == ("abc<eos>", "abc<eos>")
    # its end is not said twice
    assert learned(Text("", "abc<eos>"), tokenizer) == ("abc<eos>", "abc<eos>")
    assert learned(Completion("", "ab", "cd"), tokenizer) == ("abcd<eos>", "cd<eos>")
    assert learned(Completion("", "ab", "cd"), tokenizer, limit=3) == ("abc", "c")
    made = tokenize([Completion("d:1", "ab", "cd"), Completion("d:2", "abcd", "e")], tokenizer, 4)
    assert [row.cut for row in made.rows] == [True] and made.trained_tokens == 2
    assert [(one.place, one.reason) for one in made.left_out] == [("d:2", "with nothing to learn within 4 tokens")]


def merging_tokenizer() -> Any:
    """Return a tokenizer that has a token for a word with the space before it, as most have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {one: number for number, one in enumerate(["<eos>", "Ġ", "a", "b", ":", "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_a_prompt_keeps_its_tokens_and_the_completion_those_of_the_whole() -> None:
    tokenizer = merging_tokenizer()
    (row,) = tokenize([Completion("", "b:", " a")], tokenizer, 9).rows
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == ["b", ":", "Ġa", "<eos>"]
    assert row.labels == [IGNORED, IGNORED, 5, 0]
    # the space is the prompt's: a token of both would take it away
    (row,) = tokenize([Completion("", "b: ", "a")], tokenizer, 9).rows
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == ["b", ":", "Ġ", "a", "<eos>"]
    assert row.labels == [IGNORED, IGNORED, IGNORED, 2, 0]


def test_instructions_are_told_in_alpacas_words_to_a_model_that_knows_no_chats(data: Callable[..., Data]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    plain, paired = data(
        {"instruction": "a", "output": "B"}, {"instruction": "a", "input": "c", "output": "B"}
    ).examples
    whole, said = learned(plain, tokenizer)
    assert said == "B<eos>"
    assert whole == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\na\n\n### Response:\nB<eos>"
    )
    whole, said = learned(paired, tokenizer)
    assert said == "B<eos>" and "\n\n### Instruction:\na\n\n### Input:\nc\n\n### Response:\n" in whole
    with pytest.raises(lorakit.DataError, match="data.jsonl:1: this model has no chat template"):
        learned(data({"messages": TALK}).examples[0], tokenizer)


def test_a_token_that_the_model_has_not_is_said_with_its_place() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    examples = [Text("d:1", "abc"), Text("d:2", "a<tool>")]
    assert len(tokenize(examples, tokenizer, 512, len(tokenizer)).rows) == 2
    with pytest.raises(lorakit.ModelError, match=r"d:2: the tokenizer gives the token \d+ \('<tool>'\), and the model"):
        tokenize(examples, tokenizer, 512, len(tokenizer) - 1)
    # what is cut off does no harm
    assert len(tokenize(examples, tokenizer, 1, len(tokenizer) - 1).left_out) == 2


def run(*words: object) -> int:
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["lorakit", *map(str, words)])
            main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_train_says_what_it_read(llama_folder: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write("a.lora", "adapt q_proj rank 2")
    table = write("data.csv", "question,answer,id\n" + "what is a,it is b,1\n" * 6 + f"long,,2\nshort,{'x' * 200},3\n")
    words = ["train", spec, llama_folder, table, "-o", spec.parent / "out", "--steps", 1, "--batch", 2, "--held-out", 0]
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "data.csv:2: a record is `messages`" in said and "this one has `question`, `answer`, `id`" in said
    assert run(*words, "--columns", "prompt=question,completion=answer") == 0
    said = capsys.readouterr().out
    assert "data.csv: 8 prompts with completions; not read: `id`" in said
    assert "7 rows to train on" in said and "1 cut to 64 tokens, all that the model has positions for" in said
    assert "left out: 1 with nothing in `answer`" in said


def test_data_is_checked_before_a_model_is(write: Write, tmp_path: Path) -> None:
    spec, data = write("a.lora", "adapt q_proj rank 2"), write("bad.jsonl", '{"text": "a"}\n{"text": \n')
    code = (
        "import sys\nfrom lorakit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    )
    for name, complaint in (("none.jsonl", "no such data file"), (data.name, "bad.jsonl:2: no JSON")):
        words = ["train", str(spec), "no/model", str(tmp_path / name), "-o", str(tmp_path / "out")]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n" and complaint in done.stderr


def test_pairs_and_texts_are_not_taken_for_each_other(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    spec, text = write("a.lora", "adapt @linear rank 2"), write("data.txt", "a text")
    code = write("net.py", "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(2, 2))\n")
    assert run("train", spec, f"{code}:net", text, "-o", spec.parent / "out") == 2
    assert "trains on pairs that code makes, FILE.py:FACTORY" in capsys.readouterr().err
