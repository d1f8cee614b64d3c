"""Few trained parameters in five other ways than LoRA, as a fork of sft.py.

    python experiments/peft.py --method dora

Each starts as the base, bit for bit (a prompt or prefix: on text that does not begin with it), and
trains, beside its own parameters, the rows of the template's new tokens, as LoRA does. Runs are
saved, resumed, asked and measured as those of sft.py.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lora  # noqa: E402
import sft  # noqa: E402
from chat_template import TEMPLATES  # noqa: E402
from model import GPT  # noqa: E402
from runtime import load, session  # noqa: E402
from runtime.console import option  # noqa: E402

SIZES = {"bitfit": 0, "bottleneck": 16, "prompt": 20, "prefix": 20, "dora": 8}
LENGTHS = (5, 20, 50)  # of prompts and prefixes; "chatml+20" is ChatML that begins with 20 of them
PROMPT_TOKENS = tuple(f"<|prompt_{i}|>" for i in range(max(LENGTHS)))


@dataclass
class Config(sft.Config):
    """Fine-tune few parameters of a GPT on conversations."""

    method: str = option("dora", "what is trained", SIZES, group="method")
    size: int | None = option(None, "of a bottleneck 16, a prompt 20, DoRA's rank 8", least=1)


@dataclass
class AdapterConfig:
    kind: str
    size: int
    token_ids: tuple[int, ...]  # tokens whose rows are trained; those of a prompt stand last
    fingerprint: str  # of the base, as it was before its vocabulary grew


def bitfit(model: GPT, config: AdapterConfig) -> None:
    """The base's own biases (Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199)."""
    biases = [weight for name, weight in model.named_parameters() if name.endswith(".bias")]
    if not biases:
        raise ValueError("BitFit trains biases, and this base has none")
    for bias in biases:
        bias.requires_grad_(True)


class Bottleneck(nn.Module):
    """A small MLP behind a sublayer's last product (Houlsby et al., 2019,
    https://arxiv.org/abs/1902.00751): y + up(gelu(down(y))), with `up` zero at first."""

    def __init__(self, base: nn.Linear, size: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.out_features, size).to(base.weight)
        self.up = nn.Linear(size, base.out_features).to(base.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        y = self.base(x)
        return y + self.up(F.gelu(self.down(y)))

    def merged(self) -> nn.Linear:
        raise ValueError("a bottleneck is not linear: it cannot be merged into the weights")


def bottleneck(model: GPT, config: AdapterConfig) -> None:
    for block in model.blocks:
        block.attn.proj = Bottleneck(block.attn.proj, config.size)
        block.mlp.down = Bottleneck(block.mlp.down, config.size)


class DoraLinear(nn.Module):
    """A linear layer as magnitude and direction, of which LoRA trains the direction (Liu et al.,
    2024, https://arxiv.org/abs/2402.09353): the rows of W + B A are given lengths that are trained.
    In the gradient, as there (4.3), the length before is a constant."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.scale = base, 16 / rank  # as the default of --lora-alpha
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.lora_magnitude = nn.Parameter(base.weight.detach().norm(dim=1))  # (out,)
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def weight(self) -> Tensor:  # (out, in)
        weight = self.base.weight + self.scale * (self.lora_b @ self.lora_a)
        return (self.lora_magnitude / weight.detach().norm(dim=1))[:, None] * weight

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        return F.linear(x, self.weight(), self.base.bias)

    def merged(self) -> nn.Linear:
        self.base.weight.data = self.weight().detach()
        return self.base


def dora(model: GPT, config: AdapterConfig) -> None:
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear):
            lora.replace(model, name, DoraLinear(linear, config.size))


class PromptTokens(lora.LoraTokens):
    """New tokens, of which the prompt's are read, and never said: their logits are -inf."""

    def __init__(self, base: nn.Module, token_ids: Sequence[int], prompt_ids: Sequence[int]):
        super().__init__(base, token_ids)
        prompt = torch.tensor(prompt_ids, device=base.weight.device)
        self.register_buffer("prompt_ids", prompt, persistent=False)
        self.prompt: nn.Parameter | None = None  # (L, C), if it is trained
        self.places: tuple[Tensor, ...] = ()  # of the prompt's tokens in a batch, and which

    def forward(self, ids: Tensor) -> Tensor:  # (N,) -> (N, C)
        self.places = at, which = (ids[:, None] == self.prompt_ids).nonzero(as_tuple=True)
        x = super().forward(ids)
        return x if self.prompt is None else x.index_copy(0, at, self.prompt[which])

    def logits(self, x: Tensor) -> Tensor:  # (n, C) -> (n, V)
        return super().logits(x).index_fill(1, self.prompt_ids, float("-inf"))

    def merged(self) -> nn.Module:
        raise ValueError("a prompt's rows have no part in the head: they cannot be merged into it")


def prompt(model: GPT, config: AdapterConfig) -> None:
    """Rows of tokens in front of each conversation (Lester et al., 2021,
    https://arxiv.org/abs/2104.08691); at first those of the vocabulary's first merges."""
    words = model.tok_emb.base.weight[256 : 256 + config.size]
    model.tok_emb.prompt = nn.Parameter(words.detach().clone())


class PrefixLinear(nn.Module):
    """`attn.qkv`, in which the prompt's tokens have keys and values that are trained."""

    def __init__(self, base: nn.Linear, tokens: PromptTokens, keys_and_values: Tensor):
        super().__init__()
        self.base, self.tokens = base, [tokens]  # in a list: not a part of this module
        self.prefix = nn.Parameter(keys_and_values)  # (L, 2 K D)

    def forward(self, x: Tensor) -> Tensor:  # (N, C) -> (N, (H + 2 K) D)
        y, (at, which) = self.base(x), self.tokens[0].places
        y[at, y.shape[1] - self.prefix.shape[1] :] = self.prefix[which]
        return y

    def merged(self) -> nn.Linear:
        raise ValueError("keys and values of a prefix cannot be merged into the weights")


def prefix(model: GPT, config: AdapterConfig) -> None:
    """Keys and values of tokens in front of each conversation, in every layer (Li and Liang, 2021,
    https://arxiv.org/abs/2101.00190); at first those of the vocabulary's first merges. Where the
    base rotates keys or norms them, so it does with these."""
    seen: list[Tensor] = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda module, x, y: seen.append(y))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(torch.arange(256, 256 + config.size)[None])
    for block, y, hook in zip(model.blocks, seen, hooks):
        hook.remove()
        n_query = block.attn.proj.in_features  # H D
        block.attn.qkv = PrefixLinear(block.attn.qkv, model.tok_emb, y[:, n_query:].clone())


