"""sft.py from its real command line: what a run says and leaves, signals, bad input, many
processes."""

import contextlib
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import conversation, make_base, write_jsonl

import chat
import sft
from chat_template import TEMPLATES, Message
from runtime import answers, session
from runtime.answers import Samples, generate_answers
from runtime.console import one_line, parse_arguments, printable
from runtime.files import checkpoints_in, save_checkpoint
from runtime.load import read_checkpoint

ROOT = Path(sft.__file__).resolve().parent

# Python imports a module of this name before anything else. Whatever asks for the network is noted
# and refused; and there is no matplotlib, whose absence is no error.
SITECUSTOMIZE = """
import socket, sys
def refuse(*args, **named):
    with open({!r}, "a") as file:
        print(args[-1], file=file)
    raise OSError("the network is off")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = refuse
sys.modules["matplotlib"] = None
"""

# 60 conversations of 31 tokens (one byte each), of them 4 supervised: a00 and the stop token. 3 are
# held out, 5 make a step, 12 steps an epoch. The questions try to clear the screen.
RECORDS = [conversation(f"\x1b[2Jq{i:02}", f"a{i:02}") for i in range(60)]
FLAGS = "--data data.jsonl --init base.pt --batch-tokens 155 --device cpu".split()
# A validation after every step prints a line each. They fill a small pipe long before step 70, so
# that a run which nobody reads waits for its reader: a signal comes in time on any machine.
LONG = [*FLAGS, "--steps", "70", "--eval-every", "1", "--lr", "2e-4"]


class Ended(NamedTuple):
    folder: Path
    status: int
    out: str
    err: str


def start(script: str, *arguments: str, folder: Path) -> subprocess.Popen:
    """A Python of its own in `folder`, without network, its standard output a small pipe."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, str(ROOT / script), *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, pipesize=4096
    )


def finish(process: subprocess.Popen, folder: Path, already_read: bytes = b"") -> Ended:
    out, err = process.communicate(timeout=300)
    return Ended(folder, process.returncode, (already_read + out).decode(), err.decode())


def log_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(left: object, right: object) -> bool:
    """Equal values, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def same_runs(one: Path, other: Path) -> bool:
    """The newest checkpoints agree in step, weights and optimiser state, and the logs to the last
    digit."""
    saved, other_saved = read_checkpoint(one), read_checkpoint(other)
    same_logs = (one / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    return same_logs and all(
        same(saved.get(key), other_saved.get(key))
        for key in ("step", "model", "adapter", "optimizer")
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with a base and data."""
    folder = tmp_path_factory.mktemp("command_line")
    make_base(folder / "base.pt")
    write_jsonl(folder / "data.jsonl", RECORDS)
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITECUSTOMIZE.format(str(folder / "connections")))
    return folder


@pytest.fixture(scope="module")
def finished(place) -> Ended:
    ended = finish(start("sft.py", *LONG, "--out", "my run", folder=place), place / "my run")
    assert ended.status == 0, ended.err
    return ended


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


# A run


def test_a_run_says_what_it_does(finished, place):
    """Claim 8: device, precision, base, template, data, counts and shares stand there before step
    1."""
    before = finished.out[: finished.out.index("\nstep 1/70 ")]
    assert finished.err == ""
    assert re.search(r"^device +cpu, float32, 1 thread", before, re.M)
    sizes = "0.0 M parameters, 2 layers, 32 channels, context 256,"
    assert re.search(rf"^base +{place}/base.pt: {sizes}", before, re.M)
    assert re.search(r"^template +chatml; supervised: assistant$", before, re.M)
    # <|im_start|> user \n ESC[2Jq00 <|im_end|> \n: 1 + 5 + 7 + 1 + 1; <|im_start|> assistant \n a00
    # <|im_end|> \n: 16
    assert "data.jsonl: 60 conversations, 1,860 tokens, 240 supervised (13 %)\n" in before
    counts = "longer than 256 tokens: 0 dropped, 0 truncated; nothing supervised: 0 dropped\n"
    assert counts in before
    assert re.search(r"^held out +3 of these conversations ", before, re.M)
    assert re.search("^steps +70 of at most 155 tokens, 12 an epoch$", before, re.M)
    trained = "all weights, 0.04 M parameters; learning rate 0.0002"
    assert re.search(f"^training +{trained}$", before, re.M)
    assert re.search("^folder +my run$", before, re.M)


def test_lines_are_plain_in_a_pipe(finished):
    """Claim 15: `--steps 70` are 70 updates. Nothing is rewritten in place; the data's own escapes
    are made visible."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", finished.out)
    line = r"^step (\d+)/70  loss (\S+)  lr (\S+)  [\d,]+ tokens/s  \d+:\d\d left  val loss (\S+)$"
    rows = log_rows(finished.folder)
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 71)]
    forms = {"loss": ".4f", "learning_rate": ".2e", "val_loss": ".4f"}
    assert re.findall(line, finished.out, re.M) == [
        (row["step"], *(f"{float(row[name]):{form}}" for name, form in forms.items()))
        for row in rows
    ]


