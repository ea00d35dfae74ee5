"""Runs to be killed: commands of lorakit's, and scripts that train as people's own do, each from one warm process."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import faults
from forked import Child, Nursery

from lorakit import last_checkpoint
from lorakit.artifacts.owning import owned
from lorakit.trainers.checkpoints import checkpoint_steps, why_not_whole

STEPS = 12
EVERY = 2
MODEL = """
import os, lorakit, torch
from transformers import AutoModelForCausalLM, TrainerCallback
run, out = {run!r}, {out!r}
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
base = AutoModelForCausalLM.from_pretrained({model!r})
class Tell(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        os.write(log, f"{{state.global_step}}\\n".encode())
settings = dict(
    max_steps=12, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, save_total_limit=2,
    report_to="none", disable_tqdm=True, use_cpu=True,
)
"""
TRAINER = """
from transformers import Trainer, TrainingArguments
model = lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.1", base)
rows = [dict(input_ids=row, labels=row) for row in torch.arange(320).reshape(32, 10)]
trainer = Trainer(
    model, TrainingArguments(run, **settings), train_dataset=rows, callbacks=[Tell()],
    optimizers=(lorakit.optimizer(model, lr=5e-3), None),
)
trainer.train(resume_from_checkpoint=lorakit.last_checkpoint(run, before=12))
"""
SFT = """
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
model = lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.1 quant nf4 double", base)
rows = Dataset.from_list([dict(text=f"hello world {{number}}") for number in range(32)])
tokenizer = AutoTokenizer.from_pretrained({model!r})
tokenizer.pad_token = tokenizer.eos_token
trainer = SFTTrainer(
    lorakit.peft(model), SFTConfig(run, bf16=False, learning_rate=5e-3, **settings), train_dataset=rows,
    processing_class=tokenizer, callbacks=[Tell()],
)
trainer.train(resume_from_checkpoint=lorakit.last_checkpoint(run, before=12))
"""
# as examples/site/pages/trainers.md has it
LOOP = """
from pathlib import Path
run = Path(run)
run.mkdir(exist_ok=True)
rows = torch.arange(320).reshape(32, 10)
begun = max((int(path.name.removeprefix("step-")) for path in run.glob("step-*")), default=0)
if begun:
    model = lorakit.load(run / f"step-{{begun}}", base).train()
else:
    model = lorakit.apply("adapt q_proj,v_proj rank 4 dropout 0.1", base).train()
optimizer = lorakit.optimizer(model, lr=5e-3)
step = lorakit.Step(model, optimizer)
torch.manual_seed(0)
if begun:
    state = torch.load(run / f"state-{{begun}}.pt")
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["drawn"])
for number in range(begun + 1, 13):
    batch = rows[torch.randint(0, 32, (2,))]
    step(dict(input_ids=batch, labels=batch))
    os.write(log, f"{{number}}\\n".encode())
    if number % 2 == 0:
        state = dict(optimizer=optimizer.state_dict(), drawn=torch.get_rng_state())
        torch.save(state, run / "state.new")
        (run / "state.new").replace(run / f"state-{{number}}.pt")
        lorakit.save(model, run / f"step-{{number}}")
"""
END = """
if os.environ.get("RANK", "0") == "0":
    lorakit.save(model, out)
"""
# torchrun itself, but that its processes are forked, which spares them the imports
TORCHRUN = """
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
config = LaunchConfig(
    1, 1, 2, run_id="killed", rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0
)
elastic_launch(config, exec)({code!r}, {{"__name__": "__main__"}})
"""
ELASTIC = "torch.distributed.launcher.api"


class Kind(Protocol):
    """A way to train into `root/out`, with checkpoints in `root/CHECKPOINTS`."""

    @property
    def name(self) -> str: ...

    @property
    def checkpoints(self) -> str: ...

    def start(self, root: Path, before: str = "", *more: object) -> Child:
        """Begin, or go on where there is anything to go on from."""

    def compare(self, root: Path, whole: Unbroken) -> None:
        """See that what is there is what an unbroken run leaves, to the bit."""

    def lost(self, root: Path) -> int:
        """Return how many steps a run that was killed had taken and will take again."""


@dataclass(frozen=True)
class Command:
    """`lorakit train`."""

    nursery: Nursery
    inputs: Path
    name: str
    given: Callable[[Path], list[object]]
    checkpoints: str = "out-checkpoints"

    def start(self, root: Path, before: str = "", *more: object) -> Child:
        resume = ["--resume"] * (root / self.checkpoints).exists()
        common = ["-o", root / "out", "--save-every", EVERY, "--held-out", 0, "--batch", 2, *resume, *more]
        return self.nursery.command("train", *self.given(self.inputs), *common, before=before)

    def compare(self, root: Path, whole: Unbroken) -> None:
        assert left(root) == whole.left

    def lost(self, root: Path) -> int:
        # steps are the command's own affair
        return 0


@dataclass(frozen=True)
class Script:
    """A script of somebody's own; `processes` of torchrun's if there are several."""

    nursery: Nursery
    inputs: Path
    name: str
    code: str
    imports: tuple[str, ...] = ()
    processes: int = 1
    checkpoints: str = "run"
    # the checkpoint of the last step
    last: str = f"checkpoint-{STEPS}"

    def start(self, root: Path, before: str = "", *more: object) -> Child:
        self.nursery.warm(*self.imports)
        places = {"model": self.inputs / "llama", "run": root / "run", "out": root / "out", "log": self._log(root)}
        code = before + (MODEL + self.code + END).format(**{name: str(path) for name, path in places.items()})
        return self.nursery.start(code if self.processes == 1 else TORCHRUN.format(code=code))

    def compare(self, root: Path, whole: Unbroken) -> None:
        # Trainer removes old checkpoints file by file, and when killed at it does not take it up again
        ours = ("out", f"run/{self.last}")
        found, expected = ({k: v for k, v in one.items() if k.startswith(ours)} for one in (left(root), whole.left))
        assert expected and found == expected
        assert self._saved(root) == STEPS

    def lost(self, root: Path) -> int:
        steps = self._log(root).read_text().split() if self._log(root).exists() else []
        return int(steps[-1]) - self._saved(root) if steps else 0

    def _log(self, root: Path) -> Path:
        return root.with_name(f"{root.name}-steps")

    def _saved(self, root: Path) -> int:
        last = last_checkpoint(root / "run")
        return int(last.rpartition("-")[2]) if last else 0


class Loop(Script):
    """A loop of somebody's own, whose checkpoints are there once `lorakit.save` has put the adapter in its place."""

    def _saved(self, root: Path) -> int:
        return max((int(path.name.rpartition("-")[2]) for path in (root / "run").glob("step-*")), default=0)