METHODS = {"bitfit": bitfit, "bottleneck": bottleneck, "prompt": prompt, "prefix": prefix}
METHODS |= {"dora": dora}


def add_adapter(model: GPT, kind: str, size: int, token_ids: Sequence[int]) -> GPT:
    """Freeze `model` and put adapters on it, in place. Raises ValueError where some are there, or
    the method does not fit this model."""
    if model.adapter:
        raise ValueError("the model has adapters already; merge them first")
    config = AdapterConfig(kind, size, tuple(token_ids), lora.fingerprint(model))
    model.requires_grad_(False)
    model.grow_vocab(max(token_ids, default=0) + 1)
    model.tok_emb.requires_grad_(False)
    if kind in ("prompt", "prefix"):
        model.tok_emb = PromptTokens(model.tok_emb, token_ids[:-size], token_ids[-size:])
    elif token_ids:
        model.tok_emb = lora.LoraTokens(model.tok_emb, token_ids)
    METHODS[kind](model, config)
    model.adapter = config
    return model


def register() -> None:
    """Make known to all that loads a checkpoint: adapters by kind, templates with a prompt."""
    load.ADAPTERS |= dict.fromkeys(METHODS, add_adapter)
    plain = [(name, form) for name, form in TEMPLATES.items() if "+" not in name]
    for (name, form), length in itertools.product(plain, LENGTHS):
        tokens = PROMPT_TOKENS[:length]
        begin, special_tokens = "".join(tokens) + form.begin, (*form.special_tokens, *tokens)
        longer = replace(form, begin=begin, special_tokens=special_tokens)
        TEMPLATES[f"{name}+{length}"] = longer


def size_of(config: Config) -> int:
    return SIZES[config.method] if config.size is None else config.size


def adapt(model: GPT, config: Config, token_ids: Sequence[int]) -> None:
    torch.manual_seed(config.seed)
    add_adapter(model, config.method, size_of(config), token_ids)


def start_model(config: Config, start=sft.start_model) -> tuple:
    """As `sft.start_model`, from a template that begins with the prompt where there is one."""
    size = size_of(config)
    if config.lora_rank:
        raise ValueError("--lora-rank is for sft.py; here --method and --size say what is trained")
    if config.method == "bitfit" and size:
        raise ValueError("bitfit has no --size: it trains the biases that are there")
    if config.method in ("prompt", "prefix"):
        if size not in LENGTHS or config.train_on == "all":
            raise ValueError(f"a {config.method} has --size {LENGTHS}, and no --train-on all")
        template = config.template or load.load_checkpoint(config.init)[2]["template"] or "chatml"
        config.template = f"{template.partition('+')[0]}+{size}"
    return start(config)


def main(argv: Sequence[str] | None = None) -> int:
    register()
    sft.Config, sft.adapt, sft.start_model = Config, adapt, start_model
    session.COMMAND = "python experiments/peft.py"
    return sft.main(argv)


if __name__ == "__main__":
    session.exit_process(main())
