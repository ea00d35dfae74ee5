"""`lorakit run`: scripts in the forms that people have, each as it is, in a Python of its own."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Nursery
from safetensors.torch import load_file

NF4 = "adapt q_proj,v_proj rank 4 quant nf4 double"
SGD = f"{NF4} lr 0.5\noptimizer sgd lr 0.1 paged\nstep batch 3"
Q = "adapt q_proj rank 4 quant nf4 double"
PLAIN = "adapt q_proj,v_proj rank 4"
ADAPTED = "lorakit: adapted: LlamaForCausalLM of llama, 4 modules, 1,792 parameters train, base nf4 double"
# what stands at the beginning of most scripts, and their data
HEAD = """
import sys
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

transformers.set_seed(0)
tokens = torch.randint(0, 300, (8, 12), generator=torch.Generator().manual_seed(1))
rows = [{"input_ids": row, "labels": row} for row in tokens]

def arguments(**given):
    return TrainingArguments("out", **{**dict(max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", learning_rate=1e-2, logging_steps=1), **given})

def trained(model, **given):
    trainer = Trainer(model, arguments(), train_dataset=rows, **given)
    trainer.train()
    trainer.save_model()
"""
# as transformers' examples of language modeling
CLM = f"""{HEAD}
def main():
    model = AutoModelForCausalLM.from_pretrained("llama", device_map="cpu")
    if "--resize" in sys.argv:
        model.resize_token_embeddings(330)
    resumes = "--resume" in sys.argv
    trainer = Trainer(model, arguments(max_steps=4, save_strategy="steps", save_steps=2), train_dataset=rows)
    trainer.train(resume_from_checkpoint="out/checkpoint-2" if resumes else None)
    trainer.save_model()

if __name__ == "__main__":
    main()
"""
FROM_CONFIG = f"{HEAD}\ntrained(AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained('llama')))"
CLASSIFIER = f"""{HEAD}
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained("llama", num_labels=2, pad_token_id=0)
rows = [{{"input_ids": row, "labels": index % 2}} for index, row in enumerate(tokens)]
trained(model)
"""
KBIT = f"""{HEAD}
from peft import prepare_model_for_kbit_training
trained(prepare_model_for_kbit_training(AutoModelForCausalLM.from_pretrained("llama")))
"""
BITSANDBYTES = f"""{HEAD}
from peft import prepare_model_for_kbit_training
stored = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
trained(prepare_model_for_kbit_training(AutoModelForCausalLM.from_pretrained("llama", quantization_config=stored)))
"""
OWN_OPTIMIZER = f"""{HEAD}
model = AutoModelForCausalLM.from_pretrained("llama")
trained(model, optimizers=(torch.optim.AdamW(model.parameters(), lr=0.03), None))
"""
OWN_CREATE = f"""{HEAD}
class Own(Trainer):
    def create_optimizer(self, *args, **kwargs):
        self.optimizer = torch.optim.Adagrad([one for one in self.model.parameters() if one.requires_grad], lr=0.03)
        return self.optimizer

trainer = Own(AutoModelForCausalLM.from_pretrained("llama"), arguments(), train_dataset=rows)
trainer.train()
trainer.save_model()
"""
ACCELERATE = f"""{HEAD}
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model = AutoModelForCausalLM.from_pretrained("llama")
loader = torch.utils.data.DataLoader(rows, batch_size=4)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.03), loader)
model.train()
for batch in loader:
    accelerator.backward(model(**batch).loss)
    optimizer.step()
    optimizer.zero_grad()
import os
accelerator.save_state("state")
assert os.path.isfile("state/adapter/plan.json") and os.path.getsize("state/model.safetensors") < 50_000
accelerator.unwrap_model(model).save_pretrained("out", is_main_process=True, save_function=accelerator.save)
"""
MODEL_INIT = f"""{HEAD}
def made():
    return AutoModelForCausalLM.from_pretrained("llama")

trainer = Trainer(None, arguments(), train_dataset=rows, model_init=made)
trainer.train()
trainer.save_model()
"""
REFERENCE_FIRST = f"""{HEAD}
reference = AutoModelForCausalLM.from_pretrained("llama")
trained(AutoModelForCausalLM.from_pretrained("llama"))
"""
NO_GRAD_FIRST = f"""{HEAD}
with torch.no_grad():
    reference = AutoModelForCausalLM.from_pretrained("llama")
trained(AutoModelForCausalLM.from_pretrained("llama"))
assert not any("lora" in name for name, _ in reference.named_parameters())
"""
REWARD_FIRST = f"""{HEAD}
from transformers import LlamaForSequenceClassification
reward = LlamaForSequenceClassification.from_pretrained("llama", num_labels=1)
trained(AutoModelForCausalLM.from_pretrained("llama"))
"""
OWN_ADAPTERS = f"""{HEAD}
from peft import LoraConfig, get_peft_model
model = AutoModelForCausalLM.from_pretrained("llama")
trained(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])))
"""
TRL = """
import sys
import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

