"""The model against transformers' GPT-2, with random weights: in and out, logits, generation,
damaged files."""

import json
import math
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from conftest import assert_exact, conversation, make_base, make_model, write_jsonl
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    pipeline,
)

import chat
import hf.__main__ as hf_main
import sft
from chat_template import TEMPLATES, Message
from hf import weights
from model import GPT
from runtime.answers import generate_answers
from runtime.files import save_checkpoint
from runtime.load import load_checkpoint
from tokenizer import END_OF_TEXT, GPT2_SPLIT, Tokenizer

SIZES = [  # vocabulary, positions, layers, heads, channels
    (257, 64, 2, 4, 32),
    (1000, 128, 3, 3, 48),
    (50257, 32, 1, 2, 16),
]


def their_model(sizes: tuple[int, ...] = SIZES[0], seed: int = 0, **settings) -> GPT2LMHeadModel:
    """With large random weights, biases and norms too, so that nothing is hidden by being zero or
    one."""
    torch.manual_seed(seed)
    names = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
    model = GPT2LMHeadModel(
        GPT2Config(**dict(zip(names, sizes)), bos_token_id=None, eos_token_id=None, **settings)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def random_ids(n_vocab: int, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(n_vocab, shape, generator=torch.Generator().manual_seed(seed))


def saved_model(folder: Path, model: GPT, tokenizer: Tokenizer, **more) -> Path:
    """A checkpoint of any model."""
    content = {
        "config": vars(model.config),
        "model": model.state_dict(),
        "tokenizer": tokenizer.state(),
    }
    content |= {
        "template": None,
        "stop": [tokenizer.special(END_OF_TEXT)],
        "step": 0,
        "args": {},
    } | more
    save_checkpoint(folder / "checkpoint.pt", content)
    return folder / "checkpoint.pt"


def byte_tokenizer() -> Tokenizer:
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """To 1e-5 of the largest value, in float32."""
    assert actual.dtype == expected.dtype == torch.float32 and actual.shape == expected.shape
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_of_their_weights(tmp_path, sizes) -> None:
    theirs = their_model(sizes)
    theirs.save_pretrained(tmp_path)
    ours, ids = weights.read_model(tmp_path), random_ids(sizes[0], 3, sizes[1])
    with torch.no_grad():
        assert close(ours(ids), theirs(ids).logits)
        assert_exact(ours.double()(ids), theirs.double()(ids).logits)


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_of_our_weights(tmp_path, sizes) -> None:
    names = ("vocab_size", "context_length", "n_layer", "n_head", "n_embd")
    ours = make_model(dtype=torch.float32, n_vocab=sizes[0], **dict(zip(names, sizes)))
    assert (
        hf_main.main(
            ["export", str(saved_model(tmp_path, ours, byte_tokenizer())), str(tmp_path / "out")]
        )
        == 0
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is GPT2LMHeadModel and theirs.dtype == torch.float32
    ids = random_ids(sizes[0], 3, sizes[1])
    with torch.no_grad():
        assert close(ours(ids), theirs(ids).logits)
        assert_exact(ours.double()(ids), theirs.double()(ids).logits)
    assert theirs.config.resid_pdrop == theirs.config.embd_pdrop == theirs.config.attn_pdrop == 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A run that has learned three answers, and beside it what transformers loads."""
    folder = tmp_path_factory.mktemp("exported")
    base = make_base(folder / "base.pt")
    data = write_jsonl(folder / "data.jsonl", [conversation(*pair) for pair in PAIRS] * 10)
    flags = f"--data {data} --init {base} --steps 120 --batch-tokens 300 --lr 0.01 --dropout 0"
    assert sft.main([*flags.split(), "--out", str(folder / "run")]) == 0
    assert hf_main.main(["export", str(folder / "run"), str(folder / "theirs")]) == 0
    return folder


PAIRS = [("a", "yes"), ("a much longer question", "no, never"), ("what?", "42")]


def test_a_pipeline_stops_and_pads_on_the_left(exported) -> None:
    """Claims 4, 5: transformers' own way to ask a model: each answer ends by itself, and is the
    same beside longer prompts as alone, and the one that chat.py gives."""
    ask = pipeline("text-generation", str(exported / "theirs"), device="cpu")
    assert ask.tokenizer.padding_side == "left" and ask.tokenizer.pad_token == END_OF_TEXT
    chats = [[{"role": "user", "content": question}] for question, _ in PAIRS]
    how = {"max_new_tokens": 40, "do_sample": False, "return_full_text": False}
    alone = [ask(chat, **how)[0]["generated_text"] for chat in chats]
    together = [each[0]["generated_text"] for each in ask(chats, batch_size=3, **how)]
    assert alone == together == [answer for _, answer in PAIRS]
    model, tokenizer, _ = load_checkpoint(exported / "run")
    conversations = [[Message("user", question)] for question, _ in PAIRS]
    ours = generate_answers(model, tokenizer, "chatml", conversations, 40)
    assert ours == [(answer, True) for answer in alone]


def test_the_configuration_holds_what_others_read(exported) -> None:
    """By the names that llama.cpp's converter asks for; transformers is at ease with both."""
    settings = json.loads((exported / "theirs/config.json").read_text())
    sizes = {"n_ctx": 256, "n_positions": 256, "n_embd": 32, "n_head": 4, "n_layer": 2}
    sizes |= {"vocab_size": 259, "layer_norm_epsilon": 1e-5}
    assert settings | sizes == settings


@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_and_in_again_is_bit_identical(tmp_path, dtype, template) -> None:
    """Template and stop token, too: what was tuned is no base again."""
    special_tokens, stop = (), END_OF_TEXT
    if template:
        special_tokens, stop = TEMPLATES[template].special_tokens, TEMPLATES[template].stop
    tokenizer = byte_tokenizer().with_special(special_tokens)
    sizes = {"vocab_size": tokenizer.n_vocab, "n_vocab": tokenizer.n_vocab}
    ours, known = make_model(dtype=dtype, **sizes), {"template": template}
    known["stop"] = [tokenizer.special(stop)]
    hf_main.export(saved_model(tmp_path, ours, tokenizer, **known), tmp_path / "one")
    again, same_tokenizer, meta = load_checkpoint(tmp_path / "one")
    assert meta == {"file": str(tmp_path / "one"), **known}
    assert vars(again.config) == vars(ours.config) and same_tokenizer.state() == tokenizer.state()
    for (name, tensor), (same_name, same_tensor) in zip(
        ours.state_dict().items(), again.state_dict().items()
    ):
        assert (
            name == same_name
            and tensor.dtype == same_tensor.dtype
            and torch.equal(tensor, same_tensor)
        )
    hf_main.export(tmp_path / "one", tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        assert oct(file.stat().st_mode) == oct((tmp_path / "one" / "config.json").stat().st_mode)


def test_in_and_out_again_is_bit_identical_to_them(tmp_path) -> None:
    theirs, tokenizer = their_model(), byte_tokenizer()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = weights.read_model(tmp_path / "theirs")
    hf_main.export(saved_model(tmp_path, ours, tokenizer), tmp_path / "ours")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").state_dict()
    assert theirs.state_dict().keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())


def test_what_comes_in_is_ours_alone(tmp_path) -> None:
    """Training writes to no file, and a file that changes changes no model."""
    their_model().save_pretrained(tmp_path)
    model, before = weights.read_model(tmp_path), (tmp_path / "model.safetensors").read_bytes()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open(tmp_path / "model.safetensors", "rb+") as file:
        file.seek(5000)
        file.write(b"\xff" * (len(before) - 5000))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.is_leaf and p.is_contiguous() for p in model.parameters())


# Generation


@pytest.mark.parametrize("seed", range(5))
def test_greedy_generation_is_theirs(tmp_path, seed) -> None:
    """Token for token in float64; the stop token is known from generation_config.json. A ragged
    batch, too."""
    ours, tokenizer = make_model(seed, context_length=128), byte_tokenizer()
    prompts = [random_ids(257, length, seed=seed + length).tolist() for length in (1, 7, 30)]
    free = ours.generate(prompts, 40)
    stop = free[0][20]  # a token that comes
    hf_main.export(saved_model(tmp_path, ours, tokenizer, stop=[stop]), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    wanted = ours.generate(prompts, 40, stop=[stop])
    assert wanted[0] == free[0][: free[0].index(stop)] and any(len(ids) == 40 for ids in free)
    for prompt, ids in zip(prompts, wanted):
        new_ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=40)[
            0, len(prompt) :
        ].tolist()
        assert new_ids == (ids if len(ids) == 40 else [*ids, stop])
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    batch = theirs.generate(padded, attention_mask=mask, max_new_tokens=40)[:, width:].tolist()
    assert [row[: len(ids)] for row, ids in zip(batch, wanted)] == wanted


def test_rows_that_are_no_tokens_are_never_sampled(tmp_path) -> None:
    """Claim 21: not by us, because they are masked; not by transformers, because they are left
    out."""
    ours, tokenizer = make_model(vocab_size=320, n_vocab=257), byte_tokenizer()
    ours.tok_emb.weight.data[257:] *= 100  # so that one of them is the likeliest nearly everywhere
    prompt = random_ids(257, 9).tolist()
    assert ours(torch.tensor([prompt]))[0].argmax(-1).max() >= 257
    hf_main.export(saved_model(tmp_path, ours, tokenizer), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert theirs.config.vocab_size == len(theirs.transformer.wte.weight) == 257
    new_ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, eos_token_id=None)[
        0, 9:
    ].tolist()
    assert new_ids == ours.generate([prompt], 40)[0]


def test_rows_beyond_the_tokenizer_are_padding(tmp_path) -> None:
    """Such as 50,304 rows for 50,257 tokens; the number of tokens is the tokenizer's."""
    theirs = their_model((320, 64, 2, 4, 32))
    theirs.save_pretrained(tmp_path / "rows")
    hf_main.export(make_base(tmp_path / "base.pt"), tmp_path / "base")
    shutil.copy(tmp_path / "base" / "tokenizer.json", tmp_path / "rows")
    model, tokenizer = weights.load_model(tmp_path / "rows")
    assert (model.config.vocab_size, model.config.n_vocab, tokenizer.n_vocab) == (320, 257, 257)
    model.tok_emb.weight.data[257:] *= 100
    assert max(model.generate([[1, 2, 3]], 40)[0]) < 257


def test_the_vocabulary_grows_at_the_mean(tmp_path, gpt2_folder) -> None:
    """GPT-2's 50,257 rows and two special tokens are padded to 50,304; new rows are the mean of the
    old, but for the stop token's, which starts as the end of text."""
    config = sft.Config(init=str(gpt2_folder))
    model, tokenizer, base = sft.start_model(config)
    old = load_file(gpt2_folder / "model.safetensors")["transformer.wte.weight"]
    assert (model.config.vocab_size, model.config.n_vocab, tokenizer.n_vocab) == (
        50304,
        50259,
        50259,
    )
    wanted = torch.cat([old, old.mean(0).expand(47, -1)])
    wanted[50258] = old[50256]
    assert torch.equal(model.tok_emb.weight, wanted)
    assert (config.template, base["template"], tokenizer.special("<|im_end|>")) == (
        "chatml",
        None,
        50258,
    )


# What else may come in


def test_the_context_can_be_shortened_and_not_lengthened(tmp_path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path)
    model, ids = weights.read_model(tmp_path, context_length=20), random_ids(257, 2, 20)
    with torch.no_grad():
        assert model.config.context_length == 20 and close(model(ids), theirs(ids).logits)
    with pytest.raises(ValueError, match="21 tokens do not fit into a context of 20"):
        model(random_ids(257, 1, 21))
    for length in (65, 0, -1):
        with pytest.raises(ValueError, match=f"a context of {length}; the model has 64 positions"):
            weights.read_model(tmp_path, context_length=length)


def test_older_layouts(tmp_path) -> None:
    """The files of the published models: without prefix, with the causal masks, or with the head
    once more."""
    theirs = their_model()
    GPT2Model.save_pretrained(theirs.transformer, tmp_path)
    tensors, path = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    assert "wte.weight" in tensors
    wanted = weights.read_model(tmp_path).state_dict()
    masks = {
        f"h.{i}.attn.bias": torch.ones(64, 64, dtype=torch.uint8).tril()[None, None]
        for i in range(2)
    }
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    for more in (masks, {"lm_head.weight": tensors["wte.weight"].clone()}):
        save_file(tensors | more, path)
        state = weights.read_model(tmp_path).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in wanted.items())
    ids = random_ids(257, 1, 9)
    with torch.no_grad():
        assert close(weights.read_model(tmp_path)(ids), theirs(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats(tmp_path, dtype) -> None:
    """Half precision is read as float32, with the values that it has; float64 stays."""
    theirs = their_model().to(dtype)
    theirs.save_pretrained(tmp_path)
    state = weights.read_model(tmp_path).state_dict()
    assert torch.equal(state["tok_emb.weight"].to(dtype), theirs.transformer.wte.weight)
    assert {tensor.dtype for tensor in state.values()} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "gelu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
    ],
)
def test_what_transformers_saves_for_other_architectures_is_refused(tmp_path, settings) -> None:
    """The keys in config.json are really those; and of each, the default is accepted (all other
    tests)."""
    their_model(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(settings))):
        weights.load_model(tmp_path)


