"""Plugins that fail: each is named with its version and why, and nothing that does not use it notices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from distributions import GOOD, install, lorakit_with
from lorakit.hooks.specs import PROTOCOL

HOOKS = "from lorakit.hooks import hookimpl\n"
START = GOOD.replace("NAME", "start")
# the code of a distribution, and what is said of it
BROKEN = {
    "raises-on-import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exits-on-import": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "lacks-an-import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "no-python": ("def", "SyntaxError"),
    "newer-protocol": (
        f"lorakit_protocol = {PROTOCOL + 1}",
        f"protocol {PROTOCOL + 1} and this lorakit {PROTOCOL}: pip install --upgrade lorakit",
    ),
    "older-protocol": (f"lorakit_protocol = {PROTOCOL - 1}", "pip install --upgrade broken"),
    "junk-protocol": ("lorakit_protocol = '2'", f"`lorakit_protocol` is '2'; it is a whole number, {PROTOCOL} here"),
    "wrapper": (
        HOOKS + "@hookimpl(wrapper=True)\ndef lorakit_plan_ready(plan):\n    return (yield)",
        "`lorakit_plan_ready` is a wrapper; hooks of lorakit are asked one by one and not wrapped",
    ),
    "old-wrapper": (
        HOOKS + "@hookimpl(hookwrapper=True)\ndef lorakit_model_ready(model):\n    yield",
        "`lorakit_model_ready` is a wrapper",
    ),
    "misspelled-hook": (
        HOOKS + "@hookimpl\ndef lorakit_quantisers():\n    return []",
        "there is no hook `lorakit_quantisers`; did you mean `lorakit_quantizers`?",
    ),
    "wrong-argument": (HOOKS + "@hookimpl\ndef lorakit_plan_ready(plan, colour):\n    pass", "colour"),
    "registry-raises": (
        HOOKS + "@hookimpl\ndef lorakit_roles():\n    raise KeyError('x')",
        "lorakit_roles failed: KeyError: 'x'",
    ),
    "registry-returns-none": (HOOKS + "@hookimpl\ndef lorakit_roles():\n    pass", "lorakit_roles failed: TypeError"),
    "registry-returns-junk": (
        HOOKS + "@hookimpl\ndef lorakit_methods():\n    return [7]",
        "lorakit_methods returned 7, which has no `name`",
    ),
    "name-of-a-built-in": (
        GOOD.replace("NAME", "kaiming"),
        "two plugins add `kaiming` as initializer: lorakit (initializers) and broken 2.5; a built-in cannot be",
    ),
    "one-name-twice": (START.replace("[Start]", "[Start, Start]"), "it adds the initializer `start` twice"),
    "instance": (START.replace("[Start]", "[Start()]"), "return its class, which a spec configures"),
    "no-dataclass": (
        START.replace("@dataclass(frozen=True)\nclass Start(Gaussian)", "class Start"),
        "the initializer `start` is no dataclass with typed fields",
    ),
    "missing-method": (
        START.replace("(Gaussian)", ""),
        "the initializer `start` has no method `initialize(lora_A, lora_B, context)`",
    ),
    "inherited-from-the-protocol": (
        START.replace("(Gaussian)", "(Initializer)").replace("import hookimpl", "import Initializer, hookimpl"),
        "the initializer `start` has no method `initialize(lora_A, lora_B, context)`",
    ),
    "wrong-method": (
        START.replace('"start"', '"start"\n    def initialize(self, lora_A):\n        pass'),
        "`initialize` of the initializer `start` does not take (lora_A, lora_B, context)",
    ),
    "missing-attribute": (
        START.replace("initializers", "optimizers", 1)
        .replace("Gaussian", "Adam")
        .replace("lorakit_initializers", "lorakit_optimizers"),
        "the optimizer `start` has no `default_lr`",
    ),
    "role-class": (
        HOOKS + "class Mine:\n    name = 'mine'\n@hookimpl\ndef lorakit_roles():\n    return [Mine]",
        "return an instance: `Mine()`",
    ),
}  # fmt: skip


def check(folder: Path, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    spec = folder / "one.lora"
    spec.write_text(text + "\n")
    return lorakit_with(folder, *options, "check", spec, **environment)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_and_takes_nothing_down(name: str, tmp_path: Path) -> None:
    code, reason = BROKEN[name]
    install(tmp_path, "broken", code, version="2.5")
    install(tmp_path, "sound", GOOD.replace("NAME", "sound"))
    listed = lorakit_with(tmp_path, "plugins")
    assert listed.returncode == 1 and "Traceback" not in listed.stderr
    (failed,) = [line for line in listed.stdout.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: broken 2.5 did not load: ") and reason in failed
    assert "initializer   sound" in listed.stdout
    fine = check(tmp_path, "adapt q rank 2 init sound")
    assert (fine.returncode, fine.stderr) == (0, ""), fine.stdout + fine.stderr
    missed = check(tmp_path, "adapt q rank 2 init start")
    assert missed.returncode == 2 and "broken 2.5 did not load" in missed.stdout and reason in missed.stdout
    used = check(tmp_path, "use broken\nadapt q rank 2 init start")
    assert used.returncode == 2 and "the plugins of `broken` did not load" in used.stdout and reason in used.stdout
    assert "1 error" in used.stdout


def test_plugins_load_for_what_is_no_built_in(tmp_path: Path) -> None:
    install(tmp_path, "mine", f"import sys\nsys.stderr.write('loaded')\n{START}")
    sound = "adapt @linear rank 2 init kaiming quant nf4 double\noptimizer adamw\n"
    for text, errors in ((sound, ""), (f"{sound}adapt q rnak 2", "1 error"), ("let unused = 1\nadapt q rank 2", "")):
        checked = check(tmp_path, text)
        assert errors in checked.stdout and (not errors or checked.returncode == 2) and not checked.stderr
    for text, errors in (
        (f"{sound}adapt q rank 2 init start", "well-formed"),
        (f"use mine\n{sound}", "well-formed"),
        (f"{sound}adapt q rank 2 init strat\nadapt k rank 0", "2 errors"),
    ):
        checked = check(tmp_path, text)
        assert errors in checked.stdout and checked.stderr == "loaded", checked.stdout
    suggested = check(tmp_path, "adapt q rank 2 init strat").stdout
    assert "did you mean `start`?" in suggested


def test_a_missing_role_names_what_failed(tmp_path: Path) -> None:
    install(tmp_path, "broken", "1 / 0")
    missed = check(tmp_path, "adapt @theirs rank 2")
    assert missed.returncode == 2 and "broken 1.0 did not load: ZeroDivisionError" in missed.stdout


def test_a_distribution_is_in_or_out_whole(tmp_path: Path) -> None:
    install(tmp_path, "halved", START, modules=2)
    (tmp_path / "halved_1.py").write_text("1 / 0")
    assert "failed: halved 1.0 did not load" in lorakit_with(tmp_path, "plugins").stdout
    assert check(tmp_path, "adapt q rank 2 init start").returncode == 2


def test_a_distribution_may_have_several_entry_points(tmp_path: Path) -> None:
    install(tmp_path, "pair", START, modules=2)
    (tmp_path / "pair_1.py").write_text(GOOD.replace("NAME", "other"))
    assert check(tmp_path, "adapt q rank 2 init start\nadapt k rank 2 init other").returncode == 0


def test_a_name_of_two_distributions_is_an_error_where_it_is_used(tmp_path: Path) -> None:
    install(tmp_path, "one", START)
    install(tmp_path, "two", START, version="3.1")
    install(tmp_path, "third", GOOD.replace("NAME", "third"))
    assert check(tmp_path, "adapt q rank 2 init third").returncode == 0
    used = check(tmp_path, "adapt q rank 2 init start")
    assert used.returncode == 2 and "two plugins add `start`" in used.stdout
    assert "one 1.0" in used.stdout and "two 3.1" in used.stdout
    listed = lorakit_with(tmp_path, "plugins")
    assert (
        listed.returncode == 1 and "two plugins add the initializer `start`, which belongs to neither" in listed.stdout
    )
    assert check(tmp_path, "adapt q rank 2 init start", LORAKIT_PLUGINS="one").returncode == 0


def test_no_plugins_loads_none(tmp_path: Path) -> None:
    install(tmp_path, "mine", START)
    text = "adapt q rank 2 init start"
    assert check(tmp_path, text).returncode == 0
    for off in (check(tmp_path, text, "--no-plugins"), check(tmp_path, text, LORAKIT_PLUGINS="")):
        assert off.returncode == 2 and "switched off (--no-plugins or LORAKIT_PLUGINS): mine 1.0" in off.stdout
    assert check(tmp_path, "adapt q rank 2 init gaussian", "--no-plugins").returncode == 0
    used = check(tmp_path, f"use mine\n{text}", "--no-plugins")
    assert used.returncode == 2 and "`mine` is switched off" in used.stdout and "1 error" in used.stdout
    assert "switched off: mine 1.0" in lorakit_with(tmp_path, "--no-plugins", "plugins").stdout


def test_the_environment_chooses_distributions(tmp_path: Path) -> None:
    install(tmp_path, "Mine-plugin", START)
    install(tmp_path, "broken", "1 / 0")
    chosen = lorakit_with(tmp_path, "plugins", LORAKIT_PLUGINS="mine_plugin")
    assert chosen.returncode == 0 and "start" in chosen.stdout and "switched off: broken 1.0" in chosen.stdout
    wrong = check(tmp_path, "adapt q rank 2", LORAKIT_PLUGINS="mine-plugin,absent")
    assert wrong.returncode == 2 and "LORAKIT_PLUGINS names `absent`" in wrong.stderr and "mine-plugin" in wrong.stderr
