"""Supervised fine-tuning: from a JSONL line to a model that answers.

    python sft.py --data tiny_instruct.jsonl

`chat_template.render` has made ids and a loss mask of each record. Here: the options; which
conversations a step draws; a micro-batch and its labels; the objective and its gradient; the model
that a run starts from; the loop. All else is in runtime/.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lora
from chat_template import TEMPLATES, TRAIN_ON
from model import GPT
from runtime import distributed, fast, session
from runtime.answers import Samples
from runtime.console import check_ranges, lasting, log, merge_options, option, parse_arguments
from runtime.files import HERE, from_anywhere, mark_base, open_folder, prune, save_checkpoint
from runtime.load import load_checkpoint, load_optimizer, read_run, restore
from runtime.records import Data, Dataset, read_data
from tokenizer import END_OF_TEXT, Tokenizer

IGNORED = -100  # the label where nothing is supervised
Batch = tuple[Tensor, Tensor, Tensor, list[int]]  # ids, labels, weights (N,); lengths
MOST_LOGITS = 2**23  # logits in memory at a time: 32 MB of float32
LEARNING_RATE, LEARNING_RATE_LORA = 1.5e-4, 1.5e-3
ADAM_BETAS = (0.9, 0.95)
# With the usual 1e-8, rows whose tokens never occur would move as fast as the others.
ADAM_EPS = 1e-5
# What may differ when a run is resumed: `steps` makes another schedule, the data are the same ones
# elsewhere; the others change last bits, and what dropout draws.
CHANGEABLE = {"steps", "save_every", "eval_every", "keep_checkpoints", "resume", "cache"}
CHANGEABLE |= {"data", "val_data", "device", "dtype", "micro_batch_tokens", "compile", "fsdp"}
CHANGEABLE |= {"activation_checkpointing"}


# The options, one a line: the command line is made from them, and checkpoints hold them.


@dataclass
class Config:
    """Fine-tune a GPT on conversations."""

    data: list[str] = option(["tiny_instruct.jsonl"], "FILE or FILE:WEIGHT", group="data")
    val_data: list[str] = option([], "validation files (default: 5 %% of the data, at most 200)")
    template: str | None = option(None, "default: the checkpoint's, else chatml", TEMPLATES)
    train_on: str = option("assistant", "supervise all answers, the last, all text", TRAIN_ON)
    max_length: int | None = option(None, "most tokens (default: the context, <= 8192)", least=1)
    overlong: str = option("drop", "what to do with longer ones", ("drop", "truncate"))
    reasoning: str = option("drop", "what to do with an answer's reasoning", ("drop", "keep"))

    init: str = option("base.pt", "checkpoint, Hugging Face folder or name", group="model")
    dropout: float = option(0.0, "dropout in the model while training", least=0)
    lora_rank: int = option(0, "train adapters of this rank; 0 trains all weights", least=0)
    lora_alpha: float = option(16.0, "LoRA's scale is alpha / rank", least=0)
    lora_dropout: float = option(0.0, "dropout in front of the adapters", least=0)
    lora_targets: list[str] = option([*lora.ALL_TARGETS], "linear layers with an adapter")

    epochs: int = option(2, "passes over the data", least=1, group="training")
    steps: int | None = option(None, "optimiser updates, instead of epochs", least=1)
    batch_tokens: int = option(384, "most tokens of an optimiser step", least=1)
    micro_batch_tokens: int = option(8192, "most tokens of a forward pass", least=1)
    lr: float | None = option(None, "peak rate (default: 1.5e-4, LoRA 1.5e-3)", least=0)
    warmup_steps: int | None = option(None, "default: a tenth of the steps, at most 100", least=0)
    weight_decay: float = option(0.01, "AdamW's decay of matrices", least=0)
    grad_clip: float = option(1.0, "largest norm of the gradient; 0 does not clip", least=0)

    out: str | None = option(None, "folder of the run (default: a new out/NAME-N)", group="run")
    resume: str | None = option(None, "folder of the run to go on with; needs nothing else")
    overwrite: bool = option(False, "replace the run in --out")
    eval_every: int | None = option(None, "steps between validations (default: an epoch)", least=1)
    save_every: int | None = option(None, "steps between checkpoints (default: an epoch)", least=1)
    keep_checkpoints: int = option(2, "how many of the newest stay", least=1)
    cache: str = option("out/cache", "folder where large data sets stay, tokenised")
    seed: int = option(0, "of data order, held-out share, dropout, adapters", least=0)

    device: str = option("auto", "where", ("auto", "cuda", "mps", "cpu"), group="device")
    dtype: str = option("auto", "number format", ("auto", "float32", "bfloat16", "float64"))
    activation_checkpointing: bool = option(False, "compute them twice: less memory, more time")
    compile: bool = option(False, "torch.compile: slower to start, faster on a GPU")
    fsdp: bool = option(False, "share weights and optimiser out among torchrun's processes")


# Which conversations a step draws: whole ones, at random. Steps of one length would be biased.


def epoch_order(data: Data, seed: int, epoch: int) -> np.ndarray:
    """All conversations of an epoch, as indices, in random order; a file's as often as its weight
    says: at 1.3, three tenths, newly drawn each epoch, come twice."""
    random = np.random.default_rng([seed, epoch])
    drawn = []
    for pool, weight in zip(data.pools, data.weights):
        drawn += [pool] * int(weight)
        drawn.append(random.permutation(pool)[: round(weight % 1 * len(pool))])
    return random.permutation(np.concatenate(drawn))


def cut_steps(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut an order into steps of up to `batch_tokens` tokens, or of one longer conversation:
    lengths 3, 3, 3 with 6 tokens a step -> [first, second], [third]."""
    steps, n_tokens = [], math.inf
    for index, length in zip(order, lengths[order].tolist()):
        if n_tokens + length > batch_tokens:
            steps.append([])
            n_tokens = 0
        steps[-1].append(index)
        n_tokens += length
    return [np.array(step) for step in steps]


