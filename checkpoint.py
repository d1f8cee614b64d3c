"""Checkpoints: one file of plain values and tensors, with its SHA-256 behind it. Nothing in it is ever executed.

A checkpoint describes itself: "config" of the model, its weights ("model", or "lora" and "adapter" beside the "base"
they belong to), "tokenizer", "template" and "stop" ids, the run's "args", its "step" and "optimizer".
"""

import contextlib
import hashlib
import os
import pickle
import sys
from pathlib import Path

import torch

from lora import attach_adapter, merge_lora
from model import GPT, GPTConfig
from tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
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
    """Write beside, sync, rename: under its name there is never half a file."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    with open(temporary, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(TRAILER.format(digest).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # the rename itself, where the system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def is_whole(path: Path) -> bool:
    """Whether the file ends in the SHA-256 of all that stands before."""
    digest, left = hashlib.sha256(), path.stat().st_size - TRAILER_SIZE
    if left < 0:
        return False
    with open(path, "rb") as file:
        while left:
            chunk = file.read(min(left, 1 << 20))
            digest.update(chunk)
            left -= len(chunk)
        return file.read() == TRAILER.format(digest.hexdigest()).encode()


def checkpoints_in(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint file, or of the newest whole one in a run's folder, and its path as "file".

    Raises FileNotFoundError, and ValueError where the file is damaged or of another kind.
    """
    path = find_file(path)
    for file in checkpoints_in(path) if path.is_dir() else [path]:
        if is_whole(file):
            break
        if path.is_dir():
            print(f"{file}: damaged (its checksum does not match), trying the one before", file=sys.stderr)
    else:
        raise ValueError(f"{path}: no whole checkpoint here; give a checkpoint, or the folder of a run of sft.py")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        return {**content, "file": str(file)}
    except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
        raise ValueError(f"{file}: not a checkpoint of sft.py ({type(error).__name__})") from None


def load_checkpoint(path: str | Path, device: str = "cpu", dropout: float = 0.0) -> tuple[GPT, Tokenizer, dict]:
    """The model, in float32 (float64 if it was trained so); its tokenizer; and what else the file holds: "template"
    (None for a base), "stop" ids, "base", "args", "step", "optimizer". `path` may also name a model in Hugging Face's
    format, for which hf.py is asked: "gpt2" or another published one, or a folder.

    Raises FileNotFoundError, and ValueError as `read_checkpoint` and `restore`.
    """
    import hf  # here, because it loads checkpoints itself

    if hf.find_gpt2(path):
        model, tokenizer, meta = hf.load(path, dropout)
    else:
        model, tokenizer, meta = restore(read_checkpoint(path), dropout)
    return model.to(device).eval(), tokenizer, meta


def restore(saved: dict, dropout: float = 0.0) -> tuple[GPT, Tokenizer, dict]:
    """Model, tokenizer and the rest from a checkpoint's content. A LoRA run's model is put together from its base and
    its adapter. Raises ValueError where something is missing, or the base is not the one that was trained on."""
    try:
        if "adapter" in saved:
            base, _, _ = load_checkpoint(saved["base"]["path"], dropout=dropout)
            model = attach_adapter(merge_lora(base), saved, saved["file"])
        else:
            model = GPT(GPTConfig(**{**saved["config"], "dropout": dropout}))
            is_double = any(tensor.dtype == torch.float64 for tensor in saved["model"].values())
            model.to(torch.float64 if is_double else torch.float32).load_state_dict(saved["model"], strict=True)
        meta = {name: value for name, value in saved.items() if name not in ("model", "adapter", "tokenizer")}
        return model, Tokenizer.from_state(saved["tokenizer"]), meta | {"template": saved["template"]}
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{saved['file']}: not a checkpoint of sft.py ({reason})") from error
