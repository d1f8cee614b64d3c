"""Reading checkpoints: nothing in one is ever executed or trusted.

A checkpoint is one file of plain values and tensors, with its SHA-256 behind it. It describes itself: "config" of the
model, its weights ("model", or "lora" and "adapter" beside the "base" they belong to), "tokenizer", "template" and
"stop" ids, the run's "args", its "step" and "optimizer".
"""

import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import hf
from chat_template import TEMPLATES
from lora import adapter_state, add_lora, fingerprint, lora_state_dict, merge_lora
from model import GPT, GPTConfig
from runtime.console import one_line, printable
from runtime.files import check_plain, check_tensors, checkpoints_in, find_file, is_whole
from tokenizer import Tokenizer

TENSORS = ("model", "adapter", "optimizer")  # what tensors stand in; all else is text and numbers
DEEPEST_BASE = 8  # adapters on adapters; a file that names itself as its base would have no end


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


# Adapters


def save_lora(model: nn.Module, path: str | Path) -> None:
    torch.save(adapter_state(model), path)


def load_lora(model: nn.Module, path: str | Path) -> nn.Module:
    """Put the adapter of a file (from `save_lora`, or a checkpoint of a LoRA run) on its base, in place.

    Raises ValueError where the file holds no adapter, or one that was trained on another base.
    """
    with open(path, "rb") as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: the file may hold any broken pickle
            raise ValueError(f"{path} holds no LoRA adapter ({type(error).__name__})") from None
    try:
        return attach_adapter(model, saved, str(path))
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} holds no LoRA adapter ({type(error).__name__})") from error


def attach_adapter(model: nn.Module, saved: dict, origin: str) -> nn.Module:
    """Put the adapter in `saved` (see `adapter_state`) on its base. Raises ValueError where it does not belong there;
    and does so before a rank or an id that only a hostile file can hold has taken memory."""
    if not isinstance(saved, dict) or "adapter" not in saved:
        raise ValueError(f"{origin} holds no LoRA adapter")
    check_plain(saved["lora"])
    arguments, adapter = {**saved["lora"]}, saved["adapter"]
    check_tensors(adapter)
    if arguments.pop("fingerprint") != fingerprint(model):
        raise ValueError(f"{origin} was trained on another base model than this one")
    ranks = {len(tensor) for name, tensor in adapter.items() if name.endswith("lora_a")}
    token_ids = arguments["token_ids"]
    if ranks != {arguments["rank"]} or max(token_ids, default=0) >= model.config.n_vocab + len(
        token_ids
    ):
        raise ValueError(
            f"{origin} does not fit its own configuration: rank {ranks}, {len(token_ids)} tokens"
        )
    try:
        add_lora(model, **arguments)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    missing_or_unknown = lora_state_dict(model).keys() ^ adapter.keys()
    if missing_or_unknown:
        raise ValueError(
            f"{origin} does not fit its own configuration: {sorted(missing_or_unknown)[0]}"
        )
    model.to(next(iter(adapter.values())).dtype)  # float64, if it was trained so
    model.load_state_dict(adapter, strict=False)  # strict over the adapter: checked just above
    return model
