"""`lorakit plugins`: the list, a new distribution that works at once, and the checks of an installed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributions import GOOD, forked_with, install, lorakit_with, own_tests
from lorakit.scaffold import EXAMPLES, LIKE, names_of

ROOT = Path(__file__).parent.parent


def test_the_list_tells_names_options_and_where_they_come_from(tmp_path: Path) -> None:
    install(tmp_path, "mine", GOOD.replace("NAME", "start"), version="0.3")
    listing = json.loads(lorakit_with(tmp_path, "plugins", "--format", "json").stdout)
    distributions = {one["distribution"]: one for one in listing["distributions"]}
    assert distributions["mine"]["version"] == "0.3" and listing["failures"] == []
    (start,) = distributions["mine"]["plugins"]
    assert (start["kind"], start["name"], start["summary"]) == ("initializer", "start", "Gaussian under another name.")
    assert start["options"] == [
        {
            "name": "sigma",
            "type": "a number",
            "required": False,
            "default": None,
            "help": "standard deviation of A; 1 / sqrt(fan_in) unless given",
        }
    ]
    nf4 = next(one for one in distributions["lorakit"]["plugins"] if one["name"] == "nf4")
    assert nf4["double"] and nf4["options"][0]["default"] == 64
    shown = lorakit_with(tmp_path, "plugins").stdout
    assert "mine 0.3" in shown and "nf4 [double]" in shown and "@attention" in shown


def test_the_list_does_not_load_torch(tmp_path: Path) -> None:
    probe = (
        "import sys; from lorakit.cli.main import app; app(['plugins'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "adamw" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("kind", "like"),
    [*((kind, "") for kind in EXAMPLES), *((kind, like) for kind in LIKE for like in [*LIKE[kind]][1:])],
)
def test_a_new_distribution_installs_and_works_in_a_spec(kind: str, like: str, tmp_path: Path) -> None:
    made = lorakit_with(tmp_path, "plugins", "new", kind, "brand_new", *(["--like", like] if like else []))
    assert made.returncode == 0, made.stderr
    folder, site = tmp_path / "lorakit-brand-new", tmp_path / "site"
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP,B", "--line-length", "120"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-t", site, folder]
    for command in ([*ruff, folder], pip):
        done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (site / "one.lora").write_text(f"use lorakit-brand-new\n{names_of(kind, 'brand_new', like).example}\n")
    checked = lorakit_with(site, "check", "one.lora")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (site / "model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.ModuleDict({'q_proj': nn.Linear(32, 16), 'v_proj': nn.Linear(32, 16)})\n"
    )
    applied = forked_with(site, "apply", "one.lora", "model.py:make", "-o", "adapter")
    assert applied.returncode == 0 and (site / "adapter" / "adapter_model.safetensors").is_file(), applied.stderr
    own = own_tests(folder, site)
    assert own.returncode == 0 and " passed" in own.stdout, own.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("quantizer", "rank"), "`rank` is a word of the language"),
        (("quantizer", "nf4"), "the quantizer `nf4` is there already, in lorakit (quantizers)"),
        (("optimizer", "9bits"), "begins with no digit"),
        (("optimizer", "my-own"), "a name is letters, digits and underscores"),
        (("method", "größe"), "no name for a distribution"),
        (("method", "own_"), "no name for a distribution"),
        (("role", "linear"), "the role `linear` is there already"),
        (("method", "mine", "--like", "dora"), "like `dora`; there are `--like lora` or `--like ia3`"),
        (("role", "mine", "--like", "lora"), "no role to start from is like `lora`; leave --like out"),
    ],
)
def test_a_name_that_does_not_work_is_refused(words: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    done = lorakit_with(tmp_path, "plugins", "new", *words)
    assert done.returncode == 2 and reason in done.stderr and not list(tmp_path.iterdir()), done.stderr


def test_new_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "kept").touch()
    done = lorakit_with(tmp_path, "plugins", "new", "role", "narrow", "-o", "here")
    assert done.returncode == 2 and "here" in done.stderr and (tmp_path / "here" / "kept").exists()


def test_a_sound_distribution_passes(tmp_path: Path) -> None:
    install(tmp_path, "Its-Name", GOOD.replace("NAME", "start"))
    done = forked_with(tmp_path, "plugins", "test", "its_name")
    assert done.returncode == 0 and "initializer start" in done.stdout, done.stdout + done.stderr
    count = done.stdout.splitlines()[-1].partition(" ")[0]
    assert done.stdout.endswith(f"{count} of {count} checks passed\n") and int(count) > 20


def test_a_plugin_that_fails_a_check_is_told_which(tmp_path: Path) -> None:
    wrong = GOOD.replace("NAME", "wrong").replace(
        '"wrong"',
        '"wrong"\n    def initialize(self, lora_A, lora_B, context):\n        lora_A.normal_(); lora_B.zero_()',
    )
    install(tmp_path, "mine", wrong)
    done = forked_with(tmp_path, "plugins", "test", "mine")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "failed: initializer wrong, determinism" in done.stdout and "generator=context.generator" in done.stdout
    assert "0 of 1" in done.stdout and "start[7x33-rank-3]" not in done.stdout


def test_one_cause_is_told_once(tmp_path: Path) -> None:
    wrong = GOOD.replace("NAME", "wrong").replace(
        '"wrong"', '"wrong"\n    def initialize(self, lora_A, lora_B, context):\n        1 / 0'
    )
    install(tmp_path, "mine", wrong)
    done = forked_with(tmp_path, "plugins", "test", "mine")
    assert done.returncode == 1 and done.stdout.count("`initialize` fills both matrices") == 2
    assert "failed: initializer wrong, fills-in-place[16x24-rank-4], fills-in-place[7x33-rank-3]" in done.stdout
    assert (
        "and 3 more" in done.stdout
        and done.stdout.count("failed: ") == 1
        and "It raised ZeroDivisionError: division by zero" in done.stdout
    )


def test_an_unknown_distribution_is_bad_input(tmp_path: Path) -> None:
    install(tmp_path, "mine", GOOD.replace("NAME", "start"))
    unknown = forked_with(tmp_path, "plugins", "test", "absent")
    assert unknown.returncode == 2 and "there are: lorakit, mine" in unknown.stderr
    off = lorakit_with(tmp_path, "--no-plugins", "plugins", "test", "mine")
    assert off.returncode == 2 and "switched off" in off.stderr


def test_an_option_without_a_value_to_test_it_with_is_asked_for(tmp_path: Path) -> None:
    needy = (
        GOOD.replace("NAME", "needy")
        .replace("(Gaussian):", ":")
        .replace('= "needy"', '= "needy"\n    level: int\n    initialize = Gaussian.initialize')
    )
    install(tmp_path, "mine", needy)
    done = forked_with(tmp_path, "plugins", "test", "mine")
    assert done.returncode == 1 and 'metadata={"example": …}' in done.stdout and "0 of 1 checks passed" in done.stdout
