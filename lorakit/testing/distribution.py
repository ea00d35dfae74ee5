"""Every check of everything that a distribution adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lorakit.hooks.manager import Plugins
from lorakit.hooks.options import options_of, supports_double
from lorakit.hooks.registration import INSTANCES
from lorakit.testing.checks import Check
from lorakit.testing.configured import options
from lorakit.testing.data import data_format_checks, data_shape_checks
from lorakit.testing.initializers import initializer_checks
from lorakit.testing.kernels import fits, kernel_checks
from lorakit.testing.methods import method_checks
from lorakit.testing.optimizers import optimizer_checks
from lorakit.testing.quantizers import quantizer_checks
from lorakit.testing.roles import role_checks
from lorakit.testing.subjects import examples_of, subject_of

SUITES: Mapping[str, Callable[..., list[Check]]] = {
    "quantizer": quantizer_checks,
    "initializer": initializer_checks,
    "optimizer": optimizer_checks,
    "method": method_checks,
    "role": role_checks,
    "data format": data_format_checks,
    "data shape": data_shape_checks,
}


def checks_of_distribution(plugins: Plugins, origins: tuple[str, ...]) -> dict[str, list[Check]]:
    """Return the checks of what these origins add, by what is checked, such as `quantizer nf4 double`."""
    found: dict[str, list[Check]] = {}
    for added in plugins.added:
        if added.origin in origins:
            for kind, by_name in added.plugins.items():
                for name, item in by_name.items():
                    if kind == "kernel":
                        found |= _kernel_checks(f"{kind} {name}", item, plugins)
                    else:
                        found |= _checks(f"{kind} {name}", kind, item)
    return found


def _kernel_checks(title: str, kernel: Any, plugins: Plugins) -> dict[str, list[Check]]:
    """Return the checks of a kernel on every quantizer that it fits."""
    found = {}
    for name, quantizer in plugins.quantizers.items():
        for configured in ({}, {"double": True}) if supports_double(quantizer) else ({},):
            if fits(kernel, subject_of(quantizer, "quantizer", configured)):
                found[f"{title} on {name}{' double' * bool(configured)}"] = kernel_checks(
                    kernel, quantizer, **configured
                )
    return found


def _checks(title: str, kind: str, item: Any) -> dict[str, list[Check]]:
    if kind in INSTANCES:
        return {title: SUITES[kind](item)}
    required = {option.name for option in options_of(item) if option.required}
    if required - examples_of(item).keys():
        # without values for its options nothing else can be asked
        subject = subject_of(item, kind, {})
        return {title: [Check("options", (options.__doc__ or "").strip(), lambda: options(subject))]}
    found = {title: SUITES[kind](item)}
    if kind == "quantizer" and supports_double(item):
        found[f"{title} double"] = SUITES[kind](item, double=True)
    return found
