"""The GPT against a slow, obvious one; batches against single conversations; generation against
plain recomputation. (The forms of runtime/fast.py: test_fast.py.)"""

import math
import random
from collections.abc import Callable

import pytest
import torch
from conftest import FAMILIES, assert_exact, make_model
from torch import Tensor, nn

from model import GPT, GPTConfig, KVCache

EOS = 256


@pytest.fixture(autouse=True)
def one_thread_again():
    yield
    torch.set_num_threads(1)


def reference_logits(model: GPT, ids: list[int]) -> Tensor:
    """(T, V): the forward of one sequence, written out with matrix products and an explicit mask,
    one head at a time."""
    weights, config = dict(model.named_parameters()), model.config
    H, K, D = config.heads
    T = len(ids)
    hidden_future = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)

    def linear(name: str, x: Tensor) -> Tensor:
        bias = weights.get(f"{name}.bias")
        has_one = config.bias == "all" or (config.bias == "qkv" and name.endswith("qkv"))
        assert (bias is not None) == has_one
        return x @ weights[f"{name}.weight"].T + (bias if has_one else 0.0)

    def norm(name: str, x: Tensor) -> Tensor:
        is_layer_norm = config.norm == "layer"
        centred = x - x.mean(-1, keepdim=True) if is_layer_norm else x
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        bias = weights[f"{name}.bias"] if is_layer_norm else 0.0
        return scaled * weights[f"{name}.weight"] + bias

    def turned(x: Tensor) -> Tensor:  # (T, D): pairs of channels as complex numbers
        speeds = [config.rope_theta ** (-2 * i / D) for i in range(D // 2)]
        if config.rope_scaling:
            factor, low, high, context = config.rope_scaling
            for i, speed in enumerate(speeds):
                turns = speed * context / (2 * math.pi)
                if turns < low:
                    speeds[i] = speed / factor
                elif turns <= high:
                    share = (turns - low) / (high - low)
                    speeds[i] = share * speed + (1 - share) * speed / factor
        angles = torch.tensor([[t * speed for speed in speeds] for t in range(T)]).double()
        y = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([y.real, y.imag], dim=-1)

    x = weights["tok_emb.weight"][ids]
    if not config.rope_theta:
        x = x + weights["pos_emb.weight"][:T]
    for block in (f"blocks.{layer}." for layer in range(config.n_layer)):
        heads = linear(block + "attn.qkv", norm(block + "attn_norm", x)).split(D, dim=-1)
        assert len(heads) == H + 2 * K
        attended = []
        for head in range(H):
            of_kv = head * K // H
            q, k, v = heads[head], heads[H + of_kv], heads[H + K + of_kv]
            if config.qk_norm:
                q, k = norm(block + "attn.q_norm", q), norm(block + "attn.k_norm", k)
            if config.rope_theta:
                q, k = turned(q), turned(k)
            weight = (q @ k.T / math.sqrt(D) + hidden_future).exp()
            attended.append(weight / weight.sum(-1, keepdim=True) @ v)
        x = x + linear(block + "attn.proj", torch.cat(attended, dim=-1))
        h = linear(block + "mlp.up", norm(block + "mlp_norm", x))
        if config.gated:
            gate, h = h.chunk(2, dim=-1)
            h = gate / (1 + torch.exp(-gate)) * h
        else:
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(block + "mlp.down", h)
    return norm("final_norm", x) @ weights["tok_emb.weight"].T


def assert_as_written_out(model: GPT, found: Tensor, expected: Tensor) -> None:
    """Exact, but for angles, which the model takes in float32, as other programs do."""
    if model.config.rope_theta:
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    else:
        assert_exact(found, expected)


def conversations(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(EOS, (length,), generator=generator).tolist() for length in lengths]


def end_to_end(rows: list[list[int]]) -> tuple[Tensor, list[int]]:
    """A training batch: ids (N,), lengths."""
    return torch.tensor(sum(rows, [])), [len(row) for row in rows]


def nll_and_gradients(model: GPT, logits: Tensor, labels: Tensor) -> list[Tensor]:
    nll = -logits.log_softmax(-1).gather(1, labels[:, None]).sum()
    return [nll.detach(), *torch.autograd.grad(nll, list(model.parameters()))]


@pytest.mark.parametrize(
    "changes", [*FAMILIES.values(), {"n_head": 1}, {"n_layer": 1, "n_embd": 24}], ids=str
)
def test_forward_equals_the_architecture_written_out(changes: dict) -> None:
    """Claim 27: GPT-2's architecture, to the last digit, and that of the other families, from one
    token up to a full context; and (B, T) ids are B conversations of T tokens, bit for bit."""
    model = make_model(context_length=50, **changes)
    for length in (1, 2, 17, 50):
        rows = conversations(length, length, seed=length)
        ids, lengths = end_to_end(rows)
        logits = model(torch.tensor(rows))
        expected = torch.stack([reference_logits(model, row) for row in rows])
        assert_as_written_out(model, logits, expected)
        assert torch.equal(model(ids, lengths), logits.flatten(0, 1))
        hidden = model(torch.tensor(rows), head=False)
        assert hidden.shape == (2, length, model.config.n_embd)
        assert_exact(model.tok_emb.logits(hidden.flatten(0, 1)), logits.flatten(0, 1))


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_equals_each_conversation_alone(seed: int) -> None:
    """Claims 13, 14: logits, loss and gradients of conversations end to end are those of each alone
    and those written out, in whatever order they stand; and the head may multiply only the
    positions that have a label."""
    lengths = [1, 30, 30, 2, 1, *random.Random(seed).choices(range(1, 60), k=6)]
    random.Random(seed).shuffle(lengths)
    model, rows = make_model(), conversations(*lengths, seed=seed)
    labelled = [[t for t in range(len(row)) if (3 * t + b) % 4 == 0] for b, row in enumerate(rows)]
    assert [] in labelled and any(len(row) - 1 in where for row, where in zip(rows, labelled))
    labels = [[7 * (t + b) % EOS for t in where] for b, where in enumerate(labelled)]

    def batch(order: list[int], logits_of: Callable) -> list[Tensor]:
        """Logits at the labels, by conversation; loss; gradients."""
        ids, lengths = end_to_end([rows[b] for b in order])
        starts = [sum(lengths[:i]) for i in range(len(order))]
        at = torch.tensor([s + t for s, b in zip(starts, order) for t in labelled[b]]).long()
        logits = logits_of(ids, lengths, at)
        wanted = torch.tensor([label for b in order for label in labels[b]]).long()
        parts = logits.split([len(labelled[b]) for b in order])
        sorted_parts = [part for _, part in sorted(zip(order, parts), key=lambda pair: pair[0])]
        return [torch.cat(sorted_parts), *nll_and_gradients(model, logits, wanted)]

    def head_on_all(ids: Tensor, lengths: list[int], at: Tensor) -> Tensor:
        return model(ids, lengths)[at]

    def head_on_labels(ids: Tensor, lengths: list[int], at: Tensor) -> Tensor:
        return model.tok_emb.logits(model(ids, lengths, head=False)[at])

    def written_out(ids: Tensor, lengths: list[int], at: Tensor) -> Tensor:
        return torch.cat([reference_logits(model, row.tolist()) for row in ids.split(lengths)])[at]

    in_order = list(range(len(rows)))
    expected = batch(in_order, written_out)
    alone = [batch([b], head_on_all) for b in in_order]
    # Logits are put together; losses and gradients add up.
    logits, *others = zip(*alone)
    for found in (
        [torch.cat(logits), *map(sum, others)],
        batch(in_order, head_on_all),
        batch(in_order, head_on_labels),
        batch(in_order[::-1], head_on_labels),
        batch(random.Random(seed).sample(in_order, len(rows)), head_on_labels),
    ):
        for value, correct in zip(found, expected, strict=True):
            assert_exact(value, correct)


def test_layers_run_on_tokens_and_the_head_where_it_is_asked() -> None:
    """Claim 13: no layer sees a row that is not a token; without `head` nothing is multiplied by
    the vocabulary; and where there is no label, there is no gradient."""
    model, (ids, lengths) = make_model(), end_to_end(conversations(3, 40, 17))
    n_rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(
                lambda _, x, y, name=name: n_rows.update({name: y.numel() // y.shape[-1]})
            )
    n_head, genuine = [], model.tok_emb.logits
    model.tok_emb.logits = lambda x: n_head.append(len(x)) or genuine(x)
    hidden = model(ids, lengths, head=False)
    assert len(n_rows) == 13 and set(n_rows.values()) == {60} and n_head == []
    nothing = torch.tensor([], dtype=torch.long)
    no_logits = model.tok_emb.logits(hidden[nothing])
    assert not any(value.any() for value in nll_and_gradients(model, no_logits, nothing))
    model(ids, lengths)
    assert n_head == [0, 60]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_tied_gradient_is_dense_and_that_of_both_uses(threads: int) -> None:
    """Rows that come often, once and never; over two micro-batches; the same bits each time."""
    torch.set_num_threads(threads)
    ids, at = torch.tensor([7, 7, 9, 7, 30, 9, 7, 8] * 40), torch.tensor([2, 3, 7, 100, 319])

    def learn(model: GPT) -> Tensor:
        for _ in range(2):
            logits = model.tok_emb.logits(model(ids, [64] * 5, head=False)[at])
            logits.log_softmax(-1)[:, 5].sum().backward()
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
@pytest.mark.parametrize("lengths", [(40, 7, 64, 63, 1, 22), (16,) * 5])
def test_perturbing_one_conversation_leaves_the_others_bit_identical(
    lengths: tuple[int, ...], dtype: torch.dtype, threads: int
) -> None:
    """Claim 14: conversations never see each other; and within the one that changes, no token sees
    a later one."""
    torch.set_num_threads(threads)
    model, (ids, _) = make_model(dtype=dtype), end_to_end(conversations(*lengths))
    before = model(ids, list(lengths))
    for b, length in enumerate(lengths):
        start = sum(lengths[:b])
        changed = torch.zeros(len(ids), dtype=torch.bool)
        changed[start + length // 2 : start + length] = True
        after = model(torch.where(changed, (ids + 101) % EOS, ids), list(lengths))
        assert torch.equal(after[~changed], before[~changed])
        assert not torch.isclose(after[changed], before[changed]).all(-1).any()


def test_what_does_not_fit_is_refused() -> None:
    """Issue 2: by an error, never by other numbers: a conversation that is longer than the context
    (though others are short, and though the batch may be longer), and lengths that are not those
    of the ids."""
    model = make_model(context_length=16)
    for lengths in ([17], [1, 17, 2], [16, 17]):
        with pytest.raises(ValueError, match="17 tokens.*context of 16"):
            model(torch.zeros(sum(lengths), dtype=torch.long), lengths)
    assert model(torch.zeros(48, dtype=torch.long), [16] * 3).shape == (48, 257)
    for lengths in ([2, 2], [3, 3], [1], [5, 1], []):
        with pytest.raises((RuntimeError, ValueError)):
            model(torch.zeros(5, dtype=torch.long), lengths)
    with pytest.raises((RuntimeError, ValueError)):
        model(torch.zeros(1, dtype=torch.long), [3])


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
    """Issue 2: new tokens start as the average of those that exist (not of padding); V grows to a
    multiple of 64."""
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
    """Issue 2: base and tuned model stand side by side; a config object given to both is not
    written to."""
    config = GPTConfig(vocab_size=257, context_length=8, n_layer=1, n_head=1, n_embd=8)
    GPT(config).grow_vocab(300)
    assert (config.vocab_size, config.n_vocab) == (257, 257)


# Generation


def lively_model(seed: int = 0, **changes) -> GPT:
    """Says something new at nearly every position, where large random weights alone repeat one
    token for ever."""
    model = make_model(seed, context_length=32, **changes)
    if model.config.rope_theta:
        for name, parameter in model.named_parameters():
            parameter.data *= 5 if "norm" in name or "attn.qkv" in name else 1
    else:
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
    """Claim 21: with rows that stop at once, early, late and never, and that fill the context."""
    model, prompts = lively_model(seed), conversations(1, 7, 31, 20, 25, 3, 30, 2, seed=seed)
    free = [reference_greedy(model, prompt, 12) for prompt in prompts]
    # To the limit, or to the end of the context.
    assert [len(new) for new in free] == [12, 12, 1, 12, 7, 12, 2, 12]
    assert model.generate(prompts, 12) == free and model.generate(prompts[::-1], 12) == free[::-1]
    stop = (free[5][0], free[3][7])
    expected = [reference_greedy(model, prompt, 12, stop) for prompt in prompts]
    assert expected[5] == [] and any(
        0 < len(new) < len(longer) for new, longer in zip(expected, free)
    )
    assert model.generate(prompts, 12, stop=stop) == expected
    assert [model.generate([prompt], 12, stop=stop)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_the_same_with_shared_keys_and_rotations(family: str) -> None:
    """Claims 21, 27: a ragged batch with the cache, against all computed anew, one at a time."""
    model, prompts = lively_model(**FAMILIES[family]), conversations(1, 7, 31, 20, 25, 3, 30, 2)
    free = [reference_greedy(model, prompt, 12) for prompt in prompts]
    assert sorted({len(new) for new in free}) == [1, 2, 7, 12] and len(set(free[0])) > 5
    assert model.generate(prompts, 12) == free and model.generate(prompts[::-1], 12) == free[::-1]


def test_the_first_reading_of_prompts_needs_no_mask() -> None:
    """Nothing of size B x T x S where the cache is empty; a mask where it is not."""
    model = make_model()
    cache = KVCache(model.config, 2, 20, model.final_norm.weight)
    for n_new, shape in ((9, None), (1, (2, 1, 1, 10)), (4, (2, 1, 4, 14))):
        cache.place(n_new)
        assert (cache.seen if shape is None else cache.seen.shape) == shape
        cache.lengths = cache.lengths + n_new


@torch.no_grad()
def test_what_stands_in_the_padding_of_prompts_changes_nothing() -> None:
    """Claim 5: not one bit of any answer's logits, also where the padding is an end of text, or
    looks like a prompt."""
    model, prompts = lively_model(), conversations(3, 12, 1, 9)
    lengths, answers = torch.tensor([3, 12, 1, 9]), torch.tensor(conversations(4, 4, 4, 4, seed=1))
    seen = []
    for padding in ([0] * 12, [EOS] * 12, prompts[1]):
        ids = torch.tensor([prompt + padding[len(prompt) :] for prompt in prompts])
        cache = KVCache(model.config, 4, 16, model.final_norm.weight)
        hidden = model(ids, cache=cache, head=False)
        cache.lengths = lengths
        logits = [model.tok_emb.logits(hidden[torch.arange(4), lengths - 1])]
        logits += [model.decode_one_token(new, cache) for new in answers.T]
        seen.append(torch.stack(logits, dim=1))
    assert all(torch.equal(logits, seen[0]) for logits in seen)
    for logits, prompt, answer in zip(seen[0], prompts, answers.tolist()):
        assert_exact(logits, reference_logits(model, prompt + answer)[len(prompt) - 1 :])


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
    # Weights at temperature 1: 4, 16, 1, 9, 36; at 0.5 their squares, at 2 their roots: sixteenths.
    [
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
    """Claim 21: temperature, top-k and top-p against a table; padded rows, by far the likeliest,
    never come."""
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
    """Issue 2: every temperature that is accepted works, also one that sends logits / temperature
    beyond all bounds."""
    model = table_model(30.0, 29.0, -30.0, n_vocab=3)
    assert model.generate([[1]], 3, temperature=1e-307) == [[0, 0, 0]]


def test_a_seed_decides_the_ids_streamed_or_not() -> None:
    """Issue 2: streaming gives what `generate` gives, step by step; a prompt that has ended never
    comes back; gradients stay on between the steps. Another seed gives other ids, and torch's own
    random state is not touched."""
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
    """Issue 2: in the forward pass over a whole batch; each of the four places drops something in
    training."""
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
    """Issue 2: an empty prompt, one that fills the context, and values out of range get a clear
    error."""
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
