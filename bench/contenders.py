"""The contenders of sft_speed.py: one process each, which trains on the task and prints one line of JSON.

    python bench/contenders.py ours --shape small --data FILE

All of them see the same conversations a step, in the same order, from the same weights, with the same optimiser
settings. What is timed is everything from the first batch to the last update: collating, forward, backward, clipping,
update.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

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

import lora
import sft
from dataset import collate, micro_batches_of
from model import linear

TOKEN_IDS = (50257, 50258)  # of ChatML's markers


def ours(task: Task, record: Record, lora_rank: int = 0) -> None:
    """The step of sft.train, made of the same functions, without logging, validation and saving."""
    sft.keep_freed_memory()
    model = our_model(task.config)
    if (
        lora_rank
    ):  # the two special tokens' rows are trained with it, as in a run from a base that lacks them
        lora.add_lora(model, lora_rank, token_ids=TOKEN_IDS)
    config = sft.Config(weight_decay=0.0, grad_clip=CLIP, lora_rank=lora_rank, compile=task.compile)
    dtype = torch.bfloat16 if task.bfloat16 else torch.float32
    run = sft.Run(config, task.device, dtype, model, None, {}, None, [], None)
    optimizer = sft.make_optimizer(run, None)
    optimizer.eps = EPSILON
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    forward = torch.compile(model, dynamic=True) if task.compile else model
    model.train()
    record.start()
    for indices in task.steps:
        micro_batches = micro_batches_of(indices, task.dataset, config.micro_batch_tokens)
        batches = (collate(task.dataset, micro_batch, task.device) for micro_batch in micro_batches)
        n_supervised = int(task.dataset.n_supervised[indices].sum())
        nll = sft.accumulate_gradients(forward, batches, n_supervised, run.autocast)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if norm.item() > config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
        optimizer.step()
        optimizer.zero_grad()
        record.step(nll / n_supervised)


def plain_loop(task: Task, record: Record, tuned: bool = False) -> None:
    """A loop that anybody would write around transformers' GPT2LMHeadModel. Tuned: GELU in one kernel, AdamW in one
    kernel, no mask (padding stands on the right, where causal attention does not look), freed memory kept."""
    if tuned:
        sft.keep_freed_memory()
    model = (
        transformers_model(task.config, "gelu_pytorch_tanh" if tuned else "gelu_new")
        .to(task.device)
        .train()
    )
    settings = dict(lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), **settings, fused=True if tuned else None)
    forward = torch.compile(model, dynamic=True) if task.compile else model
    record.start()
    for indices in task.steps:
        batch = {
            name: tensor.to(task.device)
            for name, tensor in padded_batch(task.dataset, indices).items()
        }
        if tuned:
            del batch["attention_mask"]
        with task.autocast():
            loss = forward(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        record.step(loss.item())


def trl(task: Task, record: Record, padding_free: bool = False, tuned: bool = False) -> None:
    """TRL's SFTTrainer on the rendered ids. Not its literal defaults: those add bf16 and gradient checkpointing, which
    are slower still on a CPU. Tuned: GELU in one kernel, freed memory kept; its AdamW is fused by default."""
    import transformers
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    if tuned:
        sft.keep_freed_memory()
    disable_progress_bars()

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            record.start()

        def on_log(self, *_, logs: dict, **__) -> None:
            if "loss" in logs:
                record.step(float(logs["loss"]))

    rows = [ids_and_labels(task.dataset, index) for indices in task.steps for index in indices]
    dataset = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    vocabulary = Tokenizer(
        models.WordLevel({"<pad>": 0, "<stop>": 1}, unk_token="<pad>")
    )  # of no use, but asked for
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<stop>"
    )
    model = transformers_model(task.config, "gelu_pytorch_tanh" if tuned else "gelu_new")
    with tempfile.TemporaryDirectory() as folder:
        same = dict(
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=CLIP,
        )
        same |= dict(
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPSILON,
            num_train_epochs=1,
            max_length=None,
        )
        same |= dict(
            per_device_train_batch_size=len(task.steps[0]), train_sampling_strategy="sequential"
        )
        same |= dict(gradient_checkpointing=False, padding_free=padding_free)
        quiet = dict(
            output_dir=folder,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        quiet |= dict(dataloader_pin_memory=False)
        where = dict(use_cpu=task.device == "cpu", bf16=task.bfloat16, torch_compile=task.compile)
        settings = SFTConfig(**same, **quiet, **where)
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()


CONTENDERS: dict[str, Callable[[Task, Record], None]] = {
    "ours": ours,
    "ours-lora": functools.partial(ours, lora_rank=8),
    "hf": plain_loop,
    "hf-tuned": functools.partial(plain_loop, tuned=True),
    "trl": trl,
    "trl-padding-free": functools.partial(trl, padding_free=True),
    "trl-tuned": functools.partial(trl, padding_free=True, tuned=True),
}


def multiplication_rate(
    task: Task, multiply: Callable = torch.mm, size: int | None = None
) -> float:
    """Multiplications and additions a second in a product of two large square matrices, at its median."""
    size = size or (8192 if task.device == "cuda" else 2048)
    dtype = torch.bfloat16 if task.bfloat16 else torch.float32
    left, right = (torch.randn(size, size, device=task.device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        multiply(left, right)
        if task.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[5:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[*CONTENDERS, "multiplication"])
    add_arguments(parser)
    args = parser.parse_args()
    try:
        task = make_task(args)
    except (OSError, ValueError) as error:
        return sft.fail(error)
    if args.name == "multiplication":
        sft.keep_freed_memory()  # or each product would wait for the kernel to clear its memory
        result = {"rate": multiplication_rate(task), "threads": torch.get_num_threads()}
        if task.device == "cpu":
            result["our_rate"] = multiplication_rate(task, linear)
    else:
        record = Record()
        CONTENDERS[args.name](task, record)
        result = record.result(task)
        assert math.isfinite(result["mean_loss"])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
