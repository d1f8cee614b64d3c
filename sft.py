"""Supervised fine-tuning: from a JSONL line to a model that answers.

    python sft.py --data tiny_instruct.jsonl

One example's way: `chat_template.render` makes ids and a loss mask of it; dataset.py decides in which step it is
drawn and shifts the targets; `nll_sum`, here, is the objective; `accumulate_gradients` adds up a step's micro-batches;
`train` is the loop, a list of steps to read.
"""

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import functools
import itertools
import math
import os
import shlex
import signal
import sys
import time
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import lora
from chat_template import TEMPLATES, TRAIN_ON, Message, printable, read_conversations, render_prompt
from checkpoint import HERE, checkpoints_in, find_file, load_checkpoint, read_checkpoint, restore, save_checkpoint
from dataset import IGNORED, Dataset, build_dataset, collate, cut_micro_batches, cut_steps, epoch_order
from model import GPT
from tokenizer import END_OF_TEXT, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


# Configuration: one field a line; the command line is made from it, and it is saved in every checkpoint


def option(default, group: str, help: str, choices: Iterable[str] | None = None, least: float | None = None):
    metadata = {"group": group, "help": help, "choices": choices, "least": least}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    data: list[str] = option(["tiny_instruct.jsonl"], "data", "FILE or FILE:WEIGHT, the share of it seen each epoch")
    val_data: list[str] = option([], "data", "validation files (default: 5 %% of the data, at most 200)")
    template: str | None = option(None, "data", "chat template (default: the checkpoint's, else chatml)", TEMPLATES)
    train_on: str = option("assistant", "data", "supervise every answer, the last one, or all text", TRAIN_ON)
    max_length: int | None = option(None, "data", "longest conversation in tokens (default: the context)", least=1)
    overlong: str = option("drop", "data", "what to do with longer ones", ("drop", "truncate"))

    init: str = option("base.pt", "model", "checkpoint, Hugging Face folder, or gpt2 and the like to start from")
    dropout: float = option(0.0, "model", "dropout in the model while training", least=0)
    lora_rank: int = option(0, "model", "train adapters of this rank; 0 trains all weights", least=0)
    lora_alpha: float = option(16.0, "model", "LoRA's scale is alpha / rank", least=0)
    lora_dropout: float = option(0.0, "model", "dropout in front of the adapters", least=0)
    lora_targets: list[str] = option(list(lora.ALL_TARGETS), "model", "linear layers with an adapter")

    epochs: int = option(6, "training", "passes over the data", least=1)
    steps: int | None = option(None, "training", "optimiser updates, instead of epochs", least=1)
    batch_tokens: int = option(2048, "training", "most tokens of an optimiser step", least=1)
    micro_batch_tokens: int = option(8192, "training", "most tokens of a forward pass, padding too", least=1)
    lr: float | None = option(None, "training", "peak learning rate (default: 4e-4, LoRA 2e-3)", least=0)
    warmup_steps: int | None = option(None, "training", "default: a tenth of the steps, at most 100", least=0)
    weight_decay: float = option(0.01, "training", "AdamW's decay of matrices", least=0)
    grad_clip: float = option(1.0, "training", "largest norm of the gradient; 0 does not clip", least=0)

    out: str | None = option(None, "run", "folder for checkpoints and log (default: a new out/NAME-N)")
    resume: str | None = option(None, "run", "folder of the run to go on with; needs nothing else")
    overwrite: bool = option(False, "run", "replace the run in --out")
    eval_every: int | None = option(None, "run", "steps between validations (default: an epoch)", least=1)
    save_every: int | None = option(None, "run", "steps between checkpoints (default: an epoch)", least=1)
    keep_checkpoints: int = option(2, "run", "how many of the newest stay", least=1)
    seed: int = option(0, "run", "of data order, held-out share, dropout, adapters", least=0)

    device: str = option("auto", "device", "where to train", ("auto", "cuda", "mps", "cpu"))
    dtype: str = option("auto", "device", "bfloat16 means autocast", ("auto", *DTYPES))
    compile: bool = option(False, "device", "torch.compile: slower to start, faster on a GPU")


