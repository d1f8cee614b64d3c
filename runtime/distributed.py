"""Many processes, as torchrun starts them: the same step everywhere, each process its share of the conversations.

    torchrun --nproc_per_node=2 sft.py --data mine.jsonl

All of them read the same data and compute the same order, so that nothing is exchanged but sums: of losses, of
gradients, of wishes to stop. Process 0 prints and writes for all. With `--fsdp` each process keeps only its part of
every weight, gradient and optimiser state, and fetches a block's weights from the others when it is that block's turn
(FSDP2: Zhao et al., 2023, https://arxiv.org/abs/2304.11277); what is saved are whole tensors either way.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from model import GPT

BUCKET = 2**23  # numbers in a message: 32 MB of float32
TIMEOUT = datetime.timedelta(
    hours=2
)  # how long the others wait while one tokenises or saves; a death ends it at once


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def connect() -> None:
    """Meet the other processes, if there are any: numbers on the CPU travel with gloo, those on GPUs with NCCL."""
    if world_size() > 1 and not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
        )


def wait_for_all() -> None:
    """Return when every process has called this. (dist.barrier would use a GPU, even in a run on the CPU.)"""
    sum_over_processes([0.0])


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let each machine's first process go ahead, and the others follow: they then find what it has tokenised, and an
    error in the data or the arguments is reported once."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not is_first:
        wait_for_all()
    yield
    if is_first:
        wait_for_all()


@contextlib.contextmanager
def in_touch() -> Iterator[None]:
    """Raises ConnectionError where another process has ended: each of them then ends, and at once."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            message = "another process of this run has ended; its own message says why"
            raise ConnectionError(
                f"{message} ({type(error).__name__} in process {rank()})"
            ) from error
        raise


def leave_together() -> None:
    """A process that is gone would break the others' connections."""
    wait_for_all()
    if world_size() > 1:
        dist.destroy_process_group()


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Add up a few numbers, which are on the CPU and travel with gloo: it notices at once when a process has ended."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all processes, in a few messages of 32 MB: one a parameter would be mostly waiting, and
    a single one would need as much memory again as all gradients. FSDP has done it before, in the backward pass."""
    if world_size() == 1 or is_sharded(parameters[0]):
        return
    bucket: list[Tensor] = []
    for number, parameter in enumerate(parameters, 1):
        bucket.append(parameter.grad)
        if number == len(parameters) or sum(gradient.numel() for gradient in bucket) >= BUCKET:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(
                bucket, flat.split([gradient.numel() for gradient in bucket])
            ):
                gradient.copy_(summed.view_as(gradient))
            bucket = []


def shard(model: GPT, device: str) -> None:
    """Leave on `device` only this process's part of each weight, in place; a block's weights travel together.

    The loss is divided by the tokens of all processes before the backward pass, so gradients are to be added up. The
    default is their mean, which on gloo has come out as a sum (https://github.com/pytorch/pytorch/issues/162338); so
    a sum is what is asked for."""
    from torch.distributed.device_mesh import (
        init_device_mesh,
    )  # here, because they take most of a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world_size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def unsharded(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gather(value: object) -> object:
    """Nested dicts and lists with whole tensors in the place of shards, on process 0. Every process must take part."""
    if isinstance(value, dict):
        return {key: gather(item) for key, item in value.items()}
    if isinstance(value, list):
        return [gather(item) for item in value]
    if is_sharded(value):
        whole = unsharded(value)
        return (
            whole.cpu() if rank() == 0 else None
        )  # one tensor at a time: nobody else has room for the model
    return value


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, if the parameter that it belongs to is sharded."""
    if not is_sharded(parameter) or not tensor.dim():
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)