# Damage


def header_of(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(name: str = "transformer.wte.weight", **entry):
    def change(data: bytes) -> bytes:
        header, body = header_of(data)
        header[name] = header.get(name, {}) | entry
        return with_header(header, body)

    return change


def without(name: str):
    def change(data: bytes) -> bytes:
        header, body = header_of(data)
        tensors = {
            n: (e, body[slice(*e["data_offsets"])])
            for n, e in header.items()
            if n not in (name, "__metadata__")
        }
        header, body = {}, b""
        for n, (entry, content) in tensors.items():
            header[n] = entry | {"data_offsets": [len(body), len(body) + len(content)]}
            body += content
        return with_header(header, body)

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: data[:7], "not a whole safetensors file"),
        (lambda data: data[:100], "not a whole safetensors file"),
        (lambda data: data[:-1], "not a whole safetensors file"),
        (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
        (lambda data: data + b"x", "not a whole safetensors file"),
        (lambda data: b"<html>" + data, "not a whole safetensors file"),
        (lambda data: b"\x80\x04K\x01." * 10, "not a whole safetensors file"),  # a pickle
        (
            lambda data: b"\xff" * 8 + data[8:],
            "not a whole safetensors file",
        ),  # a header of 2**64 - 1 bytes
        (lambda data: with_header(b"[" * 50_000, b""), "not a whole safetensors file"),
        (lambda data: with_header({}, b""), "0 layers; config.json says 2"),
        (lambda data: with_header([], b""), "not a whole safetensors file"),
        (changed(shape=[2**62, 2**62]), "not a whole safetensors file"),
        (changed(shape=[0, 2**62], data_offsets=[0, 0]), "not a whole safetensors file"),
        (changed(shape=[-1, 32]), "not a whole safetensors file"),
        (changed(data_offsets=[0, 2**63]), "not a whole safetensors file"),
        (changed(data_offsets=[-4, 4]), "not a whole safetensors file"),
        (changed(dtype="F128"), "not a whole safetensors file"),
        (
            changed(dtype="I32"),
            "'wte.weight' is I32; a model of this config.json has (257, 32)",
        ),
        (
            changed(shape=[32, 257]),
            "'wte.weight' is (32, 257); a model of this config.json has (257, 32)",
        ),
        (
            changed(shape=[257 * 32]),
            "'wte.weight' is (8224,); a model of this config.json has (257, 32)",
        ),
        (
            changed("transformer.h.0.attn.c_attn.weight", shape=[96, 32]),
            "'h.0.attn.c_attn.weight' is (96, 32)",
        ),
        (changed("more", dtype="F32", shape=[0], data_offsets=[0, 0]), "'more' is (0,)"),
        (
            without("transformer.ln_f.bias"),
            "'ln_f.bias' is missing; a model of this config.json has (32,)",
        ),
        (without("transformer.wte.weight"), "'wte.weight' is missing"),
        (without("transformer.h.1.ln_1.weight"), "1 layers; config.json says 2"),
    ],
)
def test_damaged_and_hostile_weights_are_refused(tmp_path, capsys, damage, reason) -> None:
    their_model().save_pretrained(tmp_path / "in")
    path = tmp_path / "in" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert sft.main(["--init", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        reason in error
        and f"error: {path}" in error
        and error.count("\n") == 1
        and len(error) < 500
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_layer": 3}, "2 layers; config.json says 3"),
        ({"n_layer": 10**6}, "2 layers; config.json says 1000000"),
        ({"n_embd": 10**6}, "a model of this config.json has"),
        ({"vocab_size": 10**6}, "a model of this config.json has (1000000, 32)"),
        ({"n_positions": 10**6}, "a model of this config.json has (1000000, 32)"),
    ],
)
def test_a_configuration_that_is_not_the_weights(tmp_path, settings, reason) -> None:
    """It is compared before any memory is asked for: a million channels would be some 10**13
    numbers."""
    their_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ValueError) as error:
        weights.load_model(tmp_path)
    assert reason in str(error.value)