LEARNING_RATE, LEARNING_RATE_LORA = 4e-4, 2e-3
# Adam divides a gradient by its own size. The rows of tokens that never occur have a tiny one, always downwards; with
# the usual 1e-8 they would move as fast as the others, and what is never asked in tuning would be forgotten soonest.
EPSILON = 1e-5
# The fields that may differ when a run is resumed. `steps` changes the schedule; the others change no number.
CHANGEABLE = {"steps", "save_every", "keep_checkpoints", "resume"}


def parse_arguments(argv: Sequence[str] | None) -> tuple[Config, set[str]]:
    """The configuration, and the names of those fields that the command line gives."""
    wide = functools.partial(argparse.HelpFormatter, max_help_position=38, width=118)
    parser = argparse.ArgumentParser(
        description="Fine-tune a GPT on conversations.", argument_default=argparse.SUPPRESS, formatter_class=wide
    )
    groups = {}
    for option_field in dataclasses.fields(Config):
        metadata, default = option_field.metadata, getattr(Config(), option_field.name)
        group = groups.setdefault(metadata["group"], parser.add_argument_group(metadata["group"]))
        value_type = (typing.get_args(option_field.type) or (option_field.type,))[0]  # list[str] -> str
        arguments = {"help": metadata["help"]}
        if value_type is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments |= {"type": value_type, "choices": metadata["choices"]}
            if isinstance(default, list):  # `--data a --data b` means both, as `--data a b` does
                arguments |= {"nargs": "+", "action": "extend"}
            arguments["metavar"] = None if metadata["choices"] else {str: "NAME", int: "N", float: "X"}[value_type]
            if default not in (None, []):
                arguments["help"] += f" ({' '.join(default) if isinstance(default, list) else default})"
        group.add_argument("--" + option_field.name.replace("_", "-"), **arguments)
    given = vars(parser.parse_args(argv))
    return Config(**given), set(given)


def check_ranges(config: Config) -> None:
    for option_field in dataclasses.fields(config):
        value, least = getattr(config, option_field.name), option_field.metadata["least"]
        most = 1 if "dropout" in option_field.name else math.inf
        if value is not None and least is not None and not least <= value < most:
            raise ValueError(f"--{option_field.name.replace('_', '-')} {value} is out of range")


# The objective


def nll_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood, summed over the targets: (n, V) logits and (n,) ids -> a scalar, in nats.

    A sum, so that whoever adds up micro-batches divides once, by the tokens of the whole step: a mean of means would
    weigh a token by the company it keeps. Targets of -100 count nothing.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()  # never in bf16
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def accumulate_gradients(
    model,
    batches: Iterable[tuple[Tensor, ...]],
    n_supervised: int,
    autocast=contextlib.nullcontext,
    dropout_seeds: Iterable[int | None] = itertools.repeat(None),
) -> float:
    """Add the gradients of nll / n_supervised over a step's micro-batches to the parameters; give their summed nll."""
    nll = 0.0
    for (ids, real, at, targets), dropout_seed in zip(batches, dropout_seeds):
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed)
        with autocast():
            loss = nll_sum(model(ids, at=at, real=real), targets)
        (loss / n_supervised).backward()
        nll += loss.item()
    return nll


@torch.no_grad()
def evaluate_loss(
    model, dataset: Dataset, indices: np.ndarray, micro_batch_tokens: int, device="cpu", autocast=contextlib.nullcontext
) -> float:
    """Mean nll of the supervised tokens of these conversations, stop tokens included, over all processes."""
    was_training = model.training
    model.eval()
    nll = 0.0
    for micro_batch in cut_micro_batches(indices[rank() :: world_size()], dataset.lengths, micro_batch_tokens):
        ids, real, at, targets = collate(dataset, micro_batch, device)
        with autocast():
            nll += nll_sum(model(ids, at=at, real=real), targets).item()
    model.train(was_training)
    return sum_over_processes([nll], device)[0] / int(dataset.n_supervised[indices].sum())


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """For step 1 .. total: up to `peak` over `warmup` steps, then down a straight line towards 0 after the last."""
    return peak * min(1.0, step / max(warmup, 1), (total - step + 1) / max(total - warmup, 1))


# Many processes (torchrun): the same step everywhere, each process its share of the step's conversations


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def sum_over_processes(values: list[float], device: str) -> list[float]:
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def sum_gradients_over_processes(parameters: Sequence[Tensor]) -> None:
    """One exchange for all parameters. A process that had no conversation in this step adds zeros."""
    if world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = gradient.view_as(parameter)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks. It would give large ones back to the kernel after each step, which would have to
    clear them again for the next. The main job gains some 4 % of its tokens/s. Elsewhere this does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# What the user sees


