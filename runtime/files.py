"""Files that no kill, full disk or bad sector spoils, and checks of what is read from them."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent.parent
TRAILER = "\nsha256 {}\n"
TRAILER_SIZE = len(TRAILER.format("0" * 64))
BASE_MARK = "base-{}.txt"  # of a checkpoint's name: says which adapters stand on it


def find_file(path: str | Path) -> Path:
    """The path as given, else under data/, else under the repository. Raises FileNotFoundError."""
    for candidate in (Path(path), HERE / "data" / path, HERE / path):
        if candidate.exists():
            below_here = not Path(path).is_absolute() and candidate.is_relative_to(Path.cwd())
            return candidate.relative_to(Path.cwd()) if below_here else candidate
    raise FileNotFoundError(f"{path}: no such file (nor under {HERE / 'data'})")


def from_anywhere(file: str) -> str:
    """A name of FILE or FILE:WEIGHT right in any folder: absolute, or from the repository on."""
    path, names = Path(file).resolve(), (file, file.rpartition(":")[0])
    if not any(os.path.isfile(name) or os.path.isdir(name) for name in names):
        return file  # a pipe, a published model
    return str(path.relative_to(HERE) if path.is_relative_to(HERE) else path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, synced, then renamed to it. Raises OSError, and leaves nothing then."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of an OSError
        reason = getattr(error.__context__ or error, "strerror", None) or error
        raise OSError(f"{path}: could not be written ({reason})") from error
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)  # the rename lasts through a power cut, too
        os.close(descriptor)


def save_checkpoint(path: Path, content: dict) -> None:
    """Write a checkpoint and its SHA-256. Raises what `replacing` does."""
    with replacing(path) as file:
        torch.save(content, file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(TRAILER.format(digest).encode())


def plot_losses(log_path: Path) -> None:
    """loss.png beside the log, where matplotlib is installed."""
    with contextlib.suppress(ImportError):
        from matplotlib.figure import Figure

        axes = Figure(figsize=(7, 4)).subplots()
        log = np.genfromtxt(log_path, delimiter=",", names=True)  # where there is none, NaN
        axes.plot(log["step"], log["loss"], "-", log["step"], log["val_loss"], "o")
        axes.legend(["loss", "val_loss"])
        axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
        axes.figure.savefig(log_path.with_name("loss.png"), dpi=120, bbox_inches="tight")


def open_folder(out: str | None, name: str, overwrite: bool, protect: Path) -> Path:
    """Make `out`, or, if it is None, a new out/NAME-N. Raises ValueError where it holds a run, even
    with `overwrite` where a base is in it (`protect`, an adapter's); OSError where it is in use."""
    for number in () if out else itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = Path(f"out/{name}-{number}")
            folder.mkdir(parents=True)
            return folder
    folder = Path(out)
    earlier = [p for name in ("checkpoint-*", "log.*", "loss.png") for p in folder.glob(name)]
    if earlier and not overwrite:
        raise ValueError(f"{folder} holds a run: --resume goes on with it, --overwrite replaces it")
    if earlier and protect.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--overwrite would remove {protect}, this run's base; use another --out")
    if earlier and (mark := next(folder.glob(BASE_MARK.format("*")), None)):
        raise ValueError(f"--overwrite: {mark} names an adapter on this run; use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        for path in earlier:
            path.unlink()
    return folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out that ask for this lock. Raises OSError where one is in there."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed or killed
        except BlockingIOError:
            raise OSError(f"{folder}: another process is at work in this folder") from None
        except (ImportError, OSError):  # not every system or network drive has such locks
            pass
        yield


def checkpoints_in(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def mark_base(base: Path, adapter: Path) -> None:
    """Note beside a run's checkpoint which adapter stands on it: `prune` keeps it then."""
    if base.match("checkpoint-*.pt"):
        mark = base.with_name(BASE_MARK.format(base.name))
        with contextlib.suppress(OSError), mark.open("a") as file:  # who may not write there
            file.write(f"the adapter in {adapter.resolve()} stands on this checkpoint\n")


def prune(newest: Path, keep: int) -> None:
    """Remove all but `keep` checkpoints, and what a kill has left; none that an adapter needs."""
    earlier = [path for path in checkpoints_in(newest.parent) if path < newest]
    kept = {newest, *earlier[: keep - 1]}  # a later one was damaged, else we had resumed from it
    for path in set(newest.parent.glob("checkpoint-*")) - kept:
        if not path.with_name(BASE_MARK.format(path.name)).exists():
            path.unlink()


def is_whole(path: Path) -> bool:
    """Whether the file ends in the SHA-256 of all that stands before."""
    digest, left = hashlib.sha256(), path.stat().st_size - TRAILER_SIZE
    try:
        with open(path, "rb") as file:
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
            return file.read() == TRAILER.format(digest.hexdigest()).encode()
    except OSError as error:
        if error.errno == errno.EIO:  # a bad sector
            return False
        raise


def decode_utf8(path: str | Path, number: int, data: bytes) -> str:
    """The text of `data`, which begins on line `number`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number += data.count(b"\n", 0, error.start)
        column = error.start - 1 - data.rfind(b"\n", 0, error.start)
        raise ValueError(f"{path}:{number}: not valid UTF-8 (byte {column} of the line)") from None


def parse_json(path: str | Path, number: int, text: str, parse: Callable = json.loads) -> object:
    """The value in `text`, which begins on line `number`. Raises ValueError (`file:line: why`)."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        number = max(number, error.lineno)  # of one line, lineno is 1; of a file, it counts from 1
        reason = f"{error.msg} (column {error.colno})"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # a number of many thousand digits
        reason = str(error)
    raise ValueError(f"{path}:{number}: not valid JSON: {reason}")


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises TypeError for what is no tensor of numbers, or larger in memory than in its file."""
    for name, tensor in tensors.items():
        is_tensor = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not (is_tensor and tensor.is_contiguous() and tensor.device.type == "cpu"):
            raise TypeError(f"{name} is no plain tensor")


def check_plain(value: object) -> None:
    """Raises TypeError for anything but text and numbers in lists and dicts."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item)
    elif not isinstance(value, (str, int, float, type(None))):  # a loop over a tensor may not end
        raise TypeError(f"{type(value).__name__} is no plain value")
