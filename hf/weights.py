"""Models as Hugging Face stores them: found, downloaded, read and checked. families.py has the
names; files are read by the `safetensors` package, the one extra."""

import contextlib
import http.client
import os
import re
import shutil
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hf.families import Family, read_settings
from hf.tokenizer_files import find_tokenizer, read_json
from model import GPT, GPTConfig
from runtime.files import find_file
from tokenizer import Tokenizer

HUB = "https://huggingface.co"
REPOSITORIES = [
    *(f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")),
    "distilbert/distilgpt2",
    *(
        f"HuggingFaceTB/SmolLM2-{size}{kind}"
        for size in ("135M", "360M", "1.7B")
        for kind in ("", "-Instruct")
    ),
    *(
        f"Qwen/Qwen2.5-{size}{kind}"
        for size in ("0.5B", "1.5B", "3B")
        for kind in ("", "-Instruct")
    ),
    *(f"Qwen/Qwen3-{size}{kind}" for size in ("0.6B", "1.7B", "4B") for kind in ("", "-Base")),
]
PUBLISHED = {name.partition("/")[2]: name for name in REPOSITORIES}  # downloaded by these names
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("config.json", WEIGHTS, INDEX)  # one of these makes a folder a model's
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
NO_WEIGHTS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\..*\.inv_freq")  # in old files
FLOATS = ("F64", "F32", "F16", "BF16")


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


def find_model(path: str | Path) -> Path | None:
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
    folder, url = cache_folder(name), f"{HUB}/{PUBLISHED[name]}/resolve/main"
    if folder.is_dir():
        return folder
    import_safetensors()  # rather before than after many megabytes
    try:
        with new_folder(folder) as temporary:
            fetch(url, "config.json", temporary)
            if "gpt2" not in name:  # whose tokenizer is tiktoken's, and the rest as usual
                for file in BESIDE:
                    fetch(url, file, temporary)
                if not (temporary / "tokenizer.json").is_file():
                    raise FileNotFoundError(f"{url}/tokenizer.json: not found")
            if not fetch(url, WEIGHTS, temporary):
                fetch(url, INDEX, temporary)
                for file in parts_of(temporary):
                    fetch(url, file.name, temporary)
            # The downloader does not notice a connection that ends too early.
            load_model(temporary)
            for path in temporary.glob("*.json"):
                read_json(path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if not folder.is_dir():  # else another process was faster
            raise OSError(
                f"{name} could not be downloaded ({error}). Where there is a network, fetch "
                f"config.json, {WEIGHTS} (or its parts and their index) and tokenizer.json from "
                f"{url}/ into a folder, bring it here and give it to --init"
            ) from None
    return folder


def fetch(url: str, file: str, folder: Path) -> bool:
    """Download a file; False where there is none of that name."""
    try:
        torch.hub.download_url_to_file(f"{url}/{file}", str(folder / file))
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False
    return True


def parts_of(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those that an index names. Raises OSError and
    ValueError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        hint = "the weights must be in safetensors files, not in a .bin"
        raise FileNotFoundError(f"{folder / WEIGHTS}: no such file ({hint})")
    files = read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{folder / INDEX}: its weight_map must say which file holds each weight")
    return [folder / name for name in names]


def open_parts(paths: list[Path], prefix: str, opened: contextlib.ExitStack) -> dict[str, object]:
    """The tensors in these files, by name without prefix, unread: `tensor[:]` reads one, as long as
    `opened` is. Raises OSError, and ValueError for a file that is damaged."""
    safetensors, tensors = import_safetensors(), {}
    broken = safetensors.SafetensorError, ValueError, LookupError, RuntimeError, TypeError
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {INDEX} names it")
        try:
            file = opened.enter_context(safetensors.safe_open(path, framework="pt"))
            found = {name.removeprefix(prefix): file.get_slice(name) for name in file.keys()}
        except (*broken, AttributeError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
        if twice := tensors.keys() & found.keys():
            raise ValueError(f"{path}: {min(twice)!r:.60} is in another file, too")
        tensors |= found
    return {name: tensor for name, tensor in tensors.items() if not NO_WEIGHTS.fullmatch(name)}


def shape_of(tensor) -> tuple[int, ...] | str:
    """Its shape, or its number format where that is none of weights."""
    return tuple(tensor.get_shape()) if tensor.get_dtype() in FLOATS else tensor.get_dtype()


def read_weights(folder: Path, family: Family, config: GPTConfig) -> dict[str, Tensor]:
    """The state of a `GPT`. Raises ValueError where the files do not hold just what this
    configuration needs."""
    paths = parts_of(folder)
    where = paths[0] if len(paths) == 1 else folder / INDEX
    with contextlib.ExitStack() as opened:
        tensors = open_parts(paths, family.prefix, opened)
        head = tensors.pop("lm_head.weight", None)
        empty = check_shapes(where, family, config, tensors)
        [name] = family.their_names("tok_emb.weight")
        embedding = tensors[name]
        if head is not None and not is_same(head, embedding):
            what = f"lm_head.weight is not {name}; this model has one matrix for both"
            raise ValueError(f"{where}: {what}")
        dtype = torch.float64 if embedding.get_dtype() == "F64" else torch.float32
        state = {name: torch.empty(tensor.shape, dtype=dtype) for name, tensor in empty.items()}
        for name, tensor in state.items():
            parts = family.their_parts(config, name, tensor)
            for their, part in zip(family.their_names(name), parts):
                part.copy_(tensors[their][:])  # one at a time; a copy, as the file may change
    return state


def check_shapes(
    where: Path, family: Family, config: GPTConfig, tensors: dict
) -> dict[str, Tensor]:
    """A state without memory. Raises ValueError where the tensors are not what it needs."""
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    [once_a_layer] = family.their_names("blocks.0.attn_norm.weight")
    n_layer = sum(name.endswith(once_a_layer.partition(".0")[2]) for name in shapes)
    if n_layer != config.n_layer:
        raise ValueError(f"{where}: {n_layer} layers; config.json says {config.n_layer}")
    with torch.device("meta"):  # nothing says yet that the sizes are sane
        empty = GPT(config).state_dict()
    wanted = {}
    for name, tensor in empty.items():
        parts = family.their_parts(config, name, tensor)
        wanted |= {their: tuple(p.shape) for their, p in zip(family.their_names(name), parts)}
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            there, here = shapes.get(name, "missing"), wanted.get(name, "no such weight")
            what = f"{name!r:.60} is {there}; a model of this config.json has {here}"
            raise ValueError(f"{where}: {what}")
    return empty


def is_same(one, other) -> bool:
    are_alike = (shape_of(one), one.get_dtype()) == (shape_of(other), other.get_dtype())
    return are_alike and torch.equal(one[:], other[:])


def read_model(folder: Path, context_length: int | None = None, dropout: float = 0.0) -> GPT:
    """The model in a folder. `context_length` shortens its context. Raises ValueError and OSError
    for what is not there, is damaged, or is of another kind."""
    path = folder / "config.json"
    family, config = read_settings(path, read_json(path))
    state = read_weights(folder, family, config)
    context_length = config.context_length if context_length is None else context_length
    if not 0 < context_length <= config.context_length:
        has = f"the model has {config.context_length} positions"
        raise ValueError(f"{folder}: a context of {context_length}; {has}")
    if "pos_emb.weight" in state:
        state["pos_emb.weight"] = state["pos_emb.weight"][:context_length].clone()
    with torch.device("meta"):
        model = GPT(replace(config, context_length=context_length, dropout=dropout))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def load_model(folder: Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer]:
    """The model in a folder and its tokenizer. Rows of the vocabulary beyond the tokenizer's tokens
    are padding, never sampled. Raises ValueError and OSError."""
    model, tokenizer = read_model(folder, dropout=dropout), find_tokenizer(folder)
    n_rows, n_tokens = model.config.vocab_size, tokenizer.n_vocab
    has_file = (folder / "tokenizer.json").is_file()
    # Without the file, rows beyond may be tokens.
    if n_tokens > n_rows or (n_tokens < n_rows and not has_file):
        no_file = "in GPT-2's tokenizer, and there is no tokenizer.json"
        whose = "in its tokenizer.json" if has_file else no_file
        what = f"{n_rows:,} rows in the model's vocabulary, {n_tokens:,} tokens {whose}"
        raise ValueError(f"{folder}: {what}")
    model.config.n_vocab = n_tokens
    return model, tokenizer
