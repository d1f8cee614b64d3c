"""Around a run: signals, errors, exit status, and what is written down of each step."""

import contextlib
import csv
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model import GPT
from runtime import distributed, files
from runtime.console import LiveLine, accept_any_text, fail, log
from runtime.distributed import rank
from runtime.files import checkpoints_in

COMMAND = "python sft.py"  # a fork has its own


class StopSignals(contextlib.ExitStack):
    """Ctrl-C, SIGTERM and SIGHUP, as KeyboardInterrupt that goes no further than the `with` block;
    inside the training loop, which sets `in_loop`, the first one only asks it to save and stop."""

    requested, in_loop = 0, False

    def __enter__(self) -> "StopSignals":
        self.push(lambda kind, *_: kind is KeyboardInterrupt)
        if threading.current_thread() is threading.main_thread():  # no other one may set handlers
            names = "SIGINT", "SIGTERM", "SIGHUP"  # which Windows does not have
            for number in {getattr(signal, name, signal.SIGTERM) for name in names}:
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self.callback(signal.signal, number, signal.signal(number, self.receive))
        return self

    def receive(self, number: int, _) -> None:
        first, self.requested = self.requested != number, number
        if not (self.in_loop and first):
            raise KeyboardInterrupt(number)

    def wanted_by_any(self) -> bool:
        """Whether one of the processes was asked to stop, or nobody reads what is printed."""
        stopping = self.requested > 0 or hasattr(sys.stdout, "nobody_reads")
        return distributed.sum_over_processes([float(stopping)])[0] > 0


def run_safely(prepare: Callable, train: Callable, argv: Sequence[str] | None) -> int:
    """`train(prepare(argv), stop)`; gives an exit status whatever happens: 0; 2 after one line for
    an error that the user can mend; 128 and the signal's number after a signal."""
    run = None
    with StopSignals() as stop:
        try:
            accept_any_text()
            with distributed.together():
                run = prepare(argv)
                with files.lock(run.folder) if rank() == 0 else contextlib.nullcontext():
                    return train(run, stop)
        except Exception as error:
            # A full disk, perhaps; a rate that is too high; before the run, a value out of range.
            mendable = isinstance(error, (OSError, FloatingPointError if run else ValueError))
            if not mendable and not is_lack_of_memory(error):
                raise
            reason = str(error) if mendable else "out of memory"
            if run and not mendable:
                half = min(run.config.micro_batch_tokens, run.config.batch_tokens) // 2
                reason += f"; try --micro-batch-tokens {half}, or --activation-checkpointing"
            if run and rank() == 0:
                kept = next(map(str, checkpoints_in(run.folder)), "none was written yet")
                reason += f". Last good checkpoint: {kept}"
            return fail(reason)
        except KeyboardInterrupt:
            saved = run and rank() == 0 and checkpoints_in(run.folder)
            what = f"to go on: {resume_command(run.folder)}" if saved else "nothing was saved"
            log(f"\ninterrupted; {what}")
            return 128 + (stop.requested or signal.SIGINT)
        finally:
            with contextlib.suppress(OSError):  # a folder that holds a log or a checkpoint stays
                os.rmdir(run.folder if run and run.folder else "")
    return 128 + stop.requested  # a signal came while one of these messages was printed


def is_lack_of_memory(error: Exception) -> bool:
    """Whether memory has run out, of the computer or of a GPU: torch has several errors for it."""
    signs = "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def exit_process(status: int) -> None:
    """FSDP leaves threads, which may abort Python's own exit; torchrun would call it a failure."""
    (os._exit if distributed.world_size() > 1 else sys.exit)(status)


def resume_command(folder: Path) -> str:
    return f"{COMMAND} --resume {shlex.quote(str(folder))}"


def circumstances(device: str, options) -> str:
    """All that the last bits of a run depend on, but for what may not change (`sft.CHANGEABLE`)."""
    threads = f"{torch.get_num_threads()} threads, {distributed.world_size()} processes"
    tokens = min(options.micro_batch_tokens, options.batch_tokens)
    ways = ", ".join(f"{name} {getattr(options, name)}" for name in ("dtype", "compile", "fsdp"))
    return f"torch {torch.__version__}, {device}, {threads}, {ways}, {tokens} tokens at a time"


