"""A config in common names as the statements of a spec, with what they cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorakit.errors import AdapterError
from lorakit.foreign.names import LEAVES, UNQUANTIZED, is_plain, target
from lorakit.foreign.optimizers import OPTIMIZERS, WITH_MOMENTS
from lorakit.foreign.reading import ForeignConfig
from lorakit.foreign.selection import HEADS, LINEAR, selected
from lorakit.foreign.starts import METHODS, start_of
from lorakit.language.statements import Adapt, Optimizer, PluginCall, Quantize, Segment, Step, Target, Train, Value

# fields that decide a rule; what is left is an option of `lorakit train`, or has no counterpart
RULES = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "init_lora_weights", "modules_to_save",
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "trainable_token_indices", "task_type", "lr_ratio", "load_in_4bit", "load_in_8bit",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "optim", "learning_rate",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "per_device_train_batch_size", "max_length", "bf16",
    "fp16",
})  # fmt: skip

Fields = Mapping[str, Any]


@dataclass
class Statements:
    """The statements of a spec, each with what is said above it, the plugins that they need, and what is left to say.

    `rules` hold comments by the statement that they stand above.
    """

    rules: list[tuple[Adapt | Quantize | Train, str]] = field(default_factory=list)
    optimizer: Optimizer | None = None
    step: Step | None = None
    uses: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def statements_of(config: ForeignConfig) -> Statements:
    """Return the statements that mean what a config says. Raises: AdapterError for what none can mean."""
    fields, made = config.fields, Statements()
    for name, common in (("r", "r"), ("lora_alpha", "lora_alpha")):
        if fields.get(common) is None:
            raise AdapterError(
                f"{config.path} has no `{config.called.get(common, name)}`, which {config.tool} needs too"
            )
    try:
        _adapt(fields, made)
    except AdapterError as error:
        raise AdapterError(f"{config.path}: {error}") from error
    if not made.rules:
        raise AdapterError(
            f"{config.path} names no modules to adapt: {config.tool} then looks the model's family up in a table; "
            f"say `{config.called.get('target_modules', 'target_modules')}`, as with all-linear"
        )
    _quantize(fields, made)
    _train(fields, made)
    _optimize(fields, made)
    batch, tokens = fields.get("per_device_train_batch_size"), fields.get("max_length")
    if compute := next((word for word in ("bf16", "fp16") if fields.get(word) is True), None):
        made.step = Step(compute=compute)
    if batch or tokens or made.step:
        made.step = Step(_whole(batch), _whole(tokens), compute)
    return made


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _adapt(fields: Fields, made: Statements) -> None:
    quant = _quantizer(fields)
    common: dict[str, Any] = {
        "scaling": "rslora" if fields.get("use_rslora") else "standard",
        "dropout": float(fields.get("lora_dropout") or 0.0),
        "method": PluginCall("dora") if fields.get("use_dora") else PluginCall("lora"),
        "bias": "none" if fields.get("bias") in (None, "none") else "adapter",
        "lr_ratio": fields.get("lr_ratio"),
        "dtype": "fp32",
    }
    if fields.get("use_dora"):
        made.uses[METHODS] = None
    if fields.get("bias") == "all":
        made.notes.append("bias: all trains every bias of the model; `bias adapter` trains those of adapted modules")
    if fields.get("trainable_token_indices"):
        made.notes.append(
            "trainable_token_indices: rows of an embedding do not train by themselves here; `train embed_tokens` "
            "trains it whole"
        )
    for one in selected(fields, made.notes):
        init, plugin, note = start_of(fields.get("init_lora_weights"), one.rank)
        made.uses |= {plugin: None} if plugin else {}
        if note and note not in made.notes:
            made.notes.append(note)
        rule = Adapt(
            targets=one.targets, rank=one.rank, alpha=one.alpha, init=init, quant=quant, layers=one.layers,
            excepts=one.excepts, optional=one.optional, **common,
        )  # fmt: skip
        made.rules += [(part, "") for part in _by_quantizer(rule)]
    if parameters := fields.get("target_parameters"):
        rank, alpha = int(fields["r"]), fields["lora_alpha"]
        init = start_of(fields.get("init_lora_weights"), rank)[0]
        targets = tuple(map(target, parameters))
        made.rules.append((Adapt(targets=targets, rank=rank, alpha=alpha, init=init, **common), "target_parameters"))
    if made.rules:
        first, _ = made.rules[0]
        made.rules[0] = (first, "adapters in fp32, as PEFT keeps them beside weights in half precision")


def _by_quantizer(rule: Adapt) -> Iterable[Adapt]:
    """Yield a rule for what bitsandbytes quantizes, and one for embeddings and heads, which it leaves as they are."""
    apart = [one for one in rule.targets if rule.quant and one.segments and one.segments[-1].name in UNQUANTIZED]
    for targets, quant in (([one for one in rule.targets if one not in apart], rule.quant), (apart, None)):
        if targets:
            yield replace(rule, targets=tuple(targets), quant=quant)


def _quantizer(fields: Fields) -> PluginCall | None:
    if fields.get("load_in_4bit"):
        return PluginCall(fields["bnb_4bit_quant_type"], double=bool(fields["bnb_4bit_use_double_quant"]))
    return PluginCall("int8") if fields.get("load_in_8bit") else None


def _quantize(fields: Fields, made: Statements) -> None:
    if quant := _quantizer(fields):
        made.rules.append((Quantize((LINEAR,), quant), "every other linear layer too, but not the output head"))


def _train(fields: Fields, made: Statements) -> None:
    whole = fields.get("modules_to_save") or []
    if whole:
        ends = any(name not in LEAVES for name in whole)
        comment = "as in PEFT, every module whose path ends in these letters" if ends else ""
        made.rules.append((Train(tuple(map(_ending, dict.fromkeys(whole)))), comment))
    heads = [name for name in HEADS.get(str(fields.get("task_type")), ()) if name not in whole]
    if heads:
        comment = f"the head of a classifier, which PEFT trains for task_type {fields['task_type']}"
        made.rules.append((Train(tuple(map(target, heads)), optional=True), comment))


def _ending(name: str) -> Target:
    """Return the target for a name in `modules_to_save`, which PEFT compares letter by letter with the end of paths."""
    if name in LEAVES or not is_plain(name):
        return target(name)
    first, *rest = name.split(".")
    return Target((Segment(f"*{first}"), *map(Segment, rest)))


def _optimize(fields: Fields, made: Statements) -> None:
    name = str(fields.get("optim") or "")
    rate = fields.get("learning_rate")
    found = OPTIMIZERS.get(name) if name else OPTIMIZERS["adamw"] if rate is not None else None
    if name and found is None:
        made.notes.append(f"the optimizer {name[:40]} has no counterpart; `lorakit plugins` lists those that there are")
    if found is None:
        return
    options: dict[str, Value] = {}
    if decay := fields.get("weight_decay"):
        options["weight_decay"] = float(decay)
    if found.name in WITH_MOMENTS:
        if "adam_beta1" in fields or "adam_beta2" in fields:
            options["betas"] = (float(fields.get("adam_beta1", 0.9)), float(fields.get("adam_beta2", 0.999)))
        if "adam_epsilon" in fields:
            options["eps"] = float(fields["adam_epsilon"])
    if found.plugin:
        made.uses[found.plugin] = None
    call = PluginCall(found.name, tuple(options.items()))
    made.optimizer = Optimizer(call, lr=None if rate is None else float(rate), paged=found.paged)