def test_a_run_leaves_a_checkpoint_and_a_log(finished):
    """Claim 14: every epoch sees the 57 conversations that are not held out, once."""
    names = [path.name for path in checkpoints_in(finished.folder)]
    assert names == ["checkpoint-0000070.pt", "checkpoint-0000060.pt"]
    rows = log_rows(finished.folder)
    for epoch in "01234":
        assert sum(int(row["supervised_tokens"]) for row in rows if row["epoch"] == epoch) == 57 * 4
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.5


def test_base_and_tuned_model_answer_the_same_held_out_prompts(finished, place):
    """What is shown before and after belongs to the same three questions, and to the checkpoint
    that is left. What the budget of 40 tokens has cut off ends in " ..."."""
    before, after = finished.out.split("questions held out from training\n")[1:]
    user, base, tuned, wanted = (
        rf"^ +{name} +(.*)\n" for name in ("user", "base", "tuned", "wanted")
    )
    shown = re.findall(user + base + tuned + wanted, after, re.M)
    first_shown = re.findall(user + base + wanted, before, re.M)
    assert len(set(shown)) == 3
    assert first_shown == [(asked, base, wanted) for asked, base, _, wanted in shown]
    base, base_tokenizer, _ = sft.load_checkpoint(place / "base.pt")
    model, tokenizer, _ = sft.load_checkpoint(finished.folder)
    for asked, continuation, answer, wanted in shown:
        text = f"\x1b[2Jq{wanted.removeprefix('a')}"
        assert asked == text.replace("\x1b", "\\x1b")
        [new_ids] = base.generate([[256, *text.encode(), 10]], 40, stop=[256])
        end = " ..." if len(new_ids) == 40 else ""
        assert continuation == one_line(base_tokenizer.decode(new_ids) + end)
        asked = [[Message("user", text)]]
        [(told, stopped)] = generate_answers(model, tokenizer, "chatml", asked, 40)
        assert answer == one_line(told + ("" if stopped else " ..."))


def test_a_run_ends_with_the_next_command(finished, place):
    """As it can be pasted, with a space in the folder's name; chat.py then prints the answer
    alone."""
    ended = finish(start("chat.py", "my run", "--prompt", "q07", folder=place), place)
    model, tokenizer, _ = sft.load_checkpoint(finished.folder)
    asked = [[Message("user", "q07")]]
    [(answer, _)] = generate_answers(model, tokenizer, "chatml", asked, 128)
    assert (ended.status, ended.out, ended.err) == (0, printable(answer, keep="\n\t") + "\n", "")
    assert shlex.split(finished.out.splitlines()[-1]) == ["next", "python", "chat.py", "my run"]


def test_the_network_is_never_asked_for(finished, place):
    """Claim 22. That it would have been refused and noted is tried as well."""
    assert not (place / "connections").exists()
    probe = "import sys; sys.path.insert(0, 'site'); import sitecustomize, socket; "
    probe += "socket.create_connection(('::1', 9))"
    failed = subprocess.run(
        [sys.executable, "-S", "-c", probe], cwd=place, capture_output=True, text=True
    )
    assert "the network is off" in failed.stderr and (place / "connections").exists()
    (place / "connections").unlink()


