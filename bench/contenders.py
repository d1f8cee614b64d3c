"""The contenders of sft_speed.py: one process each, which trains on the task and prints JSON.

    python bench/contenders.py ours --shape small --data FILE

All of them see the same conversations a step, in the same order, from the same weights, with the
same optimiser settings. What is timed is everything from the first batch to the last update:
collating, forward, backward, clipping, update.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from task import (
    BETAS,
    CLIP,
    EPSILON,
    LEARNING_RATE,
    Record,
    Task,
    add_arguments,
    ids_and_labels,
    make_task,
    our_model,
    padded_batch,
    transformers_model,
)
from torch import Tensor

import lora
import sft
from runtime import fast
from runtime.console import fail

if TYPE_CHECKING:  # the peers need not be installed
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig

TOKEN_IDS = (50257, 50258)  # of ChatML's markers
MICRO_BATCH_TOKENS = sft.Config().micro_batch_tokens


def ours(task: Task, record: Record, lora_rank: int = 0) -> None:
    """The steps of sft.train, without what stands around them: logging, validation, saving."""
    model = our_model(task.config)
    if lora_rank:  # with the special tokens' rows, as in a run from a base that lacks them
        lora.add_lora(model, lora_rank, token_ids=TOKEN_IDS)
    # As sft.prepare does it.
    fast.keep_freed_memory()
    fast.speed_up(model, task.device, task.compile)
    optimizer = sft.make_optimizer(model.to(task.device), weight_decay=0.0)
    for group in optimizer.param_groups:
        group |= {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPSILON}
    model.train()
    record.start()
    for step, indices in enumerate(task.steps, 1):
        n_supervised = task.dataset.n_supervised[indices].sum()
        micro_batches = sft.micro_batches_of(indices, task.dataset, MICRO_BATCH_TOKENS)
        batches = (sft.collate(task.dataset, each, task.device) for each in micro_batches)
        loss, _ = sft.training_step(
            step, model, optimizer, batches, n_supervised, CLIP, task.autocast
        )
        record.step(loss)


def plain_loop(task: Task, record: Record, tuned: bool = False, lora_rank: int = 0) -> None:
    """A loop that anybody would write around transformers' model; with peft's adapters on all
    linear layers. Tuned: GELU in one kernel, AdamW in one kernel, no mask (padding stands on the
    right, where causal attention does not look), freed memory kept."""
    if tuned:
        fast.keep_freed_memory()
    model = transformers_model(task.config, "gelu_pytorch_tanh" if tuned else "gelu_new")
    if lora_rank:
        import peft

        how = peft.LoraConfig(r=lora_rank, lora_alpha=16, target_modules="all-linear")
        model = peft.get_peft_model(model, how)
    model.to(task.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = dict(lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    optimizer = torch.optim.AdamW(trained, **settings, fused=True if tuned else None)
    forward = torch.compile(model, dynamic=True) if task.compile else model
    record.start()
    for indices in task.steps:
        padded = padded_batch(task.dataset, indices)
        batch = {name: tensor.to(task.device) for name, tensor in padded.items()}
        if tuned:
            del batch["attention_mask"]
        with task.autocast():
            loss = forward(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        record.step(loss.item())


def trl(
    task: Task,
    record: Record,
    loss_type: str = "nll",
    padding_free: bool = False,
    tuned: bool = False,
) -> None:
    """TRL's SFTTrainer on the rendered ids. Tuned: GELU in one kernel, freed memory kept; its AdamW
    is fused by default."""
    import transformers
    from datasets import Dataset, disable_progress_bars
    from trl import SFTTrainer

    if tuned:
        fast.keep_freed_memory()
    disable_progress_bars()
    names = "input_ids", "labels"
    rows = [ids_and_labels(task.dataset, index) for indices in task.steps for index in indices]
    model = transformers_model(task.config, "gelu_pytorch_tanh" if tuned else "gelu_new")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=trl_settings(task, folder, loss_type, padding_free),
            train_dataset=Dataset.from_list([dict(zip(names, row)) for row in rows]),
            processing_class=tokenizer_of_no_use(),
            callbacks=[step_recorder(record)],
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        record.note = f"loss_type {trainer.args.loss_type}"  # as TRL has understood it
        trainer.train()


def trl_settings(task: Task, folder: str, loss_type: str, padding_free: bool) -> "SFTConfig":
    """Not TRL's literal defaults: those add bfloat16 and gradient checkpointing, which are slower
    still on a CPU."""
    from trl import SFTConfig

    return SFTConfig(
        # The same for all contenders
        num_train_epochs=1,
        per_device_train_batch_size=len(task.steps[0]),
        train_sampling_strategy="sequential",
        max_length=None,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CLIP,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPSILON,
        use_cpu=task.device == "cpu",
        bf16=task.bfloat16,
        torch_compile=task.compile,
        # How it computes
        loss_type=loss_type,
        padding_free=padding_free,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        # Nothing but a loss a step
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def tokenizer_of_no_use() -> "PreTrainedTokenizerFast":
    """TRL asks for a tokenizer even where all is tokenised."""
    import transformers
    from tokenizers import Tokenizer, models

    vocabulary = Tokenizer(models.WordLevel({"<pad>": 0, "<stop>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<stop>"
    )


def step_recorder(record: Record) -> "TrainerCallback":
    """Tells the record when training begins, and each step's loss."""
    import transformers

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            record.start()

        def on_log(self, *_, logs: dict, **__) -> None:
            if "loss" in logs:
                record.step(float(logs["loss"]))

    return Watch()