def _text(inputs: Path) -> list[object]:
    return [inputs / "llama.lora", inputs / "llama", inputs / "data.jsonl", "--steps", STEPS, "--tokens", 16]


def _pairs(inputs: Path) -> list[object]:
    return [inputs / "net.lora", f"{inputs / 'net.py'}:net", f"{inputs / 'net.py'}:pairs", "--steps", 30]


KINDS: dict[str, Callable[[Nursery, Path], Kind]] = {
    "Trainer": lambda nursery, inputs: Command(nursery, inputs, "Trainer", _text),
    "plain": lambda nursery, inputs: Command(nursery, inputs, "plain", _pairs),
    "own Trainer": lambda nursery, inputs: Script(nursery, inputs, "own Trainer", TRAINER),
    "own SFT": lambda nursery, inputs: Script(nursery, inputs, "own SFT", SFT, ("datasets", "trl.trainer.sft_trainer")),
    "own loop": lambda nursery, inputs: Loop(nursery, inputs, "own loop", LOOP, last=f"step-{STEPS}"),
    "torchrun": lambda nursery, inputs: Script(nursery, inputs, "torchrun", TRAINER, (ELASTIC,), processes=2),
}


@dataclass
class Unbroken:
    """What a run leaves that nobody kills, how long it took, and how many operations on files it was."""

    left: dict[str, bytes]
    seconds: float
    operations: int


def left(root: Path) -> dict[str, bytes]:
    """Return every file below a folder that says what was learned, and the name of every other."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.name == "adapter_model.safetensors" else b""
        for path in sorted(root.rglob("*"))
    }


def unbroken(kind: Kind, root: Path) -> Unbroken:
    """Run a kind to its end."""
    root.mkdir()
    before, log = time.monotonic(), root.with_name("log")
    child = kind.start(root, faults.at(root, 0, "SIGKILL", log))
    assert child.wait() == 0, child.err
    return Unbroken(left(root), time.monotonic() - before, len(log.read_text().splitlines()))


def state(child: Child) -> str:
    """Return what the kernel says of a process: Z for one that has ended, T for one that is stopped."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]


@dataclass
class Tally:
    """Kills so far, those of them that hit the writing of files, runs that ended, and the most steps that one cost."""

    kills: int = 0
    torn: int = 0
    ends: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.torn} of them while files were written, at most {self.lost} steps lost, "
            f"{self.ends} runs that ended, each with the bits of the unbroken one"
        )


def chain(kind: Kind, root: Path, whole: Unbroken, kills: int, draw: Random, tally: Tally) -> None:
    """Kill runs at so many moments; those that come to their end have to end as if none were.

    Half of the moments are operations on files, the others any between a start and an end.
    """
    _emptied(root)
    until = tally.kills + kills
    while True:
        child = kind.start(root) if tally.kills == until else _killed(kind, root, whole, draw)
        ended = child.wait()
        if ended == -signal.SIGKILL:
            tally.kills += 1
            lost = kind.lost(root)
            assert lost <= EVERY, f"{lost} steps are lost"
            tally.lost = max(tally.lost, lost)
            half = [one for one in checkpoint_steps(root / kind.checkpoints).values() if why_not_whole(one)]
            tally.torn += bool(half or list(root.rglob("*.new")))
            if not (root / "out").exists():
                continue
            # all was done but the clearing up, which is for the next run to the same place
            with owned(root / "out"), owned(root / kind.checkpoints):
                pass
        else:
            assert ended == 0, child.err
        kind.compare(root, whole)
        tally.ends += 1
        if tally.kills == until:
            return
        _emptied(root)


def _emptied(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    root.with_name(f"{root.name}-steps").unlink(missing_ok=True)


def _killed(kind: Kind, root: Path, whole: Unbroken, draw: Random) -> Child:
    """Start a run, and kill it unless it ends before the moment that is drawn."""
    if draw.random() < 0.5:
        return kind.start(root, faults.at(root, draw.randint(1, whole.operations), "SIGKILL", root.with_name("log")))
    child, begun = kind.start(root), time.monotonic()
    moment = begun + draw.uniform(0, whole.seconds)
    while time.monotonic() < moment and state(child) != "Z":
        time.sleep(0.002)
    if state(child) == "Z":
        # on a machine that has less to do by now, moments are drawn from a shorter time
        whole.seconds = min(whole.seconds, time.monotonic() - begun)
    else:
        child.kill()
    return child
