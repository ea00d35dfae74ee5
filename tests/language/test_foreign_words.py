"""Words of other tools: every one of them is refused, wherever it stands, with what to write instead."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from language_helpers import look

from lorakit.diagnostics import Code
from lorakit.language.foreign_words import ELSEWHERE, FOREIGN_WORDS
from lorakit.language.other_formats import other_format
from lorakit.language.words import KEYWORDS
from lorakit.plugins import default_plugins

# what is written, and what is to be written instead
INSTEAD = {
    "adapt all-linear rank 8": "@linear",
    "adapt q_proj r 8": "rank 8",
    "adapt q_proj, r 8": "rank 8",
    "adapt q_proj lora_r=16": "rank 16",
    "lora_r: 16": "rank 16",
    "adapt q_proj rank 8 lora_alpha 16": "alpha 16",
    "adapt q_proj rank 8 lora_dropout=0.1": "dropout 0.1",
    "adapt q_proj rank 8 {\n  lora_alpha: 32\n}": "alpha 32",
    "adapt q_proj rank 8 rslora": "scaling rslora",
    "adapt q_proj rank 8 use_rslora true": "scaling rslora",
    "adapt q_proj rank 8 scaling use_rslora": "scaling rslora",
    "adapt q_proj rank 8 method rslora": "scaling rslora",
    "adapt q_proj rank 8 bias lora_only": "bias adapter",
    "adapt q_proj rank 8 dora": "method dora",
    "adapt q_proj rank 8 load_in_4bit": "quant nf4 double",
    "adapt q_proj rank 8 load_in_8bit": "quant int8",
    "load_in_4bit: true": "quantize @linear nf4 double",
    "adapt q_proj rank 8 quant 4bit": "quant nf4 double",
    "adapt q_proj rank 8 quant bnb_4bit": "quant nf4 double",
    "adapt q_proj rank 8 method qlora": "quant nf4 double",
    "adapt q_proj rank 8 quant nf4(bnb_4bit_use_double_quant=true)": "quant nf4 double",
    "adapt q_proj rank 8 bnb_4bit_use_double_quant true": "quant nf4 double",
    "adapt q_proj rank 8 nf4 double": "quant nf4 double",
    "quantize nf4 double @linear": "quantize @linear nf4 double",
    "quantize nf4 @linear": "quantize @linear nf4",
    "quantize @linear quant nf4 double": "quantize @linear nf4",
    "target_modules q_proj": "adapt q_proj,v_proj rank 16",
    'adapt target_modules=["q_proj"] rank 8': "adapt q_proj,v_proj rank 16",
    "adapt @linear rank 8 modules_to_save lm_head": "train lm_head",
    "modules_to_save: [lm_head]": "train lm_head",
    "adapt q_proj rank 8 layers_to_transform 3": "layers 3",
    "optimizer paged_adamw_8bit lr 2e-4": "optimizer adamw8bit paged",
    "optimizer adamw learning_rate 2e-4": "lr 2e-4",
    "step batch 2 sequence_len 512": "step tokens 512",
    "micro_batch_size: 4": "step batch 4",
    "gradient_checkpointing": "--gradient-checkpointing",
    "num_epochs: 2": "--epochs 2",
}


@pytest.mark.parametrize("text", INSTEAD)
def test_what_to_write_instead(text: str) -> None:
    found = look(f"{text}\n").diagnostics[0]
    assert INSTEAD[text] in re.findall("`([^`]*)`", found.suggestion or "") or INSTEAD[text] in (found.suggestion or "")
    assert "did you mean" not in str(found)


@pytest.mark.parametrize("word", FOREIGN_WORDS)
def test_every_word_is_refused_with_its_advice(word: str) -> None:
    assert word not in KEYWORDS
    for text in (f"{word} 8", f"adapt q_proj rank 4 {word} 8"):
        (found,) = look(text).diagnostics
        assert found.suggestion and ("write" in found.suggestion or FOREIGN_WORDS[word].advice in found.suggestion)


@pytest.mark.parametrize("word", FOREIGN_WORDS)
def test_what_is_to_be_written_can_be_read(word: str) -> None:
    known = FOREIGN_WORDS[word]
    written = known.write.format(known.example or word)
    if known.where.startswith("an option of"):
        assert written.startswith("--")
        return
    texts = {
        "": "adapt q rank 8",
        "@": f"adapt {written} rank 8",
        "rank": f"adapt @linear {written}",
        **dict.fromkeys(("train", "step", "optimizer"), written),
    }
    text = texts.get(re.match(r"@|\w*", written)[0], f"adapt @linear rank 8 {written}")  # type: ignore[index]
    assert not [one.message for one in look(text).diagnostics if one.code != Code.UNKNOWN_PLUGIN]


def test_a_module_may_be_called_so_all_the_same() -> None:
    assert not look("adapt **.all-linear rank 4").diagnostics
    assert not look("let r = 8\nadapt r rank r").diagnostics


@pytest.mark.parametrize(("kind", "name"), ELSEWHERE)
def test_plugins_of_other_distributions(kind: str, name: str) -> None:
    distribution = ELSEWHERE[kind, name]
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        registry = getattr(default_plugins(), f"{kind}s")
        assert name in registry or default_plugins().failure_of(distribution)
    text = {"method": "adapt q rank 4 method {}", "initializer": "adapt q rank 4 init {}"}.get(kind, f"{kind} {{}}")
    text = "quantize q {}" if kind == "quantizer" else text
    (found,) = look(text.format(name)).diagnostics
    assert distribution in (found.suggestion or "") and "did you mean" not in (found.suggestion or "")


OTHER = {
    "adapter: qlora\nlora_r: 16\n": "an Axolotl config in YAML",
    "# QLoRA\n\nbase_model: x\nlora_r: 16\n": "an Axolotl config in YAML",
    "finetuning_type: lora\nlora_rank: 8\ncutoff_len: 512\n": "a LLaMA-Factory config in YAML",
    "model_name_or_path: x\nuse_peft: true\nlora_r: 8\n": "a TRL config in YAML",
    '{"peft_type": "LORA", "r": 8}': "a PEFT config in JSON",
    '\n{\n "target_modules": ["q_proj"],\n "r": 8\n}': "a PEFT config in JSON",
    "name: run\nepochs: 3\n": "YAML",
    "adapt: q_proj\nrank: 8\n": "YAML",
}


@pytest.mark.parametrize("text", OTHER)
def test_a_file_of_another_tool_is_one_error(text: str) -> None:
    (found,) = look(text).diagnostics
    assert found.code == "L017" and found.message == f"this is {OTHER[text]}, and no spec"
    assert ("lorakit init --from" in (found.suggestion or "")) == (" in " in OTHER[text])


@pytest.mark.parametrize(
    "text",
    ["adapt :Conv1D rank 4\n", "adapt q rank 4\nr: 8\nalpha: 3\n", "{\n}\n", "rank: 8\n", "", "let a = 1\nb: 2\nc: 3"],
)
def test_a_spec_with_mistakes_is_a_spec(text: str) -> None:
    assert other_format(text) is None