kind, given = sys.argv[1:]
pairs = [{"prompt": f"say {i} ", "chosen": f"yes {i * 7}", "rejected": f"no {i * 3}"} for i in range(8)]
texts = [{"text": f"say {i} yes {i * 7}"} for i in range(8)]
tokenizer = AutoTokenizer.from_pretrained("llama")
tokenizer.pad_token = tokenizer.eos_token
model = "llama" if given == "string" else AutoModelForCausalLM.from_pretrained("llama")
config, trainer = {"dpo": (DPOConfig, DPOTrainer), "sft": (SFTConfig, SFTTrainer)}[kind]
arguments = config("out", max_steps=2, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1,
    save_strategy="no", learning_rate=1e-2, max_length=32)
data = datasets.Dataset.from_list(pairs if kind == "dpo" else texts)
more = {"ref_model": AutoModelForCausalLM.from_pretrained("llama")} if given == "reference" else {}
made = trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, **more)
made.train()
made.save_model()
print("reference", getattr(made, "ref_model", None) is not None)
print("losses", [record["loss"] for record in made.state.log_history if "loss" in record])
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, llama_folder: Path) -> Run:
    """A function that runs a script beside the folder `llama`, under `lorakit run` with a spec."""

    def runner(
        script: str, spec: str = NF4, *words: str, options: tuple[str, ...] = (), launcher: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "train.py").write_text(script)
        (tmp_path / "spec.lora").write_text(spec)
        command = [sys.executable, "-m", "lorakit", "run", *options, "spec.lora", "--", *launcher, "train.py", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)

    return runner


@pytest.fixture
def forked(run: Run, tmp_path: Path, nursery: Nursery, pytestconfig: pytest.Config) -> Run:
    """As `run`, in Pythons that have imported their libraries; with --slow it is `run`."""

    def runner(
        script: str, spec: str = NF4, *words: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "train.py").write_text(script)
        (tmp_path / "spec.lora").write_text(spec)
        command = ["run", *options, "spec.lora", "--", "train.py", *words]
        return nursery.run(*command, before="import forked_scripts\n", cwd=tmp_path, **environment())

    return run if pytestconfig.getoption("--slow") else runner


def environment() -> dict[str, str]:
    # the packages of this tree, whichever folder a command runs in; and no plugins, which take their time
    paths = [one for one in sys.path if one and "site-packages" not in one]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LORAKIT_PLUGINS": "", "OMP_NUM_THREADS": "1"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def learned(folder: Path) -> bool:
    """Whether an adapter's B, zeros at first, moved everywhere."""
    found = [value for name, value in weights(folder).items() if "lora_B" in name]
    return bool(found) and all(bool(value.count_nonzero()) for value in found)


def check(done: subprocess.CompletedProcess[str], optimizer: str, tmp_path: Path, adapted: str = ADAPTED) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-3:] == [adapted, f"lorakit: optimizer: {optimizer}", "lorakit: adapter: out"]
    assert learned(tmp_path / "out") and not (tmp_path / "out" / "model.safetensors").exists()


def test_a_trainer_takes_the_specs_optimizer_rates_and_paging(run: Run, tmp_path: Path) -> None:
    done = run(CLM, SGD)
    check(done, "SGD, paged, lr 0.5, the spec's", tmp_path)
    assert "`step batch 3` is not in force: the script makes its own steps" in done.stderr
    said = "the spec says `optimizer sgd lr 0.1 paged`, `lr 0.5`: `optim`, `learning_rate` and `weight_decay` of"
    assert said in done.stderr


