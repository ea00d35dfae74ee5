"""Words of other tools, each with what a spec says in its place: one table that everything which complains reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lorakit.diagnostics import HELP
from lorakit.language.targets import ALL_LINEAR


@dataclass(frozen=True, slots=True)
class ForeignWord:
    """What to write instead of a word; `{}` stands for the value behind it, which is `example` where none stands there.

    `where` says where that goes. An `advice` is a sentence that says all of it.
    """

    write: str
    example: str = ""
    where: str = "a clause of `adapt`"
    advice: str = ""

    def help(self, value: str = "") -> str:
        """Return the advice, with the value that was written behind the word."""
        if self.advice:
            return f"{HELP}{self.advice}"
        return f"{HELP}write `{self.write.format(value or self.example)}`{self.where and f', {self.where}'}"


_STATEMENT = "a statement of its own"
_OPTIMIZER, _STEP, _TRAIN = (
    "the optimizer's statement",
    "a statement on how a step runs",
    "an option of `lorakit train`",
)


def _train(option: str, example: str = "") -> ForeignWord:
    form = f"--{option} {{}}" if example else f"--{option}"
    return ForeignWord(form, example, _TRAIN)


_RANK = ForeignWord("rank {}", "16")
_NF4 = ForeignWord("quant nf4 double", where="in `adapt`; `quantize @linear nf4 double` is for all other layers")
_INT8 = ForeignWord("quant int8", where="in `adapt`; `quantize @linear int8` is for all other layers")
_DOUBLE = ForeignWord("quant nf4 double", where="`double` stands behind its quantizer")
_ADAMW = ForeignWord("optimizer adamw lr {}", "2e-4", _STATEMENT)
_BATCH = ForeignWord("step batch {}", "2", _STEP)
_TOKENS = ForeignWord("step tokens {}", "2048", _STEP)
_TARGETS = ForeignWord("", advice="targets follow `adapt`: `adapt q_proj,v_proj rank 16`")
_LINEAR = ForeignWord("@linear", where="every linear layer but the output head")
_WHOLE = ForeignWord("train {}", "lm_head", _STATEMENT)
_RSLORA = ForeignWord("scaling rslora")
_COMPUTE = ForeignWord("step compute {}", where=f"{_STEP}; `dtype` in `adapt` is that of the adapters")
_QUANTIZER = ForeignWord(
    "", advice="a quantizer stands behind `quant`, as in `quant nf4 double`, or behind the targets of `quantize`"
)
_START = ForeignWord("init {}", where="a start stands behind `init`")
_NO_ACCUMULATION = ForeignWord("", advice="leave it out: `step batch N` is how many rows a step takes on one device")

# what is a quantizer, wherever it stands
QUANTIZERS = ("nf4", "fp4", "int8")

FOREIGN_WORDS: Mapping[str, ForeignWord] = MappingProxyType({
    **dict.fromkeys(("r", "lora_r", "lora_rank", "lora_dim"), _RANK),
    "lora_alpha": ForeignWord("alpha {}", "32"),
    "lora_dropout": ForeignWord("dropout {}", "0.05"),
    **dict.fromkeys(("rslora", "use_rslora", "peft_use_rslora"), _RSLORA),
    **dict.fromkeys(("use_dora", "peft_use_dora", "dora"), ForeignWord("method dora")),
    **dict.fromkeys(("ia3", "vera"), ForeignWord("method {}")),
    **dict.fromkeys(("target_modules", "lora_target_modules", "lora_target"), _TARGETS),
    **dict.fromkeys((*ALL_LINEAR, "lora_target_linear"), _LINEAR),
    **dict.fromkeys(("modules_to_save", "lora_modules_to_save", "additional_target"), _WHOLE),
    "exclude_modules": ForeignWord("except {}", "lm_head"),
    "layers_to_transform": ForeignWord("layers {}", "0..7"),
    "layers_pattern": ForeignWord("", advice="an index range says it: `layers[0..7].q_proj`"),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern"),
        ForeignWord("", advice="a later rule replaces an earlier one, so write `adapt v_proj rank 4` as a rule below"),
    ),
    "init_lora_weights": ForeignWord("init gaussian", where="a clause of `adapt`; PEFT's default is `init kaiming`"),
    "fan_in_fan_out": ForeignWord("", advice="leave it out: lorakit sees it from the layer's class"),
    "task_type": ForeignWord("", advice="leave it out: lorakit sees it from the model's class"),
    **dict.fromkeys(("lora_bias", "lora_only"), ForeignWord("bias adapter")),
    "loraplus_lr_ratio": ForeignWord("lr_ratio {}", "16"),
    **dict.fromkeys(("load_in_4bit", "qlora", "4bit", "bnb_4bit", "bnb-4bit", "int4"), _NF4),
    **dict.fromkeys(("load_in_8bit", "8bit", "bnb_8bit", "llm_int8"), _INT8),
    "bnb_4bit_quant_type": ForeignWord("quant {}", "nf4"),
    **dict.fromkeys(("bnb_4bit_use_double_quant", "use_bnb_nested_quant", "double_quant"), _DOUBLE),
    "bnb_4bit_compute_dtype": ForeignWord("step compute {}", "bf16", _STEP),
    **dict.fromkeys(("bf16", "fp16"), _COMPUTE),
    **dict.fromkeys(QUANTIZERS, _QUANTIZER),
    **dict.fromkeys(("gaussian", "kaiming", "pissa", "loftq", "eva"), _START),
    **dict.fromkeys(("learning_rate", "adamw_torch", "adamw_torch_fused", "adamw_hf"), _ADAMW),
    "optim": ForeignWord("optimizer adamw", where=_STATEMENT),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), ForeignWord("optimizer adamw8bit", where=_STATEMENT)),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), ForeignWord("optimizer adamw paged", where=_STATEMENT)),
    "paged_adamw_8bit": ForeignWord("optimizer adamw8bit paged", where=_STATEMENT),
    "schedule_free_adamw": ForeignWord("optimizer schedulefree", where=_STATEMENT),
    "weight_decay": ForeignWord("optimizer adamw(weight_decay={})", "0.01", _STATEMENT),
    **dict.fromkeys(("batch_size", "micro_batch_size", "per_device_train_batch_size"), _BATCH),
    **dict.fromkeys(("sequence_len", "max_seq_length", "max_length", "cutoff_len"), _TOKENS),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing"), _train("gradient-checkpointing")),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "epochs"), _train("epochs", "3")),
    "max_steps": _train("steps", "1000"),
    "warmup_steps": _train("warmup", "10"),
    "val_set_size": _train("held-out", "0.05"),
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_accumulation"), _NO_ACCUMULATION),
    **dict.fromkeys(
        ("base_model", "model_name_or_path", "base_model_name_or_path"),
        ForeignWord("", advice="a spec names no model: it stands behind the spec, `lorakit plan SPEC MODEL`"),
    ),
    **dict.fromkeys(
        ("datasets", "dataset_name"),
        ForeignWord("", advice="a spec names no data: `lorakit train SPEC MODEL DATA -o OUT`"),
    ),
})  # fmt: skip

# plugins that other distributions have, by kind and name
ELSEWHERE: Mapping[tuple[str, str], str] = MappingProxyType({
    **{("method", name): "lorakit-methods" for name in ("dora", "ia3", "vera")},
    **{("initializer", name): "lorakit-methods" for name in ("pissa", "loftq", "eva")},
    **{("initializer", name): "lorakit-orthogonal" for name in ("orthogonal", "spectral")},
    ("quantizer", "hqq"): "lorakit-hqq",
    ("quantizer", "gptq"): "lorakit-gptq-calibrated",
    **{("quantizer", f"ao_{name}"): "lorakit-torchao" for name in ("int4", "int8", "float8", "nvfp4")},
    ("optimizer", "schedulefree"): "lorakit-schedulefree",
})  # fmt: skip

# the value behind a word, as other tools write it: `r 8`, `r=8`, `r: 8`
_VALUE = re.compile(r"""\s*[:=]?\s*["']?([\w.+-]+)""")
_WORD = re.compile(r"[\w-]+")


def foreign_word(text: str, offset: int) -> tuple[str, str] | None:
    """Return the foreign word that stands at an offset, with what to write instead; None where there is none."""
    found = _WORD.match(text, offset)
    word = found[0] if found else ""
    known = FOREIGN_WORDS.get(word)
    if known is None:
        return None
    line = text[offset + len(word) :].partition("\n")[0]
    value = _VALUE.match(line)
    fits = value is not None and bool(known.example) and value[1][:1].isdigit() == known.example[:1].isdigit()
    given = value[1] if value is not None and fits else "" if known.example else word
    return word, known.help(given)


def advice_on(word: str) -> str | None:
    """Return what to write instead of a name, where it is a foreign one."""
    known = FOREIGN_WORDS.get(word)
    return known.help("" if known.example else word) if known is not None else None
