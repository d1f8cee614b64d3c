"""A GPT, exact enough for two generations of published weights, and generation with a cache.

Pre-norm transformer blocks; one matrix for token embedding and output head. What has changed since
2019 is some switches in `GPTConfig`, whose defaults are GPT-2:

               GPT-2             Llama and Qwen
    positions  learned, added    queries and keys are rotated (arxiv.org/abs/2104.09864)
    norm       LayerNorm         RMSNorm (1910.07467); in Qwen 3 of q and k, too
    MLP        GELU, tanh form   SiLU of a gate times a second product (2002.05202)
    k and v    one a head        one for several heads (2305.13245)
    biases     everywhere        nowhere; in Qwen 2 of q, k and v

A training batch is one row of tokens: its conversations one after the other, with their `lengths`.
Only attention looks at other tokens, of the same conversation: no padding, no mask. Shapes:

    B  sequences in a batch         C  channels (config.n_embd)
    T  positions in a sequence      H  attention heads, K of keys and values
    N  tokens in a batch            D  channels of a head
    V  rows of the vocabulary       S  positions in the cache
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Generator, Tensor

Ids = Sequence[int]  # of a prompt
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass
class GPTConfig:
    vocab_size: int  # V: rows of the embedding and columns of the logits
    context_length: int  # the most tokens that the model can look at
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    dropout: float = 0.0
    n_vocab: int = 0  # ids that exist; rows after them are padding, never sampled (0: all exist)
    n_kv_head: int = 0  # K (0: n_head)
    head_size: int = 0  # D (0: n_embd / n_head)
    n_hidden: int = 0  # channels inside the MLP (0: 4 * n_embd)
    gated: bool = False
    norm: str = "layer"  # or "rms"
    norm_eps: float = 1e-5
    qk_norm: bool = False  # each head by itself
    bias: str = "all"  # of linear layers; or "qkv", "none"
    rope_theta: float = 0.0  # 0: learned positions
    rope_scaling: tuple[float, ...] = ()  # Llama 3's, see `rotation_at`

    def __post_init__(self) -> None:
        self.n_vocab = self.n_vocab or self.vocab_size
        is_whole = self.n_head > 0 and (self.head_size or self.n_embd % self.n_head == 0)
        if not is_whole or self.n_head % self.heads[1]:
            raise ValueError(f"n_embd must be a multiple of n_head, that of n_kv_head: {self}")
        if self.norm not in NORMS or self.bias not in ("all", "qkv", "none"):
            raise ValueError(f"unknown norm or bias: {self}")
        if not 0 < self.n_vocab <= self.vocab_size:
            raise ValueError(f"n_vocab must be from 1 to vocab_size: {self}")

    @property
    def heads(self) -> tuple[int, int, int]:  # H, K and D
        H = self.n_head
        return H, self.n_kv_head or H, self.head_size or self.n_embd // H


# The parts


class KVCache:
    """Keys and values of all positions so far: a new token then costs one position, not all."""

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, like: Tensor):
        _, K, D = config.heads
        shape = config.n_layer, 2, batch_size, K, capacity, D  # 2: k and v
        self.kv = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=like.device)  # (B,)

    def place(self, n_new: int) -> Tensor:
        """(B, T): where the next `n_new` tokens of each sequence stand. The same in all layers."""
        device = self.lengths.device
        self.rows = torch.arange(len(self.lengths), device=device)[:, None]  # (B, 1)
        self.positions = self.lengths[:, None] + torch.arange(n_new, device=device)  # (B, T)
        self.end = int(self.positions.max()) + 1  # S
        # (B, 1, T, S); None is causal, which counts from the top left: right for an empty cache.
        self.seen = None
        if self.end > n_new:
            self.seen = torch.arange(self.end, device=device) <= self.positions[:, None, :, None]
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, (B * T, K, D); let q attend to all: (B * T, H, D) -> the same."""
        B, T = self.positions.shape
        for stored, new in zip(self.kv[layer], (k, v)):  # (B, K, capacity, D), (N, K, D)
            stored[self.rows, :, self.positions] = new.unflatten(0, (B, T))
        q = q.unflatten(0, (B, T)).transpose(1, 2)  # (B, H, T, D)
        k, v = self.kv[layer, :, :, :, : self.end]  # (B, K, S, D)
        y = attention(q, k, v, attn_mask=self.seen, is_causal=self.seen is None)
        return y.transpose(1, 2).flatten(0, 1)

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these."""
        self.kv, self.lengths = self.kv[:, :, rows], self.lengths[rows]


def attention(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """q (B, H, T, D), and k and v (B, K, S, D), each for H / K heads -> (B, H, T, D)."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] > k.shape[1], **options)


