"""Runs that are killed, stopped, cut, flipped and starved of disk, and must end as if nothing had
happened.

Claims 19, 20, 22. The moments are drawn from a seed. `--full` takes many more of them than CI does.
"""

import csv
import hashlib
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Zygote, conversation, make_base, write_jsonl

from runtime.files import checkpoints_in, is_whole
from runtime.load import read_checkpoint

# A mixture of three files, one of them seen in part and one of plain text to replay; dropout; steps
# of three micro-batches or so; two epochs of 8 steps or so, a checkpoint every second step.
RUN = (
    "--data ../a.jsonl ../b.jsonl:0.6 ../replay.jsonl:0.5 --init ../base.pt --out run --device cpu "
)
RUN += (
    "--epochs 2 --seed 5 --batch-tokens 330 --micro-batch-tokens 150 --save-every 2 --eval-every 3 "
)
RUN += "--lr 0.01 --warmup-steps 2 "
RUNS = {
    "all weights": RUN + "--dropout 0.2",
    "LoRA": RUN + "--dropout 0.1 --lora-rank 2 --lora-dropout 0.2",
}
SAVE_EVERY = 2


class Place:
    """A folder with data, a base, and the runs that nothing happened to."""

    def __init__(self, folder: Path, zygote: Zygote):
        self.folder, self.zygote = folder, zygote
        make_base(folder / "base.pt", n_layer=1, n_embd=16, context_length=64)
        write_jsonl(
            folder / "a.jsonl",
            [conversation(f"{i}" * (i % 5 + 1), "a" * (i % 7)) for i in range(40)],
        )
        write_jsonl(
            folder / "b.jsonl",
            [conversation(f"b{i}", "yes", "and?", "no" * (i % 3)) for i in range(30)],
        )
        write_jsonl(
            folder / "replay.jsonl",
            [{"text": f"document {i} " + "x" * (i % 20)} for i in range(20)],
        )
        self.whole, self.lines = {}, {}
        for kind in RUNS:
            ended = self.run(kind, "whole " + kind, RUNS[kind], {})
            assert (ended["status"], ended["err"]) == (0, "")
            self.whole[kind], self.lines[kind] = (
                contents(folder / f"whole {kind}/run"),
                {"": ended["lines"]},
            )
            ended = self.run(kind, "whole " + kind, RUNS[kind] + " --overwrite", {"in": "save"})
            self.lines[kind]["save"] = ended["lines"]
            assert contents(folder / f"whole {kind}/run") == self.whole[kind]

    def run(self, kind: str, name: str, arguments: str, fault: dict) -> dict:
        [ended] = self.zygote.run(self.folder / name, arguments, fault)
        return ended

    def go_on(self, kind: str, name: str, fault: dict) -> dict:
        """As a user would: resume; or start again, where nothing was saved."""
        run = self.folder / name / "run"
        if checkpoints_in(run):
            return self.run(kind, name, "--resume run", fault)
        return self.run(kind, name, RUNS[kind] + (" --overwrite" if run.exists() else ""), fault)

    def check_kept(self, name: str) -> None:
        """After any death: every checkpoint is whole, there is one for the last step that was to be
        saved, and no step stands in the log twice or is missing from it."""
        run = self.folder / name / "run"
        assert all(map(is_whole, checkpoints_in(run)))
        steps = [int(row["step"]) for row in log_rows(run)]
        assert steps == [*range(1, len(steps) + 1)]
        newest = checkpoints_in(run)[0] if checkpoints_in(run) else None
        saved = int(newest.stem.partition("-")[2]) if newest else 0
        assert saved >= (len(steps) - 1) // SAVE_EVERY * SAVE_EVERY

    def check_end(self, kind: str, name: str) -> None:
        """All files: weights, optimiser state, arguments and log, bit for bit; and no other file is
        left."""
        run = self.folder / name / "run"
        assert contents(run) == self.whole[kind], name
        shutil.rmtree(self.folder / name)