CONTENDERS: dict[str, Callable[[Task, Record], None]] = {
    "ours": ours,
    "ours-lora": functools.partial(ours, lora_rank=8),
    "hf": plain_loop,
    "hf-lora": functools.partial(plain_loop, lora_rank=8),
    "hf-tuned": functools.partial(plain_loop, tuned=True),
    "trl": trl,
    "trl-chunked-nll": functools.partial(trl, loss_type="chunked_nll"),
    "trl-padding-free": functools.partial(trl, padding_free=True),
    "trl-tuned": functools.partial(trl, padding_free=True, tuned=True),
}


# What the machine could do


def products(task: Task) -> Iterator[tuple[int, int, int]]:
    """The layers that the epoch goes through, one after the other: rows, and the weight's out, in.
    The head sees supervised rows only, as many at a time as sft.py takes."""
    C, V, (H, K, D) = task.config.n_embd, task.config.vocab_size, task.config.heads
    hidden = task.config.n_hidden or 4 * C
    block = [((H + 2 * K) * D, C), (C, H * D)]
    block += [((1 + task.config.gated) * hidden, C), (C, hidden)]
    head_rows = max(1, sft.MOST_LOGITS // V)
    for indices in task.steps:
        for micro_batch in sft.micro_batches_of(indices, task.dataset, MICRO_BATCH_TOKENS):
            n_tokens = int(task.dataset.lengths[micro_batch].sum())
            n_supervised = int(task.dataset.n_supervised[micro_batch].sum())
            for weight in block * task.config.n_layer:
                yield n_tokens, *weight
            for start in range(0, n_supervised, head_rows):
                yield min(head_rows, n_supervised - start), V, C


def product_seconds(task: Task, multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Seconds for the epoch's matrix products alone: of each layer its output, and the gradients of
    its input and its weight."""
    layers = list(products(task))
    dtype = torch.bfloat16 if task.bfloat16 else torch.float32

    def numbers(sizes: list[int]) -> Tensor:
        return torch.randn(max(sizes), device=task.device, dtype=dtype)

    inputs = numbers([rows * n_in for rows, _, n_in in layers])
    weights = numbers([n_out * n_in for _, n_out, n_in in layers])
    gradients = numbers([rows * n_out for rows, n_out, _ in layers])
    square = torch.ones(64, 64, device=task.device, dtype=dtype)
    multiply(square, square)  # the first product starts threads
    synchronize(task.device)
    started = time.perf_counter()
    for rows, n_out, n_in in layers:
        x = inputs[: rows * n_in].view(rows, n_in)
        weight = weights[: n_out * n_in].view(n_out, n_in)
        gradient = gradients[: rows * n_out].view(rows, n_out)
        multiply(x, weight.T)
        multiply(gradient, weight)
        multiply(gradient.T, x)
    synchronize(task.device)
    return time.perf_counter() - started


def floor(task: Task) -> dict[str, float]:
    """Seconds by torch.mm; and by what `ours` multiplies with, where that is something else."""
    fast.keep_freed_memory()  # or each product would wait for the kernel to clear its memory
    result = {"seconds": product_seconds(task, torch.mm), "threads": torch.get_num_threads()}
    if task.device == "cpu" and not (task.bfloat16 or task.compile) and fast.is_slow_with_mkl():
        by_onednn = product_seconds(task, lambda left, right: fast.multiply(left, right.T))
        result["onednn_seconds"] = by_onednn
    return result


def multiplication_rate(task: Task, size: int | None = None) -> dict[str, float]:
    """Multiplications and additions a second in a product of two large square matrices: the
    median of some."""
    size = size or (8192 if task.device == "cuda" else 2048)
    dtype = torch.bfloat16 if task.bfloat16 else torch.float32
    left, right = (torch.randn(size, size, device=task.device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(task.device)
        seconds.append(time.perf_counter() - started)
    return {"rate": 2 * size**3 / statistics.median(seconds[5:])}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


MEASUREMENTS: dict[str, Callable[[Task], dict]] = {
    "floor": floor,
    "multiplication": multiplication_rate,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[*CONTENDERS, *MEASUREMENTS])
    add_arguments(parser)
    args = parser.parse_args()
    try:
        task = make_task(args)
    except (OSError, ValueError) as error:
        return fail(error)
    if args.name in MEASUREMENTS:
        result = MEASUREMENTS[args.name](task)
    else:
        record = Record()
        CONTENDERS[args.name](task, record)
        result = record.result(task)
        assert math.isfinite(result["mean_loss"])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
