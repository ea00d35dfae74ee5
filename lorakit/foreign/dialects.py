"""What each tool calls the fields of a config, in the names of PEFT's LoraConfig and transformers' TrainingArguments.

A tool is a row of `DIALECTS`: its own names for what others have too, what it takes where a field is absent, and the
fields that are its mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A tool's config: `names` leads from its names to the common ones, `absent` are the values of absent fields.

    A config that has one of the `marks` may be of this tool. `refused` says of a config why it is no adapter's, or
    nothing; `settled` gives fields their common form.
    """

    tool: str
    marks: frozenset[str]
    names: Mapping[str, str] = field(default_factory=dict)
    absent: Fields = field(default_factory=dict)
    refused: Callable[[Fields], str] = lambda config: ""
    settled: Callable[[Fields], Fields] = dict


# what every tool that loads a base in four bits says of it, by bitsandbytes' names
BITS = {"load_in_4bit": False, "load_in_8bit": False, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
ALL_LINEAR = "all-linear"
# what transformers' TrainingArguments take where nothing is said
TRAINER = {"per_device_train_batch_size": 8, "num_train_epochs": 3.0, "learning_rate": 5e-5}
_AXOLOTL_BITS = {"nf4": "load_in_4bit", "int8": "load_in_8bit"}


def _not_lora(config: Fields) -> str:
    kind = config.get("peft_type", "LORA")
    return "" if kind == "LORA" else f"is of PEFT type {str(kind)[:40]!r}, and only LORA has a counterpart in a spec"


def _full_axolotl(config: Fields) -> str:
    adapter = config.get("adapter")
    if adapter in ("lora", "qlora"):
        return ""
    return (
        f"says adapter: {str(adapter)[:40]}, which has no counterpart in a spec"
        if adapter
        else "has no `adapter`, so it trains the whole model: a spec for that is one `train` statement"
    )


def _axolotl(config: Fields) -> Fields:
    """Return a config with `lora_target_linear` among its targets, and with what `peft` and `bnb_config_kwargs` say."""
    settled = {**config, **(config.get("bnb_config_kwargs") or {})}
    settled.pop("bnb_config_kwargs", None)
    backend = settled["peft"] if isinstance(settled.get("peft"), dict) else {}
    if backend.get("backend") == "bnb" and (flag := _AXOLOTL_BITS.get(str(backend.get("weight_dtype")))):
        settled[flag] = True
        settled["peft"] = {name: one for name, one in backend.items() if name not in ("backend", "weight_dtype")}
    if settled.pop("lora_target_linear", None):
        named = settled.get("target_modules") or []
        settled["target_modules"] = [ALL_LINEAR, *([named] if isinstance(named, str) else named)]
    if settled.get("adapter") == "qlora" and backend.get("backend") != "torchao":
        settled["load_in_4bit"] = True
    if settled.get("gptq"):
        settled["load_in_4bit"] = False
    for name in ("train_on_inputs", "adapter"):
        settled.pop(name, None)
    return settled


def _not_peft(config: Fields) -> str:
    asks = config.get("use_peft", True)
    return "" if asks else "says use_peft: false, so it trains the whole model"


def _full_factory(config: Fields) -> str:
    kind = config.get("finetuning_type", "lora")
    return "" if kind == "lora" else f"says finetuning_type: {str(kind)[:40]}, which is no LoRA"


# what LLaMA-Factory calls it, and called it before
_BITSANDBYTES = ("bnb", "bitsandbytes")


def _factory(config: Fields) -> Fields:
    """Return a config with lists for what stands as text with commas, and with bits as bitsandbytes calls them."""
    settled = dict(config)
    for name in ("target_modules", "modules_to_save"):
        if isinstance(value := settled.get(name), str):
            settled[name] = [part.strip() for part in value.split(",") if part.strip()]
    if settled.get("target_modules") == ["all"]:
        settled["target_modules"] = ALL_LINEAR
    if settled.get("quantization_method", "bnb") in _BITSANDBYTES and settled.get("quantization_bit") in (4, 8):
        settled[f"load_in_{settled.pop('quantization_bit')}bit"] = True
        settled.pop("quantization_method", None)
    if settled.pop("pissa_init", False):
        steps = settled.pop("pissa_iter", 16)
        settled["init_lora_weights"] = "pissa" if steps == -1 else f"pissa_niter_{steps}"
    if settled.pop("neat_packing", False):
        settled["packing"] = True
    if settled.get("lora_alpha") is None and isinstance(settled.get("r"), int):
        settled["lora_alpha"] = 2 * settled["r"]
    settled.pop("finetuning_type", None)
    return settled


def _trl(config: Fields) -> Fields:
    return {name: value for name, value in config.items() if name != "use_peft"}


PEFT = Dialect(
    "PEFT",
    frozenset({"peft_type", "r", "target_modules"}),
    {"base_model_name_or_path": "base_model"},
    {"r": 8, "lora_alpha": 8, **BITS},
    _not_lora,
)
DIALECTS = (
    Dialect(
        "Axolotl",
        frozenset({"adapter", "lora_r", "lora_target_linear", "micro_batch_size", "sequence_len"}),
        {
            "lora_r": "r",
            "lora_target_modules": "target_modules",
            "lora_target_parameters": "target_parameters",
            "lora_modules_to_save": "modules_to_save",
            "lora_fan_in_fan_out": "fan_in_fan_out",
            "peft_use_dora": "use_dora",
            "peft_use_rslora": "use_rslora",
            "peft_layers_to_transform": "layers_to_transform",
            "peft_layers_pattern": "layers_pattern",
            "peft_init_lora_weights": "init_lora_weights",
            "peft_trainable_token_indices": "trainable_token_indices",
            "micro_batch_size": "per_device_train_batch_size",
            "sequence_len": "max_length",
            "num_epochs": "num_train_epochs",
            "optimizer": "optim",
            "lr_scheduler": "lr_scheduler_type",
            "val_set_size": "held_out",
            "sample_packing": "packing",
            "loraplus_lr_ratio": "lr_ratio",
            "datasets": "data",
        },
        {
            **BITS,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "per_device_train_batch_size": 1,
            "max_length": 512,
            "lr_scheduler_type": "cosine",
        },
        _full_axolotl,
        _axolotl,
    ),
    Dialect(
        "LLaMA-Factory",
        frozenset({"finetuning_type", "lora_rank", "lora_target", "cutoff_len"}),
        {
            "model_name_or_path": "base_model",
            "lora_rank": "r",
            "lora_target": "target_modules",
            "additional_target": "modules_to_save",
            "quantization_type": "bnb_4bit_quant_type",
            "double_quantization": "bnb_4bit_use_double_quant",
            "cutoff_len": "max_length",
            "val_size": "held_out",
            "loraplus_lr_ratio": "lr_ratio",
            "dataset": "data",
        },
        {
            "r": 8,
            "target_modules": "all",
            **BITS,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            **TRAINER,
            "max_length": 2048,
        },
        _full_factory,
        _factory,
    ),
    Dialect(
        "TRL",
        frozenset({"use_peft", "model_name_or_path", "lora_task_type", "use_bnb_nested_quant"}),
        {
            "model_name_or_path": "base_model",
            "dataset_name": "data",
            "lora_r": "r",
            "lora_target_modules": "target_modules",
            "lora_target_parameters": "target_parameters",
            "lora_modules_to_save": "modules_to_save",
            "lora_task_type": "task_type",
            "use_bnb_nested_quant": "bnb_4bit_use_double_quant",
            "max_seq_length": "max_length",
        },
        {
            "r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            **BITS,
            "bnb_4bit_quant_type": "nf4",
            **TRAINER,
            "learning_rate": 2e-5,
            "max_length": 1024,
        },
        _not_peft,
        _trl,
    ),
    PEFT,
)


def dialect_of(config: Fields) -> Dialect | None:
    """Return the tool whose marks a config has most of, if it has any; of two alike the one with more names in it."""
    known = [(len(one.marks & set(config)), len(set(one.names) & set(config)), one) for one in DIALECTS]
    marks, _, best = max(known, key=lambda found: found[:2])
    return best if marks else None
