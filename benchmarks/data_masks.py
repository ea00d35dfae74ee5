"""Which tokens are learned, here and in TRL: every chat template that TRL ships, on records of every form.

    pip install trl
    python benchmarks/data_masks.py [--templates qwen3,llama3] [--differing] [TOKENIZER]

TOKENIZER is a folder, by default the demo's SmolLM2. TRL's side is its own `SFTTrainer` with `assistant_only_loss`,
asked for what it trains on; it replaces a template that it knows by one with `{% generation %}` markers. Ours is what
`lorakit train` makes of the same record: first with the model's template, where turns are found by changing them, then
with TRL's marked one. A cell is tokens learned by both / by one of them alone, for either template where they differ;
`other ids` where TRL's template writes the record otherwise than the model's; and who refuses the record.
`--differing` prints what one alone learns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

# behind the line that it obeys
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lorakit.data.source import read_data
from lorakit.data.tokens import IGNORED, tokenize
from lorakit.demo import smollm2
from lorakit.errors import LorakitError
from lorakit.plugins import default_plugins

ANGLES = re.compile(r"<[|｜/]?[\w▁]+[|｜]?>")
Tokens = tuple[list[int], list[int]]

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
ASKED, SAID = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
AGAIN = [{"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "That is 6, of course."}]
PLAIN: dict[str, dict[str, Any]] = {
    "text": {"text": "Once upon a time there was a fox."},
    "prompt, completion": {"prompt": "Q: What is 2 + 2?\nA:", "completion": " It is 4."},
    "prompt that ends in a space": {"prompt": "Q: What is 2 + 2? A: ", "completion": "four"},
}
CHATS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASKED, SAID]},
    "two turns": {"messages": [ASKED, SAID, *AGAIN]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID]},
    "tools, null content": {
        "messages": [
            {"role": "user", "content": "How is it in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": [TOOL],
    },
    "prompt, completion": {"prompt": [ASKED, SAID, AGAIN[0]], "completion": [AGAIN[1]]},
}


def ours(record: dict[str, Any], tokenizer: Any, folder: Path) -> Tokens:
    """Return ids and labels as `lorakit train` has them."""
    path = folder / "data.jsonl"
    path.write_text(json.dumps(record))
    made = tokenize(read_data(path, default_plugins()).examples, tokenizer, 4096)
    if not made.rows:
        raise LorakitError(made.left_out[0].reason)
    return made.rows[0].input_ids, made.rows[0].labels


def theirs(record: dict[str, Any], tokenizer: Any, model: Any, folder: Path) -> Tokens:
    """Return ids and labels as TRL's trainer has them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chat = "messages" in record or not isinstance(record.get("prompt", ""), str)
    arguments = SFTConfig(
        output_dir=str(folder), assistant_only_loss=chat, max_length=None, report_to="none", use_cpu=True, bf16=False
    )
    dataset = Dataset.from_list([record])
    trainer: Any = SFTTrainer(model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    row = trainer.train_dataset[0]
    return row["input_ids"], row.get("labels", row["input_ids"])


def compared(record: dict[str, Any], tokenizer: Any, other: Tokens | str, folder: Path) -> tuple[str, str]:
    """Return a cell of the table, and what one side alone learns."""
    try:
        ids, labels = ours(record, tokenizer, folder)
    except LorakitError as error:
        return ("both refuse" if isinstance(other, str) else "refused here"), str(error)
    if isinstance(other, str):
        return "TRL refuses", other
    if ids != other[0]:
        return "other ids", f"{tokenizer.decode(ids)!r} against {tokenizer.decode(other[0])!r}"
    pairs = list(zip(ids, labels, other[1], strict=True))
    both = sum(one == two != IGNORED for _, one, two in pairs)
    mine = [token for token, one, two in pairs if one != IGNORED == two]
    others = [token for token, one, two in pairs if one == IGNORED != two]
    words = f"here alone {tokenizer.decode(mine)!r}, in TRL alone {tokenizer.decode(others)!r}"
    return f"{both} / {len(mine) + len(others)}", words if mine or others else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--templates", default="")
    parser.add_argument("--differing", action="store_true")
    settings = parser.parse_args()
    import trl

    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or smollm2())
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    folder = Path(trl.__file__).parent / "chat_templates"
    wanted = [name for name in settings.templates.split(",") if name]
    names = wanted or sorted(path.stem[: -len("_training")] for path in folder.glob("*_training.jinja"))
    differing: list[str] = []
    with TemporaryDirectory() as scratch:

        def row(title: str, records: dict[str, dict[str, Any]], templates: list[str | None]) -> None:
            cells = []
            for form, record in records.items():
                tokenizer.chat_template = templates[0] or tokenizer.chat_template
                other: Tokens | str
                try:
                    other = theirs(record, tokenizer, model, Path(scratch))
                # a template refuses a record in words and classes of its own
                except Exception as error:
                    other = f"{type(error).__name__}: {error}"
                found = []
                for template in templates:
                    tokenizer.chat_template = template or tokenizer.chat_template
                    cell, words = compared(record, tokenizer, other, Path(scratch))
                    found.append(cell)
                    if words:
                        differing.append(f"{title}, {form}: {cell}: {words}")
                cells.append("; ".join(dict.fromkeys(found)))
            print(f"| {title} | {' | '.join(cells)} |", flush=True)

        print(f"TRL {trl.__version__}, the tokenizer of {tokenizer.name_or_path}\n")
        print(f"| | {' | '.join(PLAIN)} |\n|---{'|---' * len(PLAIN)}|")
        row("any", PLAIN, [None])
        print(f"\n| template | {' | '.join(CHATS)} |\n|---{'|---' * len(CHATS)}|")
        for name in names:
            plain, marked = ((folder / f"{name}{end}.jinja").read_text() for end in ("", "_training"))
            # what stands in angles is one token in the tokenizer of the template's own model
            tokenizer.add_tokens(sorted(set(ANGLES.findall(plain))), special_tokens=True)
            row(name, CHATS, [plain, marked])
    if settings.differing:
        print("\n" + "\n".join(differing), file=sys.stderr)


if __name__ == "__main__":
    main()
