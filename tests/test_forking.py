"""docs/forking.md: each of its diffs applies as it stands, trains, resumes, does what it says."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import conversation, make_base, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
FORKS = dict(
    zip(
        ("smoothing", "dft", "kl", "sgd", "muon", "easy", "template", "form"),
        re.findall(r"```diff\n(.*?)```", PAGE, re.S),
        strict=True,
    )
)
# Two runs of two steps, in a process of its own: one in one go, one resumed; then what was trained.
PROGRAM = """
import json, sys, torch
sys.path.insert(0, ".")
import sft
from runtime.load import load_checkpoint, read_checkpoint

arguments = ["--init", "base.pt", "--device", "cpu", "--batch-tokens", "60", *sys.argv[1:]]
assert sft.main([*arguments, "--data", "data.jsonl", "--steps", "4", "--out", "whole"]) == 0
assert sft.main([*arguments, "--data", "data.jsonl", "--steps", "2", "--out", "half"]) == 0
assert sft.main(["--resume", "half", "--steps", "4"]) == 0
saved = [read_checkpoint(run) for run in ("whole", "half")]
assert load_checkpoint("whole")[2]["step"] == 4
data = sft.read_data(sft.Config(data=["data.jsonl"], template=saved[0]["template"]),
                     load_checkpoint("whole")[1], 256)
logits, labels = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)), torch.arange(5)
print(json.dumps({
    "optimizer": sorted(map(str, saved[0]["optimizer"])),
    "states": [len(one["optimizer"].get("state", ())) for one in saved],
    "lengths": data.train_set.lengths[sft.epoch_order(data, 0, 0)].tolist(),
    "objective": sft.objective(logits, labels).item(),
    "nll": sft.nll_sum(logits, labels).item(),
    "template": saved[0]["template"],
    "losses": [line.split(",")[2] for line in open("whole/log.csv")][1:],
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code alone, with a base and a file of conversations of many lengths."""
    folder = tmp_path_factory.mktemp("fork")
    for name in ("chat_template", "lora", "model", "sft", "tokenizer"):
        shutil.copy(ROOT / f"{name}.py", folder)
    for name in ("hf", "runtime"):
        shutil.copytree(ROOT / name, folder / name)
    make_base(folder / "base.pt")
    return folder


def run(folder: Path, forks: str, *arguments: str) -> dict:
    """What a copy with these diffs gives."""
    diffs = [FORKS[name] for name in forks.split()]
    for diff in diffs:
        subprocess.run(["git", "apply"], input=diff, text=True, cwd=folder, check=True)
    answers = ["a" * (n % 11 + 1) for n in range(40)]
    records = [conversation("q" * (n % 7 + 1), answer) for n, answer in enumerate(answers)]
    if "form" in forks:
        records = [{"question": "q", "answer": answer} for answer in answers]
    write_jsonl(folder / "data.jsonl", records)
    try:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return json.loads(ended.stdout.splitlines()[-1])
    finally:
        for diff in reversed(diffs):
            subprocess.run(["git", "apply", "-R"], input=diff, text=True, cwd=folder, check=True)
        for out in ("whole", "half"):
            shutil.rmtree(folder / out, ignore_errors=True)


def test_every_diff_is_of_the_size_that_is_said() -> None:
    """One function, one line, one entry, some 20 lines: what a researcher has to write."""
    added = {name: len(re.findall(r"^\+(?!\+\+)", diff, re.M)) for name, diff in FORKS.items()}
    limits = dict(smoothing=3, dft=2, kl=20, sgd=1, muon=32, easy=2, template=7, form=1)
    assert all(added[name] <= limit for name, limit in limits.items()), added


def expected_objectives() -> tuple[float, float, float]:
    """Of the logits in PROGRAM: the nll, with smoothing by 0.1, and DFT's."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 300, generator=generator).log_softmax(-1)
    nll, uniform = -log_probs.diagonal(), -log_probs.mean(-1)
    return nll.sum(), (0.9 * nll + 0.1 * uniform).sum(), (nll * torch.exp(-nll)).sum()


def test_smoothing_by_sgd_with_easy_conversations_first(copy: Path) -> None:
    """Claim 25: what is trained on changes, what is measured does not."""
    said, (nll, smoothed, _) = run(copy, "smoothing sgd easy"), expected_objectives()
    assert math.isclose(said["objective"], smoothed, rel_tol=1e-5)
    assert math.isclose(said["nll"], nll, rel_tol=1e-5)
    assert said["optimizer"] == ["param_groups", "state"]
    assert said["states"][0] == said["states"][1] > 20
    assert said["lengths"] == sorted(said["lengths"]) and len(set(said["lengths"])) > 5


def test_dft_by_muon_in_another_template(copy: Path) -> None:
    """Claim 25, too."""
    said = run(copy, "dft muon template", "--template", "qa")
    nll, _, dft = expected_objectives()
    assert math.isclose(said["objective"], dft, rel_tol=1e-5)
    assert math.isclose(said["nll"], nll, rel_tol=1e-5)
    assert said["optimizer"] == ["parts"] and said["template"] == "qa"


def test_the_kl_term_and_another_form_of_record(copy: Path) -> None:
    """At the first step the model is its base, so the term is zero; then it is not."""
    plain, held = run(copy, "form", "--lr", "0.01"), run(copy, "form kl", "--lr", "0.01")
    assert len(held["lengths"]) == 40  # each conversation comes more than twice: none is held out
    (first, *later), (same, *others) = plain["losses"], held["losses"]
    assert math.isclose(float(first), float(same), rel_tol=1e-6)
    assert len(later) == 3 and not any(map(math.isclose, map(float, later), map(float, others)))