def log(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


class LiveLine:
    """A line that is rewritten in place on a terminal, and printed every few seconds elsewhere."""

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self.printed_at = -math.inf

    def show(self, text: str, last: bool = False) -> None:
        if rank() == 0 and sys.stdout.isatty():
            print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
        elif last or time.monotonic() - self.printed_at >= self.SECONDS_BETWEEN_LINES:
            self.printed_at = time.monotonic()
            log(text)


def pick_samples(dataset: Dataset, paths: Sequence[Path], indices: np.ndarray, number: int = 3) -> list[list[Message]]:
    """The first conversations among `indices` that end in an answer, read again from their files."""
    wanted = [tuple(source) for source in dataset.sources[indices[: 10 * number]].tolist()]
    found = {}
    for file_index, path in enumerate(paths):
        records = {record for file, record in wanted if file == file_index}
        for record, (_, _, messages) in enumerate(read_conversations(path) if records else ()):
            if record in records and messages[-1].role == "assistant" and len(messages) > 1:
                found[file_index, record] = messages
            if record == max(records):
                break
    return [found[source] for source in wanted if source in found][:number]


def continue_text(model: GPT, tokenizer: Tokenizer, messages: Sequence[Message], max_new_tokens: int = 40) -> str:
    """What a model types after the bare text of the messages: the way to ask a base model, which knows no turns."""
    text = "\n".join(message.content for message in messages)
    stop = tokenizer.special(END_OF_TEXT)
    return tokenizer.decode(generate_one(model, [stop, *tokenizer.encode(text)], stop, max_new_tokens))


def generate_one(model: GPT, prompt: list[int], stop: int, max_new_tokens: int) -> list[int]:
    """Greedy; of a prompt that is too long, its end."""
    room = max(model.config.context_length - max_new_tokens, model.config.context_length // 2)
    [new_ids] = model.generate([prompt[-room:]], max_new_tokens, stop=[stop])
    return new_ids


def answer(
    model: GPT, tokenizer: Tokenizer, messages: Sequence[Message], template: str, max_new_tokens: int = 40
) -> str:
    """The likeliest answer to a conversation, as its template asks for it and reads it."""
    prompt, stop = render_prompt(messages, tokenizer, template), tokenizer.special(TEMPLATES[template].stop)
    return TEMPLATES[template].read(tokenizer.decode(generate_one(model, prompt, stop, max_new_tokens)))


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


# The run


@dataclass
class Data:
    """The training set, with each file's share of it, and the validation set."""

    train_set: Dataset
    pools: list[np.ndarray]  # each file's conversations, as indices into train_set
    weights: Sequence[float]  # of the files
    val_set: Dataset
    val_indices: np.ndarray
    samples: list[list[Message]]  # conversations to show before and after

    def epoch_steps(self, config: Config, epoch: int) -> list[np.ndarray]:
        order = epoch_order(self.pools, self.weights, config.seed, epoch)
        return cut_steps(order, self.train_set.lengths, config.batch_tokens)

    def steps(self, config: Config) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, conversations) of step 1, 2, ..., without end."""
        for epoch in itertools.count():
            yield from ((epoch, indices) for indices in self.epoch_steps(config, epoch))

    def digest(self) -> str:
        return f"{self.train_set.digest()} {self.val_set.digest()}"


@dataclass
class Run:
    """All that the loop works with."""

    config: Config
    device: str
    dtype: torch.dtype
    model: GPT
    tokenizer: Tokenizer
    base: dict  # where the model came from: its path, its fingerprint, and the template it knew, if any
    data: Data
    folder: Path

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def validate(self) -> float | None:
        """Loss on the held-out conversations; None where there are none."""
        data, limit = self.data, self.config.micro_batch_tokens
        if len(data.val_indices):
            return evaluate_loss(self.model, data.val_set, data.val_indices, limit, self.device, self.autocast)


def choose_device(config: Config) -> tuple[str, torch.dtype]:
    """The device, and the number format: bf16 autocast where a GPU is good at it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(name for name in available if available[name]) if config.device == "auto" else config.device
    if not available[device]:
        raise ValueError(f"--device {device}: torch finds none on this machine; try --device auto")
    if device == "cuda" and world_size() > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    good_at_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    return device, DTYPES.get(config.dtype, torch.bfloat16 if good_at_bf16 else torch.float32)


def split_weight(argument: str) -> tuple[Path, float]:
    """ "b.jsonl:0.3" -> (b.jsonl, 0.3); without a weight, 1."""
    name, colon, weight = argument.rpartition(":")
    if not colon or Path(argument).exists():
        return find_file(argument), 1.0
    try:
        value = float(weight)
    except ValueError:
        return find_file(argument), 1.0
    if not 0 < value < math.inf:
        raise ValueError(f"{argument}: the weight of a file must be above 0")
    return find_file(name), value


def open_folder(config: Config) -> Path:
    """A new numbered folder, or --out, which must not hold a run unless --overwrite."""
    from hf import find_gpt2

    if config.out is None:
        name = split_weight(config.data[0])[0].stem
        config.out = next(f"out/{name}-{n}" for n in itertools.count(1) if not Path(f"out/{name}-{n}").exists())
    folder = Path(config.out)
    earlier = [path for pattern in ("checkpoint-*", "log.csv", "loss.png") for path in folder.glob(pattern)]
    if earlier and not config.overwrite and rank() == 0:
        raise ValueError(f"{folder} holds a run: --resume {folder} goes on with it, --overwrite replaces it")
    if earlier and (find_gpt2(config.init) or find_file(config.init)).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--overwrite would remove {config.init}, which this run starts from; choose another --out")
    if rank() == 0:
        for path in earlier:
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def resume_arguments(config: Config, given: set[str]) -> tuple[Config, dict]:
    """The saved run's configuration and its newest checkpoint. Refuses arguments that would change the numbers."""
    if not find_file(config.resume).is_dir():
        raise ValueError(f"{config.resume}: --resume takes a run's folder; to start from a checkpoint, use --init")
    saved = read_checkpoint(config.resume)
    before = Config(**saved["args"])
    changed = [name for name in given - CHANGEABLE if getattr(config, name) != getattr(before, name)]
    if changed:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(changed))
        raise ValueError(f"{config.resume}: this run has other values of {names}; leave them out to resume it")
    return dataclasses.replace(before, **{name: getattr(config, name) for name in given & CHANGEABLE}), saved