def describe_training(options, model: GPT, base: str, saved: dict | None, device: str) -> None:
    """What is trained; of a run that is resumed, from where on, and if its circumstances differ."""
    sizes, n_parameters = model.config, sum(p.numel() for p in model.parameters()) / 1e6
    shape = f"{sizes.n_layer} layers, {sizes.n_embd} channels, context {sizes.context_length}"
    log(f"base      {base}: {n_parameters:.1f} M parameters, {shape}, vocabulary {sizes.n_vocab:,}")
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    adapters = f"LoRA rank {options.lora_rank} on {', '.join(options.lora_targets)}"
    what = adapters if options.lora_rank else getattr(model.adapter, "kind", "all weights")
    log(f"training  {what}, {n_trained:.2f} M parameters; learning rate {options.lr:g}")
    if saved:
        log(f"resuming  {saved['file']}, with step {saved['step'] + 1:,}")
    if saved and (before := saved.get("circumstances")) != (now := circumstances(device, options)):
        draws = options.dropout or options.lora_dropout
        what = "dropout may draw other numbers" if draws else "the last bits may differ"
        log(f"          saved with {before}; now {now}: {what}")


class Recorder:
    """A row of log.csv a step, and a line on the screen that says how far the run is."""

    COLUMNS = "step,epoch,loss,learning_rate,gradient_norm,supervised_tokens,val_loss"

    def __init__(self, folder: Path, first_step: int, n_steps: int):
        """The log's rows of steps that a resumed run does again are dropped."""
        self.first_step, self.n_steps, self.n_tokens = first_step, n_steps, 0
        self.live, self.started = LiveLine(), time.monotonic()
        self.path = folder / "log.csv" if rank() == 0 else None
        if self.path and self.path.is_file():  # a kill may have left half a row behind the others
            rows = self.path.read_text(errors="replace").splitlines()[:first_step]
            with files.replacing(self.path) as file:  # at no moment are the earlier rows gone
                file.write("".join(row + "\r\n" for row in rows).encode())

    def write(self, row: Sequence[float | None], n_tokens: int, saving: bool) -> None:
        """`row`: values of COLUMNS. `saving`: its checkpoint comes next, so the rows go to disk."""
        step, _, loss, lr, *_, val_loss = row
        if self.path:
            try:
                with open(self.path, "a", newline="") as file:
                    csv.writer(file).writerows([] if file.tell() else [self.COLUMNS.split(",")])
                    csv.writer(file).writerow(row)
                    if saving:
                        file.flush()
                        os.fsync(file.fileno())
            except OSError as error:
                raise OSError(f"{self.path}: could not be written ({error.strerror})") from error
        self.n_tokens += n_tokens
        seconds = time.monotonic() - self.started
        left = round(seconds / (step + 1 - self.first_step) * (self.n_steps - step))
        line = f"step {step:,}/{self.n_steps:,}  loss {loss:.4f}  lr {lr:.2e}"
        line += f"  {self.n_tokens / seconds:,.0f} tokens/s  {left // 60}:{left % 60:02} left"
        line += "" if val_loss is None else f"  val loss {val_loss:.4f}"
        self.live.show(line, last=val_loss is not None or step == self.n_steps)


def finished(folder: Path, keep_checkpoints: int, before: bool) -> int:
    """`before`: already when it was resumed; then a kill may have come before what is done here."""
    if rank() == 0:
        newest = next(path for path in checkpoints_in(folder) if not before or files.is_whole(path))
        files.prune(newest, keep_checkpoints)
        files.plot_losses(folder / "log.csv")
        if before:
            log("this run is finished; a larger --steps goes on with it")
        else:
            log(f"saved     {newest}, with log.csv beside it")
            log(f"next      python chat.py {shlex.quote(str(folder))}")
    return 0


def stopped(folder: Path, step: int, stop: StopSignals) -> int:
    below = "\n" if sys.stdout.isatty() else ""  # the live line
    log(f"stopped after step {step:,}, saved. To go on: {resume_command(folder)}", below)
    return 128 + (stop.requested or signal.SIGTERM)
