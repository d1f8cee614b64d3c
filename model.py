"""A GPT: GPT-2's architecture, exact enough for its published weights, and generation with a key-value cache.

Pre-norm transformer blocks, learned positions, GELU in its tanh form, biases, and one matrix for the token embedding
and the output head (Radford et al., 2019). Shapes are written with one set of letters throughout:

    B  sequences in a batch         C  channels (config.n_embd)
    T  positions in a sequence      H  attention heads
    V  rows of the vocabulary       D  channels of a head, C = H * D
    N  real tokens in a batch: B * T without padding, fewer with it
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ROW_MULTIPLE = 32  # to which rows are rounded up on a CPU, see `OneDNNProduct`


@dataclass
class GPTConfig:
    vocab_size: int  # V: rows of the embedding and columns of the logits
    context_length: int  # the most tokens that the model can look at
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    dropout: float = 0.0
    n_vocab: int = (
        0  # ids that exist; the rows after them are padding and never sampled (0: all rows exist)
    )

    def __post_init__(self) -> None:
        self.n_vocab = self.n_vocab or self.vocab_size
        if self.n_head < 1 or self.n_embd % self.n_head or not 0 < self.n_vocab <= self.vocab_size:
            raise ValueError(
                f"n_embd must be a multiple of n_head, and n_vocab at most vocab_size: {self}"
            )

    @property
    def n_parameters(self) -> int:
        """Of a block, 12 C^2 weights in its four matrices, and 13 C in biases and norms."""
        blocks = self.n_layer * (12 * self.n_embd**2 + 13 * self.n_embd)
        return (self.vocab_size + self.context_length + 2) * self.n_embd + blocks


class KVCache:
    """The keys and values of every position so far, so that a new token costs one position instead of all."""

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, like: Tensor):
        head_size = config.n_embd // config.n_head
        shape = (
            config.n_layer,
            2,
            batch_size,
            config.n_head,
            capacity,
            head_size,
        )  # 2: keys and values
        self.kv = torch.zeros(
            shape, dtype=like.dtype, device=like.device
        )  # not new_zeros: `like` may be a shard
        self.lengths = torch.zeros(
            batch_size, dtype=torch.long, device=like.device
        )  # (B,) tokens in the cache

    def place(self, n_new: int) -> Tensor:
        """(B, T) where the next `n_new` tokens of each sequence stand. What follows from that is the same in all layers
        and worked out here, once: a new token costs so little that the bookkeeping counts."""
        device = self.lengths.device
        self.rows = torch.arange(len(self.lengths), device=device)[:, None]  # (B, 1)
        self.positions = self.lengths[:, None] + torch.arange(n_new, device=device)  # (B, T)
        self.end = int(self.positions.max()) + 1  # S
        self.seen = (
            torch.arange(self.end, device=device) <= self.positions[:, None, :, None]
        )  # (B, 1, T, S)
        return self.positions

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) keys and values in their places; give back all up to the last, (B, H, S, D)."""
        for stored, new in zip(self.kv[layer], (keys, values)):
            stored[self.rows, :, self.positions] = new.transpose(1, 2)
        return self.kv[layer, 0, :, :, : self.end], self.kv[layer, 1, :, :, : self.end]

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these."""
        self.kv, self.lengths = self.kv[:, :, rows], self.lengths[rows]


@dataclass
class Rectangle:
    """Consecutive sequences of a batch. Attention alone needs the padding, all else is done for real tokens only."""

    shape: tuple[int, int]  # B, T
    n_tokens: int  # n, the real ones
    real: Tensor | None  # (n,) their flat indices into B*T; None: there is no padding


def cut_rectangles(B: int, T: int, real: Tensor | None) -> list[Rectangle]:
    """The rectangle (B, T) in parts, in each of which the longest sequence is at most 1.5 times the shortest, since
    attention costs all of them what the longest costs: the main job becomes 1.5 times as fast. A batch is sorted by
    length (`dataset.cut_micro_batches`), so the parts are few. A GPU has one large kernel rather than many small."""
    if real is None or real.device.type != "cpu" or torch.compiler.is_compiling():
        return [Rectangle((B, T), B * T if real is None else len(real), real)]
    lengths = torch.bincount(real // T, minlength=B).tolist()
    starts, shortest, longest = [], 0, 0
    for row, length in enumerate(lengths):
        shortest, longest = min(shortest, length), max(longest, length)
        if not starts or longest > 1.5 * shortest:
            starts.append(row)
            shortest = longest = length
    parts = (lengths[start:end] for start, end in zip(starts, [*starts[1:], B]))
    return [rectangle_of(part) for part in parts if any(part)]


def rectangle_of(lengths: list[int]) -> Rectangle:
    is_real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
    real = None if is_real.all() else is_real.flatten().nonzero()[:, 0]
    return Rectangle(is_real.shape, sum(lengths), real)


class OneDNNProduct(torch.autograd.Function):
    """`F.linear` by oneDNN, twice as fast as by MKL where it was measured (AMD). Both come with torch, which asks MKL
    for float32. oneDNN compiles a kernel for each number of rows; so that these are few, they are multiples of 32."""

    multiply = getattr(
        torch.ops.mkldnn, "_linear_pointwise", None
    )  # torch's own; where it is missing, MKL has to do

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        extra = -len(x) % ROW_MULTIPLE if len(x) > ROW_MULTIPLE else 0
        padded = F.pad(x, (0, 0, 0, extra)) if extra else x
        y = OneDNNProduct.multiply(padded, weight, bias, "none", [], "")
        return y.resize_(
            len(x), len(weight)
        )  # not y[:n]: autograd forbids writing to a view that a function gave

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needs, weight_needs, _ = ctx.needs_input_grad
        x_grad = weight_grad = None
        whole = len(x) - len(x) % ROW_MULTIPLE
        if (
            x_needs
        ):  # padding would copy the logits' gradient, so the last few rows go alone, and to MKL
            x_grad = grad[whole:] @ weight
            if whole:
                x_grad = torch.cat(
                    [OneDNNProduct.multiply(grad[:whole], weight.T, None, "none", [], ""), x_grad]
                )
        if weight_needs and whole and ctx.has_bias:
            weight_grad = OneDNNProduct.multiply(grad[:whole].T, x[:whole].T, None, "none", [], "")
            weight_grad.addmm_(grad[whole:].T, x[whole:])
        elif weight_needs:  # of the head, too: oneDNN would have the logits' gradient copied
            weight_grad = grad.T @ x
        return x_grad, weight_grad, grad.sum(0) if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # (N, in) -> (N, out)
    """`F.linear`, by oneDNN where that is to be had: in float32 on a CPU."""
    on_cpu = x.device.type == "cpu" and OneDNNProduct.multiply and not torch.compiler.is_compiling()
    plain = x.dtype == torch.float32 and x.dim() == 2 and not torch.is_autocast_enabled("cpu")
    if on_cpu and plain and len(x):
        return OneDNNProduct.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        return linear(x, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.proj_dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rectangles: list[Rectangle], cache: KVCache | None, layer: int
    ) -> Tensor:
        qkv = self.qkv(x)  # (N, 3C)
        parts = zip(qkv.split([rectangle.n_tokens for rectangle in rectangles]), rectangles)
        y = torch.cat(
            [
                self.attend(part, *rectangle.shape, rectangle.real, cache, layer)
                for part, rectangle in parts
            ]
        )
        return self.proj_dropout(self.proj(y))  # (N, C)

    def attend(
        self, qkv: Tensor, B: int, T: int, real: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Of one rectangle with n real tokens: (n, 3C) -> (n, C)."""
        C = qkv.shape[-1] // 3
        if real is not None:  # the padding is zeros that nothing reads
            qkv = qkv.new_zeros(B * T, 3 * C).index_copy_(0, real, qkv)  # (B*T, 3C)
        # split, not permute: its gradient is one copy of all three, not two
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2) for part in qkv.split(C, dim=-1)
        )  # (B, H, T, D)
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True
            )  # (B, H, T, D)
        else:  # is_causal counts from the top left corner, which is wrong for a new token against a longer cache
            k, v = cache.update(layer, k, v)  # (B, H, S, D)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.seen)
        y = y.transpose(1, 2).reshape(B * T, C)
        return y if real is None else y.index_select(0, real)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up = Linear(config.n_embd, 4 * config.n_embd)
        self.down = Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (N, C) -> (N, C)
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, *attention_arguments, keep: Tensor | None = None
    ) -> Tensor:  # (N, C) -> (N, C)
        """With `keep`, only these n rows leave the block: (N, C) -> (n, C)."""
        x = x + self.attn(self.attn_norm(x), *attention_arguments)
        if keep is not None:
            x = x.index_select(0, keep)
        return x + self.mlp(self.mlp_norm(x))