def start_model(config: Config) -> tuple[GPT, Tokenizer, dict]:
    """The model of --init with the template's special tokens in its vocabulary, and adapters if asked for; its
    tokenizer; where it came from. Settles config.template."""
    model, tokenizer, meta = load_checkpoint(config.init, dropout=config.dropout)
    lora.merge_lora(model)
    path = Path(meta["file"])  # the file itself: a folder's newest checkpoint may be another one tomorrow
    path = path.resolve() if path.exists() else path  # the name of a published model stays a name
    config.template = config.template or meta["template"] or "chatml"
    base = {"path": str(path.relative_to(HERE) if path.is_relative_to(HERE) else path)}
    base |= {"fingerprint": lora.fingerprint(model), "template": meta["template"]}
    n_known = tokenizer.n_vocab
    tokenizer = tokenizer.with_special(TEMPLATES[config.template].special_tokens)
    if config.lora_rank:
        torch.manual_seed(config.seed)
        new_ids = range(n_known, tokenizer.n_vocab)
        lora.add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, new_ids)
    else:
        model.grow_vocab(tokenizer.n_vocab)
    stop = tokenizer.special(TEMPLATES[config.template].stop)
    if stop >= n_known:  # so that it is likely from the start where the base expects a text to end
        copy_row(model.tok_emb, tokenizer.special(END_OF_TEXT), stop)
    return model, tokenizer, base


@torch.no_grad()
def copy_row(tok_emb: torch.nn.Module, source: int, target: int) -> None:
    """Let a new token's row start as another one's; where the rows are frozen, its trained difference makes it so."""
    if isinstance(tok_emb, lora.LoraTokens):
        weight = tok_emb.base.weight
        tok_emb.lora_rows[tok_emb.token_ids == target] = weight[source] - weight[target]
    else:
        tok_emb.weight[target] = tok_emb.weight[source]