def draw_steps(data: Data, config: Config) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, conversations) of steps 1, 2, ...: a function of the seed alone."""
    for epoch in itertools.count():
        order = epoch_order(data, config.seed, epoch)
        for indices in cut_steps(order, data.train_set.lengths, config.batch_tokens):
            yield epoch, indices


def micro_batches_of(indices: np.ndarray, dataset: Dataset, n_tokens: int) -> list[np.ndarray]:
    """This process's share of a step, by length, in micro-batches of up to `n_tokens` tokens: as
    many as every process has, empty where need be."""
    n_processes = distributed.world_size()
    shares = [indices[process::n_processes] for process in range(n_processes)]
    sorted_shares = [share[np.argsort(dataset.lengths[share], kind="stable")] for share in shares]
    cuts = [cut_steps(share, dataset.lengths, n_tokens) for share in sorted_shares]
    mine = cuts[distributed.rank()]
    return mine + [indices[:0]] * (max(map(len, cuts)) - len(mine))


# A micro-batch and its labels


def collate(dataset: Dataset, indices: np.ndarray, device: str = "cpu") -> Batch:
    """ids, labels and their weights, (N,) each, and lengths of these conversations, end to end.

    ids     <|im_start|> assistant  \n     Hello    <|im_end|>  \n
    mask          0          0       0       1           1       0
    labels      -100       -100    Hello  <|im_end|>   -100    -100
    """
    if not len(indices):  # an empty share: one token that nobody learns from
        ids, labels, weights = torch.tensor([[0], [IGNORED], [0]], device=device)
        return ids, labels, weights.float(), [1]
    spans = [slice(*dataset.offsets[i : i + 2]) for i in indices]
    ids = torch.from_numpy(np.concatenate([dataset.ids[span] for span in spans])).to(device).long()
    mask = torch.from_numpy(np.concatenate([dataset.loss_mask[span] for span in spans])).to(device)
    # The shift, here and nowhere else: a label is the next token, where that one is supervised. A
    # conversation's first token never is, so no label looks across the end of the one before.
    weights = mask.roll(-1)
    labels = ids.roll(-1).where(weights > 0, IGNORED)
    return ids, labels, weights, dataset.lengths[indices].tolist()


# The objective, and the gradient of a step


def nll_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats, summed over the labels that are not -100: (n, V) and (n,) ->
    a scalar. The yardstick of every measurement; leave it as it is."""
    logits = logits if logits.dtype == torch.float64 else logits.float()  # never in bfloat16
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def objective(logits: Tensor, labels: Tensor) -> Tensor:
    """What training minimises: (n, V) and (n,) -> a scalar. Edit this one.

    A sum, which a step divides once: means of micro-batches would weigh tokens unequally.
    """
    return nll_sum(logits, labels)


