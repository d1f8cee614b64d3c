"""LoRA: train a low-rank difference to the weights (Hu et al., arxiv.org/abs/2106.09685).

A linear layer W becomes W + scale * B A, with A (rank, in) random and B (out, rank) zero, so that
nothing changes at first. Scale is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski,
2023, arxiv.org/abs/2312.03732). The base is frozen and never written to.

A base that never saw the chat format cannot say its stop token through adapters alone: the rows of
new special tokens are trained too, as a difference from zero on, in embedding and head.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

ALL_TARGETS = ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")


@dataclass
class LoraConfig:
    kind = "lora"  # of adapters: a fork's have another
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # see `add_lora`
    token_ids: tuple[int, ...]  # tokens whose rows are trained
    rslora: bool
    fingerprint: str  # of the base, as it was before its vocabulary grew

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """A linear layer with a trained low-rank difference beside it."""

    def __init__(self, base: nn.Linear, config: LoraConfig):
        super().__init__()
        self.base, self.scale = base, config.scale
        self.lora_a = nn.Parameter(base.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))
        self.dropout = nn.Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        low = F.linear(self.dropout(x), self.lora_a)  # (N, rank)
        # As base(x) + scale * low @ lora_b.T, in one pass over (N, out) instead of three.
        return torch.addmm(self.base(x), low, self.lora_b.T, alpha=self.scale)

    def merged(self) -> nn.Linear:
        self.base.weight.data += self.scale * (self.lora_b @ self.lora_a).data
        return self.base


class LoraTokens(nn.Module):
    """A token embedding with a trained difference for a few rows, in embedding and head alike."""

    def __init__(self, base: nn.Module, token_ids: Sequence[int]):
        super().__init__()
        self.base = base
        ids = torch.tensor(token_ids, device=base.weight.device)
        self.register_buffer("token_ids", ids, persistent=False)
        self.lora_rows = nn.Parameter(base.weight.new_zeros(len(token_ids), base.weight.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., C)
        is_token = ids[..., None] == self.token_ids  # (..., number of tokens)
        return self.base(ids) + is_token.to(self.lora_rows.dtype) @ self.lora_rows

    def logits(self, x: Tensor) -> Tensor:  # (n, C) -> (n, V)
        difference = F.linear(x, self.lora_rows)  # (n, number of tokens)
        # In place, because logits are large.
        return self.base.logits(x).index_add_(1, self.token_ids, difference)

    def merged(self) -> nn.Module:
        self.base.weight.data[self.token_ids] += self.lora_rows.data
        return self.base


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Sequence[str] = ALL_TARGETS,
    token_ids: Sequence[int] = (),
    rslora: bool = False,
) -> nn.Module:
    """Freeze `model` and put adapters on the linear layers that `targets` name, in place.

    A target is a layer's name or its end from a dot on: "mlp.up", "blocks.0.attn.qkv". Rows of
    `token_ids` are trained as well; the vocabulary grows where they are new. A is drawn from
    torch's global generator. Raises ValueError where a target names no linear layer, a number is
    out of range, or adapters are there already.
    """
    if getattr(model, "adapter", None):
        raise ValueError("the model has adapters already; merge them first")
    numbers_fit = rank >= 1 and 0 < alpha < math.inf and 0 <= dropout < 1
    if not numbers_fit or not targets or min(token_ids, default=0) < 0:
        needs = "rank >= 1, alpha > 0, 0 <= dropout < 1, a target, token_ids >= 0"
        raise ValueError(f"LoRA needs {needs}, not {rank=} {alpha=} {dropout=} {token_ids=}")
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        found = {name: linears[name] for name in linears if f".{name}".endswith(f".{target}")}
        if not found:
            endings = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in linears}))
            raise ValueError(f"no linear layer is named {target!r}; there are {endings}")
        chosen |= found
    token_ids, base = tuple(dict.fromkeys(token_ids)), fingerprint(model)
    model.adapter = LoraConfig(rank, alpha, dropout, tuple(targets), token_ids, rslora, base)
    model.requires_grad_(False)
    for name, linear in chosen.items():
        replace(model, name, LoraLinear(linear, model.adapter))
    if token_ids:
        model.grow_vocab(max(token_ids) + 1)
        model.tok_emb.requires_grad_(False)
        model.tok_emb = LoraTokens(model.tok_emb, token_ids)
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the differences to the weights, take the adapters out, in place, if there are any."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "merged"):
            replace(model, name, module.merged())
    model.adapter = None
    return model.requires_grad_(True)


@torch.no_grad()
def copy_row(tok_emb: nn.Module, source: int, target: int) -> None:
    """Let a token's row start as another's: the row, or, if it is frozen, its difference."""
    if isinstance(tok_emb, LoraTokens):
        weight = tok_emb.base.weight
        tok_emb.lora_rows[tok_emb.token_ids == target] = weight[source] - weight[target]
    else:
        tok_emb.weight[target] = tok_emb.weight[source]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors alone, by name."""
    tensors = model.state_dict(keep_vars=True)  # FSDP has its say
    return {name: p.detach() for name, p in tensors.items() if p.requires_grad}


def adapter_state(model: nn.Module) -> dict:
    """All that an adapter is, plain values and tensors, for `runtime/load.py`."""
    kind, config = model.adapter.kind, asdict(model.adapter)
    return {"kind": kind, kind: config, "adapter": trained_state(model)}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