def prepare_data(config: Config, tokenizer: Tokenizer, context_length: int) -> Data:
    """Read and render the files, hold some conversations out, and say what there is."""
    max_length = config.max_length or context_length
    if max_length > context_length:
        raise ValueError(f"--max-length {max_length} is more than the model's context of {context_length}")
    rendering = tokenizer, config.template, config.train_on, max_length, config.overlong
    paths, weights = zip(*map(split_weight, config.data))
    train_set, report = build_dataset(paths, *rendering)
    log("data      " + "\n          ".join(report))
    if config.val_data:
        val_paths = [find_file(path) for path in config.val_data]
        val_set, report = build_dataset(val_paths, *rendering)
        log("held out  " + "\n          ".join(report))
        val_indices, held_out = np.arange(len(val_set)), []
    else:
        val_paths, val_set = paths, train_set
        shuffled = np.random.default_rng([config.seed, len(train_set)]).permutation(len(train_set))
        val_indices = held_out = shuffled[: min(len(train_set) // 20, 200)]
        log(f"held out  {len(held_out)} of these conversations (5 %, at most 200; seed {config.seed})")
    pools = [np.setdiff1d(np.flatnonzero(train_set.sources[:, 0] == i), held_out) for i in range(len(paths))]
    if len(paths) > 1:
        tokens = [weight * train_set.lengths[pool].sum() for weight, pool in zip(weights, pools)]
        shares = [f"{path.name} {100 * part / sum(tokens):.1f} %" for path, part in zip(paths, tokens)]
        log("mixture   " + ", ".join(shares) + " of an epoch's tokens")
    for i in range(len(paths)):
        if not len(epoch_order(pools[i : i + 1], weights[i : i + 1], config.seed, 0)):
            raise ValueError(
                f"{paths[i]}: nothing is left of its {len(pools[i])} conversations at a weight of {weights[i]:g}"
            )
    samples = pick_samples(val_set, val_paths, val_indices if len(val_indices) else pools[0])
    return Data(train_set, pools, weights, val_set, val_indices, samples)


def prepare(config: Config, given: set[str]) -> tuple[Run, dict | None]:
    """All that comes before the first step, described as it is done; and the checkpoint to resume from, if any.

    Raises ValueError and OSError for what the user can mend.
    """
    check_ranges(config)
    saved = None
    if config.resume:
        config, saved = resume_arguments(config, given)
    device, dtype = choose_device(config)
    log(f"device    {device}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")
    if saved:
        (model, tokenizer, _), base = restore(saved, config.dropout), saved["base"]
    else:
        model, tokenizer, base = start_model(config)
    sizes, n_parameters = model.config, sum(parameter.numel() for parameter in model.parameters()) / 1e6
    shape = f"{sizes.n_layer} layers, {sizes.n_embd} channels, context {sizes.context_length}"
    log(f"base      {base['path']}: {n_parameters:.1f} M parameters, {shape}, vocabulary {sizes.n_vocab:,}")
    log(f"template  {config.template}; supervised: {config.train_on}")
    data = prepare_data(config, tokenizer, sizes.context_length)
    if saved and saved["data_digest"] != data.digest():
        raise ValueError(f"{config.resume}: the data are not those that this run was started with")
    model.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    folder = Path(saved["file"]).parent if saved else open_folder(config)
    log(f"folder    {folder}")
    return Run(config, device, dtype, model, tokenizer, base, data, folder), saved


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Dropout is a function of the place in the run, so that a resumed run draws what the first would have drawn."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank()]).generate_state(1)[0])


class LogFile:
    """log.csv, a row a step. A resumed run first drops the rows of the steps that it does again."""

    COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "supervised_tokens", "val_loss")

    def __init__(self, path: Path, first_step: int):
        rows = []
        if first_step > 1 and path.is_file():
            with open(path, newline="") as file:
                whole = (row for row in csv.reader(file) if len(row) == len(self.COLUMNS) and row[0].isdecimal())
                rows = [row for row in whole if int(row[0]) < first_step]
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([self.COLUMNS, *rows])
        os.replace(temporary, path)  # at no moment are the rows of earlier steps gone
        self.file = open(path, "a", newline="")
        self.writer = csv.writer(self.file)

    def write(self, *values) -> None:
        self.writer.writerow(["" if value is None else value for value in values])
        self.file.flush()


class StopSignals:
    """Ctrl-C and SIGTERM ask the loop to stop after the step that is under way; a second one stops at once."""

    def __enter__(self) -> "StopSignals":
        self.requested, self.earlier = 0, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.earlier[number] = signal.signal(number, self.request)
        return self

    def request(self, number: int, _) -> None:
        self.requested = number
        signal.signal(number, self.earlier[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)


def save(run: Run, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint, and only then remove those beyond --keep-checkpoints. One process writes for all."""
    if rank() != 0:
        return
    weights = lora.adapter_state(run.model) if run.config.lora_rank else {"model": run.model.state_dict()}
    stop = [run.tokenizer.special(TEMPLATES[run.config.template].stop)]
    content = {"step": step, "config": asdict(run.model.config), **weights, "optimizer": optimizer.state_dict()}
    content |= {"tokenizer": run.tokenizer.state(), "template": run.config.template, "stop": stop}
    content |= {"args": asdict(run.config), "base": run.base, "data_digest": run.data.digest()}
    path = run.folder / f"checkpoint-{step:07d}.pt"
    save_checkpoint(path, content)
    others = [other for other in checkpoints_in(run.folder) if other != path]
    earlier = [other for other in others if other < path]  # a later one was damaged, else we had resumed from it
    for other in set(others) - set(earlier[: run.config.keep_checkpoints - 1]):
        other.unlink()


def ask(run: Run, before: bool) -> list[str]:
    """The model's answers to the samples. A base is asked in bare text; whatever knows a template, through that."""
    template = run.base["template"] if before else run.config.template
    if rank() != 0:
        return []
    prompts = [messages[:-1] for messages in run.data.samples]
    if template is None:
        return [continue_text(run.model, run.tokenizer, prompt) for prompt in prompts]
    return [answer(run.model, run.tokenizer, prompt, template) for prompt in prompts]


def show_samples(run: Run, **answers: list[str]) -> None:
    """Each sample's question, with one line an answer: base=[...], tuned=[...]."""
    if rank() != 0 or not run.data.samples:
        return
    print("\nquestions " + ("held out from training" if len(run.data.val_indices) else "seen in training"))
    for i, messages in enumerate(run.data.samples):
        for message in messages[:-1]:
            print(f"  {message.role:<10}{one_line(message.content)}")
        for name, texts in answers.items():
            print(f"    {name:<8}{one_line(texts[i])}")
        print(f"    wanted  {one_line(messages[-1].content)}\n")


def one_line(text: str, width: int = 160) -> str:
    text = printable(text)
    return text if len(text) <= width else text[:width] + " ..."


def make_optimizer(parameters: Sequence[Tensor], weight_decay: float) -> torch.optim.AdamW:
    """AdamW in its fused form; only matrices decay."""
    matrices = {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": weight_decay}
    vectors = {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0}
    groups = [group for group in (matrices, vectors) if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPSILON, fused=True)


def check_finite(folder: Path, step: int, **values: float | None) -> None:
    """Raises FloatingPointError where a value is NaN or infinite."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            kept = next(map(str, checkpoints_in(folder)), "none was written yet")
            raise FloatingPointError(f"step {step}: {name} {value}; try a lower --lr. Last good checkpoint: {kept}")


def train(run: Run, saved: dict | None) -> int:
    """The training loop; gives the exit status. Raises FloatingPointError where the loss is no number."""
    config, model, device, train_set = run.config, run.model, run.device, run.data.train_set
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    an_epoch = len(run.data.epoch_steps(config, 0))
    total = config.steps or sum(len(run.data.epoch_steps(config, epoch)) for epoch in range(config.epochs))
    peak = config.lr if config.lr is not None else LEARNING_RATE_LORA if config.lora_rank else LEARNING_RATE
    warmup = config.warmup_steps if config.warmup_steps is not None else min(total // 10, 100)
    eval_every, save_every = config.eval_every or an_epoch, config.save_every or an_epoch
    what = f"LoRA rank {config.lora_rank} on {', '.join(config.lora_targets)}" if config.lora_rank else "all weights"
    plan = f"{total:,} steps of at most {config.batch_tokens:,} tokens, {an_epoch:,} an epoch"
    n_trained = sum(parameter.numel() for parameter in parameters) / 1e6
    log(f"training  {what}, {n_trained:.2f} M parameters; {plan}; learning rate {peak:g}")

    optimizer = make_optimizer(parameters, config.weight_decay)
    first_step, before = 1, {}
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        first_step = saved["step"] + 1
        log(f"resuming  {saved['file']}, with step {first_step:,}")
        if first_step > total:
            log("this run is finished; a larger --steps goes on with it")
            return 0
    else:
        before = {"base": ask(run, before=True)}
        show_samples(run, **before)
    forward = torch.compile(model, dynamic=True) if config.compile else model
    uses_dropout = config.dropout > 0 or (config.lora_rank > 0 and config.lora_dropout > 0)
    live, started, n_tokens = LiveLine(), time.monotonic(), 0
    log_file = LogFile(run.folder / "log.csv", first_step) if rank() == 0 else None
    model.train()
    with StopSignals() as stop:
        for step, (epoch, indices) in enumerate(
            itertools.islice(run.data.steps(config), first_step - 1, total), first_step
        ):
            # Learning rate
            rate = learning_rate(step, total, warmup, peak)
            for group in optimizer.param_groups:
                group["lr"] = rate

            # Gradient: this process's share of the conversations, over the supervised tokens of the whole step
            share = indices[rank() :: world_size()]
            micro_batches = cut_micro_batches(share, train_set.lengths, config.micro_batch_tokens)
            batches = (collate(train_set, micro_batch, device) for micro_batch in micro_batches)
            n_supervised = int(train_set.n_supervised[indices].sum())
            seeds = (dropout_seed(config.seed, step, i) if uses_dropout else None for i in itertools.count())
            nll = accumulate_gradients(forward, batches, n_supervised, run.autocast, seeds)
            sum_gradients_over_processes(parameters)
            nll, n_stops = sum_over_processes([nll, float(stop.requested > 0)], device)
            loss = nll / n_supervised

            # Update
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf).item()
            check_finite(run.folder, step, loss=loss, gradient_norm=norm)
            optimizer.step()
            optimizer.zero_grad()

            # Validate, log, save
            val_loss = run.validate() if step == total or step % eval_every == 0 else None
            check_finite(run.folder, step, val_loss=val_loss)
            if log_file:
                log_file.write(step, epoch, loss, rate, norm, n_supervised, val_loss)
            stopping = n_stops > 0 and step < total
            if stopping or step == total or step % save_every == 0:
                save(run, optimizer, step)

            # Show
            n_tokens += int(train_set.lengths[indices].sum())
            seconds = time.monotonic() - started
            left = round(seconds / (step - first_step + 1) * (total - step))
            line = f"step {step:,}/{total:,}  loss {loss:.4f}  lr {rate:.2e}  {n_tokens / seconds:,.0f} tokens/s"
            line += f"  {left // 60}:{left % 60:02} left" + ("" if val_loss is None else f"  val loss {val_loss:.4f}")
            live.show(line, last=val_loss is not None or stopping)
            if stopping:
                log(f"stopped after step {step:,}, saved. To go on: {resume_command(run.folder)}")
                return 128 + (stop.requested or signal.SIGTERM)
    show_samples(run, **before, tuned=ask(run, before=False))
    if rank() == 0:
        plot_losses(run.folder / "log.csv")
        print(f"saved     {checkpoints_in(run.folder)[0]}, with log.csv beside it")
        print(f"next      python chat.py {shlex.quote(str(run.folder))}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 with one line for an error of the user's; 130 after Ctrl-C, 143 after SIGTERM."""
    config, given = parse_arguments(argv)
    keep_freed_memory()
    try:
        if world_size() > 1:
            dist.init_process_group("nccl" if config.device != "cpu" and torch.cuda.is_available() else "gloo")
        run, saved = prepare(config, given)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        log("\ninterrupted before the first step: there is nothing to save")
        return 130
    try:
        status = train(run, saved)
        if dist.is_initialized():
            dist.barrier()  # leave together: a process that is gone would break the others' connections
        return status
    except (FloatingPointError, OSError) as error:  # an OSError in the loop is a full disk, or the like
        return fail(error)
    except KeyboardInterrupt:
        to_go_on = f"to go on: {resume_command(run.folder)}" if checkpoints_in(run.folder) else "nothing was saved yet"
        log(f"\ninterrupted; {to_go_on}")
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def resume_command(folder: Path) -> str:
    return f"python sft.py --resume {shlex.quote(str(folder))}"


def fail(error: Exception) -> int:
    print(f"\nerror: {error}" if sys.stdout.isatty() else f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
