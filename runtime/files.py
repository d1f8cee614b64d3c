"""What a run leaves in its folder: checkpoints and a log, which a kill, a full disk or a bad sector cannot spoil."""

import contextlib
import csv
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from runtime.distributed import rank

HERE = Path(__file__).resolve().parent.parent
TRAILER = "\nsha256 {}\n"
TRAILER_SIZE = len(TRAILER.format("0" * 64))


def find_file(path: str | Path) -> Path:
    """The path as given, else under data/, else under the repository. Raises FileNotFoundError."""
    for candidate in (Path(path), HERE / "data" / path, HERE / path):
        if candidate.exists():
            below_here = not Path(path).is_absolute() and candidate.is_relative_to(Path.cwd())
            return candidate.relative_to(Path.cwd()) if below_here else candidate
    raise FileNotFoundError(f"{path}: no such file (nor under {HERE / 'data'})")


def save_checkpoint(path: Path, content: dict) -> None:
    """Write beside, sync, rename: under its name there is never half a file. Raises OSError, and leaves nothing, where
    there is no room."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "w+b") as file:
            torch.save(content, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0, os.SEEK_END)
            file.write(TRAILER.format(digest).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of an OSError
        reason = getattr(
            error if isinstance(error, OSError) else error.__context__, "strerror", None
        )
        raise OSError(f"{path}: could not be written ({reason or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class LogFile:
    """log.csv, a row a step. A resumed run first drops the rows of the steps that it does again."""

    COLUMNS = (
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "gradient_norm",
        "supervised_tokens",
        "val_loss",
    )

    def __init__(self, path: Path, first_step: int):
        rows = []
        if first_step > 1 and path.is_file():
            with open(path, newline="", errors="replace") as file:
                lines = (
                    line.replace("\0", "") for line in file
                )  # what a power cut leaves, and csv refuses
                whole = (
                    row
                    for row in csv.reader(lines)
                    if len(row) == len(self.COLUMNS) and row[0].isdecimal()
                )
                rows = [row for row in whole if int(row[0]) < first_step]
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as self.file:
            csv.writer(self.file).writerows([self.COLUMNS, *rows])
            self.sync()
        os.replace(temporary, path)  # at no moment are the rows of earlier steps gone
        self.file = open(path, "a", newline="")
        self.writer = csv.writer(self.file)

    def write(self, *values) -> None:
        try:
            self.writer.writerow(["" if value is None else value for value in values])
            self.file.flush()
        except OSError as error:
            raise OSError(f"{self.file.name}: could not be written ({error.strerror})") from error

    def sync(self) -> None:
        """Bring the rows to the disk, before the checkpoint that stands for them."""
        self.file.flush()
        os.fsync(self.file.fileno())


def plot_losses(log_path: Path) -> None:
    """loss.png beside the log, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    with open(log_path, newline="") as file:
        rows = list(csv.DictReader(file))
    axes = Figure(figsize=(7, 4)).subplots()
    for column, style in (("loss", "-"), ("val_loss", "o-")):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        axes.plot(*zip(*points), style, label=column) if points else None
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.legend()
    axes.figure.savefig(log_path.with_name("loss.png"), dpi=120, bbox_inches="tight")


def open_folder(out: str | None, name: str, overwrite: bool, protect: Path) -> Path:
    """Make a new numbered folder out/NAME-N, or `out`, which must hold no run unless it is to be overwritten. Process 0
    does it for all.

    Raises ValueError where it holds one, or the checkpoint `init` that the new run starts from; OSError where another
    process is at work in it.
    """
    if rank() != 0:
        return Path(out or "out")
    folder = Path(out) if out else make_numbered_folder(f"out/{name}")
    earlier = [
        path for pattern in ("checkpoint-*", "log.*", "loss.png") for path in folder.glob(pattern)
    ]
    if earlier and not overwrite:
        raise ValueError(
            f"{folder} holds a run: --resume {folder} goes on with it, --overwrite replaces it"
        )
    if earlier and protect.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--overwrite would remove {protect}, which this run starts from; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        for path in earlier:
            path.unlink()
    return folder


def make_numbered_folder(stem: str) -> Path:
    """stem-1, or the next number that is free; runs that start together get one each."""
    for n in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            Path(f"{stem}-{n}").mkdir(parents=True)
            return Path(f"{stem}-{n}")


@contextlib.contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes that ask for this lock out, until the block or this process ends, however it ends. Raises
    OSError where another one is in there, or waits. Where the system knows no such locks, nobody is kept out."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(f"{folder}: another process is at work in this folder") from None
    except OSError:
        pass  # some network drives
    try:
        yield
    finally:
        os.close(descriptor)


def checkpoints_in(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def prune(newest: Path, keep: int) -> None:
    """Remove all but `keep` of the checkpoints beside `newest`, once that one is safe, and what a kill has left."""
    earlier = [path for path in checkpoints_in(newest.parent) if path < newest]
    kept = {newest, *earlier[: keep - 1]}  # a later one was damaged, else we had resumed from it
    for path in newest.parent.glob("checkpoint-*"):
        if path not in kept:
            path.unlink()


def is_whole(path: Path) -> bool:
    """Whether the file ends in the SHA-256 of all that stands before."""
    digest, left = hashlib.sha256(), path.stat().st_size - TRAILER_SIZE
    if left < 0:
        return False
    try:
        with open(path, "rb") as file:
            while left:
                chunk = file.read(min(left, 1 << 20))
                digest.update(chunk)
                left -= len(chunk)
            return file.read() == TRAILER.format(digest.hexdigest()).encode()
    except OSError as error:
        if error.errno == errno.EIO:  # a bad sector
            return False
        raise


# Text and values out of files


def decode_utf8(path: str | Path, number: int, data: bytes) -> str:
    """The text of `data`, which begins on line `number`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number, column = (
            number + data.count(b"\n", 0, error.start),
            error.start - 1 - data.rfind(b"\n", 0, error.start),
        )
        raise ValueError(f"{path}:{number}: not valid UTF-8 (byte {column} of the line)") from None


def parse_json(path: str | Path, number: int, text: str, parse=json.loads):
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        line = max(
            number, error.lineno
        )  # of a single line, lineno is 1; of a whole file, it counts from the top
        raise ValueError(
            f"{path}:{line}: not valid JSON: {error.msg} (column {error.colno})"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}:{number}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # a number of many thousand digits
        raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises TypeError for what is no tensor of numbers, or is larger in memory than in its file."""
    for name, tensor in tensors.items():
        is_tensor = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not (is_tensor and tensor.is_contiguous() and tensor.device.type == "cpu"):
            raise TypeError(f"{name} is no plain tensor")


def check_plain(value: object) -> None:
    """Raises TypeError for anything but text and numbers in lists and dicts: a loop over a tensor that is small in its
    file could take for ever."""
    if isinstance(value, dict):
        check_plain([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item)
    elif not isinstance(value, (str, int, float, type(None))):
        raise TypeError(f"{type(value).__name__} is no plain value")