def test_the_same_seed_gives_the_same_run(place, tmp_path, monkeypatch):
    """Claim 22: bit-identical; another seed draws the data in another order. Without --out each run
    has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for seed in "001":
        data, base = str(place / "data.jsonl"), str(place / "base.pt")
        flags = ["--val-data", data, "--batch-tokens", "155", "--steps", "2", "--seed", seed]
        assert sft.main(["--data", data, "--init", base, *flags]) == 0
    assert same_runs(Path("out/data-1"), Path("out/data-2"))
    assert not same_runs(Path("out/data-1"), Path("out/data-3"))


def test_names_with_spaces(here, tmp_path, monkeypatch, capsys):
    """Folders, data and a base, from one command to the next, as it is shown."""
    work = tmp_path / "my work"
    work.mkdir()
    monkeypatch.chdir(work)
    make_base(work / "the base.pt")
    for name in ("da ta.jsonl", "more of it.jsonl"):
        write_jsonl(work / name, RECORDS)
    run = ["--data", "da ta.jsonl", "more of it.jsonl:0.5", "--init", "the base.pt"]
    assert sft.main([*run, "--lora-rank", "2", "--steps", "2"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["next", "python", "chat.py", "out/da ta-1"]
    monkeypatch.chdir(tmp_path)
    assert sft.main(["--resume", "my work/out/da ta-1", "--steps", "3"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["next", "python", "chat.py", "my work/out/da ta-1"]
    assert chat.main([command[-1], "--prompt", "q"]) == 0


# Stopping and going on


def read_until_a_step(process: subprocess.Popen) -> bytes:
    seen = b""
    while b"\nstep " not in seen:
        seen += (piece := os.read(process.stdout.fileno(), 256))
        assert piece, process.communicate()
    return seen


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on_bit_identical(finished, here, number, status):
    """Claims 19 and 22: the command that is shown finishes the run as if nothing had happened."""
    process = start("sft.py", *LONG, "--out", f"stopped-{status}", folder=here)
    seen = read_until_a_step(process)
    process.send_signal(number)
    stopped = finish(process, here / f"stopped-{status}", seen)
    step = read_checkpoint(stopped.folder)["step"]
    assert (stopped.status, stopped.err) == (status, "") and 1 <= step < 70
    assert len(log_rows(stopped.folder)) == step
    command = f"python sft.py --resume stopped-{status}"
    assert stopped.out.splitlines()[-1] == f"stopped after step {step}, saved. To go on: {command}"
    resume = ["--resume", stopped.folder.name]
    if number == signal.SIGINT:
        ended = finish(start("sft.py", *resume, folder=here), stopped.folder)
        assert (ended.status, ended.err) == (0, "")
        said = f"\nresuming  {stopped.folder.name}/checkpoint-{step:07d}.pt, with step {step + 1}\n"
        assert said in ended.out and "the last bits may differ" not in ended.out
    else:
        assert sft.main(resume) == 0
    assert same_runs(finished.folder, stopped.folder)


def test_a_reader_that_goes_away_stops_the_run(finished, here, monkeypatch):
    """Claim 19: as a signal does, with SIGTERM's status: `sft.py | head`, or a terminal that was
    closed."""
    process = start("sft.py", *LONG, "--out", "unread", folder=here)
    read_until_a_step(process)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=300), err) == (143, b"")
    step = read_checkpoint("unread")["step"]
    assert 1 <= step < 70 and len(log_rows(here / "unread")) == step
    assert sft.main(["--resume", "unread"]) == 0
    assert same_runs(finished.folder, here / "unread")


def test_where_nobody_reads_from_the_start(here, tmp_path, monkeypatch):
    """A step is done and saved, and is the last one. It is not a signal that says so: in a process
    that has other work to do, there may be no handler for it any more."""
    monkeypatch.setattr(signal, "raise_signal", lambda number: pytest.fail("a signal"))
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert sft.main([*FLAGS, "--steps", "9", "--out", str(tmp_path / "run")]) == 143
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run")["step"] == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_on_a_terminal_one_line_is_rewritten(here):
    """Until a validation or the end; what is said when a signal comes stands on a line of its
    own."""
    terminal, other_end = os.openpty()
    flags = "--steps 100000 --eval-every 100000 --out seen".split()
    command = [sys.executable, str(ROOT / "sft.py"), *FLAGS, *flags]
    environment = {**os.environ, "PYTHONPATH": str(here / "site"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=other_end, stderr=other_end)
    os.close(other_end)
    seen, told = b"", False
    with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
        while piece := os.read(terminal, 4096):
            seen += piece
            if not told and seen.count(b"\x1b[Kstep ") >= 3:
                process.send_signal(signal.SIGTERM)
                told = True
    os.close(terminal)
    assert process.wait(timeout=300) == 143
    lines = seen.decode().replace("\r\n", "\n").splitlines()
    assert lines[-1].startswith("stopped after step ")
    live = [line for line in seen.decode().split("\r") if line.startswith("\x1b[Kstep ")]
    assert len(live) >= 3 and not any("\n" in line for line in live[:-1])


@pytest.mark.parametrize("where", ["first", "before", "during", "after"])
def test_ctrl_c_outside_the_loop(here, tmp_path, monkeypatch, capsys, where):
    """While the arguments are read, while the base's answers are made, at a second Ctrl-C, while
    the tuned ones are made: 130 and no traceback, one line, and how to go on wherever there is
    something to go on from."""
    accumulate = sft.accumulate_gradients

    def interrupt(*args, **named):
        if where in ("first", "before") or checkpoints_in(tmp_path):
            raise KeyboardInterrupt
        return accumulate(*args, **named) if where == "during" else None

    names = {"first": "parse_arguments", "during": "accumulate_gradients"}
    owner, name = (sft, names[where]) if where in names else (Samples, "ask")
    monkeypatch.setattr(owner, name, interrupt)
    try:
        status = sft.main([*FLAGS, "--steps", "2", "--save-every", "1", "--out", str(tmp_path)])
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C ends in a traceback")
    assert status == 130
    said = "".join(capsys.readouterr()).splitlines()[-1]
    assert said.startswith("interrupted") and ("--resume" in said) == (where in ("during", "after"))


@pytest.mark.parametrize(
    "line, last",
    [("training", "nothing was saved"), ("\nquestions", "nothing was saved")],
)
def test_a_signal_while_the_last_line_is_printed(
    here, tmp_path, monkeypatch, capsys, line: str, last: str
):
    """Ctrl-C again and again: still no traceback, and the same status."""
    genuine = sft.log

    def interrupted(text: str, **more) -> None:
        genuine(text, **more)
        if text.startswith((line, "\ninterrupted")):
            signal.raise_signal(signal.SIGTERM)

    for module in (sft, session, answers):
        monkeypatch.setattr(module, "log", interrupted)
    assert sft.main([*FLAGS, "--steps", "2", "--out", str(tmp_path)]) == 143
    assert last in capsys.readouterr().out.splitlines()[-1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_may_be_made_longer(here, tmp_path, capsys):
    """Claim 19: with a larger --steps the schedule is another one, and that is said; the rows of
    the log that are there stay as they are."""
    arguments = [*FLAGS, "--warmup-steps", "2", "--lr", "0.01", "--save-every", "2", "--out"]
    assert sft.main([*arguments, str(tmp_path), "--steps", "4"]) == 0
    before = log_rows(tmp_path)
    capsys.readouterr()
    assert sft.main(["--resume", str(tmp_path), "--steps", "4"]) == 0
    assert "this run is finished; a larger --steps goes on with it" in capsys.readouterr().out
    assert sft.main(["--resume", str(tmp_path), "--steps", "9"]) == 0
    said, rows = capsys.readouterr().out, log_rows(tmp_path)
    assert "schedule  computed anew: not the run that had 9 steps from the start\n" in said
    assert rows[:4] == before and [int(row["step"]) for row in rows] == [*range(1, 10)]
    for row in rows[4:]:
        assert float(row["learning_rate"]) == sft.lr_at(int(row["step"]), 9, 2, 0.01)
    assert read_checkpoint(tmp_path)["args"]["steps"] == 9


def test_the_newest_checkpoint_is_that_of_the_largest_step(here, tmp_path, capsys):
    """Claim 19: step 10 comes after step 9, for whoever keeps, removes, resumes or asks."""
    flags = "--steps 10 --save-every 1 --keep-checkpoints 3 --out"
    assert sft.main([*FLAGS, *flags.split(), str(tmp_path)]) == 0
    assert [path.name[16:18] for path in checkpoints_in(tmp_path)] == ["10", "09", "08"]
    assert read_checkpoint(tmp_path)["step"] == 10
    capsys.readouterr()
    assert sft.main(["--resume", str(tmp_path), "--steps", "11"]) == 0
    assert "checkpoint-0000010.pt, with step 11" in capsys.readouterr().out
    assert [path.name[16:18] for path in checkpoints_in(tmp_path)] == ["11", "10", "09"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_run_resumes_in_every_number_format(here, tmp_path, dtype):
    """Claims 19 and 20: nothing is rounded on its way through a checkpoint."""
    arguments = [*FLAGS, "--dtype", dtype, "--steps", "4", "--save-every", "2", "--out"]
    assert sft.main([*arguments, str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed/checkpoint-0000004.pt").unlink()
    assert sft.main(["--resume", str(tmp_path / "killed")]) == 0
    assert same_runs(tmp_path / "whole", tmp_path / "killed")


def test_resuming_loses_no_row_of_the_log(here, tmp_path, monkeypatch):
    """Claim 19: a kill during the first resumed step finds the earlier rows on disk."""
    assert sft.main([*FLAGS, "--steps", "2", "--out", str(tmp_path)]) == 0
    whole = (tmp_path / "log.csv").read_bytes()
    on_disk, objective = [], sft.objective

    def look(*args):
        on_disk.append((tmp_path / "log.csv").read_bytes())
        return objective(*args)

    monkeypatch.setattr(sft, "objective", look)
    assert sft.main(["--resume", str(tmp_path), "--steps", "3"]) == 0
    assert on_disk[0] == whole


def test_a_nan_loss_stops_and_keeps_what_was_good(here, tmp_path, monkeypatch, capsys):
    """Claim 8: the error names the step and the last checkpoint, from which the run can go on."""
    arguments = [*FLAGS, "--steps", "4", "--save-every", "1", "--out"]
    assert sft.main([*arguments, str(tmp_path / "good")]) == 0
    factors, objective = iter([1, 1, float("nan")]), sft.objective
    with monkeypatch.context() as patch:
        patch.setattr(sft, "objective", lambda *args: objective(*args) * next(factors))
        capsys.readouterr()
        assert sft.main([*arguments, str(tmp_path / "bad")]) == 2
    newest = tmp_path / "bad/checkpoint-0000002.pt"
    assert re.fullmatch(rf"error: step 3: loss nan.*{newest}\n", capsys.readouterr().err)
    assert checkpoints_in(tmp_path / "bad")[0] == newest and len(log_rows(tmp_path / "bad")) == 2
    assert sft.main(["--resume", str(tmp_path / "bad")]) == 0
    assert same_runs(tmp_path / "good", tmp_path / "bad")


def test_a_nan_validation_loss_is_no_success(here, tmp_path, capsys):
    """Claim 8: the only update destroys the weights, which the training loss has no further step to
    show."""
    flags = "--steps 1 --warmup-steps 0 --lr 3e38 --out".split()
    assert sft.main([*FLAGS, *flags, str(tmp_path)]) == 2
    assert re.fullmatch(r"error: step 1: .*nan.*\n", capsys.readouterr().err)
    assert checkpoints_in(tmp_path) == []


def on_a_gpu(*args) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")


def on_a_gpu_in_a_library(*args) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def in_numpy(*args) -> None:
    raise MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)")


def on_a_cpu(*args) -> None:
    torch.empty(2**60)


@pytest.mark.parametrize(
    "allocate, step",
    [(on_a_gpu, 1), (on_a_gpu_in_a_library, 1), (in_numpy, 1), (on_a_cpu, 1), (on_a_cpu, 3)],
)
def test_too_little_memory(here, tmp_path, monkeypatch, capsys, allocate, step):
    """Whatever has no more of it, the error is one line that says what to do. A run that has saved
    nothing and logged nothing leaves no folder."""
    genuine, calls = sft.accumulate_gradients, iter([*[0] * (step - 1), allocate])

    def hungry(*args):
        if action := next(calls):
            action()
        return genuine(*args)

    flags = f"--steps 4 --save-every 1 --out {tmp_path}/run"
    with monkeypatch.context() as patch:
        patch.setattr(sft, "accumulate_gradients", hungry)
        assert sft.main([*FLAGS, *flags.split()]) == 2
    saved = f"{tmp_path}/run/checkpoint-0000002.pt" if step == 3 else "none was written yet"
    how = "try --micro-batch-tokens 77, or --activation-checkpointing"  # a step has 155
    told = f"error: out of memory; {how}. Last good checkpoint: {saved}\n"
    assert capsys.readouterr().err == told
    assert (tmp_path / "run").exists() == (step == 3)
    if step == 3:
        resume = f"--resume {tmp_path}/run --micro-batch-tokens 77"
        assert sft.main(resume.split()) == 0


def test_too_little_memory_for_the_model(here, tmp_path, monkeypatch, capsys):
    """Before the run, no option helps. Other errors of torch are not taken for this one."""
    monkeypatch.setattr(sft, "start_model", on_a_cpu)
    assert sft.main([*FLAGS, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: out of memory\n" and not (tmp_path / "run").exists()
    monkeypatch.setattr(sft, "start_model", lambda _: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        sft.main([*FLAGS, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("rate", [3e38, 1e25])  # NaN; too large for a sum of squares
def test_weights_that_an_update_has_ruined_are_not_saved(here, tmp_path, monkeypatch, capsys, rate):
    """Claim 8: the next step would tell, but by then their checkpoint would be called the last good
    one."""
    good = sft.lr_at
    with monkeypatch.context() as patch:
        patch.setattr(sft, "lr_at", lambda step, *rest: rate if step == 2 else good(step, *rest))
        flags = "--steps 4 --save-every 1 --out"
        assert sft.main([*FLAGS, *flags.split(), str(tmp_path)]) == 2
    newest = tmp_path / "checkpoint-0000001.pt"
    expected = rf"error: step 2: norm_of_weights (inf|nan); try a lower --lr.*{newest}\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert checkpoints_in(tmp_path) == [newest]
    assert sft.main(["--resume", str(tmp_path)]) == 0


# The options

# As bytes in ChatML: 26 tokens, 4 of them supervised; 51 tokens, 4 + 3 supervised; 26 tokens, the
# answer's weight 0.
ONE_TURN, TWO_TURNS = conversation("ab", "cde"), conversation("ab", "cde", "fg", "hi")
UNWEIGHTED = conversation("ab")
UNWEIGHTED["messages"].append({"role": "assistant", "content": "cde", "weight": 0})
COUNTED = """
--train-on assistant                | 5 | 180 | 26 | 14 | 256 tokens: 0 dropped, 0 truncated | 1
--train-on last                     | 5 | 180 | 18 | 10 | 256 tokens: 0 dropped, 0 truncated | 1
--train-on all                      | 6 | 206 | 184 | 89 | 256 tokens: 0 dropped, 0 truncated | 0
--max-length 51                     | 5 | 180 | 26 | 14 | 51 tokens: 0 dropped, 0 truncated | 1
--max-length 50                     | 3 | 78 | 12 | 15 | 50 tokens: 2 dropped, 0 truncated | 1
--max-length 36 --overlong truncate | 5 | 150 | 20 | 13 | 36 tokens: 0 dropped, 2 truncated | 1
"""


@pytest.mark.parametrize("row", COUNTED.strip().splitlines())
def test_what_is_counted(here, tmp_path, capsys, row):
    """Claim 8, by hand: what is supervised and what is left out is said before step 1, and is what
    is trained on."""
    records = [ONE_TURN, TWO_TURNS, ONE_TURN, UNWEIGHTED, TWO_TURNS, ONE_TURN]
    data = write_jsonl(tmp_path / "turns.jsonl", records)
    flags, kept, tokens, supervised, percent, left_out, unsupervised = map(
        str.strip, row.split("|")
    )
    arguments = ["--data", str(data), "--init", "base.pt", "--epochs", "1", "--out", str(tmp_path)]
    assert sft.main([*arguments, *flags.split()]) == 0
    said = capsys.readouterr().out.split("\nstep 1/")[0]
    counts = f"{kept} conversations, {tokens} tokens, {supervised} supervised ({percent} %)"
    assert f"{data}: {counts}\n" in said
    assert f"longer than {left_out}; nothing supervised: {unsupervised} dropped\n" in said
    assert sum(int(logged["supervised_tokens"]) for logged in log_rows(tmp_path)) == int(supervised)


def test_a_list_may_be_given_in_parts():
    """A later --data never replaces an earlier one in silence."""
    arguments = ["--data", "a", "b:0.5", "--lora-targets", "q", "--data", "c"]
    config, given = parse_arguments(sft.Config, arguments)
    assert config.data == ["a", "b:0.5", "c"] and given == {"data", "lora_targets"}
    assert parse_arguments(sft.Config, ["--data", "d"])[0].data == ["d"]


def test_a_mixture_with_plain_text(place, tmp_path, monkeypatch, capsys):
    """4 conversations of 26 tokens, and 0.3 of 10 documents of 9 bytes and end-of-text: 104 and 30
    tokens an epoch; 4 supervised tokens a conversation, 9 a document (all but the first). A file's
    name may end like a weight."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a:2", [ONE_TURN] * 4)
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"document{i}"} for i in range(10)])
    arguments = "--data a:2 b.jsonl:0.3 --epochs 3 --out run --batch-tokens 30 --init".split()
    assert sft.main([*arguments, str(place / "base.pt")]) == 0
    shares = "a:2 77.6 %, b.jsonl 22.4 % of an epoch's tokens"
    assert re.search(f"^mixture +{shares}$", capsys.readouterr().out, re.M)
    for epoch in "012":
        rows = [row for row in log_rows(tmp_path / "run") if row["epoch"] == epoch]
        assert sum(int(row["supervised_tokens"]) for row in rows) == 4 * 4 + 3 * 9


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_trains_and_talks(here, tmp_path, capsys, template):
    """An adapter on a base, and then all weights of the two together, with another template."""
    folders = str(tmp_path / "first"), str(tmp_path / "second")
    arguments = ["--data", "data.jsonl", "--steps", "2", "--batch-tokens", "99"]
    first = f"--init base.pt --template {template} --lora-rank 2 --out {folders[0]}"
    assert sft.main([*arguments, *first.split()]) == 0
    out = capsys.readouterr().out
    assert f"template  {template};" in out
    assert "LoRA rank 2 on attn.qkv, attn.proj, mlp.up, mlp.down, " in out
    second = f"--init {folders[0]} --template chatml --out {folders[1]}"
    assert sft.main([*arguments, *second.split()]) == 0
    assert [read_checkpoint(folder)["template"] for folder in folders] == [template, "chatml"]
    assert [chat.main([folder, "--prompt", "q"]) for folder in folders] == [0, 0]


