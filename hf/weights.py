"""GPT-2's weights as Hugging Face stores them, by that world's names and layouts. They go through
the `safetensors` package, the one extra."""

import contextlib
import http.client
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hf.tokenizer_files import find_tokenizer, read_json
from model import GPT, GPTConfig
from runtime.files import find_file
from tokenizer import Tokenizer

PUBLISHED = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
PUBLISHED["distilgpt2"] = "distilbert/distilgpt2"
FILES = ("config.json", "model.safetensors")
ARCHITECTURE = {  # what a config.json must say, or leave unsaid, for this model to compute the same
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
SIZES = {"vocab_size": "vocab_size", "context_length": "n_positions"}  # ours: theirs
SIZES |= {name: name for name in ("n_layer", "n_head", "n_embd")}
# Parts of a weight's name, ours: theirs. "blocks.0.attn.qkv.weight" is "h.0.attn.c_attn.weight".
NAMES = {"tok_emb": "wte", "pos_emb": "wpe", "blocks": "h", "attn_norm": "ln_1", "mlp_norm": "ln_2"}
NAMES |= {"qkv": "c_attn", "proj": "c_proj", "up": "c_fc", "down": "c_proj", "final_norm": "ln_f"}
TRANSPOSED = (
    "qkv.weight",
    "proj.weight",
    "up.weight",
    "down.weight",
)  # (in, out) there, (out, in) here
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # old files hold it, too


def their_name(name: str) -> str:
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def turned(name: str, tensor: Tensor) -> Tensor:
    """A weight the other way round, where the two sides store it so."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def import_safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError(
            "Hugging Face's weights need the safetensors package: pip install safetensors"
        ) from None
    return safetensors


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write into. It takes that name at the end, or disappears where
    anything fails before.

    Raises ValueError where something is there already.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already; choose another folder")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_gpt2(path: str | Path) -> Path | None:
    """The folder of a model in this format: a folder with one of its files, or by name that of a
    published model, downloaded on first use. None for anything else."""
    try:
        found = find_file(path)
    except FileNotFoundError:
        return download(str(path)) if str(path) in PUBLISHED else None
    return found if any((found / file).is_file() for file in FILES) else None


def cache_folder(name: str) -> Path:
    return Path(torch.hub.get_dir(), name)


def download(name: str) -> Path:
    """A published model's folder in torch's cache, which is there whole or not at all. Raises
    OSError, and ValueError where safetensors is not installed."""
    folder, url = cache_folder(name), f"https://huggingface.co/{PUBLISHED[name]}/resolve/main"
    if folder.is_dir():
        return folder
    import_safetensors()  # rather before than after many megabytes
    try:
        with new_folder(folder) as temporary:
            for file in FILES:
                torch.hub.download_url_to_file(f"{url}/{file}", str(temporary / file))
            read_model(temporary)  # the downloader does not notice a connection that ends too early
    except (OSError, ValueError, http.client.HTTPException) as error:
        if not folder.is_dir():  # else another process was faster
            raise OSError(
                f"{name} could not be downloaded ({error}). Where there is a network, fetch "
                f"config.json, model.safetensors and tokenizer.json from {url}/ into a folder, "
                "bring it here and give it to --init"
            ) from None
    return folder


def read_config(path: Path) -> GPTConfig:
    """The sizes in a config.json. Raises ValueError where this model cannot compute what it
    describes."""
    settings = read_json(path)
    for key, value in ARCHITECTURE.items():
        if settings.get(key, value) != value:
            raise ValueError(
                f"{path}: {key} is {settings[key]!r:.60}; this model knows {value!r} only"
            )
    for key in SIZES.values():
        if type(settings.get(key)) is not int or not 0 < settings[key] < 2**20:
            raise ValueError(
                f"{path}: {key} must be a whole number from 1 to a million, "
                f"not {settings.get(key)!r:.60}"
            )
    if settings.get("n_inner") not in (None, 4 * settings["n_embd"]):
        raise ValueError(
            f"{path}: n_inner is {settings['n_inner']!r:.60}; this model knows 4 * n_embd only"
        )
    try:
        return GPTConfig(**{ours: settings[theirs] for ours, theirs in SIZES.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a file of weights holds, by name without `transformer.`. Raises OSError and
    ValueError."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file (the weights must be in this one, not in parts, not in a .bin)"
        )
    safetensors = import_safetensors()
    try:
        tensors = safetensors.torch.load_file(path)
    except (
        safetensors.SafetensorError,
        ValueError,
        LookupError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if not CAUSAL_MASK.fullmatch(name)}


def read_weights(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The state of a `GPT`. Raises ValueError where the file does not hold just what this
    configuration needs."""
    tensors = read_tensors(path)
    head = tensors.pop("lm_head.weight", None)
    shapes = {
        name: tuple(t.shape) if t.is_floating_point() else t.dtype for name, t in tensors.items()
    }
    n_layer = sum(name.endswith(".ln_1.weight") for name in shapes)
    if n_layer != config.n_layer:
        raise ValueError(f"{path}: {n_layer} layers; config.json says {config.n_layer}")
    with torch.device("meta"):  # shapes without memory: nothing says yet that the sizes are sane
        empty = GPT(config).state_dict()
    wanted = {their_name(name): tuple(turned(name, tensor).shape) for name, tensor in empty.items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            there, here = shapes.get(name, "missing"), wanted.get(name, "no such weight")
            raise ValueError(
                f"{path}: {name!r:.60} is {there}; a model of this config.json has {here}"
            )
    embedding = tensors["wte.weight"]
    if head is not None and not (head.dtype == embedding.dtype and torch.equal(head, embedding)):
        raise ValueError(
            f"{path}: lm_head.weight is not wte.weight; this model has one matrix for both"
        )
    dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    return {  # copies, because the file may change
        name: torch.empty(tensor.shape, dtype=dtype).copy_(turned(name, tensors[their_name(name)]))
        for name, tensor in empty.items()
    }


def read_model(folder: Path, context_length: int | None = None, dropout: float = 0.0) -> GPT:
    config = read_config(folder / "config.json")
    state = read_weights(folder / "model.safetensors", config)
    context_length = config.context_length if context_length is None else context_length
    if not 0 < context_length <= config.context_length:
        raise ValueError(
            f"{folder}: a context of {context_length}; "
            f"the model has {config.context_length} positions"
        )
    state["pos_emb.weight"] = state["pos_emb.weight"][:context_length].clone()
    with torch.device("meta"):
        model = GPT(replace(config, context_length=context_length, dropout=dropout))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def load_gpt2(
    name_or_dir: str | Path, context_length: int | None = None, dropout: float = 0.0
) -> tuple[GPT, Tokenizer]:
    """A published GPT-2 by name, or a model from a folder that transformers wrote, and its
    tokenizer.

    `context_length` shortens the context. Rows of the vocabulary beyond the tokenizer's tokens are
    padding, never sampled. Raises ValueError and OSError for what is not there, is damaged, or is
    another architecture.
    """
    folder = find_gpt2(name_or_dir)
    if folder is None:
        raise FileNotFoundError(
            f"{name_or_dir}: no folder with a config.json, and none of {', '.join(PUBLISHED)}"
        )
    model, tokenizer = read_model(folder, context_length, dropout), find_tokenizer(folder)
    n_rows, n_tokens, has_file = (
        model.config.vocab_size,
        tokenizer.n_vocab,
        (folder / "tokenizer.json").is_file(),
    )
    if n_tokens > n_rows or (
        n_tokens < n_rows and not has_file
    ):  # without the file, they may be tokens
        whose = (
            "in its tokenizer.json"
            if has_file
            else "in GPT-2's tokenizer, and there is no tokenizer.json"
        )
        raise ValueError(
            f"{folder}: {n_rows:,} rows in the model's vocabulary, {n_tokens:,} tokens {whose}"
        )
    model.config.n_vocab = n_tokens
    return model, tokenizer