def rotation_at(positions: Tensor, config: GPTConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (N, 1, D / 2), of the angles by which heads turn at positions (N,): pair i
    of channels by theta ** (-2 i / D) a position. `rope_scaling` (factor, low, high, context) makes
    room beyond a context: pairs of fewer than `low` turns in it are slowed by `factor`, those of
    more than `high` are not."""
    D = config.heads[2]
    speed = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, device=positions.device) / D)
    if config.rope_scaling:
        factor, low, high, context = config.rope_scaling
        kept = ((speed * context / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        speed = speed * (kept + (1 - kept) / factor)
    angles = positions[:, None, None] * speed
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn the pairs of channels (i, i + D / 2): (N, heads, D) -> the same."""
    if rotation is None:
        return x
    (a, b), (cos, sin) = x.chunk(2, dim=-1), rotation
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        (H, K, D), C = config.heads, config.n_embd
        self.heads, self.dropout = (H, K, K), config.dropout  # of q, k, v
        self.qkv = nn.Linear(C, (H + 2 * K) * D, bias=config.bias != "none")
        norm = (lambda: NORMS[config.norm](D, config.norm_eps)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()
        self.proj = nn.Linear(H * D, C, bias=config.bias == "all")
        self.proj_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, spans: list[int], rotation, cache, layer: int) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (sum(self.heads), -1))  # (N, H + 2 K, D)
        q, k, v = heads.split(self.heads, dim=1)
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        y = self.attend(q, k, v, spans) if cache is None else cache.attend(layer, q, k, v)
        return self.proj_dropout(self.proj(y.flatten(1)))  # (N, C)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        """Over each conversation by itself: (N, H, D) and two (N, K, D) -> (N, H, D)."""
        dropout = self.dropout if self.training else 0.0
        parts = (part.transpose(0, 1)[None].split(lengths, dim=2) for part in (q, k, v))
        each = zip(*parts)  # conversation: its q, k and v, (1, heads, T, D)
        attended = [attention(*qkv, dropout_p=dropout, is_causal=True) for qkv in each]
        return torch.cat(attended, dim=2)[0].transpose(0, 1)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        C, hidden, bias = config.n_embd, config.n_hidden or 4 * config.n_embd, config.bias == "all"
        self.gated, self.dropout = config.gated, nn.Dropout(config.dropout)
        self.up = nn.Linear(C, (1 + self.gated) * hidden, bias)  # the gate's rows come first
        self.down = nn.Linear(hidden, C, bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, C) -> (N, C)
        if self.gated:
            gate, x = self.up(x).chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(self.up(x), approximate="tanh")
        return self.dropout(self.down(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm = NORMS[config.norm](config.n_embd, config.norm_eps)
        self.attn = CausalSelfAttention(config)
        self.mlp_norm = NORMS[config.norm](config.n_embd, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, spans: list[int], rotation, cache, layer: int) -> Tensor:
        """x (N, C) -> the same. `rotation`: each token's cosine and sine, or None."""
        x = x + self.attn(self.attn_norm(x), spans, rotation, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class TokenEmbedding(nn.Module):
    """One matrix (V, C): its rows are the tokens' vectors, products with them the logits."""

    def __init__(self, vocab_size: int, n_embd: int):
        super().__init__()
        self.weight, self.sparse = nn.Parameter(torch.empty(vocab_size, n_embd)), False

    def forward(self, ids: Tensor) -> Tensor:  # (N,) -> (N, C)
        return F.embedding(ids, self.weight, sparse=self.sparse)

    def logits(self, x: Tensor) -> Tensor:  # (n, C) -> (n, V)
        return F.linear(x, self.weight)


# The whole


class GPT(nn.Module):
    adapter = None  # that of lora.add_lora, if any

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config = replace(config)  # its own: grow_vocab writes to it
        self.tok_emb = TokenEmbedding(config.vocab_size, config.n_embd)
        if not config.rope_theta:
            self.pos_emb = nn.Embedding(config.context_length, config.n_embd)
        self.emb_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = NORMS[config.norm](config.n_embd, config.norm_eps)
        self.init_weights()

    def init_weights(self) -> None:
        """As GPT-2: deviation 0.02, biases zero; what adds to the residual stream less by depth."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue  # norms start at weight 1, bias 0
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        ids: Tensor,
        lengths: list[int] | None = None,
        cache: KVCache | None = None,
        head: bool = True,
    ) -> Tensor:
        """Logits of the next token after each token; without `head`, the hidden states (C for V).

        ids (N,): conversations of these `lengths`, one after the other -> (N, V). ids (B, T): B
        conversations of T tokens -> (B, T, V). With a `cache`, they go on after what is in it.
        Raises ValueError for a conversation longer than the context, or other lengths.
        """
        if lengths is None:
            lengths = [ids.shape[1]] * ids.shape[0]
        if sum(lengths) != ids.numel():
            raise ValueError(f"{ids.numel()} ids in conversations of {sum(lengths)} tokens")
        if cache is None:
            positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths])  # (N,)
        else:
            positions = cache.place(ids.shape[1]).flatten()  # (N,)
        longest, context = max(lengths) if cache is None else cache.end, self.config.context_length
        if longest > context:
            raise ValueError(f"{longest} tokens do not fit into a context of {context}")
        x, rotation = self.tok_emb(ids.flatten()), None  # (N, C)
        if self.config.rope_theta:
            rotation = rotation_at(positions, self.config, x.dtype)
        else:
            x = x + self.pos_emb(positions)
        x, spans = self.emb_dropout(x), self.spans(lengths)
        for layer, block in enumerate(self.blocks):
            x = block(x, spans, rotation, cache, layer)
        x = self.final_norm(x)
        y = self.tok_emb.logits(x) if head else x
        return y if ids.dim() == 1 else y.unflatten(0, ids.shape)

    def spans(self, lengths: list[int]) -> list[int]:
        """What attention is told of the conversations; runtime/fast.py tells it more."""
        return lengths

    def grow_vocab(self, n_vocab: int) -> None:
        """Make ids up to `n_vocab` exist. New rows start at the mean of the old ones (Hewitt, 2021,
        "Initializing new word embeddings"). V grows to a multiple of 64, which GPUs like."""
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

    def generate(self, prompts: list[Ids], max_new_tokens: int, **sampling) -> list[list[int]]:
        """The new ids of each prompt, without the stop token. Arguments and errors as `stream`."""
        new_ids: list[list[int]] = [[] for _ in prompts]
        for step in self.stream(prompts, max_new_tokens, **sampling):
            for row, token_id in step.items():
                new_ids[row].append(token_id)
        return new_ids

    @torch.no_grad()
    def stream(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        stop: Sequence[int] = (),
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[dict[int, int]]:
        """Generate step by step: each maps the index of every prompt that goes on to its next id.

        A prompt ends at a token in `stop` (not given out), after `max_new_tokens`, or when the
        context is full. Temperature 0 takes the likeliest token; else one is drawn from the `top_k`
        likeliest, of these from the smallest set with `top_p` of the probability. Raises ValueError
        for an empty prompt, one that fills the context, values out of range.
        """
        if not prompts:
            return
        check_sampling(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
        context, length = self.config.context_length, max(map(len, prompts))
        if not min(map(len, prompts)):
            raise ValueError("an empty prompt: there must be a token to go on from")
        if length >= context:
            raise ValueError(f"a prompt of {length} tokens fills the context of {context}")
        was_training = self.training
        self.eval()
        try:
            device = self.final_norm.weight.device
            generator = Generator(device).manual_seed(seed)
            cache, logits = self.prefill(prompts, max_new_tokens)
            active = list(range(len(prompts)))  # the prompt behind each row of the cache
            for remaining in range(max_new_tokens, 0, -1):
                logits[:, self.config.n_vocab :] = -math.inf
                next_ids = sample(logits, temperature, top_k, top_p, generator)  # (B,)
                chosen = zip(active, next_ids.tolist())
                step = {row: token_id for row, token_id in chosen if token_id not in stop}
                yield step
                has_room = (cache.lengths + 1 < context).tolist()
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

    def prefill(self, prompts: list[Ids], max_new_tokens: int) -> tuple[KVCache, Tensor]:
        """Read all prompts at once: the filled cache, and the logits after each prompt, (B, V)."""
        like = self.final_norm.weight
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=like.device)  # (B,)
        B, T = len(prompts), int(lengths.max())
        ids = torch.tensor([[*p, *[0] * (T - len(p))] for p in prompts], device=like.device)
        cache = KVCache(self.config, B, min(T + max_new_tokens, self.config.context_length), like)
        hidden = self(ids, cache=cache, head=False)  # (B, T, C)
        # The padding's keys stay behind these lengths, unseen until they are written over.
        cache.lengths = lengths
        last = hidden[torch.arange(B, device=like.device), lengths - 1]  # (B, C)
        return cache, self.tok_emb.logits(last)

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
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Generator
) -> Tensor:
    """Choose one id a row: (B, V) logits -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0: none is too low
    if top_k is not None:
        kth_best = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth_best, -math.inf)
    if top_p is not None:  # nucleus sampling (Holtzman et al., 2020, arxiv.org/abs/1904.09751)
        descending, order = logits.softmax(-1).sort(descending=True)
        likelier = descending.cumsum(-1) - descending  # probability of all that come before
        outside = (likelier >= top_p).gather(-1, order.argsort(-1))
        logits = logits.masked_fill(outside, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