def test_a_head_of_its_own_is_refused(tmp_path) -> None:
    theirs, path = their_model(), tmp_path / "model.safetensors"
    theirs.save_pretrained(tmp_path)
    tensors = load_file(path)
    for head in (torch.zeros(257, 32), tensors["transformer.wte.weight"][:-1].clone()):
        save_file(tensors | {"lm_head.weight": head}, path)
        with pytest.raises(ValueError, match="one matrix for both"):
            weights.load_model(tmp_path)
    tensors["transformer.wte.weight"][7, 7] = math.nan  # which equals nothing, itself included
    save_file(tensors, path)
    assert weights.read_model(tmp_path).tok_emb.weight.isnan().nonzero().tolist() == [[7, 7]]


def test_any_byte_of_the_header_may_be_wrong(tmp_path) -> None:
    """It is refused in one line, or the file still says the same; nothing else is ever raised."""
    their_model().save_pretrained(tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(0)
    good = path.read_bytes()
    (size,) = struct.unpack("<Q", good[:8])
    wanted, refused = weights.read_model(tmp_path).state_dict(), 0
    for _ in range(200):
        data = bytearray(good)
        data[rng.randrange(8 + size)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            state = weights.read_model(tmp_path).state_dict()
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
            continue
        assert state.keys() == wanted.keys()
    assert refused > 150


def test_a_tokenizer_that_does_not_fit(tmp_path, monkeypatch) -> None:
    their_model((250, 64, 2, 4, 32)).save_pretrained(tmp_path / "few")
    hf_main.export(make_base(tmp_path / "base.pt"), tmp_path / "base")
    shutil.copy(tmp_path / "base" / "tokenizer.json", tmp_path / "few")
    with pytest.raises(
        ValueError, match="250 rows in the model's vocabulary, 257 tokens in its tokenizer.json"
    ):
        weights.load_model(tmp_path / "few")
    monkeypatch.setattr(Tokenizer, "gpt2", byte_tokenizer)
    their_model((258, 64, 2, 4, 32)).save_pretrained(tmp_path / "alone")
    with pytest.raises(
        ValueError,
        match="258 rows .* 257 tokens in GPT-2's tokenizer, and there is no tokenizer.json",
    ):
        weights.load_model(tmp_path / "alone")


# By name


@pytest.fixture
def gpt2_folder(tmp_path, monkeypatch) -> Path:
    """What the download of a published model would bring, but with 16 channels; and in the place of
    GPT-2's vocabulary one of as many tokens, of one byte or two."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes(divmod(i, 256)): 256 + i for i in range(50_000)}
    monkeypatch.setattr(
        Tokenizer, "gpt2", lambda: Tokenizer(ranks, {END_OF_TEXT: 50256}, GPT2_SPLIT)
    )
    their_model(SIZES[2]).save_pretrained(tmp_path / "gpt2-like")
    return tmp_path / "gpt2-like"


@pytest.fixture
def downloads(tmp_path, gpt2_folder, monkeypatch) -> list[str]:
    asked = []

    def download(url: str, path: str) -> None:
        asked.append(url)
        shutil.copy(gpt2_folder / Path(url).name, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


@pytest.mark.parametrize("name", [name for name in weights.PUBLISHED if "gpt2" in name])
def test_a_published_model_is_downloaded_once(tmp_path, gpt2_folder, downloads, name) -> None:
    model, tokenizer, meta = load_checkpoint(name)
    again, _, _ = load_checkpoint(name)
    assert len(downloads) == 2 and all(f"/{name}/resolve/main/" in url for url in downloads)
    assert meta["file"] == name and tokenizer.n_vocab == 50257 and meta["stop"] == [50256]
    wanted = weights.read_model(gpt2_folder).state_dict()
    for one in (model, again):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in one.state_dict().items())
    assert [path.name for path in (tmp_path / "hub").iterdir()] == [name]


def test_a_download_cut_short_is_not_kept(tmp_path, downloads, monkeypatch, capsys) -> None:
    """torch's downloader takes the end of a connection for the end of the file."""
    whole = torch.hub.download_url_to_file

    def cut(url: str, path: str) -> None:
        whole(url, path)
        Path(path).write_bytes(Path(path).read_bytes()[:-1])

    monkeypatch.setattr(torch.hub, "download_url_to_file", cut)
    for _ in range(2):
        assert sft.main(["--init", "gpt2", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "gpt2 could not be downloaded" in error and error.count("\n") == 1
        assert list((tmp_path / "hub").iterdir()) == [] and not (tmp_path / "out").exists()
    monkeypatch.setattr(torch.hub, "download_url_to_file", whole)
    assert load_checkpoint("gpt2")


def test_two_processes_download_at_once(tmp_path, gpt2_folder, downloads, monkeypatch) -> None:
    """The other one is faster: its folder appears while ours is on the way."""
    download = torch.hub.download_url_to_file

    def overtaken(url: str, path: str) -> None:
        download(url, path)
        shutil.copytree(gpt2_folder, tmp_path / "hub" / "gpt2", dirs_exist_ok=True)

    monkeypatch.setattr(torch.hub, "download_url_to_file", overtaken)
    assert load_checkpoint("gpt2")
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["gpt2"]


def test_a_tuned_published_model_goes_all_the_way(
    tmp_path, gpt2_folder, downloads, monkeypatch, capsys
) -> None:
    """sft.py --init gpt2, export, and back: rows grown and padded here, as many as tokens there."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 60)
    flags = "--data data.jsonl --init gpt2 --device cpu --max-length 30 --out run".split()
    assert sft.main([*flags, "--steps", "1"]) == 0
    assert sft.main(["--resume", "run", "--steps", "2"]) == 0
    model, tokenizer, meta = load_checkpoint("run")
    assert meta["base"]["path"] == "gpt2" and model.config.vocab_size == 50304
    assert sft.main([*flags, "--steps", "1", "--overwrite", "--lora-rank", "2"]) == 0
    assert sft.main(["--resume", "run", "--steps", "2"]) == 0
    model, tokenizer, meta = load_checkpoint("run")
    hf_main.export("run", "out")
    again, same_tokenizer = weights.load_model(Path("out"))
    assert same_tokenizer.state() == tokenizer.state() and again.config.n_vocab == 50259
    talk = ["--prompt", "a", "--device", "cpu", "--max-new-tokens", "5"]
    capsys.readouterr()
    assert chat.main(["run", *talk]) == 0
    answer = capsys.readouterr().out
    assert chat.main(["out", *talk]) == 0 and capsys.readouterr().out == answer
    assert (
        chat.main(["out", *talk, "--base"]) == 2 and "leave --base out" in capsys.readouterr().err
    )
    for folder, wanted in (
        ("by-name", "openai-community/gpt2"),
        ("by-folder", str(tmp_path / "gpt2")),
    ):
        hf_main.export("run", folder, adapter=True)
        assert (
            json.loads(Path(folder, "adapter_config.json").read_text())["base_model_name_or_path"]
            == wanted
        )
        if folder == "by-name":  # the name is now that of a folder, which is found first
            shutil.copytree(gpt2_folder, "gpt2")
    theirs, ids = AutoModelForCausalLM.from_pretrained("out"), random_ids(50259, 1, 9)
    with torch.no_grad():
        assert (
            len(theirs.transformer.wte.weight) == 50259
            and theirs.generation_config.eos_token_id == 50258
        )
        wanted = model(ids)[..., :50259]
        assert (theirs(ids).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_loss_of_a_text_is_theirs(tmp_path, capsys) -> None:
    """The README's check of the published models, on random weights: `python -m hf loss` and three
    lines of transformers."""
    hf_main.export(make_base(tmp_path / "base.pt"), tmp_path / "out")
    (tmp_path / "text").write_text("Once upon a time there was a test. " * 20, encoding="utf-8")
    theirs, tokenizer = (
        GPT2LMHeadModel.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ids = tokenizer((tmp_path / "text").read_text(), return_tensors="pt").input_ids[:, :256]
    wanted = theirs(ids, labels=ids).loss.item()
    capsys.readouterr()
    assert hf_main.main(["loss", str(tmp_path / "out"), str(tmp_path / "text")]) == 0
    words = capsys.readouterr().out.split()
    assert abs(float(words[1]) - wanted) <= 2e-5 and words[6] == "255"