class TokenEmbedding(nn.Module):
    """One matrix (V, C), used twice: its rows are the tokens' vectors, and products with them are the logits."""

    def __init__(self, vocab_size: int, n_embd: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, n_embd))

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., C)
        # Not weight[ids], whose gradient on the CPU depends on thread timing. There, a sparse gradient spares a matrix
        # (V, C) of mostly zeros: its rows are added to the head's gradient, and the sum is dense again.
        on_cpu = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        return F.embedding(ids, self.weight, sparse=on_cpu)

    def logits(self, x: Tensor) -> Tensor:  # (n, C) -> (n, V)
        return linear(x, self.weight)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config = replace(config)  # its own: grow_vocab writes to it
        self.tok_emb = TokenEmbedding(config.vocab_size, config.n_embd)
        self.pos_emb = nn.Embedding(config.context_length, config.n_embd)
        self.emb_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: normal with deviation 0.02, biases zero; layers that add to the residual stream smaller by depth."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue  # LayerNorm starts at weight 1, bias 0
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        ids: Tensor,
        at: Tensor | None = None,
        real: Tensor | None = None,
        cache: KVCache | None = None,
        head: bool = True,
    ) -> Tensor:
        """Next-token logits: (B, T, V), or (n, V) at the n flat positions `at`. Without `head`, what it would multiply:
        (B, T, C) or (n, C).

        `ids` is (B, T), right-padded with any ids. `at` and `real` hold flat indices into B*T, ascending: `at` where
        logits are wanted (the head is the largest matrix of a small model), `real` the tokens that are not padding, to
        which all linear layers are then limited, those after the last attention to `at`. Padding needs no mask: it
        stands after all that is real, and attention looks back only. With a `cache`, `ids` continue the sequences in
        it.
        Raises ValueError where a sequence is longer than the context.
        """
        B, T = ids.shape
        positions = (
            torch.arange(T, device=ids.device).expand(B, T) if cache is None else cache.place(T)
        )
        n_tokens = T if cache is None else cache.end
        if n_tokens > self.config.context_length:
            raise ValueError(
                f"{n_tokens} tokens do not fit into a context of {self.config.context_length}"
            )
        flat_ids, flat_positions = ids.flatten(), positions.flatten()  # (B*T,)
        # After the last attention nobody looks at the other positions any more.
        keep = at if at is None or real is None else torch.searchsorted(real, at)  # (n,) rows of x
        rectangles, last = cut_rectangles(B, T, real), self.config.n_layer - 1
        if real is not None:
            flat_ids, flat_positions = flat_ids[real], flat_positions[real]  # (N,)
        if real is not None and real.device.type == "cpu" and not torch.compiler.is_compiling():
            # round up for `OneDNNProduct`: a sequence more that nobody looks at, and later row 0 a few times more
            extra = -len(real) % ROW_MULTIPLE
            flat_ids, flat_positions = (
                F.pad(flat_ids, (0, extra)),
                F.pad(flat_positions, (0, extra)),
            )
            rectangles += [Rectangle((1, extra), extra, None)] if extra else []
            keep = None if keep is None else F.pad(keep, (0, -len(keep) % ROW_MULTIPLE))
        x = self.emb_dropout(self.tok_emb(flat_ids) + self.pos_emb(flat_positions))  # (N, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, rectangles, cache, layer, keep=keep if layer == last else None)
        wanted = real if at is None else at
        x = self.final_norm(
            x if wanted is None else x[: len(wanted)]
        )  # (N, C) or (n, C), no longer rounded up
        y = self.tok_emb.logits(x) if head else x
        if at is not None:
            return y  # (n, V) or (n, C)
        if real is not None:
            y = y.new_zeros(B * T, y.shape[-1]).index_copy_(0, real, y)
        return y.view(B, T, -1)

    def grow_vocab(self, n_vocab: int) -> None:
        """Make ids up to `n_vocab` exist. New rows start at the mean of the old ones, so that a new token is an average
        one (Hewitt, 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html); V grows to a multiple of 64, which
        matrix multiplication on a GPU likes."""
        config, old = self.config, self.tok_emb.weight.data[: self.config.n_vocab]
        if n_vocab <= config.n_vocab:
            return
        if n_vocab > config.vocab_size:
            config.vocab_size = math.ceil(n_vocab / 64) * 64
        weight = old.mean(0).repeat(config.vocab_size, 1)
        weight[: config.n_vocab] = old
        self.tok_emb.weight = nn.Parameter(weight)
        config.n_vocab = n_vocab

    # Generation

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **sampling
    ) -> list[list[int]]:
        """The new ids of each prompt, without the stop token. Arguments and errors as for `stream`."""
        new_ids: list[list[int]] = [[] for _ in prompts]
        for step in self.stream(prompts, max_new_tokens, **sampling):
            for row, token_id in step.items():
                new_ids[row].append(token_id)
        return new_ids

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[int] = (),
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[dict[int, int]]:
        """Generate step by step: each step maps the index of every prompt that still goes on to its next id.

        A prompt ends at a token in `stop` (not given out), after `max_new_tokens`, or when the context is full.
        Temperature 0 takes the likeliest token; else one is drawn from the `top_k` likeliest, of these from the
        smallest set that holds `top_p` of the probability. Raises ValueError for an empty prompt, for one that leaves
        no room in the context, and for sampling values out of range.
        """
        if not prompts:
            return
        check_sampling(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
        self._check_prompts(prompts)
        was_training = self.training
        self.eval()
        try:
            device = self.pos_emb.weight.device
            generator = torch.Generator(device).manual_seed(seed)
            cache, logits = self.prefill(prompts, max_new_tokens)
            active = list(range(len(prompts)))  # the prompt behind each row of the cache
            for remaining in range(max_new_tokens, 0, -1):
                logits[:, self.config.n_vocab :] = -math.inf
                next_ids = sample(logits, temperature, top_k, top_p, generator)  # (B,)
                step = {
                    row: token_id
                    for row, token_id in zip(active, next_ids.tolist())
                    if token_id not in stop
                }
                yield step
                has_room = (cache.lengths + 1 < self.config.context_length).tolist()
                going_on = [i for i, row in enumerate(active) if row in step and has_room[i]]
                if not going_on or remaining == 1:
                    return
                if len(going_on) < len(active):
                    rows = torch.tensor(going_on, device=device)
                    cache.keep(rows)
                    active, next_ids = [active[i] for i in going_on], next_ids[rows]
                logits = self.decode_one_token(next_ids, cache)
        finally:
            self.train(was_training)

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, prompts))
        if not min(map(len, prompts)):
            raise ValueError("an empty prompt: give the model at least one token to go on from")
        if longest >= self.config.context_length:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room in a context of {self.config.context_length}"
            )

    def prefill(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> tuple[KVCache, Tensor]:
        """Read all prompts at once, right-padded: the filled cache, and the logits after each prompt, (B, V)."""
        parameter = self.pos_emb.weight
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=parameter.device)  # (B,)
        B, T = len(prompts), int(lengths.max())
        ids = torch.tensor(
            [[*prompt, *[0] * (T - len(prompt))] for prompt in prompts], device=parameter.device
        )
        cache = KVCache(
            self.config, B, min(T + max_new_tokens, self.config.context_length), parameter
        )
        last = torch.arange(B, device=parameter.device) * T + lengths - 1
        logits = self(ids, at=last, cache=cache)
        cache.lengths = (
            lengths  # the keys of the padding stay behind these, unseen until they are overwritten
        )
        return cache, logits

    def decode_one_token(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append one id to each sequence, (B,), and give the logits after it, (B, V)."""
        logits = self(ids[:, None], cache=cache)[:, 0]
        cache.lengths = cache.lengths + 1
        return logits


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], not {top_p}")


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Choose one id a row: (B, V) logits -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (
        logits - logits.amax(-1, keepdim=True)
    ) / temperature  # at most 0, so no temperature is too low
    if top_k is not None:
        kth_best = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth_best, -math.inf)
    if (
        top_p is not None
    ):  # nucleus sampling (Holtzman et al., 2020, https://arxiv.org/abs/1904.09751)
        descending, order = logits.softmax(-1).sort(descending=True)
        likelier = descending.cumsum(-1) - descending  # probability of all that come before
        outside = torch.zeros_like(likelier, dtype=torch.bool).scatter(-1, order, likelier >= top_p)
        logits = logits.masked_fill(outside, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
