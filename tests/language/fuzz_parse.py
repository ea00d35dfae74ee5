"""Coverage-guided fuzzing of everything that reads specs: `python fuzz_parse.py --seconds 600 [--corpus FOLDER]`.

Starts from the examples and from the catalogue's. An input that makes something other than a SpecError come out is
written to `--found` and ends the run with an exit code other than 0; put it into the folder `found` beside this file,
where a test reads it from then on. Without atheris the inputs are random mutations of the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

WORDS = [
    "..",
    "**",
    "16",
    "2e-4",
    "24GiB",
    "1%",
    "q_proj",
    "@mlp",
    ":Linear",
    "/a/",
    '"x"',
    "nf4",
    "wide(",
    "pair=(",
    "\\\\",
]


def main() -> None:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--corpus", type=Path, help="a folder that keeps interesting inputs from run to run")
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()), help="where failing inputs go")
    parser.add_argument("--without-atheris", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = arguments.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        try:
            if arguments.without_atheris:
                raise ImportError
            import atheris  # noqa: F401
        except ImportError:
            mutate(arguments.seconds, arguments.found)
            return
        guide(arguments.seconds, corpus, arguments.found, Path(scratch))


def seeds() -> list[bytes]:
    """Return the inputs to begin with."""
    from language_helpers import EXAMPLE

    from lorakit.language.catalogue import pages

    texts = [path.read_text("utf-8") for path in (ROOT / "examples").glob("*.lora")]
    texts += [text for page in pages().values() for text in (page.wrong, page.right)]
    return [text.encode() for text in (EXAMPLE, *texts)]


def guide(seconds: int, corpus: Path, found: Path, scratch: Path) -> None:
    """Let atheris look for inputs that reach new code; does not return."""
    import atheris

    with atheris.instrument_imports(include=["lorakit.language"]):
        from language_helpers import survive

        import lorakit.language.complaints
        import lorakit.language.scene  # noqa: F401
    from lorakit.language.words import CLAUSES, STATEMENTS

    start = scratch / "seeds"
    start.mkdir()
    for seed in seeds():
        (start / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    dictionary = scratch / "words"
    quoted = (word.replace("\\", "\\\\").replace('"', '\\"') for word in (*STATEMENTS, *CLAUSES, *WORDS))
    dictionary.write_text("".join(f'"{word}"\n' for word in quoted))
    options = {
        "max_total_time": seconds,
        "timeout": 20,
        "max_len": 600,
        "rss_limit_mb": 4096,
        "dict": dictionary,
        "artifact_prefix": f"{found}/",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus), str(start)], survive
    )
    atheris.Fuzz()


def mutate(seconds: int, found: Path) -> None:
    """Try random mutations of the seeds; the same ones in every run."""
    from language_helpers import survive

    dice, known = random.Random(0), seeds()
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = _mutated(dice, known)
        count += 1
        try:
            survive(data)
        except BaseException:
            (found / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise
    print(f"{count} inputs")


def _mutated(dice: random.Random, known: Sequence[bytes]) -> bytes:
    data = bytearray(dice.choice(known))
    for _ in range(dice.randint(1, 6)):
        place = dice.randint(0, len(data))
        match dice.randint(0, 3):
            case 0:
                data[place:place] = dice.choice(WORDS).encode() + b" "
            case 1:
                del data[place : place + dice.randint(1, 9)]
            case 2:
                data[place:place] = bytes([dice.randint(0, 255)])
            case _:
                other = dice.choice(known)
                cut = dice.randint(0, len(other))
                data[place:place] = other[cut : cut + dice.randint(1, 40)]
    return bytes(data)


if __name__ == "__main__":
    main()
