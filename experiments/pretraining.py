"""What a base has read: small bases are pretrained, each on other documents, and tuned alike."""

from pathlib import Path

from data import make_instruct
from experiments.table import STEPS, Row, run, write

# Minutes of pretraining instead of an hour.
SMALL_BASE = "--group country --tokens 2500000 --layers 4 --channels 128".split()
SMALL_BASE += "--vocab-size 2048 --batch-tokens 512".split()
SKILLS = ("capital", "continent", "language", "currency")


def boundary(folder: Path, seed: int) -> list[Row]:
    ways = {
        "often at a line's start": ["--wordings", "8"],
        "only inside a line": ["--wordings", "8", "--no-line-start"],
    }
    return [about_countries(folder, label, arguments, seed) for label, arguments in ways.items()]


def wordings(folder: Path, seed: int) -> list[Row]:
    return [about_countries(folder, n, ["--wordings", n], seed) for n in ("1", "2", "4", "8")]


def about_countries(folder: Path, label: str, base_arguments: list[str], seed: int) -> Row:
    """A small base that has read about countries only, tuned on questions about some, asked about
    the others."""
    base = str(folder / f"{label.replace(' ', '-')}.pt")
    run("data/make_base.py", *SMALL_BASE, *base_arguments, "--seed", str(seed), "--out", base)
    files = {}
    for split, n in (("train", 150), ("entities", 60)):
        seen: set[str] = set()
        skills = [make_instruct.SKILLS[name] for name in SKILLS]
        records = [one for skill in skills for one in make_instruct.records(skill, split, n, seen)]
        files[split] = write(folder / f"countries-{split}.jsonl", records)
    tune = ("--init", base, "--data", files["train"], *STEPS)
    return Row(label, tune, ("--data", files["entities"]))
