"""`init --from`: the configs of Axolotl, TRL, LLaMA-Factory and PEFT, good ones and others, as specs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer

import lorakit
from helpers import make_gpt2, make_llama
from lorakit.cli.main import command_named
from lorakit.cli.train import SCHEDULES as OFFERED
from lorakit.errors import AdapterError
from lorakit.foreign.optimizers import OPTIMIZERS
from lorakit.foreign.writing import SCHEDULES, TRAIN_OPTIONS, foreign_spec
from lorakit.language.format import format_text
from lorakit.language.statements import Adapt, Quantize, Train

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj, lm_head]
lora_modules_to_save:
  - embed_tokens
lora_mlp_kernel: true
lora_qkv_kernel: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: true
warmup_steps: 10
weight_decay: 0.01
special_tokens:
"""
WRITTEN = """\
# what axolotl.yml says (Axolotl)
# model: NousResearch/Llama-3.2-1B

# adapters in fp32, as PEFT keeps them beside weights in half precision
adapt q_proj,v_proj rank 32 alpha 16 dropout 0.05 init kaiming quant nf4 double dtype fp32
adapt lm_head rank 32 alpha 16 dropout 0.05 init kaiming dtype fp32
# every other linear layer too, but not the output head
quantize @linear nf4 double
train embed_tokens

optimizer adamw8bit(weight_decay=0.01) lr 0.0002 paged
step batch 2 tokens 2048

# the rest is said to the command that trains:
#   lorakit train SPEC.lora NousResearch/Llama-3.2-1B DATA -o OUT \\
#     --schedule cosine --held-out 0.1 --pack --accumulate 4 --epochs 3 --gradient-checkpointing --warmup 10

# no counterpart: lora_mlp_kernel, lora_qkv_kernel
"""


