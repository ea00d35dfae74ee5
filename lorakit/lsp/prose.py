"""Prose: what an editor says about plugins, options, roles, words, names and targets, as Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from lorakit.hooks import Plugins, Role
from lorakit.hooks.options import Option, describe_type, options_of, supports_double
from lorakit.language.catalogue import WordPage
from lorakit.language.spec import Spec
from lorakit.language.statements import Target
from lorakit.lsp.model import Model
from lorakit.lsp.names import Name

# what `rank` says in the other clauses of its rule
RANK = WordPage("rank N", "The rank of this rule.", {})

NONE_TEXT = "These modules stay as they are: no quantizer stores their weights."

# So many paths of a target's modules are shown
_SHOWN = 4


def word_text(page: WordPage) -> str:
    """Return what a word of the language says."""
    return f"`{page.form}`\n\n{page.meaning}"


def plugin_text(plugin: Any, kind: str, plugins: Plugins) -> str:
    """Return what a plugin is, where it comes from, and its options."""
    lines = [f"**{plugin.name}**: {kind} of {plugins.origin(plugin)}", "", plugin_summary(plugin)]
    options = options_of(plugin)
    if options:
        lines += ["", *(f"- {option_line(option)}" for option in options)]
    if supports_double(plugin):
        lines += ["", f"`{plugin.name} double` quantizes its scales once more."]
    return "\n".join(lines)


def plugin_summary(plugin: Any) -> str:
    """Return the first line of what a plugin says of itself."""
    return (inspect.getdoc(plugin) or "").partition("\n")[0]


def option_line(option: Option) -> str:
    """Return an option with its type, default and meaning on one line."""
    return f"`{option.name}`: {option_detail(option)}" + (f". {_sentence(option.help)}" if option.help else "")


def option_detail(option: Option) -> str:
    """Return the type and the default of an option."""
    if option.required:
        return f"{describe_type(option.type)}, must be given"
    default = f", default {_shown(option.default)}" if option.default is not None else ", optional"
    return describe_type(option.type) + default


def role_summary(role: Role) -> str:
    """Return what a role says of itself in its `summary`, if it has one, or in its documentation."""
    return str(getattr(role, "summary", "") or plugin_summary(type(role)))


def name_text(name: str, found: Name) -> str:
    """Return what a name is worth and where that is said."""
    line = found.source.position(found.word.start)[0]
    return f"`{name} = {found.shown}`\n\n{found.source.name}, line {line}"


def target_text(targets: Sequence[Target], model: Model | None, plugins: Plugins) -> str:
    """Return what targets mean, and what they select in a model."""
    lines = []
    for target in targets:
        lines.append(f"`{target}`: {_meaning(target, plugins)}")
        lines.append(count_text(target, model) if model is not None else "")
    return "\n\n".join(filter(None, lines))


def reach_text(spec: Spec, model: Model, plugins: Plugins) -> Iterator[str]:
    """Yield how far the `quant` of a program goes in a model, and what is to be said of that."""
    from lorakit.planning.cascade import decide
    from lorakit.planning.reach import with_reach

    decisions = with_reach(decide(spec, model.inventory, model.roles), spec, model.inventory, plugins)
    for rule in decisions.rules:
        if rule.reached:
            also = f"`{rule.keyword} {rule.targets} {rule.quant}` (as {rule.place} has it)"
            yield f"Here that means {also}: {modules(rule.modules)} more of {model.inventory.model_class}."
    yield from decisions.notes


def _meaning(target: Target, plugins: Plugins) -> str:
    if target.regex is not None:
        return "modules whose whole path matches this regex"
    if target.class_name is not None:
        return f"modules of the class {target.class_name}"
    if target.role is not None and target.role in plugins.roles:
        return role_summary(plugins.roles[target.role])
    return "modules whose path ends in this"


def count_text(target: Target, model: Model) -> str:
    """Return how many modules of a model a target selects, and which are the first."""
    paths, fitting = model.matches(target), model.fitting(target)
    if not paths:
        return f"matches nothing in {model.inventory.model_class}"
    unfit = f", {len(paths) - len(fitting)} of which no adapter fits" if len(fitting) < len(paths) else ""
    shown = "".join(f"\n- `{path}`" for path in paths[:_SHOWN])
    more = f"\n- … {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"matches {modules(len(paths))} of {model.inventory.model_class}{unfit}:\n{shown}{more}"


def modules(count: int) -> str:
    """Return a number of modules in words."""
    return f"{count} module" if count == 1 else f"{count} modules"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shown(value: Any) -> str:
    """Return a default as a spec would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)