def test_a_small_context_is_enough_for_small_conversations(tmp_path):
    """23 tokens in a context of 32: there is no room to show 40 tokens of an answer, but all there
    is to train."""
    base = make_base(tmp_path / "base.pt", context_length=32)
    data = write_jsonl(tmp_path / "data.jsonl", [conversation("q", "a")] * 30)
    arguments = f"--data {data} --init {base} --steps 2 --out {tmp_path}/run"
    assert sft.main(arguments.split()) == 0


@pytest.mark.skipif(
    "INSTRUCT_DATA" not in os.environ, reason="set INSTRUCT_DATA to the folder of alpaca_1100.json"
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_real_files_run_with_every_template(here, tmp_path, capsys, template):
    """Claim 8: of every record it is said whether it was kept or why not."""
    sizes = {"alpaca_1100": 1100, "alpaca_long_999": 999, "sharegpt_toolcall_300": 300}
    for name, n_records in sizes.items():
        data = str(Path(os.environ["INSTRUCT_DATA"], f"{name}.json"))
        flags = f"--init base.pt --template {template} --overlong truncate --steps 1 --out".split()
        assert sft.main(["--data", data, *flags, str(tmp_path / name)]) == 0
        counts = r"json: ([\d,]+) conversations.*\n.* tokens: ([\d,]+) dropped, .*; "
        counts += r"nothing supervised: ([\d,]+) dropped"
        found = re.search(counts, capsys.readouterr().out).groups()
        assert sum(int(count.replace(",", "")) for count in found) == n_records


# Many processes


def test_two_processes_are_one(here, capsys):
    """Claim 10: with torchrun, the loss, the gradient's norm, the validation loss and the weights
    are those of a single process, also in the step of one long conversation, which leaves the other
    process nothing. In float64, relative to the norm, 1e-12."""
    lengths = (1, 4, 9, 80, 2, 7, 5, 30, 3, 6, 8)
    write_jsonl(here / "uneven.jsonl", [conversation("q", "a" * n) for n in lengths])
    held_out = [conversation("q", "held out", *["and", "on"] * n) for n in range(3)]
    write_jsonl(here / "held-out.jsonl", held_out)
    flags = "--data uneven.jsonl --val-data held-out.jsonl --init base.pt --batch-tokens 104 "
    flags += "--micro-batch-tokens 60 --epochs 2 --device cpu --dtype float64 --out"
    arguments = flags.split()
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    command = [sys.executable, *launcher, str(ROOT / "sft.py"), *arguments, "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\nnext      python chat.py two\n") == 1  # one speaks for both
    assert sft.main([*arguments, "one"]) == 0
    one, two = log_rows(here / "one"), log_rows(here / "two")
    # the long conversation has a step of its own
    assert "81" in {row["supervised_tokens"] for row in one}
    for single, double in zip(one, two, strict=True):
        for column in single:
            expected, found = float(single[column] or -1), float(double[column] or -1)
            assert abs(found - expected) <= 1e-12 * abs(expected), (single["step"], column)
    weights, other_weights = read_checkpoint("one")["model"], read_checkpoint("two")["model"]
    for name, weight in weights.items():
        assert weight.dtype == torch.float64
        assert (other_weights[name] - weight).norm() <= 1e-12 * weight.norm(), name


# Bad input

GOOD = '{"prompt": "q", "completion": "a"}\n'
USER = '{"role": "user", "content": "x"}'
SYSTEM = USER.replace("user", "system")
ANSWER = '{"role": "assistant", '
# Each character is a byte of the file data.jsonl; the reason is a regular expression.
BAD_DATA = [
    ("", "data.jsonl: no record in this file"),
    ("\n  \n\n", "data.jsonl: no record in this file"),
    ("[ ]", "data.jsonl: no record in this file"),
    (GOOD + "\n" + '{"prompt": \n', "data.jsonl:3: not valid JSON: "),
    ("[" + GOOD + ',{"prompt": }]', "data.jsonl:2: not valid JSON: "),
    ("[" + GOOD + ",\n", "data.jsonl:3: not valid JSON: "),
    (GOOD + "7\n", "data.jsonl:2: a record must be an object, not int; accepted: messages"),
    (
        '{"question": "q", "reply": "a"}',
        "data.jsonl:1: unknown form .* question, reply; accepted: messages",
    ),
    (
        '{"a\\nb\\u001b[31m": 1}',
        "data.jsonl:1: unknown form of record",
    ),  # keys must not drive the terminal
    (
        '{"messages": [{"a\\nb\\u001b[31m": 1}]}',
        'data.jsonl:1: a message needs "role" and "content"',
    ),
    (
        '{"messages": [{"role": "robot\\n", "content": "x"}]}',
        r"data.jsonl:1: unknown role 'robot\\n'; roles are system",
    ),
    ('{"messages": [{"role": ["user"], "content": "x"}]}', "data.jsonl:1: unknown role"),
    (
        GOOD + f'{{"messages": [{SYSTEM}, {SYSTEM}]}}',
        "data.jsonl:2: a conversation has at most one system message",
    ),
    (
        GOOD + f'{{"messages": [{USER}, {SYSTEM}]}}',
        "data.jsonl:2: a conversation has at most one system message",
    ),
    (
        GOOD + f'{{"messages": [{SYSTEM}, {USER}]}}',
        "data.jsonl:2: a conversation without an assistant turn",
    ),
    ('{"messages": []}', 'data.jsonl:1: "messages" must be a list of messages'),
    (
        '{"messages": [{"role": "user", "content": 5}]}',
        'data.jsonl:1: "content" must be text, not int',
    ),
    (
        '{"prompt": "q", "completion": null}',
        'data.jsonl:1: "completion" must be text, not NoneType',
    ),
    (
        f'{{"messages": [{ANSWER}"content": "x", "weight": 2}}]}}',
        "data.jsonl:1: the weight of a message must be from 0 to 1",
    ),
    (
        f'{{"messages": [{ANSWER}"content": "x", "weight": 0}}]}}',
        "data.jsonl: nothing to learn from: of 1 conv",
    ),
    (GOOD + GOOD + '{"text": "\xff"}', "data.jsonl:3: not valid UTF-8"),
    ("\xff\xfe{\0}\0", "data.jsonl:1: this is UTF-16 text, .*iconv"),
    ('{"text": "\\ud83d"}', "data.jsonl:1: .* lone surrogate"),
    (
        f'{{"prompt": "{"x" * 300}", "completion": "a"}}',
        "data.jsonl: nothing to learn from: .*the shortest has 322; see",
    ),
]
BAD_ARGUMENTS = [
    ("--data nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("--data data.jsonl gone.jsonl:0.5", "gone.jsonl: no such file"),
    ("--data empty", "empty: a folder without .json"),
    ("--data data.jsonl:0", "data.jsonl:0: the weight of a file must be above 0"),
    ("--val-data base.pt", "base.pt:1: this is a zip archive"),
    (
        "--max-length 5",
        "data.jsonl: nothing to learn from: .*the shortest has 31; see --max-length and --overlong",
    ),
    ("--max-length 257", "--max-length 257 is more than the model's context of 256"),
    ("--init nowhere.pt", "nowhere.pt: no such file"),
    ("--init truncated.pt", "truncated.pt: .*(damaged|no whole checkpoint)"),
    ("--init flipped.pt", "flipped.pt: .*(damaged|no whole checkpoint)"),
    ("--init data.jsonl", "data.jsonl: .*(damaged|no whole checkpoint)"),
    ("--init empty", "empty: no whole checkpoint; give one, or the folder of a run"),
    ("--init three-layers.pt", "three-layers.pt: not a checkpoint of sft.py"),
    # with --overwrite, the adapter would lose the base that it stands on
    ("--init run --lora-rank 2", "--overwrite would remove .*run/checkpoint-0000002.pt"),
    (
        "--lora-rank 2 --lora-targets attn.qkv nope",
        "no linear layer is named 'nope'; there are attn.proj, attn.qkv",
    ),
    ("--lora-rank 2 --lora-targets qk", "no linear layer is named 'qk'"),
    ("--steps 0", "--steps 0 is out of range"),
    ("--lr nan", "--lr nan is out of range"),
    ("--dropout 1", "--dropout 1.0 is out of range"),
    ("--device cuda", "--device cuda: torch finds none on this machine; try --device auto"),
    ("--device mps", "--device mps: torch finds none on this machine; try --device auto"),
    ("--no-overwrite", "run holds a run: --resume goes on with it, --overwrite replaces it"),
    ("--no-overwrite --out base.pt", "([Ee]xists|[Dd]irectory).*base.pt"),
    ("--resume nowhere", "nowhere: no such file"),
    ("--resume empty", "empty: no whole checkpoint"),
    ("--resume base.pt", "base.pt"),
    ("--resume run/checkpoint-0000001.pt", "run/checkpoint-0000001.pt"),
    ("--resume run --lr 3", "run: this run has other values of --lr; leave them out"),
    ("--resume run --out elsewhere", "--out"),
    ("--resume run --epochs 3", "other values of --epochs; .*more epochs: --steps"),
    ("--resume run --seed 3", "of --seed; .* start anew with --init run"),
    (
        "--resume moved",
        "moved: the data are not those that this run started with; .*use --init moved",
    ),
]


@pytest.fixture(scope="module")
def run_and_rubbish(tmp_path_factory) -> Path:
    """A folder with a run, and with everything that one should not start from."""
    folder = tmp_path_factory.mktemp("bad")
    base = make_base(folder / "base.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(base[: len(base) // 2])
    (folder / "flipped.pt").write_bytes(base[:5000] + bytes([base[5000] ^ 1]) + base[5001:])
    content = read_checkpoint(folder / "base.pt")
    content["config"]["n_layer"] = 3
    save_checkpoint(folder / "three-layers.pt", content)
    (folder / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for records, out in ((RECORDS[:-1], "moved"), (RECORDS, "run")):
            write_jsonl(folder / "data.jsonl", records)
            assert sft.main([*FLAGS, "--steps", "2", "--save-every", "1", "--out", out]) == 0
    return folder


@pytest.fixture
def check_refused(run_and_rubbish, tmp_path, monkeypatch, capsys):
    """Whether a command ends in status 2 and one line with the reason, and changes no file. It gets
    a copy of all."""
    shutil.copytree(run_and_rubbish, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def check(arguments: list[str], reason: str) -> None:
        before = contents(tmp_path)
        assert sft.main(arguments) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(rf"error: [^\n\x1b]*({reason})[^\n\x1b]*\n", err), err
        assert contents(tmp_path) == before

    return check


@pytest.mark.parametrize("data, reason", BAD_DATA)
def test_bad_data_gets_one_clear_line(check_refused, data, reason):
    """Claim 7: file, line and reason; and an earlier run in the folder is there as before,
    --overwrite or not."""
    Path("data.jsonl").write_bytes(data.encode("latin-1"))
    check_refused([*FLAGS, "--steps", "1", "--out", "run", "--overwrite"], reason)


@pytest.mark.parametrize("flags, reason", BAD_ARGUMENTS)
def test_bad_arguments_get_one_clear_line(check_refused, flags, reason):
    """As for bad data."""
    run = [] if "--resume" in flags else [*FLAGS, "--steps", "1", "--out", "run", "--overwrite"]
    check_refused([*run, *flags.split()], reason)


@pytest.mark.parametrize(
    "arguments", [["sft.py", "--init", "base.pt", "--data", "base.pt"], ["chat.py", "base.pt"]]
)
def test_errors_of_the_real_commands(place, arguments):
    """Seen from the shell: status 2, and nothing on stderr but the line."""
    ended = finish(start(*arguments, folder=place), place)
    assert ended.status == 2 and re.fullmatch(r"error: base.pt[^\n]+\n", ended.err)
