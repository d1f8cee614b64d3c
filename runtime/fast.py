"""Fast forms of what the core says plainly; `speed_up` puts them into a model, where they pay."""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import model as plain
from runtime.distributed import world_size

ROW_MULTIPLE = 32  # oneDNN compiles a kernel for each number of rows; so that these are few


def speed_up(
    model: plain.GPT, device: str, compile_blocks: bool = False, checkpointing: bool = False
) -> plain.GPT:
    """Put forms in, in place, that compute the same in less time, or memory, on `device`."""
    if device != "cpu" or compile_blocks:
        # Not compiled: it would be another graph for each number and kind of rectangles.
        attend = torch.compiler.disable(attend_padded) if compile_blocks else attend_padded
        model.spans = functools.partial(Spans, device=device)
        for block in model.blocks:
            block.attn.attend = functools.partial(attend, block.attn)
    else:
        # Its gradient, a matrix (V, C) of mostly zeros; in messages all must be dense.
        model.tok_emb.sparse = world_size() == 1
        products = {plain.TokenEmbedding: "logits", nn.Linear: "forward"}
        for module in model.modules() if is_slow_with_mkl() else ():
            if product := products.get(type(module)):
                setattr(module, product, functools.partial(linear, module))
    if compile_blocks:
        compiled = torch.compile(plain.Block.forward, dynamic=True)
        for block in model.blocks:
            block.forward = functools.partial(forward_compiled, compiled, block)
    for block in model.blocks if checkpointing else ():  # for less memory (Chen et al., 2016)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return model


def forward_compiled(compiled, block: plain.Block, x, spans, rotation, cache, layer) -> Tensor:
    """Plain in generation, whose many shapes are as many graphs: torch would give up on all."""
    forward = compiled if cache is None else plain.Block.forward
    return forward(block, x, spans, rotation, cache, layer)


def keep_freed_memory(dtype: torch.dtype = torch.float32) -> None:
    """Tell glibc to keep large freed blocks: clearing them again takes 15 % of a step. And oneDNN,
    which multiplies bfloat16, to keep few of its kernels: they took three times a run's memory."""
    if dtype == torch.bfloat16:
        for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            os.environ.setdefault(cache, "16")
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class Spans:
    """The conversations in padded rectangles, each of at most twice as many places as tokens. (An
    object, because torch.compile makes another graph for each length that a list has.)"""

    def __init__(self, lengths: list[int], device: str):
        groups: list[list[int]] = [[]]
        for length in lengths:
            longer = [*groups[-1], length]
            fits = len(longer) * max(longer) <= 2 * sum(longer)
            groups[-1:] = [longer] if fits else [groups[-1], [length]]
        self.sizes = [sum(group) for group in groups]  # n: tokens in each
        self.shapes = [(len(group), max(group)) for group in groups]  # B, T
        is_token = (torch.arange(max(group)) < torch.tensor(group)[:, None] for group in groups)
        self.places = [each.flatten().nonzero()[:, 0].to(device) for each in is_token]  # (n,)


def attend_padded(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """`CausalSelfAttention.attend`: (N, H, D), two (N, K, D) -> (N, H, D). No mask is needed: the
    padding stands behind all tokens of its row, and attention looks back only."""
    dropout, attended = attention.dropout if attention.training else 0.0, []
    tokens = (part.split(spans.sizes) for part in (q, k, v))  # (n, heads, D) each
    for (B, T), at, *parts in zip(spans.shapes, spans.places, *tokens):
        flat = (part.new_zeros(B * T, *part.shape[1:]).index_copy(0, at, part) for part in parts)
        padded = (part.unflatten(0, (B, T)).transpose(1, 2) for part in flat)  # (B, heads, T, D)
        y = plain.attention(*padded, dropout_p=dropout, is_causal=True)
        attended.append(y.transpose(1, 2).flatten(0, 1).index_select(0, at))  # (n, H, D)
    return torch.cat(attended)


@functools.cache
def is_slow_with_mkl() -> bool:
    """On AMD's processors oneDNN, which comes with torch, multiplied 1.15 to 2.3 times as fast as
    MKL, which torch asks for float32; on one of Intel's there was no difference."""
    with contextlib.suppress(OSError):  # not on Linux
        is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
        return is_amd and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return False


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNProduct(torch.autograd.Function):
    """`F.linear` by oneDNN: (N, in), (out, in), (out,) -> (N, out)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        extra = -len(x) % ROW_MULTIPLE if len(x) > ROW_MULTIPLE else 0
        y = multiply(F.pad(x, (0, 0, 0, extra)) if extra else x, weight, bias)
        return y.resize_(len(x), len(weight))  # a view y[:N] could not be written to later

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_grad = weight_grad = None
        whole = len(x) - len(x) % ROW_MULTIPLE  # the last rows go to MKL: padding would copy all
        if ctx.needs_input_grad[0]:
            x_grad = torch.cat([multiply(grad[:whole], weight.T), grad[whole:] @ weight])
        if all(ctx.needs_input_grad[1:]) and whole:
            weight_grad = multiply(grad[:whole].T, x[:whole].T).addmm_(grad[whole:].T, x[whole:])
        elif ctx.needs_input_grad[1]:  # of the head, for which oneDNN would copy the logits
            weight_grad = grad.T @ x
        return x_grad, weight_grad, grad.sum(0) if ctx.needs_input_grad[2] else None


def linear(layer: nn.Module, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
    """`forward` of a linear layer, `logits` of an embedding: in float32 by oneDNN."""
    bias = getattr(layer, "bias", None)
    if len(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return OneDNNProduct.apply(x, layer.weight, bias)
    return F.linear(x, layer.weight, bias)
