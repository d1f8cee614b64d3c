"""Reading checkpoints: nothing in one is executed, and nothing believed unchecked.

A checkpoint is one file of plain values and tensors, with its SHA-256 behind it: "config" of the
model, its weights ("model", or "lora" and "adapter" beside the "base" they belong to), "tokenizer",
"template" and "stop" ids, the run's "args", its "step" and "optimizer".
"""

import glob
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import hf
from chat_template import TEMPLATES
from lora import LoraConfig, add_lora, fingerprint, merge_lora, trained_state
from model import GPT, GPTConfig
from runtime.console import check_ranges, one_line, printable
from runtime.distributed import shard_like
from runtime.files import check_plain, check_tensors, checkpoints_in, find_file, is_whole
from tokenizer import Tokenizer

TENSORS = ("model", "adapter", "optimizer")  # what tensors stand in; all else is text and numbers
ADAPTERS = {LoraConfig.kind: add_lora}  # what adds those of a kind; forks add theirs
DEEPEST_BASE = 8  # adapters on adapters; a file that names itself as its base would have no end


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint file, or of the newest whole one in a run's folder, and its path
    as "file". Raises FileNotFoundError, and ValueError where it is damaged or of another kind."""
    path = find_file(path)
    for file in checkpoints_in(path) if path.is_dir() else [path]:
        if is_whole(file):
            break
        if path.is_dir():
            print(f"{printable(str(file))}: damaged, trying the one before", file=sys.stderr)
    else:
        raise ValueError(f"{path}: no whole checkpoint; give one, or the folder of a run of sft.py")
    try:
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise RuntimeError("compressed: a small file may be meant to fill the memory")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        check_plain({name: value for name, value in saved.items() if name not in TENSORS})
        return {**saved, "file": str(file)}
    except OSError:
        raise
    except Exception as error:  # of any kind: the file may hold any broken pickle
        raise ValueError(f"{file}: not a checkpoint of sft.py ({type(error).__name__})") from None


def read_run(folder: str, options: type) -> dict:
    """The newest checkpoint of a run, its "args" as `options`. Raises as `read_checkpoint`."""
    if not find_file(folder).is_dir():
        raise ValueError(f"{folder}: --resume takes a run's folder; for a checkpoint, use --init")
    saved = read_checkpoint(folder)
    try:
        saved["base"]["path"], saved["base"]["template"], saved["data_digest"], saved["optimizer"]
        saved["args"] = options(**saved["args"])
        check_ranges(saved["args"])
        if type(saved["step"]) is not int or saved["step"] < 1:
            raise ValueError("its step is no number of steps")
    except (LookupError, TypeError, ValueError) as error:
        reason = one_line(str(error))
        raise ValueError(f"{saved['file']}: no checkpoint of a run of sft.py ({reason})") from None
    return saved


def load_checkpoint(
    path: str | Path, device: str = "cpu", dropout: float = 0.0, depth: int = 0
) -> tuple[GPT, Tokenizer, dict]:
    """Model, in float32 (float64 if it was trained so), tokenizer, and what else the file holds:
    "template" (None for a base), "stop" ids and more. `path` may also name a model in Hugging
    Face's format: a published one ("gpt2") or a folder. Raises as `read_checkpoint`, `restore`."""
    is_ours = not hf.find_model(path)
    loaded = restore(read_checkpoint(path), dropout, depth) if is_ours else hf.load(path, dropout)
    model, tokenizer, meta = loaded
    return model.to(device).eval(), tokenizer, meta


