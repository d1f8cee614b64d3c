"""Several processes of a run stop and fail together, whichever of them is told, killed or short of
disk; under torchrun, too."""

import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import children, wait_until_gone
from test_distributed import RUN, TORCHRUN, assert_equal, furnish, log_rows, run

import sft
from runtime.files import checkpoints_in, is_whole
from runtime.load import read_checkpoint

PATIENCE = 300  # seconds after which something hangs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return furnish(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("sharded", ["", " --fsdp"], ids=["whole", "fsdp"])
@pytest.mark.parametrize("hit", [0, 1])
def test_a_signal_to_one_stops_all(zygote, place: Path, hit: int, sharded: str):
    """Claim 19: whichever process is told, all of them stop after the same step, one of them saves,
    and the run goes on to the end that it would have had."""
    name = f"told-{hit}{sharded.strip()}"
    arguments = RUN + f" --dtype float64 --steps 12{sharded} --out "
    whole = run(zygote, place, arguments + f"whole-{name}", 2)
    ended = zygote.run(
        place, arguments + name, {"signal": signal.SIGTERM, "step": 3, "rank": hit}, 2
    )
    assert [each["status"] for each in ended] == [143, 143] and not any(
        each["err"] for each in ended
    ), ended
    assert (
        ended[0]["out"].splitlines()[-1].startswith("stopped after step ") and not ended[1]["out"]
    )
    assert len(log_rows(place / name)) == read_checkpoint(place / name)["step"] == 3
    ended = zygote.run(place, f"--resume {name}", processes=2)
    assert all(each["status"] == 0 and each["err"] == "" for each in ended), ended
    assert_equal(whole, place / name, 0)


@pytest.mark.parametrize("sharded", ["", " --fsdp"], ids=["whole", "fsdp"])
def test_one_killed_ends_all(zygote, place: Path, sharded: str, counts: Counter, request):
    """Claim 19: SIGKILL to either process at any line: the other one does not wait for it but ends
    with one line, and the run can go on to the same end."""
    draw, arguments = random.Random(5), RUN + f" --dtype float64{sharded} --out "
    whole = run(zygote, place, arguments + "whole-killed" + sharded.strip(), 2)
    lines = zygote.run(place, arguments + "counted" + sharded.strip(), {"signal": 0, "rank": 1}, 2)[
        1
    ]["lines"]
    for trial in range(20 if request.config.getoption("--full") else 3):
        name, hit = f"killed-{trial}{sharded.strip()}", draw.randrange(2)
        fault = {"signal": signal.SIGKILL, "rank": hit, "line": draw.randrange(lines // 10, lines)}
        ended = zygote.run(place, arguments + name, fault, 2)
        assert ended[hit]["status"] == -signal.SIGKILL
        left = ended[1 - hit]
        assert (
            left["status"] == 2
            and left["err"].count("error: another process of this run has ended") == 1
        ), left
        assert "Traceback" not in left["err"]
        assert all(map(is_whole, checkpoints_in(place / name)))
        if checkpoints_in(place / name):
            ended = zygote.run(place, f"--resume {name}", processes=2)
        else:
            ended = zygote.run(
                place, arguments.replace("--out", "--overwrite --out") + name, processes=2
            )
        assert all(each["status"] == 0 and each["err"] == "" for each in ended), ended
        assert_equal(whole, place / name, 0)
        counts["kills of one of two processes"] += 1


def test_an_error_of_one_ends_all(zygote, place: Path):
    """A disk that is full for process 0: its error is told once, the other one's points to it."""
    ended = zygote.run(place, RUN + " --out full", {"bytes": 1000, "save": 2, "rank": 0}, 2)
    assert [each["status"] for each in ended] == [2, 2], ended
    assert (
        "could not be written (File too large). Last good checkpoint: full/checkpoint-0000001.pt"
        in ended[0]["err"]
    )
    assert (
        "another process of this run has ended" in ended[1]["err"]
        and "Traceback" not in ended[1]["err"]
    )


# torchrun itself


def start_torchrun(place: Path, out: str) -> subprocess.Popen:
    """A long run of two processes, in its second step or later."""
    command = [
        *TORCHRUN,
        sft.__file__,
        *(RUN + f" --out {out} --steps 100000 --save-every 100000").split(),
    ]
    environment, pipe = {**os.environ, "OMP_NUM_THREADS": "1"}, subprocess.PIPE
    process = subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_is_stopped_as_a_cloud_machine_is(place: Path, number: int):
    """SIGTERM to the launcher, or Ctrl-C in its terminal, which it passes on to all: the run is
    saved, and nobody hangs."""
    process = start_torchrun(place, f"preempted-{number}")
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert re.search("^stopped after step ", out, re.MULTILINE), err
    saved = read_checkpoint(place / f"preempted-{number}")
    assert saved["step"] == len(log_rows(place / f"preempted-{number}")) < 100_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_torchrun_ends_all_where_one_fails(place: Path):
    """Claim 19: one process is killed; neither the launcher nor the other one waits for it."""
    process = start_torchrun(place, "broken")
    workers = children(process.pid)
    [hit] = [
        worker
        for worker in workers
        if b"\0RANK=1\0" in Path(f"/proc/{worker}/environ").read_bytes()
    ]
    os.kill(hit, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "another process of this run has ended" in err
    wait_until_gone(workers)
