"""How PEFT starts A and B, as an initializer of a spec."""

from __future__ import annotations

import re
from typing import Any

from lorakit.language.statements import PluginCall

METHODS = "lorakit-methods"
KAIMING = PluginCall("kaiming")
_PISSA = re.compile(r"pissa(?:_niter_([0-9]{1,4}))?")


def start_of(wanted: Any, rank: int) -> tuple[PluginCall, str, str]:
    """Return the initializer for `init_lora_weights`, the plugin that has it, and what it does not say alike.

    Plugin and note are empty where there is nothing to say.
    """
    name = wanted.lower() if isinstance(wanted, str) else wanted
    if name == "gaussian":
        # A ~ N(0, 1 / r²) in PEFT
        return PluginCall("gaussian", (("sigma", 1 / rank),)), "", ""
    if name == "eva":
        return PluginCall("eva"), METHODS, ""
    if name == "loftq":
        return (
            PluginCall("loftq"),
            METHODS,
            "loftq_config: `init loftq` takes one step, on the base that `quant` stores",
        )
    if isinstance(name, str) and (found := _PISSA.fullmatch(name)):
        options = (("iterations", int(found[1])),) if found[1] else ()
        return PluginCall("pissa", options), METHODS, ""
    if name is False:
        return KAIMING, "", "init_lora_weights: false draws B too, so that an adapter starts with noise; here B is zero"
    if name is True or name is None:
        return KAIMING, "", ""
    return KAIMING, "", f"init_lora_weights: {name[:40]} has no counterpart; `init kaiming` is PEFT's default"
