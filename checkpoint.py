"""What a run leaves in its folder: checkpoints and a log, which a kill, a full disk or a bad sector cannot spoil.

A checkpoint is one file of plain values and tensors, with its SHA-256 behind it. Nothing in it is ever executed. It
describes itself: "config" of the model, its weights ("model", or "lora" and "adapter" beside the "base" they belong
to), "tokenizer", "template" and "stop" ids, the run's "args", its "step" and "optimizer".
"""

import contextlib
import csv
import errno
import hashlib
import itertools
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from chat_template import TEMPLATES, one_line, printable
from distributed import rank
from lora import attach_adapter, check_plain, check_tensors, merge_lora
from model import GPT, GPTConfig
from tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
TENSORS = ("model", "adapter", "optimizer")  # what tensors stand in; all else is text and numbers
TRAILER = "\nsha256 {}\n"
TRAILER_SIZE = len(TRAILER.format("0" * 64))
DEEPEST_BASE = 8  # adapters on adapters; a file that names itself as its base would have no end


def find_file(path: str | Path) -> Path:
    """The path as given, else under data/, else under the repository. Raises FileNotFoundError."""
    for candidate in (Path(path), HERE / "data" / path, HERE / path):
        if candidate.exists():
            below_here = not Path(path).is_absolute() and candidate.is_relative_to(Path.cwd())
            return candidate.relative_to(Path.cwd()) if below_here else candidate
    raise FileNotFoundError(f"{path}: no such file (nor under {HERE / 'data'})")


# Writing


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


def open_folder(out: str | None, name: str, overwrite: bool, init: str) -> Path:
    """Make a new numbered folder out/NAME-N, or `out`, which must hold no run unless it is to be overwritten. Process 0
    does it for all.

    Raises ValueError where it holds one, or the checkpoint `init` that the new run starts from; OSError where another
    process is at work in it.
    """
    from hf import find_gpt2  # here, because it loads checkpoints

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
    if earlier and (find_gpt2(init) or find_file(init)).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--overwrite would remove {init}, which this run starts from; choose another --out"
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


# Reading


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


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint file, or of the newest whole one in a run's folder, and its path as "file".

    Raises FileNotFoundError, and ValueError where the file is damaged or of another kind.
    """
    path = find_file(path)
    for file in checkpoints_in(path) if path.is_dir() else [path]:
        if is_whole(file):
            break
        if path.is_dir():
            damaged = printable(str(file))
            print(
                f"{damaged}: damaged (its checksum does not match), trying the one before",
                file=sys.stderr,
            )
    else:
        raise ValueError(
            f"{path}: no whole checkpoint here; give a checkpoint, or the folder of a run of sft.py"
        )
    try:
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise RuntimeError("compressed: a small file may be meant to fill the memory")
        content = torch.load(file, map_location="cpu", weights_only=True)
        check_plain({name: value for name, value in content.items() if name not in TENSORS})
        return {**content, "file": str(file)}
    except OSError:
        raise
    except Exception as error:  # of any kind: the file may hold any broken pickle
        raise ValueError(f"{file}: not a checkpoint of sft.py ({type(error).__name__})") from None


def load_checkpoint(
    path: str | Path, device: str = "cpu", dropout: float = 0.0, depth: int = 0
) -> tuple[GPT, Tokenizer, dict]:
    """The model, in float32 (float64 if it was trained so); its tokenizer; and what else the file holds: "template"
    (None for a base), "stop" ids, "base", "args", "step", "optimizer". `path` may also name a model in Hugging Face's
    format, for which hf.py is asked: "gpt2" or another published one, or a folder.

    Raises FileNotFoundError, and ValueError as `read_checkpoint` and `restore`.
    """
    import hf  # here, because it loads checkpoints itself

    if hf.find_gpt2(path):
        model, tokenizer, meta = hf.load(path, dropout)
    else:
        model, tokenizer, meta = restore(read_checkpoint(path), dropout, depth)
    return model.to(device).eval(), tokenizer, meta


def restore(saved: dict, dropout: float = 0.0, depth: int = 0) -> tuple[GPT, Tokenizer, dict]:
    """Model, tokenizer and the rest from a checkpoint's content. A LoRA run's model is put together from its base and
    its adapter. Raises ValueError where something is missing, or the base is not the one that was trained on."""
    try:
        if "adapter" in saved:
            if depth == DEEPEST_BASE:
                raise ValueError(f"more than {DEEPEST_BASE} adapters stand on one another")
            base, _, _ = load_checkpoint(saved["base"]["path"], dropout=dropout, depth=depth + 1)
            model = attach_adapter(merge_lora(base), saved, "the adapter")
        else:
            model = build_model(saved["config"], saved["model"], dropout)
        tokenizer = Tokenizer.from_state(saved["tokenizer"])
        if tokenizer.n_vocab > model.config.n_vocab:
            raise ValueError(
                f"{tokenizer.n_vocab} tokens, of which the model knows {model.config.n_vocab}"
            )
        if saved["template"] is not None:
            tokenizer.special(TEMPLATES[saved["template"]].stop)
    except ValueError as error:
        raise ValueError(f"{saved['file']}: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
        raise ValueError(f"{saved['file']}: not a checkpoint of sft.py ({reason})") from error
    meta = {
        name: value
        for name, value in saved.items()
        if name not in ("model", "adapter", "tokenizer")
    }
    return model, tokenizer, meta


def build_model(sizes: dict, weights: dict[str, torch.Tensor], dropout: float) -> GPT:
    """A model with these weights. Raises TypeError or RuntimeError where they do not fit the sizes, before memory is
    taken for what a hostile file asks for."""
    config = GPTConfig(**{**sizes, "dropout": dropout})
    if not all(type(size) is int for name, size in asdict(config).items() if name != "dropout"):
        raise TypeError("the sizes of the model are no whole numbers")
    check_tensors(weights)
    n_parameters = sum(tensor.numel() for tensor in weights.values())
    if n_parameters != config.n_parameters:
        raise TypeError(f"{n_parameters:,} weights for a model of {config.n_parameters:,}")
    model = GPT(config)
    is_double = any(tensor.dtype == torch.float64 for tensor in weights.values())
    model.to(torch.float64 if is_double else torch.float32).load_state_dict(weights, strict=True)
    return model