def supervised_states(model: GPT, batch: Batch, autocast: Callable) -> tuple[Tensor, ...]:
    """The hidden states (n, C) of a micro-batch that have a label; labels and weights (n,)."""
    ids, labels, weights, lengths = batch
    with autocast():
        hidden = model(ids, lengths, head=False)  # (N, C)
    at = (labels != IGNORED).nonzero()[:, 0]  # (n,)
    return hidden.index_select(0, at), labels[at], weights[at]


def losses(loss: Callable, model: GPT, autocast: Callable, states: Sequence[Tensor]):
    """`loss(logits, labels)` times the weight, of some of the `supervised_states` at a time: of one
    weight, and no more than fit into memory."""
    hidden, labels, weights = states
    n_rows = max(1, MOST_LOGITS // model.config.vocab_size)
    for weight in weights.unique().tolist():  # 1 alone as a rule
        for rows in (weights == weight).nonzero()[:, 0].split(n_rows):
            with autocast():
                part = loss(model.tok_emb.logits(hidden[rows]), labels[rows])
            yield weight * part


def accumulate_gradients(
    model: GPT, batches: Iterable[Batch], n_supervised: float, autocast: Callable = nullcontext
) -> float:
    """Add the gradient of objective / n_supervised over a step's micro-batches to the parameters;
    give the objective's sum. Logits are computed only where there is a label."""
    total = 0.0
    for batch in batches:
        hidden, *labels = supervised_states(model, batch, autocast)
        # First the head forward and back, a part at a time, then all below it back.
        leaf = hidden.detach().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        for loss in losses(objective, model, autocast, (leaf, *labels)):
            (loss / n_supervised).backward()
            total += loss.item()
        hidden.backward(leaf.grad)
    return total


def training_step(
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    n_supervised: float,
    grad_clip: float,
    autocast: Callable = nullcontext,
) -> tuple[float, float]:
    """One update from a step's micro-batches, over all processes. Gives the loss before it,
    sum(weight * objective) / sum(weight) over the supervised tokens, and the gradient's norm before
    clipping. Raises FloatingPointError, and changes no weight, where one of them is not finite."""
    total = accumulate_gradients(model, batches, n_supervised, autocast)
    loss = distributed.sum_over_processes([total])[0] / n_supervised
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    distributed.all_reduce_gradients(parameters)
    total_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    grad_norm = distributed.unsharded(total_norm).item()
    check_finite(step, loss=loss, gradient_norm=grad_norm)
    if grad_norm > (grad_clip or math.inf):
        torch.nn.utils.clip_grads_with_norm_(parameters, grad_clip, total_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss, grad_norm


def check_finite(step: int, **values: float) -> None:
    """Raises FloatingPointError where a value is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"step {step}: {name} {value}; try a lower --lr")


@torch.no_grad()
def evaluate_loss(
    model: GPT,
    dataset: Dataset,
    indices: np.ndarray,
    micro_batch_tokens: int,
    device: str = "cpu",
    autocast: Callable = nullcontext,
) -> float:
    """Mean nll of these conversations' supervised tokens, stop tokens too, by their weight."""
    was_training, nll = model.training, 0.0
    model.eval()
    for micro_batch in micro_batches_of(indices, dataset, micro_batch_tokens):
        batch = collate(dataset, micro_batch, device)
        parts = losses(nll_sum, model, autocast, supervised_states(model, batch, autocast))
        nll += sum(part.item() for part in parts)
    model.train(was_training)
    return distributed.sum_over_processes([nll])[0] / dataset.n_supervised[indices].sum()


def lr_at(step: int, n_steps: int, warmup_steps: int, peak: float) -> float:
    """For step 1 .. n_steps: a straight line up to `peak`, and down towards 0 after the last."""
    up, down = step / max(warmup_steps, 1), (n_steps - step + 1) / max(n_steps - warmup_steps, 1)
    return peak * min(1.0, up, down)


def make_optimizer(model: GPT, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; only matrices decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay}
    vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    groups = [group for group in (matrices, vectors) if group["params"]]
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)


# The model that a run starts from


def adapt(model: GPT, config: Config, token_ids: Sequence[int]) -> None:
    """Put adapters on the model, if asked for, and new tokens into it."""
    shape = config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets
    if config.lora_rank:
        torch.manual_seed(config.seed)
        lora.add_lora(model, *shape, token_ids=token_ids)
    else:
        model.grow_vocab(max(token_ids, default=0) + 1)


def start_model(config: Config) -> tuple[GPT, Tokenizer, dict]:
    """The model of --init with the template's special tokens, `adapt`ed; its tokenizer; its base.
    Settles config.template."""
    model, tokenizer, meta = load_checkpoint(config.init, dropout=config.dropout)
    lora.merge_lora(model)
    config.template = config.template or meta["template"] or "chatml"
    template, n_known = TEMPLATES[config.template], tokenizer.n_vocab
    tokenizer = tokenizer.with_special(template.special_tokens)
    # A base that knew no template may have this one's tokens, and never have seen them.
    names = () if meta["template"] else {*template.special_tokens} - {END_OF_TEXT}
    unseen = {*map(tokenizer.special, names), *range(n_known, tokenizer.n_vocab)}
    adapt(model, config, sorted(unseen))
    stop = tokenizer.special(template.stop)
    if stop in unseen:  # so that it is likely from the start where the base expects a text to end
        lora.copy_row(model.tok_emb, tokenizer.special(END_OF_TEXT), stop)
    return model, tokenizer, {"path": from_anywhere(meta["file"]), "template": meta["template"]}


# The run


def settle(config: Config, data: Data) -> Config:
    """The options with what they leave open. ValueError for an epoch without conversations."""
    if config.epochs > 10_000:
        raise ValueError("--epochs is at most 10,000; --steps may say more")
    orders = (epoch_order(data, config.seed, epoch) for epoch in range(config.epochs))
    lengths, limit = data.train_set.lengths, config.batch_tokens
    an_epoch, *others = [len(cut_steps(order, lengths, limit)) for order in orders]
    if not an_epoch:
        raise ValueError(f"{data.paths[0]}: nothing is left to train on at these weights")
    n_steps = config.steps or an_epoch + sum(others)
    log(f"steps     {n_steps:,} of at most {limit:,} tokens, {an_epoch:,} an epoch")
    default_lr = LEARNING_RATE_LORA if config.lora_rank else LEARNING_RATE
    settled = {"lr": default_lr, "warmup_steps": min(n_steps // 10, 100), "steps": n_steps}
    settled |= {"eval_every": an_epoch, "save_every": an_epoch}
    unset = {name: value for name, value in settled.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **unset)


@dataclass
class Run:
    """All that the loop works with."""

    config: Config
    device: str
    autocast: Callable
    model: GPT
    tokenizer: Tokenizer
    base: dict  # the model's: its path, and the template it knew, if any
    data: Data
    plan: Config  # the options, with what they leave open
    optimizer: torch.optim.Optimizer
    samples: Samples  # shown before and after
    folder: Path | None  # known to the process that writes
    last_step: int = 0  # done before, if the run is resumed

    def batches(self, step: int, indices: np.ndarray) -> Iterator[Batch]:
        """This process's micro-batches of a step. Dropout depends on the place in the run."""
        limit = self.config.micro_batch_tokens
        for i, micro_batch in enumerate(micro_batches_of(indices, self.data.train_set, limit)):
            place = self.config.seed, step, i, distributed.rank()
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            yield collate(self.data.train_set, micro_batch, self.device)

    def validate(self, step: int) -> float | None:
        """Loss on the held-out conversations, if any."""
        data, how = self.data, (self.config.micro_batch_tokens, self.device, self.autocast)
        if not len(data.val_indices):
            return None
        val_loss = evaluate_loss(self.model, data.val_set, data.val_indices, *how)
        check_finite(step, val_loss=val_loss)
        return val_loss


def prepare(argv: Sequence[str] | None) -> Run:
    """All before the first step. Raises ValueError, OSError for what a user can mend."""
    config, given = parse_arguments(Config, argv)
    check_ranges(config)
    saved = read_run(config.resume, Config) if config.resume else None
    if saved:
        config = merge_options(config, given, saved["args"], CHANGEABLE)
    device, dtype = distributed.choose_device(config.device, config.dtype, config.fsdp)
    log(f"device    {device}, {str(dtype)[6:]}, {torch.get_num_threads()} threads")
    folder, last_step = None, 0
    with distributed.first_process_first():
        if saved:
            model, tokenizer, saved = restore(saved, config.dropout)
            base, folder, last_step = saved["base"], Path(saved["file"]).parent, saved["step"]
        else:
            model, tokenizer, base = start_model(config)
        log(f"template  {config.template}; supervised: {config.train_on}")
        data = read_data(config, tokenizer, model.config.context_length)
        if saved and saved["data_digest"] != data.digest:
            what = "the data are not those that this run started with; to train on others, use"
            raise ValueError(f"{config.resume}: {what} --init {config.resume}")
        plan = settle(config, data)
        if not saved and distributed.rank() == 0:
            name, protect = data.paths[0].stem, HERE / base["path"]
            folder = open_folder(config.out, name, config.overwrite, protect)
            if model.adapter:
                mark_base(protect, folder)
        log(f"folder    {folder}")

    model.to(torch.float64 if dtype == torch.float64 else torch.float32)
    fast.keep_freed_memory(dtype)
    fast.speed_up(model, device, config.compile, config.activation_checkpointing)
    if config.fsdp:
        distributed.shard(model, device)
    optimizer = make_optimizer(model.to(device), config.weight_decay)
    session.describe_training(plan, model, base["path"], saved, device)
    if saved:
        load_optimizer(optimizer, saved.pop("optimizer"))
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, dtype == torch.bfloat16)
    parts = model, tokenizer, base, data, plan, optimizer, Samples(data), folder, last_step
    return Run(config, device, autocast, *parts)


def save(run: Run, step: int) -> None:
    """Write a checkpoint, plain values and tensors alone, then remove those beyond
    --keep-checkpoints. Raises FloatingPointError where weights are no longer finite."""
    model, config = run.model, run.config
    norm = torch.nn.utils.get_total_norm([*model.parameters()])
    check_finite(step, norm_of_weights=distributed.unsharded(norm).item())
    weights = lora.adapter_state(model) if model.adapter else {"model": model.state_dict()}
    content = {
        "step": step,
        "config": asdict(model.config),
        **weights,
        "optimizer": run.optimizer.state_dict(),
        "tokenizer": run.tokenizer.state(),
        "template": config.template,
        "stop": [run.tokenizer.special(TEMPLATES[config.template].stop)],
        "args": lasting(config),
        "base": run.base,
        "data_digest": run.data.digest,
        "circumstances": session.circumstances(run.device, config),
    }
    content = distributed.full_state_dict(content)  # takes all processes
    if distributed.rank() == 0:
        path = run.folder / f"checkpoint-{step:07d}.pt"
        save_checkpoint(path, content)
        prune(path, config.keep_checkpoints)


def train(run: Run, stop: session.StopSignals) -> int:
    """The loop; gives the exit status."""
    plan, train_set = run.plan, run.data.train_set
    n_steps, first_step = plan.steps, run.last_step + 1
    if first_step > n_steps:
        return session.finished(run.folder, plan.keep_checkpoints, before=True)
    if not run.last_step:
        run.samples.ask("base", run.model, run.tokenizer, run.base["template"])
    recorder = session.Recorder(run.folder, first_step, n_steps)
    run.model.train()
    stop.in_loop = True
    steps = itertools.islice(draw_steps(run.data, plan), run.last_step, n_steps)
    for step, (epoch, indices) in enumerate(steps, first_step):
        # This step's learning rate
        lr = lr_at(step, n_steps, plan.warmup_steps, plan.lr)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1)

        # Gradient and update
        n_supervised = train_set.n_supervised[indices].sum()
        batches = run.batches(step, indices)
        loss, grad_norm = training_step(
            step, run.model, run.optimizer, batches, n_supervised, plan.grad_clip, run.autocast
        )

        # Validate
        is_last = step == n_steps
        val_loss = run.validate(step) if is_last or step % plan.eval_every == 0 else None

        # Record and save
        stopping = stop.wanted_by_any() and not is_last
        saving = stopping or is_last or step % plan.save_every == 0
        row = step, epoch, loss, lr, grad_norm, f"{n_supervised:.10g}", val_loss
        recorder.write(row, int(train_set.lengths[indices].sum()), saving)
        if saving:
            save(run, step)

        # Stop, if somebody asked for it
        if stopping:
            return session.stopped(run.folder, step, stop)
    stop.in_loop = False
    run.samples.ask("tuned", run.model, run.tokenizer, plan.template)
    return session.finished(run.folder, plan.keep_checkpoints, before=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 with one line for what the user can mend; 128 and the signal's number."""
    return session.run_safely(prepare, train, argv)


if __name__ == "__main__":
    session.exit_process(main())
