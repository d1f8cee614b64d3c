"""Forks a run of sft.py for each request that it reads, and lets something happen to it.

A fork needs no second for imports, and is a process like any other: it gets real signals and has
files of its own. This process never trains, so that no run inherits more than modules. A request
and its answer are a JSON object on a line: {"argv", "cwd", "fault"} -> [{"status", "lines", "out",
"err"}], where "status" is the exit status, or minus the signal that ended the process, and "lines"
how many lines the fault has counted. With "processes" in the request so many of them make one run,
and the list has so many items; with "rank" in the fault only that one is hit. A process that hangs
is ended by SIGALRM. Faults:

    {}                                     counts all lines
    {"signal": 9, "line": 500}             at the 500th executed line of ours (or of torch's saving)
    {"signal": 9, "line": 50, "in": "save"}    the same, of lines that save
    {"signal": 15, "step": 3}              in the third step
    {"signal": 9, "seconds": 0.3}          after that time
    {"signal": 9, "unfinished": 0.001}     that time after a file *.tmp has appeared, half written
    {"bytes": 5000, "save": 2}             from the second save on, no file grows above this size
    {"bytes": 5, "row": 2}                 of the second row of the log, only 5 bytes can be written
    {"memory": 8000000, "step": 3}         from the third step on, there are 8 MB more and no others
"""

import contextlib
import io
import itertools
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # as --fsdp does

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import chat  # noqa: E402, F401 (imports all the rest)
import sft  # noqa: E402
from runtime import files, session  # noqa: E402

OURS = {str(path) for path in (ROOT / "sft.py", *(ROOT / "runtime").glob("*.py"))}
PATIENCE = 300  # seconds after which a process hangs
SAVING = {"save", "save_checkpoint", "replacing", "prune", "write", "_save"}


class Lines:
    """Counts executed lines, and does something at one of them."""

    def __init__(self, at: int | None = None, only_saving: bool = False, action=None):
        self.count, self.at, self.only_saving, self.action = 0, at, only_saving, action
        sys.settrace(self.enter)

    def enter(self, frame, event: str, _):
        code = frame.f_code
        ours = code.co_filename in OURS or (
            code.co_filename == torch.serialization.__file__ and code.co_name == "_save"
        )
        if ours and (not self.only_saving or code.co_name in SAVING):
            return self.line

    def line(self, frame, event: str, _):
        self.count += 1
        if self.count == self.at:
            self.action()
        return self.line


def at_call(owner: object, name: str, number: int, action) -> None:
    """Before the call of a function with this number, counted from 1, something happens."""
    genuine, calls = getattr(owner, name), itertools.count(1)

    def eventful(*arguments):
        if next(calls) == number:
            action()
        return genuine(*arguments)

    setattr(owner, name, eventful)


def limit_files(size: int) -> None:
    """No file of this process can grow above `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_memory(more: int) -> None:
    """This process gets no memory beyond what it has now and `more` bytes."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + more,) * 2)


def run(request: dict, rank: int, port: int) -> None:
    """In the fork: never returns."""
    os.chdir(request["cwd"])
    signal.alarm(PATIENCE)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # Written last, because a full disk is none for them.
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    n_processes, lines, status = request.get("processes", 1), None, 1
    if n_processes > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update(zip(names, map(str, (rank, rank, n_processes, "127.0.0.1", port))))
    fault = request["fault"] if rank == request["fault"].get("rank", rank) else {}

    def strike() -> None:
        os.kill(os.getpid(), fault["signal"])

    def fill_disk(below: str | None = None) -> None:
        limit_files(
            fault["bytes"] + (os.path.getsize(below) if below and os.path.exists(below) else 0)
        )

    if "save" in fault:
        at_call(sft, "save_checkpoint", fault["save"], fill_disk)
    elif "row" in fault:
        at_call(session.Recorder, "write", fault["row"], lambda: fill_disk("run/log.csv"))
    elif "memory" in fault:
        limit = lambda: limit_memory(fault["memory"])  # noqa: E731
        at_call(sft, "accumulate_gradients", fault["step"], limit)
    elif "step" in fault:
        at_call(sft, "accumulate_gradients", fault["step"], strike)
    elif fault or n_processes == 1:
        lines = Lines(fault.get("line"), fault.get("in") == "save", strike)
    try:
        status = sft.main(request["argv"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.settrace(None)
    limit_files(resource.RLIM_INFINITY)
    Path(f"lines{rank}.txt").write_text(str(lines.count if lines else 0))
    for number, text in ((1, sys.stdout.getvalue()), (2, sys.stderr.getvalue())):
        os.write(number, text.encode())
    os._exit(status)


def strike(process: int, request: dict) -> None:
    """From outside, at a time that nobody can know beforehand."""
    fault, cwd = request["fault"], Path(request["cwd"])
    if "seconds" in fault:
        time.sleep(fault["seconds"])
    elif "unfinished" in fault:
        before = {path.name for path in cwd.glob("run/*.tmp")}
        while not {path.name for path in cwd.glob("run/checkpoint-*.tmp")} - before:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
        time.sleep(fault["unfinished"])
    else:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, fault["signal"])


def main() -> None:
    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None  # it would take longer than the runs
    assert files.save_checkpoint is sft.save_checkpoint
    for line in sys.stdin:
        request = json.loads(line)
        cwd, ranks = Path(request["cwd"]), range(request.get("processes", 1))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in ranks:
            (cwd / f"lines{rank}.txt").unlink(missing_ok=True)
            processes.append(os.fork())
            if not processes[-1]:
                run(request, rank, port)
        strike(processes[request["fault"].get("rank", 0)], request)
        answers = []
        for rank, process in zip(ranks, processes):
            _, status = os.waitpid(process, 0)
            lines = cwd / f"lines{rank}.txt"
            answer = {"status": os.waitstatus_to_exitcode(status)}
            answer["lines"] = int(lines.read_text()) if lines.exists() else None
            answers.append(
                answer | {name: (cwd / f"{name}{rank}.txt").read_text() for name in ("out", "err")}
            )
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
