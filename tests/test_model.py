"""The GPT against a slow, obvious one; batches against single conversations; generation against plain recomputation."""

import math
from collections import Counter

import pytest
import torch
from conftest import assert_exact, make_model
from torch import Tensor, nn

from model import GPT, GPTConfig, OneDNNProduct, TokenEmbedding, cut_rectangles, linear

EOS = 256


def reference_logits(model: GPT, ids: list[int]) -> Tensor:
    """(T, V): GPT-2's forward for one sequence, written out with matrix products, one head at a time."""
    weights, config = dict(model.named_parameters()), model.config
    T, D = len(ids), config.n_embd // config.n_head
    hidden_future = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["tok_emb.weight"][ids] + weights["pos_emb.weight"][:T]
    for block in (f"blocks.{layer}." for layer in range(config.n_layer)):
        q, k, v = linear(block + "attn.qkv", norm(block + "attn_norm", x)).chunk(3, dim=-1)
        heads = []
        for head in (slice(start, start + D) for start in range(0, config.n_embd, D)):
            weight = (q[:, head] @ k[:, head].T / math.sqrt(D) + hidden_future).exp()
            heads.append(weight / weight.sum(-1, keepdim=True) @ v[:, head])
        x = x + linear(block + "attn.proj", torch.cat(heads, dim=-1))
        h = linear(block + "mlp.up", norm(block + "mlp_norm", x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(block + "mlp.down", h)
    return norm("final_norm", x) @ weights["tok_emb.weight"].T


def conversations(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(EOS, (length,), generator=generator).tolist() for length in lengths]


def right_pad(rows: list[list[int]], pads: list[int]) -> tuple[Tensor, Tensor]:
    """(B, T) ids, the padding taken from `pads` in turn, and the flat positions of the real tokens."""
    T = max(map(len, rows))
    ids = [row + [pads[i % len(pads)] for i in range(T - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor(
        [b * T + t for b, row in enumerate(rows) for t in range(len(row))]
    )


def gradients(model: GPT, logits: Tensor, targets: Tensor) -> list[Tensor]:
    nll = -logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return list(torch.autograd.grad(nll, list(model.parameters())))


@pytest.mark.parametrize("changes", [{}, {"n_head": 1}, {"n_layer": 1, "n_embd": 24}])
def test_forward_equals_gpt2_written_out(changes: dict) -> None:
    """Issue 2: GPT-2's architecture, to the last digit, from one token up to a full context."""
    model = make_model(context_length=50, **changes)
    for length in (1, 2, 17, 50):
        rows = conversations(length, length, seed=length)
        assert_exact(
            model(torch.tensor(rows)), torch.stack([reference_logits(model, row) for row in rows])
        )


@pytest.mark.parametrize("use_at", [False, True])
@pytest.mark.parametrize("use_real", [False, True])
def test_padded_batch_equals_each_conversation_alone(use_at: bool, use_real: bool) -> None:
    """Claims 5, 13, 14: with `at` and `real` or without, logits and gradients of a ragged batch are those of its
    conversations computed one by one and in full; what stands in the padding changes not one bit of them."""
    model, rows = make_model(), conversations(9, 1, 30, 30, 2, 14)
    wanted = [[t for t in range(len(row)) if (3 * t + b) % 4 == 0] for b, row in enumerate(rows)]
    assert [] in wanted and any(len(row) - 1 in where for row, where in zip(rows, wanted))
    at = torch.tensor([b * 30 + t for b, where in enumerate(wanted) for t in where])
    targets = at * 7 % EOS
    expected = torch.cat([reference_logits(model, row)[where] for row, where in zip(rows, wanted)])
    expected = [expected, *gradients(model, expected, targets)]
    seen = []
    for pads in ([0], [EOS], rows[0], list(range(EOS, 0, -1))):
        ids, real = right_pad(rows, pads)
        logits = model(ids, at=at if use_at else None, real=real if use_real else None)
        assert logits.shape == ((len(at), 257) if use_at else (6, 30, 257))
        logits = logits if use_at else logits.flatten(0, 1)[at]
        seen.append([logits, *gradients(model, logits, targets)])
    for first, others, correct in zip(seen[0], zip(*seen), expected):
        assert_exact(first, correct)
        assert all(torch.equal(other, first) for other in others)


def test_layers_run_on_real_tokens_and_the_head_on_targets_only() -> None:
    """Claim 13: padding costs no matrix product, nor does a position without a target after the last attention, but
    for rounding up to a multiple of 32; and where there is no target, there is no gradient."""
    model, (ids, real) = make_model(), right_pad(conversations(3, 40, 17), [EOS])
    n_rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(
                lambda _, x, y, name=name: n_rows.update({name: y.numel() // y.shape[-1]})
            )
    model(ids, at=torch.tensor([2, 45, 79, 87]), real=real)
    last = [
        n_rows.pop(name)
        for name in ("final_norm", *(f"blocks.1.mlp{part}" for part in ("_norm", ".up", ".down")))
    ]
    assert last == [4, 32, 32, 32]
    assert len(n_rows) == 9 and set(n_rows.values()) == {64}  # for 60 tokens in a rectangle of 120
    nothing = torch.tensor([], dtype=torch.long)
    assert not any(g.any() for g in gradients(model, model(ids, at=nothing, real=real), nothing))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_tied_gradient_is_dense_and_that_of_both_uses(threads: int) -> None:
    """Rows that come often, once and never; over two micro-batches; the same bits each time."""
    torch.set_num_threads(threads)
    ids, at = torch.tensor([[7, 7, 9, 7, 30, 9, 7, 8]] * 40), torch.tensor([2, 3, 7, 100, 319])

    def learn(model: GPT) -> Tensor:
        for _ in range(2):
            model(ids, at=at).log_softmax(-1)[:, 5].sum().backward()
        return model.tok_emb.weight.grad

    untied = make_model()
    head, rows = (untied.tok_emb.weight.detach().clone().requires_grad_() for _ in range(2))
    untied.tok_emb.logits = lambda x: x @ head.T
    untied.tok_emb.forward = lambda ids: nn.functional.one_hot(ids, 257).double() @ rows
    learn(untied)
    first, second = learn(make_model()), learn(make_model())
    assert first.layout == torch.strided and torch.equal(first, second)
    assert_exact(first, head.grad + rows.grad)


@pytest.mark.parametrize(
    ("dtype", "threads"), [(torch.float32, 1), (torch.float32, 2), (torch.float64, 1)]
)
@pytest.mark.parametrize("use_real", [False, True])
def test_perturbing_one_conversation_leaves_the_others_bit_identical(
    dtype, threads: int, use_real: bool
) -> None:
    """Claim 14: conversations never see each other; and within the one that changes, no token sees a later one."""
    torch.set_num_threads(threads)
    model, rows = make_model(dtype=dtype), conversations(40, 7, 64, 63, 1, 22)
    ids, real = right_pad(rows, [EOS])
    before = model(ids, real=real if use_real else None)
    for b, row in enumerate(rows):
        changed, first, last = ids.clone(), len(row) // 2, len(row)
        changed[b, first:last] = (changed[b, first:last] + 101) % EOS
        after = model(changed, real=real if use_real else None)
        others = [i for i in range(len(rows)) if i != b]
        assert torch.equal(after[others], before[others]) and torch.equal(
            after[b, :first], before[b, :first]
        )
        assert not torch.isclose(after[b, first:last], before[b, first:last]).all(-1).any()


@pytest.mark.parametrize(
    ("V", "n_vocab", "wanted", "V_after"),
    [
        (257, 257, 258, 320),
        (257, 257, 320, 320),
        (257, 257, 321, 384),
        (320, 257, 260, 320),
        (300, 300, 290, 300),
    ],
)
def test_new_rows_are_the_mean_and_old_logits_stay(
    V: int, n_vocab: int, wanted: int, V_after: int
) -> None:
    """Issue 2: new tokens start as the average of those that exist (not of padding); V grows to a multiple of 64."""
    model, ids = make_model(vocab_size=V, n_vocab=n_vocab), torch.tensor(conversations(20))
    old, before = model.tok_emb.weight.detach().clone(), model(ids)
    model.grow_vocab(wanted)
    weight = model.tok_emb.weight
    assert (model.config.vocab_size, model.config.n_vocab) == (V_after, max(n_vocab, wanted))
    assert (
        weight.shape == (V_after, 32)
        and weight.requires_grad
        and torch.equal(weight[:n_vocab], old[:n_vocab])
    )
    for row in weight[n_vocab:wanted]:
        assert_exact(row, sum(old[:n_vocab]) / n_vocab)
    assert_exact(model(ids)[..., :n_vocab], before[..., :n_vocab])


def test_growing_one_model_leaves_another_with_the_same_config_alone() -> None:
    """Issue 2: base and tuned model stand side by side; a config object given to both is not written to."""
    config = GPTConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8)
    GPT(config).grow_vocab(300)
    assert (config.vocab_size, config.n_vocab) == (257, 257)


# Generation


def lively_model(seed: int = 0, **changes) -> GPT:
    """Says something new at nearly every position, where large random weights alone repeat one token for ever."""
    model = make_model(seed, context_length=32, **changes)
    model.pos_emb.weight.data *= 5
    model.final_norm.bias.data.zero_()
    return model


def reference_greedy(
    model: GPT, prompt: list[int], max_new_tokens: int, stop: tuple[int, ...] = ()
) -> list[int]:
    """The whole sequence is computed anew for each token."""
    new: list[int] = []
    while len(new) < max_new_tokens and len(prompt) + len(new) < model.config.context_length:
        new.append(int(reference_logits(model, prompt + new)[-1].argmax()))
        if new[-1] in stop:
            return new[:-1]
    return new


@pytest.mark.parametrize("seed", range(4))
def test_cached_ragged_greedy_equals_full_recomputation_one_at_a_time(seed: int) -> None:
    """Claim 21: with rows that stop at once, early, late and never, and rows that fill the context."""
    model, prompts = lively_model(seed), conversations(1, 7, 31, 20, 25, 3, 30, 2, seed=seed)
    free = [reference_greedy(model, prompt, 12) for prompt in prompts]
    assert [len(new) for new in free] == [
        12,
        12,
        1,
        12,
        7,
        12,
        2,
        12,
    ]  # to the limit, or to the end of the context
    assert model.generate(prompts, 12) == free and model.generate(prompts[::-1], 12) == free[::-1]
    stop = (free[5][0], free[3][7])
    expected = [reference_greedy(model, prompt, 12, stop) for prompt in prompts]
    assert expected[5] == [] and any(
        0 < len(new) < len(longer) for new, longer in zip(expected, free)
    )
    assert model.generate(prompts, 12, stop=stop) == expected
    assert [model.generate([prompt], 12, stop=stop)[0] for prompt in prompts] == expected


def table_model(*logits: float, n_vocab: int) -> GPT:
    """A GPT whose logits are these, after whatever prompt."""
    n = len(logits)
    model = make_model(
        vocab_size=n, n_vocab=n_vocab, n_embd=n, n_head=1, n_layer=1, context_length=16
    )
    model.tok_emb.weight.data = torch.eye(n, dtype=torch.float64)
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data = torch.tensor(logits, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "weights"),
    [  # weights at temperature 1: 4, 16, 1, 9, 36; at 0.5 their squares, at 2 their roots, which are sixteenths
        (0.0, None, None, [0, 0, 0, 0, 1]),
        (1.0, None, None, [4, 16, 1, 9, 36]),
        (2.0, None, None, [2, 4, 1, 3, 6]),
        (0.5, 3, None, [0, 256, 0, 81, 1296]),
        (2.0, 1, None, [0, 0, 0, 0, 6]),
        (2.0, 99, 1.0, [2, 4, 1, 3, 6]),
        (2.0, None, 0.01, [0, 0, 0, 0, 6]),
        (2.0, None, 0.37, [0, 0, 0, 0, 6]),
        (2.0, None, 0.38, [0, 4, 0, 0, 6]),
        (2.0, None, 0.63, [0, 4, 0, 3, 6]),
        (2.0, None, 0.94, [2, 4, 1, 3, 6]),
        (2.0, 4, 0.85, [0, 4, 0, 3, 6]),  # 13 of 15: of the probability that top-k left
    ],
)
def test_sampling_draws_from_exactly_the_stated_distribution(
    temperature, top_k, top_p, weights
) -> None:
    """Claim 21: temperature, top-k and top-p against a table; padded rows, by far the likeliest, never come."""
    n, model = (
        20_000,
        table_model(*[2 * math.log(root) for root in (2, 4, 1, 3, 6)], 99.0, 99.0, n_vocab=5),
    )
    drawn = model.generate(
        [[1]] * (n // 2), 2, temperature=temperature, top_k=top_k, top_p=top_p, seed=1
    )
    counts = torch.tensor(drawn).flatten().bincount(minlength=7).tolist()
    for count, p in zip(
        counts, [*(weight / sum(weights) for weight in weights), 0, 0], strict=True
    ):
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)), (counts, n * p)


def test_a_very_low_temperature_is_greedy() -> None:
    """Issue 2: every temperature that is accepted works, also one that sends logits / temperature beyond all bounds."""
    assert table_model(30.0, 29.0, -30.0, n_vocab=3).generate([[1]], 3, temperature=1e-307) == [
        [0, 0, 0]
    ]


def test_a_seed_decides_the_ids_streamed_or_not() -> None:
    """Issue 2: streaming gives what `generate` gives, step by step; a prompt that has ended never comes back; gradients
    stay on between the steps. Another seed gives other ids, and torch's own random state is not touched."""
    model, prompts, state = lively_model(), conversations(3, 28, 10), torch.get_rng_state()
    stop = [model.generate(prompts, 9)[0][4]]
    for sampling in ({}, {"temperature": 1.0, "top_k": 50, "seed": 3}):
        collected, going_on = [[], [], []], {0, 1, 2}
        for step in model.stream(prompts, 9, stop=stop, **sampling):
            assert step.keys() <= going_on and torch.is_grad_enabled()
            going_on = set(step)
            for row, token_id in step.items():
                collected[row].append(token_id)
        assert collected == model.generate(prompts, 9, stop=stop, **sampling)
    assert collected != model.generate(prompts, 9, stop=stop, **{**sampling, "seed": 4})
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_in_training_only() -> None:
    """Issue 2: in the forward pass over a whole batch; each of the four places drops something in training."""
    ids = torch.tensor(conversations(20, 20))
    for place in (
        "emb_dropout",
        "blocks.0.attn.proj_dropout",
        "blocks.0.mlp.dropout",
        "blocks.0.attn",
    ):
        model = make_model()
        module = model.get_submodule(place)
        setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.5)
        assert torch.equal(model(ids), make_model()(ids)) and not torch.equal(
            model.train()(ids), make_model()(ids)
        )
    assert (
        sum(
            module.p == 0.3
            for module in make_model(dropout=0.3).modules()
            if isinstance(module, nn.Dropout)
        )
        == 5
    )


@pytest.mark.parametrize("training", [False, True])
def test_generation_runs_without_dropout_and_restores_the_mode(training: bool) -> None:
    """Issue 2: also where the stream is abandoned half way, or fails."""
    model, prompts = lively_model(dropout=0.5), conversations(5, 9)
    expected = model.generate(prompts, 5)
    model.train(training)
    assert model.generate(prompts, 5) == expected
    assert all(module.training == training for module in model.modules())
    stream = model.stream(prompts, 5)
    next(stream)
    stream.close()
    with pytest.raises(IndexError):
        model.generate([[1, 2, 99_999]], 5)
    assert all(module.training == training for module in model.modules())


def test_generation_refuses_what_it_cannot_do() -> None:
    """Issue 2: an empty prompt, one that fills the context, and values out of range get a clear error."""
    model = make_model(context_length=16)
    for prompts, reason in (
        ([[1, 2], []], "empty prompt"),
        ([[1], [1] * 16], "16 tokens.*context of 16"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.generate(prompts, 3)
    for name, values in {
        "temperature": (-0.1, math.nan, math.inf),
        "top_k": (0,),
        "top_p": (0, 1.01, math.nan),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must be"):
                model.generate([[1]], 3, **{"temperature": 1.0, name: value})
    assert model.generate([[1] * 15], 0) == [[]] and model.generate([], 5) == []
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate([[1]], -1)


@torch.no_grad()
def test_more_tokens_than_the_context_holds_are_refused() -> None:
    """Issue 2: by a ValueError, in one go and token by token."""
    model = make_model(context_length=16)
    with pytest.raises(ValueError, match="17 tokens.*context of 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache, _ = model.prefill([[1] * 16, [1] * 3], 1)
    with pytest.raises(ValueError, match="17 tokens.*context of 16"):
        model.decode_one_token(torch.tensor([1, 1]), cache)


def test_attention_is_cut_where_lengths_differ() -> None:
    """Claim 14: the parts hold all real tokens in their order, and no sequence is more than half again its shortest."""
    generator = torch.Generator().manual_seed(0)
    for B in (1, 2, 5, 40):
        for in_order in (True, False):
            lengths = torch.randint(0, 60, (B,), generator=generator)
            lengths = [*(lengths.sort()[0] if in_order else lengths).tolist(), 60]
            real = torch.tensor(
                [60 * b + t for b, length in enumerate(lengths) for t in range(length)]
            )
            parts, found = cut_rectangles(B + 1, 60, real), []
            for part in parts:
                places = range(math.prod(part.shape)) if part.real is None else part.real.tolist()
                rows = Counter(place // part.shape[1] for place in places)
                assert (
                    max(rows.values()) == part.shape[1] <= 1.5 * min(rows.values())
                    and len(places) == part.n_tokens
                )
                assert len(rows) == part.shape[0] and (part.real is None) == (
                    part.n_tokens == math.prod(part.shape)
                )
                found += [rows[row] for row in range(part.shape[0])]
            assert found == [length for length in lengths if length] and (
                not in_order or len(parts) <= 13
            )


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 75])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_by_onednn_are_products(n: int, has_bias: bool, monkeypatch) -> None:
    """For any number of rows: value and gradients against float64, which goes another way; and with few kernels."""
    sizes, genuine = set(), OneDNNProduct.multiply
    if genuine:  # a torch without oneDNN goes the other way in float32, too
        monkeypatch.setattr(
            OneDNNProduct, "multiply", lambda x, *rest: sizes.add(len(x)) or genuine(x, *rest)
        )
    generator = torch.Generator().manual_seed(n)
    tensors = [torch.randn(shape, generator=generator) for shape in ((n, 24), (40, 24), (40,))][
        : 2 + has_bias
    ]
    toward = torch.randn(n, 40, generator=generator)
    for frozen in (None, 0, 1):
        results = []
        sizes.clear()
        for dtype in (torch.float64, torch.float32):
            leaves = [
                tensor.detach().to(dtype, copy=True).requires_grad_(i != frozen)
                for i, tensor in enumerate(tensors)
            ]
            y = linear(*leaves)
            trained = [leaf for leaf in leaves if leaf.requires_grad]
            results.append([y, *torch.autograd.grad(y, trained, toward.to(dtype))])
            assert bool(sizes) == (dtype == torch.float32 and n > 0 and genuine is not None)
        for found, wanted in zip(results[1], results[0]):
            torch.testing.assert_close(found, wanted.float())
        assert all(size < 32 or size % 32 == 0 or size in (24, 40) for size in sizes)


@pytest.mark.parametrize("n", [0, 1, 16, 33])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_a_few_rows(n: int, autocast: bool):
    """Claim 21: however few rows there are, their logits are the products with the tokens' vectors."""
    head = TokenEmbedding(300, 64)
    torch.nn.init.normal_(head.weight)
    x = torch.randn(n, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = head.logits(x)
    tolerance = 0.2 if autocast else 1e-4
    assert logits.shape == (n, 300) and torch.allclose(
        logits.float(), x @ head.weight.T, atol=tolerance
    )