def restore(saved: dict, dropout: float = 0.0, depth: int = 0) -> tuple[GPT, Tokenizer, dict]:
    """Model, tokenizer and the rest of what `read_checkpoint` gives. Raises ValueError where
    something is missing or does not fit, or an adapter's base is another one."""
    try:
        check_tensors(saved["adapter" if "adapter" in saved else "model"])
        if "adapter" in saved:
            model, saved["base"] = put_on_base(saved, dropout, depth)
        else:
            model = build_model(saved["config"], saved["model"], dropout)
        tokenizer = Tokenizer.from_state(saved["tokenizer"])
        if tokenizer.n_vocab > (n_known := model.config.n_vocab):
            raise ValueError(f"{tokenizer.n_vocab} tokens, of which the model knows {n_known}")
        if saved["template"] is not None:
            tokenizer.special(TEMPLATES[saved["template"]].stop)
    except ValueError as error:
        raise ValueError(f"{saved['file']}: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
        raise ValueError(f"{saved['file']}: not a checkpoint of sft.py ({reason})") from error
    return model, tokenizer, {key: saved[key] for key in saved.keys() - {"model", "adapter"}}


class WithoutStartValues(TorchFunctionMode):
    """For weights without memory, torch would import its compiler to draw them: a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        is_drawing = getattr(function, "__module__", "") == "torch.nn.init"
        return kwargs["tensor"] if is_drawing else function(*args, **(kwargs or {}))


def build_model(sizes: dict, weights: dict[str, Tensor], dropout: float) -> GPT:
    """A model with these weights. Raises TypeError or RuntimeError where they do not fit the sizes,
    before a hostile file takes memory or time."""
    config = GPTConfig(**{**sizes, "dropout": float(dropout)})
    kinds, wanted = ([*map(type, vars(c).values())] for c in (config, GPTConfig(1, 1)))
    if kinds != wanted or [*map(type, config.rope_scaling)] not in ([], [float] * 4):
        raise TypeError("the sizes of the model are of other types")
    if config.n_layer > len(weights):
        raise TypeError(f"{len(weights)} weights for a model of {config.n_layer:,} layers")
    with torch.device("meta"), WithoutStartValues():  # shapes, without memory
        model = GPT(config)
    model.load_state_dict(weights, assign=True)
    is_double = any(tensor.dtype == torch.float64 for tensor in weights.values())
    return model.double() if is_double else model.float()


def put_on_base(saved: dict, dropout: float, depth: int) -> tuple[GPT, dict]:
    """An adapter on its base, and "base" with the path where that was: the old one, or beside the
    adapter, if both were copied to another machine. Raises ValueError where it is in neither."""
    if depth == DEEPEST_BASE:
        raise ValueError(f"more than {DEEPEST_BASE} adapters stand on one another")
    path, folder, reasons = saved["base"]["path"], Path(saved["file"]).resolve().parent, []
    here, name = folder / "base.pt", glob.escape(Path(path).name)
    beside = [path for form in ("*/", "") for path in folder.parent.glob(form + name)]
    for place in (path, here, *(beside if depth == 0 else ())):
        try:
            base, _, _ = load_checkpoint(place, dropout=dropout, depth=depth + 1)
            return attach_adapter(merge_lora(base), saved), saved["base"] | {"path": str(place)}
        except (OSError, ValueError) as error:
            reasons.append(error)
    raise ValueError(f"{reasons[0]}; this adapter stands on {path}: put that there, or at {here}")


def attach_adapter(model: GPT, saved: dict) -> GPT:
    """Put the adapter in `saved` (see `lora.adapter_state`) on its base, in place. Raises an error
    where it does not belong there, before a rank or an id out of a hostile file takes memory."""
    kind, adapter = saved.get("kind", LoraConfig.kind), saved["adapter"]
    if not (add := ADAPTERS.get(kind)):
        raise ValueError(f"an adapter of the kind {kind!r}; known are {', '.join(ADAPTERS)}")
    arguments = {**saved[kind]}
    if arguments.pop("fingerprint") != fingerprint(model):
        raise ValueError("the adapter was trained on another base model than this one")
    sizes = {len(tensor) for name, tensor in adapter.items() if not name.endswith("lora_b")}
    numbers = {arguments[name] for name in ("rank", "size") if arguments.get(name)}
    token_ids, wrong = arguments["token_ids"], "the adapter does not fit its own configuration"
    if not numbers <= sizes or max(token_ids, default=0) >= model.config.n_vocab + len(token_ids):
        raise ValueError(f"{wrong}: sizes {numbers}, {len(token_ids)} tokens")
    if unlike := trained_state(add(model, **arguments)).keys() ^ adapter.keys():
        raise ValueError(f"{wrong}: {min(unlike)}")
    model.to(next(iter(adapter.values())).dtype)  # float64, if it was trained so
    model.load_state_dict(adapter, strict=False)  # strict over the adapter: checked just above
    return model


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Go on with a saved state, of whole tensors; options stay as they are. Raises ValueError where
    it is another model's: torch's kernels would believe its shapes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_adamw = isinstance(optimizer, torch.optim.AdamW)
    try:
        state = {i: {**values} for i, values in {**saved}["state"].items()}
        if state.keys() != set(range(len(parameters))) and (state or is_adamw):
            raise TypeError("it is of other parameters")
        for i, values in state.items():
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            check_tensors(tensors)
            shapes, whole = {name: t.shape for name, t in tensors.items()}, parameters[i].shape
            of_adamw = {"step": (), "exp_avg": whole, "exp_avg_sq": whole}
            if not (shapes == of_adamw if is_adamw else {*shapes.values()} <= {(), whole}):
                raise TypeError(f"parameter {i} has another shape")
            values.update({name: shard_like(t, parameters[i]) for name, t in tensors.items()})
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the optimiser's state does not fit: {one_line(str(error))}") from None
