"""Supervised fine-tuning: from a JSONL line to a model that answers.

    python sft.py --data tiny_instruct.jsonl

One example's way: `chat_template.render` makes ids and a loss mask of it; dataset.py decides in which step it is
drawn and shifts the targets; `nll_sum`, here, is the objective; `accumulate_gradients` adds up a step's micro-batches;
`train` is the loop, a list of steps to read.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lora
from chat_template import TEMPLATES, TRAIN_ON, Message
from dataset import IGNORED, Data, collate, micro_batches_of, prepare_data
from model import GPT, ROW_MULTIPLE
from runtime.adamw import AdamW
from runtime.answers import ask, describe_samples, pick_samples
from runtime.console import LiveLine, escape_what_cannot_be_printed, fail, log, one_line
from runtime.distributed import (
    connect,
    first_process_first,
    gather,
    in_touch,
    leave_together,
    rank,
    shard,
    sum_gradients,
    sum_over_processes,
    unsharded,
    world_size,
)
from runtime.fast import keep_freed_memory
from runtime.files import (
    HERE,
    LogFile,
    checkpoints_in,
    find_file,
    lock,
    open_folder,
    plot_losses,
    prune,
    save_checkpoint,
)
from runtime.load import load_checkpoint, read_checkpoint, restore
from runtime.options import check_ranges, option, parse_arguments
from runtime.records import split_weight
from runtime.session import StopSignals
from runtime.tokens import Dataset, build_dataset
from tokenizer import END_OF_TEXT, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


# Configuration: one field a line; the command line is made from it, and it is saved in every checkpoint


@dataclass
class Config:
    """Fine-tune a GPT on conversations."""

    data: list[str] = option(
        ["tiny_instruct.jsonl"], "data", "FILE or FILE:WEIGHT, the share of it seen each epoch"
    )
    val_data: list[str] = option(
        [], "data", "validation files (default: 5 %% of the data, at most 200)"
    )
    template: str | None = option(
        None, "data", "chat template (default: the checkpoint's, else chatml)", TEMPLATES
    )
    train_on: str = option(
        "assistant", "data", "supervise every answer, the last one, or all text", TRAIN_ON
    )
    max_length: int | None = option(
        None, "data", "longest conversation in tokens (default: the context)", least=1
    )
    overlong: str = option("drop", "data", "what to do with longer ones", ("drop", "truncate"))

    init: str = option(
        "base.pt", "model", "checkpoint, Hugging Face folder, or gpt2 and the like to start from"
    )
    dropout: float = option(0.0, "model", "dropout in the model while training", least=0)
    lora_rank: int = option(
        0, "model", "train adapters of this rank; 0 trains all weights", least=0
    )
    lora_alpha: float = option(16.0, "model", "LoRA's scale is alpha / rank", least=0)
    lora_dropout: float = option(0.0, "model", "dropout in front of the adapters", least=0)
    lora_targets: list[str] = option(
        list(lora.ALL_TARGETS), "model", "linear layers with an adapter"
    )

    epochs: int = option(2, "training", "passes over the data", least=1)
    steps: int | None = option(None, "training", "optimiser updates, instead of epochs", least=1)
    batch_tokens: int = option(384, "training", "most tokens of an optimiser step", least=1)
    micro_batch_tokens: int = option(
        8192, "training", "most tokens of a forward pass, padding too", least=1
    )
    lr: float | None = option(
        None, "training", "peak learning rate (default: 1.5e-4, LoRA 1.5e-3)", least=0
    )
    warmup_steps: int | None = option(
        None, "training", "default: a tenth of the steps, at most 100", least=0
    )
    weight_decay: float = option(0.01, "training", "AdamW's decay of matrices", least=0)
    grad_clip: float = option(
        1.0, "training", "largest norm of the gradient; 0 does not clip", least=0
    )

    out: str | None = option(
        None, "run", "folder for checkpoints and log (default: a new out/NAME-N)"
    )
    resume: str | None = option(None, "run", "folder of the run to go on with; needs nothing else")
    overwrite: bool = option(False, "run", "replace the run in --out")
    eval_every: int | None = option(
        None, "run", "steps between validations (default: an epoch)", least=1
    )
    save_every: int | None = option(
        None, "run", "steps between checkpoints (default: an epoch)", least=1
    )
    keep_checkpoints: int = option(2, "run", "how many of the newest stay", least=1)
    cache: str = option("out/cache", "run", "folder where large data sets stay, tokenised")
    seed: int = option(0, "run", "of data order, held-out share, dropout, adapters", least=0)

    device: str = option("auto", "device", "where to train", ("auto", "cuda", "mps", "cpu"))
    dtype: str = option("auto", "device", "bfloat16 means autocast", ("auto", *DTYPES))
    compile: bool = option(False, "device", "torch.compile: slower to start, faster on a GPU")
    fsdp: bool = option(
        False, "device", "share weights and optimiser out among the processes of torchrun"
    )


LEARNING_RATE, LEARNING_RATE_LORA = 1.5e-4, 1.5e-3
# Adam divides a gradient by its own size. The rows of tokens that never occur have a tiny one, always downwards; with
# the usual 1e-8 they would move as fast as the others, and what is never asked in tuning would be forgotten soonest.
EPSILON = 1e-5
# The fields that may differ when a run is resumed. `steps` changes the schedule; the others change no number, but for
# the last bits, which may depend on how sums are divided among processes.
CHANGEABLE = {"steps", "save_every", "keep_checkpoints", "resume", "cache", "fsdp"}


# The objective

MOST_LOGITS = 2**24  # in memory at a time: 64 MB of float32


class NLLSum(torch.autograd.Function):
    """cross_entropy with a gradient of its own, softmax(logits) - one_hot(targets), written over the log-probabilities:
    torch's makes two more matrices (n, V)."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)  # (n, V)
        ctx.save_for_backward(log_probs, targets)
        return F.nll_loss(log_probs, targets, ignore_index=IGNORED, reduction="sum")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, targets = ctx.saved_tensors
        counts = targets != IGNORED  # (n,)
        probs = log_probs.exp_()  # in place: torch refuses a second pass backward
        probs.scatter_add_(
            1, targets.clamp(min=0)[:, None], probs.new_full((len(targets), 1), -1.0)
        )
        return probs.mul_((grad * counts)[:, None]), None