def test_a_stopped_script_goes_on_to_the_same_bits(forked: Run, tmp_path: Path) -> None:
    check(forked(CLM, NF4, "--resize"), "AdamW, lr 0.01, the script's own", tmp_path)
    whole = weights(tmp_path / "out")
    check(forked(CLM, NF4, "--resize", "--resume"), "AdamW, lr 0.005, the script's own", tmp_path)
    again = weights(tmp_path / "out")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_rate_alone_goes_with_the_scripts_own(forked: Run, tmp_path: Path) -> None:
    done = forked(FROM_CONFIG, f"{Q}\n{Q.replace('q_', 'v_')} lr 0.5")
    check(done, "AdamW, lr 0.01 and 0.5, the spec's", tmp_path)
    assert "the spec says `lr 0.5`: `optim` and `weight_decay` of the trainer's arguments are not" in done.stderr


def test_a_classifier_trains_its_head(forked: Run, tmp_path: Path) -> None:
    done = forked(CLASSIFIER, f"{NF4}\ntrain score")
    assert done.returncode == 0 and "adapted: LlamaForSequenceClassification of llama" in done.stderr, done.stderr
    assert any("score" in name for name in weights(tmp_path / "out"))


@pytest.mark.parametrize("script", [KBIT, BITSANDBYTES])
def test_a_prepared_model_trains(script: str, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    if script is BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    spec = NF4 if script is KBIT else PLAIN
    done = run(script, spec)
    adapted = ADAPTED if script is KBIT else ADAPTED.replace("nf4 double", "nf4")
    check(done, "AdamW, lr 0.01, the script's own", tmp_path, adapted)


@pytest.mark.parametrize(("script", "name"), [(OWN_OPTIMIZER, "AdamW"), (OWN_CREATE, "Adagrad"), (ACCELERATE, "AdamW")])
def test_an_optimizer_of_the_scripts_own_is_said(script: str, name: str, forked: Run, tmp_path: Path) -> None:
    done = forked(script, SGD)
    lost = "not in force: `optimizer sgd lr 0.1 paged`, `lr 0.5`"
    check(done, f"{name}, lr 0.03, the script's own; {lost}", tmp_path)
    assert "lorakit: the optimizer is the script's own, and what the spec says is not in force" in done.stderr


def test_what_a_trainer_makes_anew_is_adapted_anew(forked: Run, tmp_path: Path) -> None:
    check(forked(MODEL_INIT, SGD), "SGD, paged, lr 0.5, the spec's", tmp_path)


def test_an_optimizer_of_another_model_is_refused(forked: Run, tmp_path: Path) -> None:
    done = forked(REFERENCE_FIRST)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = r"train\.py:\d+: error: this AdamW trains a LlamaForCausalLM that is not adapted \(another was"
    assert re.search(said, done.stderr)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_models_that_do_not_train_are_left(forked: Run, tmp_path: Path) -> None:
    done = forked(NO_GRAD_FIRST)
    left = "lorakit: left as it is: LlamaForCausalLM: it was loaded where no gradient is computed"
    assert done.returncode == 0 and left in done.stderr.splitlines(), done.stderr
    assert learned(tmp_path / "out")
    done = forked(REWARD_FIRST, NF4, options=("--only", "LlamaForCausalLM", "-o", "mine"))
    assert "lorakit: left as it is: LlamaForSequenceClassification: --only LlamaForCausalLM" in done.stderr
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == f"lorakit: adapter: {tmp_path / 'mine'}"
    theirs, mine = weights(tmp_path / "out"), weights(tmp_path / "mine")
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert forked("", NF4, options=("-o", "mine")).returncode == 2


def test_adapters_of_the_scripts_own_are_refused(forked: Run) -> None:
    pytest.importorskip("peft")
    done = forked(OWN_ADAPTERS)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = r"train\.py:\d+: error: PEFT is to put adapters of its own, a LoraConfig, on a LlamaForCausalLM that lorakit"
    assert re.search(said, done.stderr)


@pytest.mark.parametrize("given", ["object", "string", "reference"])
def test_dpo_compares_with_the_base(given: str, forked: Run, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    done = forked(TRL, NF4, "dpo", given)
    check_trl(done, tmp_path)
    assert ("reference True" in done.stdout) == (given == "reference")
    first = json.loads(done.stdout.rpartition("losses ")[2])[0]
    # a reference of the script's own is the base as its files hold it, not quantized
    assert first == pytest.approx(math.log(2), abs=1e-6 if given != "reference" else 5e-3)


def check_trl(done: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert ADAPTED in said and said[-2:] == [
        "lorakit: optimizer: AdamW, lr 0.01, the script's own",
        "lorakit: adapter: out",
    ]
    assert learned(tmp_path / "out")


@pytest.mark.parametrize(("given", "how"), [("object", "run"), ("string", "forked")])
def test_sft_learns(given: str, how: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    check_trl(request.getfixturevalue(how)(TRL, NF4, "sft", given), tmp_path)


LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node", "2"),
    "accelerate": ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_adapted_scripts(launcher: str, run: Run, tmp_path: Path) -> None:
    done = run(FROM_CONFIG, NF4, launcher=LAUNCHERS[launcher])
    adapted = ADAPTED + ", in each of 2 processes" * (launcher == "torchrun")
    check(done, "AdamW, lr 0.01, the script's own", tmp_path, adapted)


def test_torchrun_starts_runs(run: Run, tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "train.py").write_text(FROM_CONFIG)
    (tmp_path / "spec.lora").write_text(NF4)
    command = [sys.executable, *LAUNCHERS["torchrun"], "-m", "lorakit", "run", "spec.lora", "--", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lorakit: adapter: out") == 1 and learned(tmp_path / "out")


def test_a_script_is_its_own(run: Run, tmp_path: Path) -> None:
    script = (
        "import sys\nprint(sys.argv, __name__, sys.path[0], sys.modules['__main__'].__file__)\n"
        "print(sys.begun, open(0).read(), [one for one in sys.path if 'lorakit-run' in one])\n"
        "assert 'torch' not in sys.modules\n"
    )
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "spec.lora").write_text(PLAIN)
    # what this Python starts with anyhow
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.begun = 'begun'\n")
    here = environment()
    here["PYTHONPATH"] = f"{tmp_path / 'site'}{os.pathsep}{here['PYTHONPATH']}"
    command = [sys.executable, "-m", "lorakit", "run", "spec.lora", "--", "train.py", "--lr", "1", "-h"]
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, input="given")
    alone = subprocess.run(
        [sys.executable, "train.py", *command[7:]],
        cwd=tmp_path, env=here, capture_output=True, text=True, input="given",
    )  # fmt: skip
    assert done.stdout == alone.stdout and "-h" in done.stdout and "begun given []" in done.stdout
    assert done.returncode == 1 and "lorakit: nothing was adapted: no model came from" in done.stderr


def test_failures_of_a_script_are_as_without(run: Run, tmp_path: Path) -> None:
    for script, code in (("import sys\nsys.exit(3)\n", 3), ("def f():\n    return 1 / 0\nf()\n", 1)):
        done = run(script)
        alone = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == alone.returncode == code
        assert done.stderr.startswith(alone.stderr) and done.stdout == alone.stdout
    assert run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n").returncode == 128 + signal.SIGKILL


def test_a_signal_reaches_the_script(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "spec.lora").write_text(PLAIN)
    command = [sys.executable, "-m", "lorakit", "run", "spec.lora", "--", "train.py"]
    child = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 5


def test_what_cannot_run_is_said_before(run: Run, tmp_path: Path) -> None:
    done = run("", "adapt q_proj rnak 4")
    assert done.returncode == 2 and "rnak" in done.stderr
    for words, said in ((("none.py",), "no such script: none.py"), (("acelerate",), "no such command: acelerate")):
        command = [sys.executable, "-m", "lorakit", "run", "spec.lora", "--", *words]
        (tmp_path / "spec.lora").write_text(PLAIN)
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr


def test_a_spec_that_fits_no_model_trains_none(forked: Run) -> None:
    done = forked(CLM, "adapt nowhere rank 4")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "that is not adapted (the spec does not fit: " in done.stderr
    assert "lorakit: nothing was adapted: of the models" in done.stderr


def test_standard_input_is_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("print('ran')\n")
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", "run", "-", "--", "x.py"],
        input="adapt q_proj rank 4\n", capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "`-` is the script's standard input here" in done.stderr and not done.stdout