def written(text: str, folder: Path, name: str = "config.yml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    spec = foreign_spec(folder / name)
    assert format_text(spec) == spec
    return spec


def peft(folder: Path, **fields: Any) -> str:
    return written(json.dumps({"peft_type": "LORA", **fields}), folder, "adapter_config.json")


def test_axolotl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(AXOLOTL, Path(), "axolotl.yml") == WRITTEN


def test_the_spec_fits_its_model(tmp_path: Path) -> None:
    plan = lorakit.plan(written(AXOLOTL, tmp_path), make_llama())
    adapted = {entry.path.rpartition(".")[2] for entry in plan.entries if entry.adapter}
    kept = [entry.path for entry in plan.entries if entry.quant is None]
    assert adapted == {"q_proj", "v_proj", "lm_head"}
    # bitsandbytes leaves out embeddings and the head
    assert sorted(kept) == ["lm_head", "model.embed_tokens"]
    assert sum(entry.quant is not None for entry in plan.entries) == 14


def test_axolotl_says_all_linear_layers(tmp_path: Path) -> None:
    text = "adapter: lora\nload_in_8bit: true\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"
    rule, others = lorakit.parse(written(text, tmp_path)).rules
    assert isinstance(rule, Adapt) and list(map(str, rule.targets)) == ["@linear"]
    assert isinstance(others, Quantize) and rule.quant is not None
    assert others.quant and rule.quant and others.quant.name == "int8" == rule.quant.name
    both = lorakit.parse(written(text + "lora_target_modules: [lm_head, q_proj]\n", tmp_path)).rules
    assert [(list(map(str, one.targets)), bool(one.quant)) for one in both if isinstance(one, Adapt)] == [
        (["@linear", "q_proj"], True),
        (["lm_head"], False),
    ]


def test_trl(tmp_path: Path) -> None:
    text = (
        "use_peft: true\nmodel_name_or_path: m\nload_in_4bit: true\nlora_target_modules: all-linear\n"
        "learning_rate: 2.0e-5\nmax_length: 128\nper_device_train_batch_size: 1\nbf16: true\n"
    )
    spec = lorakit.parse(written(text, tmp_path))
    rule = spec.rules[0]
    assert isinstance(rule, Adapt) and (rule.rank, rule.alpha, rule.dropout) == (16, 32, 0.05)
    assert rule.quant is not None and rule.quant.name == "nf4" and not rule.quant.double
    assert spec.step is not None and (spec.step.batch, spec.step.tokens, spec.step.compute) == (1, 128, "bf16")
    assert spec.optimizer is not None and (spec.optimizer.call.name, spec.optimizer.lr) == ("adamw", 2e-5)


def test_llama_factory(tmp_path: Path) -> None:
    text = (
        "model_name_or_path: m\nfinetuning_type: lora\nlora_rank: 4\nlora_target: q_proj, v_proj\nquantization_bit: 4\n"
        "additional_target: lm_head\ncutoff_len: 64\nloraplus_lr_ratio: 16.0\n"
    )
    rule, _, whole = lorakit.parse(written(text, tmp_path)).rules
    assert isinstance(rule, Adapt) and (rule.rank, rule.alpha, rule.lr_ratio) == (4, 8, 16)
    assert list(map(str, rule.targets)) == ["q_proj", "v_proj"] and rule.quant is not None and rule.quant.double
    assert isinstance(whole, Train) and list(map(str, whole.targets)) == ["lm_head"]
    every = written("finetuning_type: lora\nlora_target: all\n", tmp_path)
    assert "adapt @linear rank 8 alpha 16" in every


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_its_counterpart(name: str, tmp_path: Path) -> None:
    text = f"adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: [q_proj]\noptimizer: {name}\n"
    spec = lorakit.parse(written(text + "adam_beta2: 0.95\nlearning_rate: 1e-3\n", tmp_path))
    assert spec.optimizer is not None and spec.optimizer.lr == 1e-3
    assert dict(spec.optimizer.call.options).get("betas", (0.9, 0.95)) == (0.9, 0.95)


def test_starts(tmp_path: Path) -> None:
    said = {
        True: "init kaiming", "gaussian": "init gaussian(sigma=0.25)", "pissa_niter_4": "init pissa(iterations=4)",
        "eva": "init eva", False: "init_lora_weights: false draws B too", "olora": "init_lora_weights: olora has no",
        "loftq": "init loftq",
    }  # fmt: skip
    for value, words in said.items():
        assert words in peft(tmp_path, target_modules=["q"], r=4, init_lora_weights=value)
    assert "use lorakit-methods" in peft(tmp_path, target_modules=["q"], use_dora=True)
    # sigma goes with the rank of each rule
    ranks = peft(tmp_path, target_modules=["q", "k"], r=4, init_lora_weights="gaussian", rank_pattern={"k": 2})
    assert "rank 2 alpha 8 init gaussian(sigma=0.5)" in ranks


def test_what_has_no_counterpart_is_named_once(tmp_path: Path) -> None:
    fields = {"bias": "all", "trainable_token_indices": [1, 2], "layer_replication": [[0, 2]], "lora_bias": True}
    spec = peft(tmp_path, target_modules=["q_proj"], corda_config={}, megatron_config=None, **fields)
    comments = "\n".join(line for line in spec.splitlines() if line.startswith("#"))
    for words in ("bias: all", "trainable_token_indices", "layer_replication", "lora_bias"):
        assert comments.count(words) == 1, comments
    assert "corda_config" not in spec and "megatron_config" not in spec


def test_options_of_train_exist() -> None:
    named = {word for parameter in command_named("train").params for word in parameter.opts}
    values = (True, 1, 0.5, "cosine")
    for name, words in TRAIN_OPTIONS.items():
        assert {words(value).split()[0] for value in values if words(value)} & named, name
    assert set(SCHEDULES) == set(OFFERED)


def test_schedules(tmp_path: Path) -> None:
    text = "adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: [q_proj]\n"
    assert "--schedule cosine" in written(text, tmp_path)
    assert "--schedule constant " in written(text + "lr_scheduler: constant_with_warmup\nmax_steps: 9\n", tmp_path)
    assert "# no counterpart: lr_scheduler: rex" in written(text + "lr_scheduler: rex\n", tmp_path)


def test_absent_fields_are_what_the_tools_take(tmp_path: Path) -> None:
    """Read in Axolotl's schemas, LLaMA-Factory's arguments, and TRL 1.16's SFTConfig and ModelConfig."""
    axolotl = written("adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: [q_proj]\n", tmp_path)
    assert "step batch 1 tokens 512" in axolotl and "optimizer" not in axolotl
    factory = written("finetuning_type: lora\n", tmp_path)
    assert "optimizer adamw lr 5e-05" in factory and "step batch 8 tokens 2048" in factory and "--epochs 3" in factory
    trl = written("use_peft: true\nlora_target_modules: all-linear\n", tmp_path)
    assert "optimizer adamw lr 2e-05" in trl and "step batch 8 tokens 1024" in trl and "--epochs 3" in trl


@pytest.mark.parametrize(
    "said, quant",
    [
        ("adapter: qlora\n", "quant nf4 double"),
        ("adapter: lora\npeft:\n  backend: bnb\n  weight_dtype: nf4\n", "quant nf4 double"),
        ("adapter: lora\npeft:\n  backend: bnb\n  weight_dtype: int8\n", "quant int8"),
        ("adapter: qlora\npeft:\n  backend: torchao\n  weight_dtype: int4\n", "# no counterpart: peft"),
        ("adapter: lora\npeft:\n  loftq_config:\n    loftq_bits: 4\n", "# no counterpart: peft"),
    ],
)
def test_axolotl_says_bits_in_several_ways(said: str, quant: str, tmp_path: Path) -> None:
    spec = written(f"{said}lora_r: 8\nlora_alpha: 8\nlora_target_modules: [q_proj]\n", tmp_path)
    assert quant in spec and ("quant " in spec) == quant.startswith("quant ")


def test_llama_factory_names_bits_that_bitsandbytes_has_not(tmp_path: Path) -> None:
    start = "finetuning_type: lora\nquantization_bit: 4\n"
    assert "quant nf4 double" in written(start + "quantization_method: bnb\n", tmp_path)
    other = written(start + "quantization_method: hqq\n", tmp_path)
    assert "quant " not in other and "# no counterpart: quantization_bit, quantization_method" in other


def test_llama_factory_starts_and_packs(tmp_path: Path) -> None:
    start = "finetuning_type: lora\npissa_init: true\nneat_packing: true\n"
    assert "init pissa(iterations=16)" in written(start, tmp_path)
    exact = written(start + "pissa_iter: -1\n", tmp_path)
    assert "init pissa " in exact and "--pack" in exact and "no counterpart" not in exact


def test_the_head_of_a_classifier(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    model = LlamaForSequenceClassification(make_llama().config)
    for targets in (["q_proj", "v_proj"], "all-linear", ".*(q_proj|score)"):
        spec = peft(tmp_path, target_modules=targets, r=4, task_type="SEQ_CLS")
        ours = lorakit.apply(spec, LlamaForSequenceClassification(model.config))
        config = LoraConfig(target_modules=targets, r=4, task_type=TaskType.SEQ_CLS)
        theirs = get_peft_model(LlamaForSequenceClassification(model.config), config)
        adapted = {
            name.removeprefix("base_model.model.") for name, one in theirs.named_modules() if isinstance(one, LoraLayer)
        }
        trained = {name.removesuffix(".lora_A") for name, one in ours.named_parameters() if name.endswith(".lora_A")}
        assert trained == adapted
        assert ours.get_parameter("score.weight").requires_grad


def test_experts_by_parameter(tmp_path: Path) -> None:
    spec = peft(tmp_path, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], r=2)
    _, rule = lorakit.parse(spec).rules
    assert isinstance(rule, Adapt) and list(map(str, rule.targets)) == ["mlp.experts.down_proj"]


def test_an_adapter_folder_and_its_own_config(tmp_path: Path) -> None:
    model = lorakit.apply(
        "adapt c_attn rank 4 alpha 2\nadapt layers[1].c_proj rank 3 layers 1\n".replace("layers[1].", ""), make_gpt2()
    )
    lorakit.save(model, tmp_path / "adapter")
    again = lorakit.plan(foreign_spec(tmp_path / "adapter"), make_gpt2())
    ranks = {entry.path: entry.adapter.settings.rank for entry in again.entries if entry.adapter}
    assert len(ranks) == 4 and sorted(filter(None, ranks.values())) == [3, 3, 4, 4]


REFUSED = {
    "x: 1": "is no config that lorakit reads",
    "lora_r: 8\nlora_alpha: 8": "trains the whole model",
    "adapter: relora\nlora_r: 8": "adapter: relora",
    "adapter: lora\nlora_alpha: 8": "has no `lora_r`",
    "adapter: lora\nlora_r: 8": "has no `lora_alpha`",
    "adapter: lora\nlora_r: 8\nlora_alpha: 8": "names no modules to adapt",
    "adapter: lora\nlora_r: eight\nlora_alpha: 8": "says lora_r='eight'; lora_r is a whole number",
    "adapter: lora\nlora_r: 8\nlora_alpha: 0": "lora_alpha is a number above 0",
    "adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: [1]": "lora_target_modules is a list of names",
    "adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: 'q('": "this is no regex",
    "adapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_modules: \"q\\nadapt x\"": "no spec can",
    "use_peft: false\nlora_r: 8": "trains the whole model",
    "finetuning_type: full\nlora_rank: 8": "is no LoRA",
    "r: 8\npeft_type: IA3": "only LORA",
    "target_modules: all-linear\nlayers_to_transform: [1]": "goes with a list",
    "lora_r: [": "is no YAML",
    "- a\n- b": "holds no fields",
    "lora_r: 8\nr: 8\nadapter: lora": "twice",
    "adapter: !!python/object:os.system {}": "is no YAML",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_a_spec(text: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        written(text, tmp_path)
    assert REFUSED[text] in str(caught.value)


def test_nothing_in_a_config_is_a_statement(tmp_path: Path) -> None:
    spec = peft(
        tmp_path, target_modules=["q", "a b#c"], base_model_name_or_path="m\nadapt y rank 3", **{"z\nadapt w": 1}
    )
    assert len(lorakit.parse(spec).rules) == 1


def test_many_patterns_are_read_quickly_enough_to_be_read(tmp_path: Path) -> None:
    paths = [f"model.layers.{n}.self_attn.q_proj" for n in range(3000)]
    ranks = {path: 1 + place % 7 for place, path in enumerate(paths)}
    rules = lorakit.parse(peft(tmp_path, target_modules=paths, rank_pattern=ranks, r=20)).rules
    assert sorted(rule.rank or 0 for rule in rules if isinstance(rule, Adapt)) == list(range(1, 8))
    assert sum(len(rule.targets) for rule in rules) == 3000


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    refused = command("check", "axolotl.yml", cwd=tmp_path)
    assert refused.returncode == 2 and "lorakit init --from axolotl.yml" in refused.stdout
    assert command("init", "--from", "axolotl.yml", cwd=tmp_path).stdout == WRITTEN
    refused = command("init", "--from", "axolotl.yml", "./here", "-o", "made.lora", cwd=tmp_path)
    assert refused.returncode == 2 and "no such model folder: ./here" in refused.stderr
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    made = command("init", "--from", "axolotl.yml", "./here", "-o", "made.lora", cwd=tmp_path)
    assert made.returncode == 0 and "lorakit plan made.lora ./here" in made.stdout + made.stderr
    assert "# model: ./here" in (tmp_path / "made.lora").read_text()
    assert command("check", "made.lora", cwd=tmp_path).returncode == 0
    assert command("fmt", "--check", "made.lora", cwd=tmp_path).returncode == 0
    assert command("init", "--from", "axolotl.yml", "-o", "made.lora", cwd=tmp_path).returncode == 2
    assert command("init", cwd=tmp_path).returncode == 2
    assert command("init", "--from", "nowhere.yml", cwd=tmp_path).returncode == 2


def test_a_lora_config_in_the_place_of_a_plan(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}')
    done = command("plan", "adapter_config.json", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "lorakit init --from adapter_config.json" in done.stderr


def test_yaml_is_no_training_data(tmp_path: Path) -> None:
    (tmp_path / "a.lora").write_text("adapt q_proj rank 4\n")
    (tmp_path / "data.yml").write_text(AXOLOTL)
    done = command("train", "a.lora", "nowhere", "data.yml", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2 and "what ends in .yml is no data that lorakit reads" in done.stderr