def log_rows(run: Path) -> list[dict[str, str]]:
    """The whole rows. The last one may have been cut off."""
    if not (run / "log.csv").exists():
        return []
    with open(run / "log.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["val_loss"] is not None]


def contents(run: Path) -> dict[str, str]:
    """A hash of all that each file says. (Of a checkpoint not the bytes themselves: how often
    pickle writes one and the same word depends on where the word came from.)"""
    hashes = {}
    for path in run.iterdir():
        content = torch.load(path, weights_only=True) if path.suffix == ".pt" else path.read_bytes()
        hashes[path.name] = hashlib.sha256("".join(spelled_out(content)).encode()).hexdigest()
    return hashes


def spelled_out(value: object) -> Iterator[str]:
    """Every key, value, type, shape and byte."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {value.shape} {value.numpy().tobytes().hex()}\n"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{key!r}:"
            yield from spelled_out(item)
    elif isinstance(value, (list, tuple)):
        yield f"{type(value)} {len(value)}\n"
        for item in value:
            yield from spelled_out(item)
    else:
        yield f"{value!r}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory, zygote) -> Place:
    return Place(tmp_path_factory.mktemp("runs"), zygote)


def moments(
    place: Place, kind: str, draw: random.Random, number: int, signal_number: int
) -> Iterator[dict]:
    """By turns: at any line, at a line that saves, at a time while a checkpoint is written, at any
    time."""
    for i in range(number):
        fault = {"signal": signal_number}
        if i % 4 == 0:
            yield fault | {"line": draw.randrange(1, place.lines[kind][""])}
        elif i % 4 == 1:
            yield fault | {"line": draw.randrange(1, place.lines[kind]["save"]), "in": "save"}
        elif i % 4 == 2:
            yield fault | {"unfinished": draw.random() * 0.003}
        else:
            yield fault | {"seconds": draw.random() * 0.6}


@pytest.mark.parametrize("kind", RUNS)
def test_kill(place: Place, kind: str, counts: Counter, request) -> None:
    """SIGKILL, up to three times in a run: in the end the same bits and the same log as without."""
    draw, number, killed = random.Random(0), 60 if request.config.getoption("--full") else 6, 0
    faults, trial = moments(place, kind, draw, 10**6, signal.SIGKILL), 0
    while killed < number:
        name = f"killed {trial}"
        for _ in range(draw.randrange(1, 4)):
            ended = place.go_on(kind, name, next(faults))
            assert ended["status"] in (0, -signal.SIGKILL), ended["err"]
            killed += ended["status"] < 0
            place.check_kept(name)
            if ended["status"] == 0:
                break
        else:
            ended = place.go_on(kind, name, {})
        assert (ended["status"], ended["err"]) == (0, "")
        place.check_end(kind, name)
        trial += 1
    counts["kills"] += killed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop(place: Place, number: int, counts: Counter, request) -> None:
    """A signal anywhere: one clear line, no traceback, the step that was under way is saved, and
    the run can go on."""
    draw, kind = random.Random(1), "LoRA"
    for trial, fault in enumerate(
        moments(place, kind, draw, 20 if request.config.getoption("--full") else 2, number)
    ):
        name = f"stopped {number} {trial}"
        ended = place.go_on(kind, name, fault)
        assert ended["status"] in (0, 128 + number) and ended["err"] == "", ended
        place.check_kept(name)
        if ended["status"]:
            last, run = ended["out"].splitlines()[-1], place.folder / name / "run"
            if last.startswith("stopped after step"):
                assert f"checkpoint-{len(log_rows(run)):07d}.pt" == checkpoints_in(run)[0].name
            else:
                assert last.startswith("interrupted") and ("--resume run" in last) == bool(
                    checkpoints_in(run)
                ), last
            counts["stop signals"] += 1
            ended = place.go_on(kind, name, {})
        assert (ended["status"], ended["err"]) == (0, "")
        place.check_end(kind, name)


def test_a_full_disk(place: Place, counts: Counter, request) -> None:
    """A save for which there is no room ends in one line that names the last good checkpoint, which
    is still there; nothing half-written is. With room, the run goes on to the same end."""
    draw, kind, name = random.Random(2), "all weights", "full disk"
    size = max(path.stat().st_size for path in (place.folder / f"whole {kind}/run").iterdir())
    for _ in range(30 if request.config.getoption("--full") else 4):
        save = draw.randrange(1, 9)
        ended = place.run(kind, name, RUNS[kind], {"bytes": draw.randrange(size), "save": save})
        run = place.folder / name / "run"
        good = (
            str(Path("run") / checkpoints_in(run)[0].name) if save > 1 else "none was written yet"
        )
        assert ended["status"] == 2 and ended["err"].count("\n") == 1, ended["err"]
        assert (
            ended["err"].startswith("error: run/checkpoint-") and "File too large" in ended["err"]
        )
        assert ended["err"].endswith(f"Last good checkpoint: {good}\n")
        assert not list(run.glob("*.tmp")) and len(checkpoints_in(run)) == min(save - 1, 2)
        place.check_kept(name)
        assert place.go_on(kind, name, {})["status"] == 0
        place.check_end(kind, name)
        counts["full disks"] += 1


def test_too_little_memory(place: Place, counts: Counter) -> None:
    """The system gives hardly any more once a step of 20,000 tokens begins: one line, with what to
    do. Doing it helps."""
    write_jsonl(place.folder / "many.jsonl", [conversation("q", "a" * 20)] * 1500)
    flags = "--data ../many.jsonl --init ../base.pt --out run --device cpu --steps 1"
    flags += " --batch-tokens 20000 --micro-batch-tokens"
    fault, name = {"memory": 2**23, "step": 1}, "little memory"
    ended = place.run("all weights", name, f"{flags} 20000", fault)
    told = "error: out of memory; try --micro-batch-tokens 10000, or --activation-checkpointing."
    told += " Last good checkpoint: none was written yet\n"
    assert (ended["status"], ended["err"]) == (2, told)
    assert not (place.folder / name / "run").exists()
    ended = place.run("all weights", name, f"{flags} 500", fault)
    assert (ended["status"], ended["err"]) == (0, "")
    counts["lacks of memory"] += 2


def test_a_full_disk_under_the_log(place: Place, counts: Counter, request) -> None:
    """A row of the log that is cut off is no step: it is said what happened, and the run goes on to
    the same end."""
    draw, kind, name = random.Random(4), "all weights", "full log"
    for _ in range(20 if request.config.getoption("--full") else 2):
        ended = place.run(
            kind, name, RUNS[kind], {"bytes": draw.randrange(30), "row": draw.randrange(1, 16)}
        )
        assert ended["status"] == 2 and ended["err"].count("\n") == 1, ended["err"]
        assert ended["err"].startswith(
            "error: run/log.csv: could not be written (File too large). Last good checkpoint"
        )
        place.check_kept(name)
        assert place.go_on(kind, name, {})["status"] == 0
        place.check_end(kind, name)
        counts["full disks"] += 1


@pytest.mark.parametrize("kind", RUNS)
def test_a_damaged_checkpoint(place: Place, kind: str, counts: Counter, request) -> None:
    """Cut at 100 random lengths, or with one bit flipped at 100 random places: noticed, said, and
    the run goes on from the one before, to the same end."""
    draw, name = random.Random(3), "damaged"
    shutil.copytree(place.folder / f"whole {kind}", place.folder / name)
    newest, before = checkpoints_in(place.folder / name / "run")
    data = newest.read_bytes()
    cuts = [data[: draw.randrange(len(data))] for _ in range(100)]
    bits = [
        draw.randrange(8 * len(data))
        for _ in range(1000 if request.config.getoption("--full") else 100)
    ]
    flips = (
        data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
        for bit in bits
    )
    for number, damaged in enumerate([*cuts, *flips]):
        newest.write_bytes(damaged)
        assert not is_whole(newest) and is_whole(before)
        if number % 50 == 0:
            ended = place.go_on(kind, name, {})
            assert ended["status"] == 0
            assert ended["err"] == f"run/{newest.name}: damaged, trying the one before\n"
            assert contents(place.folder / name / "run") == place.whole[kind]
        else:
            assert read_checkpoint(place.folder / name / "run")["file"] == str(before)
    counts["cuts"] += len(cuts)
    counts["flipped bits"] += len(bits)
    shutil.rmtree(place.folder / name)
