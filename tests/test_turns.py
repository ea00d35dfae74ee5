"""Which tokens of a chat are learned: what the assistant says and the ends of its turns, whatever the template."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import lorakit
from helpers import byte_tokenizer, make_llama
from lorakit.data.examples import LeftOut
from lorakit.data.rows import Row
from lorakit.data.shapes import example_of, shape_of
from lorakit.data.tokens import IGNORED, TokenRow, tokenize
from lorakit.plugins import load_plugins

PLUGINS = load_plugins()
CHATML = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as Qwen3: only the last answer carries its reasoning, be it empty
LAST_THINKS = (
    "{% for m in messages %}[{{ m['role'] }}]{% set c = m['content'].split('</think>')[-1] %}"
    "{% if m['role'] == 'assistant' and loop.last %}<think>"
    "{{ m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '' }}</think>"
    "{% endif %}{{ c }}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as DeepSeek-R1: the prompt opens the thought
OPENS_THOUGHT = CHATML.replace("[assistant]", "[assistant]<think>")
# as Gemma and Mistral: what the system says goes into the first turn, and contents are stripped
SYSTEM_INSIDE = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.s = m['content'] %}"
    "{% elif m['role'] == 'user' %}[INST]{{ ns.s }}{% set ns.s = '' %}{{ m['content'].strip() }}[/INST]"
    "{% else %}{{ m['content'].strip() }}<eos>{% endif %}{% endfor %}"
)
NO_ENDS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
TALK = [("user", "aaaa"), ("assistant", "BBBB"), ("user", "cccc"), ("assistant", "DDDD")]


def row_of(tokenizer: Any, record: dict[str, Any]) -> TokenRow:
    row = Row("data.jsonl:1", record)
    example = example_of(row, shape_of(row, {}, PLUGINS), {}, PLUGINS)
    assert not isinstance(example, LeftOut), example
    (made,) = tokenize([example], tokenizer, 512).rows
    return made


def said(tokenizer: Any, row: TokenRow) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def learned(template: str, talk: list[tuple[str, str]]) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": role, "content": text} for role, text in talk]
    row = row_of(tokenizer, {"messages": messages})
    assert row.input_ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return said(tokenizer, row)


@pytest.mark.parametrize(
    ("template", "talk", "expected"),
    [
        (CHATML, TALK, "BBBB<eos>DDDD<eos>"),
        (CHATML, TALK[:3], "BBBB<eos>"),
        (CHATML, [("user", "B"), ("assistant", "B"), ("user", "B"), ("assistant", "B")], "B<eos>B<eos>"),
        (CHATML, [("system", "s"), *TALK], "BBBB<eos>DDDD<eos>"),
        (CHATML, [("assistant", "hello"), *TALK], "hello<eos>BBBB<eos>DDDD<eos>"),
        (CHATML, [("user", "an é"), ("assistant", "an é, 😀")], "an é, 😀<eos>"),
        (LAST_THINKS, TALK, "BBBB<eos><think></think>DDDD<eos>"),
        (
            LAST_THINKS,
            [*TALK[:1], ("assistant", "<think>why</think>BBBB"), TALK[2], ("assistant", "<think>so</think>DDDD")],
            "BBBB<eos><think>so</think>DDDD<eos>",
        ),
        (OPENS_THOUGHT, TALK, "BBBB<eos>DDDD<eos>"),
        # what the prompt gives already is not for the model to say
        (OPENS_THOUGHT, [*TALK[:1], ("assistant", "<think>why</think>BBBB")], "why</think>BBBB<eos>"),
        (SYSTEM_INSIDE, [("system", "s"), ("user", " aaaa "), ("assistant", " BBBB ")], "BBBB<eos>"),
        (SYSTEM_INSIDE, TALK, "BBBB<eos>DDDD<eos>"),
        (NO_ENDS, TALK, "BBBB\n\nDDDD\n\n"),
    ],
)
def test_what_the_assistant_says_is_learned_and_nothing_else(
    template: str, talk: list[tuple[str, str]], expected: str
) -> None:
    assert learned(template, talk) == expected


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages[::-1] %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}", "into those before it"),
        ("{% for m in messages if m['role'] == 'user' %}[user]{{ m['content'] }}{% endfor %}", "leaves out what"),
        (
            CHATML.replace("%}[", "%}{% if loop.index != 3 %}[", 1).replace("<eos>", "<eos>{% endif %}"),
            r"leaves out what message 3 \(user\)",
        ),
    ],
)
def test_a_template_that_does_not_tell_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(lorakit.DataError, match=complaint):
        learned(template, TALK)


def test_the_template_gets_the_tools_of_a_record() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}<{{ t['name'] }}>{% endfor %}" + CHATML
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "B"}]}
    row = row_of(tokenizer, {**record, "tools": [{"name": "search"}]})
    assert tokenizer.decode(row.input_ids).startswith("<search>[user]a")


def test_only_models_that_predict_the_next_token_train_on_text() -> None:
    from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

    from lorakit.trainers.settings import Settings
    from lorakit.trainers.tasks import make_task
    from lorakit.values import ModelReference

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model in (t5, BertForSequenceClassification(BertConfig(vocab_size=64, **small))):
        with pytest.raises(lorakit.ModelError, match=f"causal language model, and {type(model).__name__} is none"):
            make_task("data.jsonl", model, ModelReference("model"), Settings())
    with pytest.raises(lorakit.DataError, match="trains on a file of text, and pairs.py:made names code"):
        make_task("pairs.py:made", make_llama(), ModelReference("model"), Settings())


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "aaaa"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
    {"role": "assistant", "content": "DDDD"},
]
# as Qwen: what is called stands in the assistant's turn, as JSON
CALLS = (
    "{% if tools %}{{ tools | length }} tools.{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as GPT-OSS: an answer is told by what it answers, which must stand before it, and turns end in different ways
NEEDS_CALL = (
    "{% for m in messages %}[{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0].function.name }}"
    "{% else %}{{ m.role }}{% endif %}]{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments | tojson }}!{% endfor %}"
    "{% if not m.tool_calls %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as DeepSeek-V3: arguments are JSON already
AS_STRINGS = CALLS.replace("c.function.arguments | tojson", "('' + c.function.arguments)")
PRINTS_PYTHON = CALLS.replace("c.function.arguments | tojson", "c.function.arguments")
# as Llama 2: calls and tools are no part of it
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as SmolVLM: a text is one of several parts
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def with_template(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def messages_of(talk: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in talk]


@pytest.mark.parametrize(
    ("template", "form", "expected"),
    [
        (CALLS, dict, '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>'),
        (CALLS, json.dumps, '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>'),
        (NEEDS_CALL, dict, 'weather {"place": "Oslo"}!DDDD<eos>'),
        (AS_STRINGS, dict, '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>'),
        (AS_STRINGS, json.dumps, '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>'),
        (PRINTS_PYTHON, dict, '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>'),
        # nothing said is an empty text to some
        (
            CALLS.replace("m.content or ''", "m.content.strip()"),
            dict,
            '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>',
        ),
        # an answer to a tool is not prompted for, and has its header
        (
            CALLS.replace("add_generation_prompt", "add_generation_prompt and messages[-1].role != 'tool'"),
            dict,
            '<call>weather {"place": "Oslo"}</call><eos>DDDD<eos>',
        ),
        # the last answer alone has its thoughts, so that no rendering begins another
        (
            CALLS.replace("{{ m.content or '' }}", "{% if loop.last %}<think></think>{% endif %}{{ m.content or '' }}"),
            dict,
            '<call>weather {"place": "Oslo"}</call><eos><think></think>DDDD<eos>',
        ),
    ],
)
def test_calls_of_tools_are_learned_in_the_form_that_the_template_takes(
    template: str, form: Any, expected: str
) -> None:
    tokenizer = with_template(template)
    call = {"type": "function", "function": {"name": "weather", "arguments": form({"place": "Oslo"})}}
    messages = [CALLED[0], {**CALLED[1], "tool_calls": [call]}, *CALLED[2:]]
    assert said(tokenizer, row_of(tokenizer, {"messages": messages})) == expected


@pytest.mark.parametrize(
    ("template", "record", "complaint"),
    [
        (
            CHATML.replace("m['content']", "(m['content'] or '')"),
            {"messages": CALLED},
            "leaves out the tool calls of message 2",
        ),
        (
            CHATML,
            {"messages": messages_of(TALK), "tools": [TOOL]},
            "leaves out the tools that are offered: it knows none",
        ),
        (
            MARKED,
            {"messages": messages_of(TALK), "tools": [TOOL]},
            "leaves out the tools that are offered: it knows none",
        ),
        ("{{ raise_exception('no system role') }}", {"messages": messages_of(TALK)}, "refuses this: no system role"),
        ("{{ messages[0].content + 1 }}", {"messages": messages_of(TALK)}, "refuses this: can only concatenate str"),
        (CHATML + "{{ messages[9].content.x }}", {"messages": messages_of(TALK)}, "refuses this: .*has no element 9"),
    ],
)
def test_what_a_template_does_not_take_is_said_with_its_place(
    template: str, record: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(lorakit.DataError, match=f"data.jsonl:1: the chat template {complaint}"):
        row_of(with_template(template), record)


def test_texts_become_parts_for_a_template_that_wants_them() -> None:
    tokenizer = with_template(PARTS)
    row = row_of(tokenizer, {"messages": messages_of(TALK)})
    assert tokenizer.decode(row.input_ids) == "[user]aaaa<eos>[assistant]BBBB<eos>[user]cccc<eos>[assistant]DDDD<eos>"
    assert said(tokenizer, row) == "BBBB<eos>DDDD<eos>"


@pytest.mark.parametrize(
    "talk",
    [TALK, TALK[:3], [("system", "s"), *TALK], [("assistant", "hello"), *TALK], [("user", "é"), ("assistant", "😀 b")]],
)
def test_a_template_that_marks_what_is_said_decides_token_by_token(talk: list[tuple[str, str]]) -> None:
    tokenizer = with_template(MARKED)
    messages = messages_of(talk)
    row = row_of(tokenizer, {"messages": messages})
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert row.input_ids == marked["input_ids"] and 0 < sum(marked["assistant_masks"]) < len(row.input_ids)
    assert [int(label != IGNORED) for label in row.labels] == marked["assistant_masks"]
    # without its markers it teaches the same
    plain = with_template(re.sub("{% (end)?generation %}", "", MARKED))
    assert row_of(plain, {"messages": messages}) == row


@pytest.mark.parametrize("template", [CHATML, MARKED, LAST_THINKS])
def test_turns_of_weight_0_are_read_and_not_learned(template: str) -> None:
    tokenizer = with_template(template)
    messages = messages_of(TALK)
    record = {"messages": [messages[0], {**messages[1], "weight": 0}, *messages[2:]]}
    row = row_of(tokenizer, record)
    assert row.input_ids == row_of(tokenizer, {"messages": messages}).input_ids
    assert said(tokenizer, row).removeprefix("<think></think>") == "DDDD<eos>"
    # what was given as a prompt is no answer either
    assert row_of(tokenizer, {"prompt": messages[:3], "completion": messages[3:]}) == row


def test_a_turn_within_may_end_otherwise_than_the_last() -> None:
    # as GPT-OSS, where the last answer has its thoughts too
    template = LAST_THINKS.replace("{{ c }}<eos>", "{{ c }}{% if loop.last %}<eos>{% else %}<end>{% endif %}")
    tokenizer = with_template(template)
    tokenizer.add_tokens(["<end>"], special_tokens=True)
    assert said(tokenizer, row_of(tokenizer, {"messages": messages_of(TALK)})) == "BBBB<end><think></think>DDDD<eos>"


def test_the_header_of_the_next_turn_is_not_learned_with_the_end_of_one() -> None:
    # as Phi-3: a chat ends in what stands behind no turn within, and which begins as the next header does
    template = CHATML.replace("<eos>{% endfor %}", "<end>{% endfor %}<|eos|>").replace("[", "<|").replace("]", "|>")
    tokenizer = with_template(template.replace("m<|", "m[").replace("'|>", "']"))
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|eos|>", "<end>"], special_tokens=True)
    row = row_of(tokenizer, {"messages": messages_of(TALK)})
    assert tokenizer.decode(row.input_ids).startswith("<|user|>aaaa<end><|assistant|>BBBB<end><|user|>")
    assert said(tokenizer, row) == "BBBB<end>DDDD<end><|eos|>"