def nll_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood, summed over the targets: (n, V) logits and (n,) ids -> a scalar, in nats.

    A sum, so that whoever adds up micro-batches divides once, by the tokens of the whole step: a mean of means would
    weigh a token by the company it keeps. Targets of -100 count nothing.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()  # never in bf16
    return NLLSum.apply(logits, targets)


def nll_of_parts(
    model, hidden: Tensor, targets: Tensor, autocast=contextlib.nullcontext
) -> Iterator[Tensor]:
    """`nll_sum` of (n, C) hidden states, some rows at a time: all their logits at once would fill the memory."""
    n_rows = max(1, MOST_LOGITS // model.config.vocab_size)
    n_rows -= n_rows % ROW_MULTIPLE if n_rows > ROW_MULTIPLE else 0
    for rows, wanted in zip(hidden.split(n_rows), targets.split(n_rows)):
        with autocast():
            loss = nll_sum(model.tok_emb.logits(rows), wanted)
        yield loss


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
            hidden = model(ids, at=at, real=real, head=False)  # (n, C)
        leaf = hidden.detach().requires_grad_()
        for loss in nll_of_parts(
            model, leaf, targets, autocast
        ):  # the head forward and back, then all below it back
            (loss / n_supervised).backward()
            nll += loss.item()
        (
            hidden * leaf.grad
        ).sum().backward()  # as hidden.backward(leaf.grad), for which torch imports sympy: 0.5 s
    return nll


@torch.no_grad()
def evaluate_loss(
    model,
    dataset: Dataset,
    indices: np.ndarray,
    micro_batch_tokens: int,
    device="cpu",
    autocast=contextlib.nullcontext,
) -> float:
    """Mean nll of the supervised tokens of these conversations, stop tokens included, over all processes."""
    was_training = model.training
    model.eval()
    nll = 0.0
    for micro_batch in micro_batches_of(indices, dataset, micro_batch_tokens):
        ids, real, at, targets = collate(dataset, micro_batch, device)
        with autocast():
            hidden = model(ids, at=at, real=real, head=False)  # (n, C)
        nll += sum(loss.item() for loss in nll_of_parts(model, hidden, targets, autocast))
    model.train(was_training)
    return sum_over_processes([nll])[0] / int(dataset.n_supervised[indices].sum())


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """For step 1 .. total: up to `peak` over `warmup` steps, then down a straight line towards 0 after the last."""
    return peak * min(1.0, step / max(warmup, 1), (total - step + 1) / max(total - warmup, 1))


# Preparing a run


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
    samples: list[list[Message]]  # conversations to show before and after
    folder: Path

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def validate(self) -> float | None:
        """Loss on the held-out conversations; None where there are none."""
        data, limit = self.data, self.config.micro_batch_tokens
        if len(data.val_indices):
            return evaluate_loss(
                self.model, data.val_set, data.val_indices, limit, self.device, self.autocast
            )

    def circumstances(self) -> str:
        """All that the last bits of a run depend on, beside its arguments."""
        threads = f"{torch.get_num_threads()} threads, {world_size()} processes"
        return f"torch {torch.__version__}, {self.device}, {threads}" + (
            ", --fsdp" if self.config.fsdp else ""
        )


def choose_device(config: Config) -> tuple[str, torch.dtype]:
    """The device, and the number format: bf16 autocast where a GPU is good at it."""
    has_mps = (
        torch.backends.mps.is_available() and world_size() == 1
    )  # it cannot talk to another process
    available = {"cuda": torch.cuda.is_available(), "mps": has_mps, "cpu": True}
    device = (
        next(name for name in available if available[name])
        if config.device == "auto"
        else config.device
    )
    if not available[device]:
        raise ValueError(f"--device {device}: torch finds none on this machine; try --device auto")
    if device == "cuda" and world_size() > 1:
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise ValueError(
                "fewer GPUs than processes: torchrun needs another --nproc_per_node, or use --device cpu"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    good_at_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    return device, DTYPES.get(config.dtype, torch.bfloat16 if good_at_bf16 else torch.float32)


def resume_arguments(config: Config, given: set[str]) -> tuple[Config, dict]:
    """The saved run's configuration and its newest checkpoint. Refuses arguments that would change the numbers."""
    if not find_file(config.resume).is_dir():
        raise ValueError(
            f"{config.resume}: --resume takes a run's folder; to start from a checkpoint, use --init"
        )
    saved = read_checkpoint(config.resume)
    try:
        before = Config(**saved["args"])
        check_ranges(before)
        (
            saved["base"]["path"],
            saved["base"]["template"],
            saved["data_digest"],
            saved["optimizer"],
            int(saved["step"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{saved['file']}: no checkpoint of a run of sft.py ({one_line(str(error))})"
        ) from None
    changed = [
        name for name in given - CHANGEABLE if getattr(config, name) != getattr(before, name)
    ]
    if changed:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(changed))
        raise ValueError(
            f"{config.resume}: this run has other values of {names}; leave them out to resume it"
        )
    if "steps" in given and config.steps != before.steps:
        log(
            f"schedule  computed anew for {config.steps:,} steps: this is not the run that had them from the start"
        )
    return dataclasses.replace(
        before, **{name: getattr(config, name) for name in given & CHANGEABLE}
    ), saved


def start_model(config: Config) -> tuple[GPT, Tokenizer, dict]:
    """The model of --init with the template's special tokens in its vocabulary, and adapters if asked for; its
    tokenizer; where it came from. Settles config.template."""
    model, tokenizer, meta = load_checkpoint(config.init, dropout=config.dropout)
    lora.merge_lora(model)
    path = Path(
        meta["file"]
    )  # the file itself: a folder's newest checkpoint may be another one tomorrow
    path = path.resolve() if path.exists() else path  # the name of a published model stays a name
    config.template = config.template or meta["template"] or "chatml"
    base = {"path": str(path.relative_to(HERE) if path.is_relative_to(HERE) else path)}
    base |= {"fingerprint": lora.fingerprint(model), "template": meta["template"]}
    n_known = tokenizer.n_vocab
    tokenizer = tokenizer.with_special(TEMPLATES[config.template].special_tokens)
    if config.lora_rank:
        torch.manual_seed(config.seed)
        new_ids = range(n_known, tokenizer.n_vocab)
        lora.add_lora(
            model,
            config.lora_rank,
            config.lora_alpha,
            config.lora_dropout,
            config.lora_targets,
            new_ids,
        )
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


def prepare(config: Config, given: set[str]) -> tuple[Run, dict | None]:
    """All that comes before the first step, described as it is done; and what else a checkpoint to resume from holds.

    Raises ValueError and OSError for what the user can mend.
    """
    check_ranges(config)
    saved = None
    if config.resume:
        config, saved = resume_arguments(config, given)
    if config.fsdp and world_size() == 1:
        raise ValueError(
            "--fsdp is for several processes: torchrun --nproc_per_node=2 sft.py --fsdp ..."
        )
    device, dtype = choose_device(config)
    log(
        f"device    {device}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    )
    if saved:
        model, tokenizer, saved = restore(saved, config.dropout)
        base = saved["base"]
    else:
        model, tokenizer, base = start_model(config)
    sizes, n_parameters = (
        model.config,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )
    shape = f"{sizes.n_layer} layers, {sizes.n_embd} channels, context {sizes.context_length}"
    log(
        f"base      {base['path']}: {n_parameters:.1f} M parameters, {shape}, vocabulary {sizes.n_vocab:,}"
    )
    log(f"template  {config.template}; supervised: {config.train_on}")
    max_length = config.max_length or sizes.context_length
    if max_length > sizes.context_length:
        raise ValueError(
            f"--max-length {max_length} is more than the model's context of {sizes.context_length}"
        )
    rendering = dict(template=config.template, train_on=config.train_on, max_length=max_length)
    rendering |= dict(overlong=config.overlong, cache=Path(config.cache), show=LiveLine().show)
    build = functools.partial(build_dataset, tokenizer=tokenizer, **rendering)
    data = prepare_data(config.data, config.val_data, build, config.seed)
    if saved and saved["data_digest"] != data.digest:
        raise ValueError(f"{config.resume}: the data are not those that this run was started with")
    samples = pick_samples(
        data.val_set, data.val_paths, data.val_indices if len(data.val_indices) else data.pools[0]
    )
    model.to(torch.float64 if dtype == torch.float64 else torch.float32)
    name = split_weight(config.data[0])[0].stem
    folder = (
        Path(saved["file"]).parent
        if saved
        else open_folder(config.out, name, config.overwrite, HERE / base["path"])
    )
    log(f"folder    {folder}")
    return Run(config, device, dtype, model, tokenizer, base, data, samples, folder), saved


# The run


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Dropout is a function of the place in the run, so that a resumed run draws what the first would have drawn."""
    return int(np.random.SeedSequence([seed, step, micro_batch, rank()]).generate_state(1)[0])


def save(run: Run, optimizer: AdamW, step: int) -> None:
    """Write a checkpoint, and only then remove those beyond --keep-checkpoints. One process writes for all."""
    weights = (
        lora.adapter_state(run.model) if run.config.lora_rank else {"model": run.model.state_dict()}
    )
    stop = [run.tokenizer.special(TEMPLATES[run.config.template].stop)]
    content = {
        "step": step,
        "config": asdict(run.model.config),
        **weights,
        "optimizer": optimizer.state_dict(),
    }
    content |= {"tokenizer": run.tokenizer.state(), "template": run.config.template, "stop": stop}
    arguments = asdict(
        dataclasses.replace(run.config, resume=None, overwrite=False)
    )  # of the run, not of this command
    content |= {"args": arguments, "base": run.base, "data_digest": run.data.digest}
    content = gather(content | {"circumstances": run.circumstances()})
    if rank() == 0:
        path = run.folder / f"checkpoint-{step:07d}.pt"
        save_checkpoint(path, content)
        prune(path, run.config.keep_checkpoints)


def make_optimizer(run: Run, saved: dict | None) -> AdamW:
    """Bring the model to where it is trained, in shards with --fsdp; and AdamW, of which only matrices decay. Raises
    ValueError where the saved state is not one of this model."""
    if run.config.fsdp:
        shard(run.model, run.device)
    parameters = [
        parameter for parameter in run.model.to(run.device).parameters() if parameter.requires_grad
    ]
    matrices = {
        "params": [p for p in parameters if p.dim() >= 2],
        "weight_decay": run.config.weight_decay,
    }
    vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    groups = [group for group in (matrices, vectors) if group["params"]]
    state = saved.pop("optimizer") if saved else None  # in one piece it may be more than fits
    return AdamW(groups, betas=(0.9, 0.95), eps=EPSILON, state=state)


def check_finite(step: int, **values: float | None) -> None:
    """Raises FloatingPointError where a value is NaN or infinite."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(f"step {step}: {name} {value}; try a lower --lr")


def resume_command(folder: Path) -> str:
    return f"python sft.py --resume {shlex.quote(str(folder))}"


def train(run: Run, optimizer: AdamW, saved: dict | None, stop: StopSignals) -> int:
    """The training loop; gives the exit status. Raises FloatingPointError where the loss is no number."""
    config, model, device, train_set = run.config, run.model, run.device, run.data.train_set
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n_trained = sum(parameter.numel() for parameter in parameters) / 1e6
    drawing = config.seed, config.batch_tokens
    an_epoch = len(run.data.epoch_steps(*drawing, 0))
    total = config.steps or sum(
        len(run.data.epoch_steps(*drawing, epoch)) for epoch in range(config.epochs)
    )
    peak = (
        config.lr
        if config.lr is not None
        else LEARNING_RATE_LORA
        if config.lora_rank
        else LEARNING_RATE
    )
    warmup = config.warmup_steps if config.warmup_steps is not None else min(total // 10, 100)
    eval_every, save_every = config.eval_every or an_epoch, config.save_every or an_epoch
    what = (
        f"LoRA rank {config.lora_rank} on {', '.join(config.lora_targets)}"
        if config.lora_rank
        else "all weights"
    )
    plan = f"{total:,} steps of at most {config.batch_tokens:,} tokens, {an_epoch:,} an epoch"
    log(f"training  {what}, {n_trained:.2f} M parameters; {plan}; learning rate {peak:g}")

    speaks = rank() == 0 or config.fsdp  # a sharded model answers only where all processes ask it
    first_step, before = 1, {}
    if saved:
        first_step = saved["step"] + 1
        log(f"resuming  {saved['file']}, with step {first_step:,}")
        if saved.get("circumstances") != run.circumstances():
            now = run.circumstances()
            log(
                f"          saved with {saved.get('circumstances')}; now {now}: the last bits may differ"
            )
        if first_step > total:
            log("this run is finished; a larger --steps goes on with it")
            if rank() == 0:  # a kill may have come between its last save and these
                prune(Path(saved["file"]), config.keep_checkpoints)
                plot_losses(run.folder / "log.csv")
            return 0
    elif speaks and run.samples:
        before = {"base": ask(model, run.tokenizer, run.base["template"], run.samples)}
        log(describe_samples(run.samples, len(run.data.val_indices) > 0, **before))
    forward = torch.compile(model, dynamic=True) if config.compile else model
    uses_dropout = config.dropout > 0 or (config.lora_rank > 0 and config.lora_dropout > 0)
    live, started, n_tokens = LiveLine(), time.monotonic(), 0
    log_file = LogFile(run.folder / "log.csv", first_step) if rank() == 0 else None
    model.train()
    stop.in_loop = True
    steps = itertools.islice(run.data.steps(*drawing), first_step - 1, total)
    for step, (epoch, indices) in enumerate(steps, first_step):
        # Learning rate
        rate = learning_rate(step, total, warmup, peak)
        for group in optimizer.param_groups:
            group["lr"] = rate

        # Gradient: this process's share of the conversations, over the supervised tokens of the whole step
        micro_batches = micro_batches_of(indices, train_set, config.micro_batch_tokens)
        batches = (collate(train_set, micro_batch, device) for micro_batch in micro_batches)
        n_supervised = int(train_set.n_supervised[indices].sum())
        seeds = (
            dropout_seed(config.seed, step, i) if uses_dropout else None for i in itertools.count()
        )
        nll = accumulate_gradients(forward, batches, n_supervised, run.autocast, seeds)
        nll, n_stops = sum_over_processes(
            [nll, float(stop.requested > 0)]
        )  # first, as it notices a dead process
        sum_gradients(parameters)
        loss = nll / n_supervised

        # Update
        total_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = unsharded(total_norm).item()
        check_finite(step, loss=loss, gradient_norm=norm)
        if norm > (
            config.grad_clip or math.inf
        ):  # clip_grad_norm_ would multiply all gradients, by 1 if need be
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, total_norm)
        optimizer.step()
        optimizer.zero_grad()

        # Validate, log, save
        val_loss = run.validate() if step == total or step % eval_every == 0 else None
        check_finite(step, val_loss=val_loss)
        stopping = n_stops > 0 and step < total
        saving = stopping or step == total or step % save_every == 0
        if log_file:
            log_file.write(step, epoch, loss, rate, norm, n_supervised, val_loss)
            if saving:
                log_file.sync()
        if saving:
            save(run, optimizer, step)

        # Show
        n_tokens += int(train_set.lengths[indices].sum())
        seconds = time.monotonic() - started
        left = round(seconds / (step - first_step + 1) * (total - step))
        line = f"step {step:,}/{total:,}  loss {loss:.4f}  lr {rate:.2e}  {n_tokens / seconds:,.0f} tokens/s"
        line += f"  {left // 60}:{left % 60:02} left" + (
            "" if val_loss is None else f"  val loss {val_loss:.4f}"
        )
        live.show(line, last=val_loss is not None or stopping or step == total)
        if stopping:
            log(f"stopped after step {step:,}, saved. To go on: {resume_command(run.folder)}")
            return 128 + (stop.requested or signal.SIGTERM)
    stop.in_loop = False
    if speaks and run.samples:
        after = ask(model, run.tokenizer, config.template, run.samples)
        log(describe_samples(run.samples, len(run.data.val_indices) > 0, **before, tuned=after))
    if rank() == 0:
        plot_losses(run.folder / "log.csv")
        log(f"saved     {checkpoints_in(run.folder)[0]}, with log.csv beside it")
        log(f"next      python chat.py {shlex.quote(str(run.folder))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 with one line for an error of the user's; 128 and the signal's number after a signal."""
    with StopSignals() as stop:
        try:
            config, given = parse_arguments(Config, argv)
            escape_what_cannot_be_printed()
            keep_freed_memory()
            with in_touch():
                connect()
                with first_process_first():
                    run, saved = prepare(config, given)
                optimizer = make_optimizer(run, saved)
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            log("\ninterrupted before the first step: there is nothing to save")
            return 128 + (stop.requested or signal.SIGINT)
        try:
            with in_touch(), lock(run.folder) if rank() == 0 else contextlib.nullcontext():
                status = train(run, optimizer, saved, stop)
                leave_together()
            return status
        except (
            FloatingPointError,
            OSError,
        ) as error:  # an OSError in the loop is a full disk, or the like
            kept = next(map(str, checkpoints_in(run.folder)), "none was written yet")
            return fail(f"{error}. Last good checkpoint: {kept}" if rank() == 0 else error)
        except KeyboardInterrupt:
            to_go_on = f"to go on: {resume_command(run.folder)}"
            log(
                "\ninterrupted; "
                + (to_go_on if checkpoints_in(run.folder) else "nothing was saved yet")
            )
            return 128 + (stop.requested or signal.SIGINT)
    return 128 + stop.requested  # a signal came while one of these messages was printed


if __name__ == "__main__":
    status = main()
    if (
        world_size() > 1
    ):  # sharding leaves threads, which may abort Python's own exit: torchrun would call it a failure
        os._exit(status)
    sys.exit(status)
