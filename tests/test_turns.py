"""Which tokens of a chat are learned: what the assistant says and the ends of its turns, whatever the template."""

from __future__ import annotations

from typing import Any

import pytest

import lorakit
from helpers import byte_tokenizer, make_llama
from lorakit.data.examples import LeftOut
from lorakit.data.rows import Row
from lorakit.data.shapes import example_of, shape_of
from lorakit.data.tokens import IGNORED, TokenRow, tokenize

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
    example = example_of(row, shape_of(row, {}), {})
    assert not isinstance(example, LeftOut), example
    (made,) = tokenize([example], tokenizer, 512).rows
    return made


def said(tokenizer: Any, row: TokenRow) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])  # type: ignore[no-any-return]


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
        (OPENS_THOUGHT, [*TALK[:1], ("assistant", "<think>why</think>BBBB")], "<think>why</think>BBBB<eos>"),
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

    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model in (t5, BertForSequenceClassification(BertConfig(vocab_size=64, **small))):
        with pytest.raises(lorakit.ModelError, match=f"causal language model, and {type(model).__name__} is none"):
            make_task("data.jsonl", model, ModelReference("model"), Settings())
    with pytest.raises(lorakit.DataError, match="trains on a file of text, and pairs.py:made names code"):
        make_task("pairs.py:made", make_llama(), ModelReference("model"), Settings())
