"""Many processes: the same step everywhere, each process its share (torchrun sft.py ...).

All compute the same order of the same data, so that nothing is exchanged but sums; process 0 prints
and writes. With `--fsdp` each keeps only its part of every weight, gradient and optimiser state
(Zhao et al., 2023, https://arxiv.org/abs/2304.11277). Whole tensors are saved.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from model import GPT

BUCKET = 16  # gradients in a message
TIMEOUT = datetime.timedelta(hours=2)  # while one tokenises or saves; if one dies, it ends at once


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """As torchrun says. Without a rank, a cluster's number of tasks is not one of processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Meet the others, if there are any, and leave with them. Raises ConnectionError where another
    process has ended, ValueError where nothing says how the many that are told of meet."""
    missing = ", ".join(sorted({"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()))
    if missing and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(f"WORLD_SIZE is set, but not {missing}: start with torchrun, or unset it")
    try:
        if world_size() > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        yield
        barrier()
        if world_size() > 1:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        where = f"its own message says why ({type(error).__name__} in process {rank()})"
        raise ConnectionError(f"another process of this run has ended; {where}") from error


def choose_device(device: str, dtype: str, fsdp: bool = False) -> tuple[str, torch.dtype]:
    """Device, and number format: bfloat16 (autocast) where it is in hardware. Raises ValueError."""
    if fsdp and world_size() == 1:
        raise ValueError("--fsdp is for several processes: torchrun --nproc_per_node=2 sft.py ...")
    has_mps = torch.backends.mps.is_available() and world_size() == 1  # it talks to no other one
    available = {"cuda": torch.cuda.is_available(), "mps": has_mps, "cpu": True}
    chosen = next(name for name in available if available[name]) if device == "auto" else device
    if not available[chosen]:
        raise ValueError(f"--device {chosen}: torch finds none on this machine; try --device auto")
    if chosen == "cuda" and world_size() > 1:
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise ValueError("fewer GPUs than processes: lower --nproc_per_node, or --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    has_bf16 = chosen == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    default = torch.bfloat16 if has_bf16 else torch.float32
    return chosen, default if dtype == "auto" else getattr(torch, dtype)


def barrier() -> None:
    """Wait until every process has called this. (dist.barrier uses a GPU, where there is one.)"""
    sum_over_processes([0.0])


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let each machine's first process tokenise, or report an error, before the others go on."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Add up a few numbers, by gloo, which notices at once when a process has ended."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def all_reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all processes (FSDP has), those of some parameters in a message: one
    for each would be mostly waiting, one for all would need their memory again."""
    gradients = [parameter.grad for parameter in parameters if not is_sharded(parameter)]
    for first in range(0, len(gradients) if world_size() > 1 else 0, BUCKET):
        bucket = gradients[first : first + BUCKET]
        flat = parameters_to_vector(bucket)
        dist.all_reduce(flat)
        vector_to_parameters(flat, bucket)


def shard(model: GPT, device: str) -> None:
    """Leave on `device` only this process's part of each weight, in place. Gradients are added up,
    since losses are divided by all processes' tokens; FSDP's default is a mean."""
    from torch.distributed.device_mesh import init_device_mesh  # takes most of a second to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world_size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # github.com/pytorch/pytorch/issues/162338


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def unsharded(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def full_state_dict(value: object) -> object:
    """Dicts and lists with whole tensors for shards, on process 0. Every process must take part."""
    if isinstance(value, dict):
        return {key: full_state_dict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [full_state_dict(item) for item in value]
    if not is_sharded(value):
        return value
    whole = unsharded(value)
    return whole.cpu() if rank() == 0 else None  # nobody else has room for the model


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, if the parameter that it belongs to is sharded."""
    if not is_sharded(parameter) or not tensor.dim():
        return tensor
    place = parameter.device_mesh, parameter.placements  # by FSDP, which imports dist.tensor
    return dist.tensor.distribute_tensor(tensor.to(parameter.device), *place, src_data_rank=None)
