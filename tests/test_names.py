"""The names that others rely on: papers, notebooks and forks that import this, and scripts that
call it. One that must change is changed here first."""

import inspect
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import conversation, make_base, write_jsonl

import chat_template
import hf
import lora
import model
import sft
import tokenizer

ROOT = Path(sft.__file__).resolve().parent
# In this order, so that a call may name them or not. More may follow.
PARAMETERS = {
    tokenizer.train_bpe: "texts vocab_size",
    tokenizer.Tokenizer.encode: "self text",
    tokenizer.Tokenizer.decode: "self ids",
    tokenizer.Tokenizer.decode_bytes: "self ids",
    tokenizer.Tokenizer.special: "self name",
    tokenizer.Tokenizer.with_special: "self names",
    tokenizer.Tokenizer.save: "self path",
    tokenizer.Tokenizer.load: "path",
    tokenizer.Tokenizer.gpt2: "",
    chat_template.Message: "role content",
    chat_template.read_record: "record",
    chat_template.render: "messages tokenizer template",
    chat_template.render_prompt: "messages tokenizer template",
    model.GPTConfig: "vocab_size context_length n_layer n_head n_embd dropout",
    model.GPT: "config",
    model.GPT.forward: "self ids",
    model.GPT.generate: "self prompts max_new_tokens",
    model.GPT.stream: "self prompts max_new_tokens stop temperature top_k top_p seed",
    lora.add_lora: "model rank alpha dropout targets token_ids",
    lora.merge_lora: "model",
    sft.main: "argv",
    sft.nll_sum: "logits labels",
    sft.objective: "logits labels",
    sft.load_checkpoint: "path device",
    hf.load: "name_or_dir",
}
OPTIONS = """data val_data template train_on max_length overlong reasoning init dropout lora_rank lora_alpha
    lora_dropout lora_targets epochs steps batch_tokens micro_batch_tokens lr warmup_steps
    weight_decay grad_clip out resume overwrite eval_every save_every keep_checkpoints cache seed
    device dtype activation_checkpointing compile fsdp"""
COMMANDS = ["sft.py", "chat.py", "evaluate.py", "chat_template.py", "hf", "experiments"]


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_names_and_their_parameters(function):
    names, wanted = list(inspect.signature(function).parameters), PARAMETERS[function].split()
    assert names[: len(wanted)] == wanted
    for parameter in list(inspect.signature(function).parameters.values())[len(wanted) :]:
        assert parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD


def test_the_options_are_those_of_config():
    """A saved run's arguments are read with them, and may not mean something else tomorrow."""
    assert sorted(vars(sft.Config())) == sorted(OPTIONS.split())
    assert sft.Config(lr=1.0, data=["a"]).lr == 1.0


def test_from_a_record_to_an_answer(tmp_path: Path):
    """All of these names at work, as somebody else would use them."""
    base = make_base(tmp_path / "base.pt")
    data = write_jsonl(tmp_path / "data.jsonl", [conversation("q", "a")] * 30)
    out = str(tmp_path / "run")
    flags = f"--data {data} --init {base} --out {out} --steps 30 --lr 0.01 --device cpu"
    assert sft.main(flags.split()) == 0
    gpt, words, meta = sft.load_checkpoint(out, "cpu")
    assert isinstance(gpt, model.GPT) and isinstance(words, tokenizer.Tokenizer)
    assert meta["template"] == "chatml" and meta["stop"] == [words.special("<|im_end|>")]
    assert meta["template"] in chat_template.TEMPLATES

    record = {"prompt": "q", "completion": "a"}
    messages = chat_template.read_record(record)
    assert messages == [
        chat_template.Message("user", "q"),
        chat_template.Message("assistant", "a"),
    ]
    ids, loss_mask = chat_template.render(messages, words, template="chatml")
    prompt = chat_template.render_prompt(messages[:-1], words, "chatml")
    assert len(ids) == len(loss_mask) and ids[: len(prompt)] == prompt
    assert words.decode_bytes(words.encode("é")) == "é".encode() and words.n_vocab == 259

    logits = gpt(torch.tensor([ids, ids]))
    assert logits.shape == (2, len(ids), gpt.config.vocab_size)
    labels = torch.tensor(ids[1:]).where(torch.tensor(loss_mask[1:]).bool(), -100)
    nll = sft.nll_sum(logits[0, :-1], labels)
    log_p = logits[0].log_softmax(-1)
    by_hand = -sum(log_p[i, ids[i + 1]] for i in range(len(ids) - 1) if loss_mask[i + 1])
    assert nll.item() == pytest.approx(by_hand.item(), rel=1e-5)
    sampling = dict(temperature=0.0, top_k=5, top_p=0.9, seed=0)
    [new_ids] = gpt.generate([prompt], max_new_tokens=8, stop=meta["stop"], **sampling)
    assert words.decode(new_ids) == "a"

    words.save(tmp_path / "tokenizer.json")
    assert tokenizer.Tokenizer.load(tmp_path / "tokenizer.json").state() == words.state()
    assert tokenizer.train_bpe(["a text"], vocab_size=258).with_special(["<s>"]).n_vocab == 259
    before = gpt(torch.tensor([ids]))
    lora.merge_lora(lora.add_lora(gpt, rank=2, targets=["attn.qkv"]))
    assert torch.equal(gpt(torch.tensor([ids])), before)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, monkeypatch, capsys):
    """`python sft.py`, `python -m hf`, ..."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"{name}.__main__", raising=False)
    run, where = (runpy.run_path, ROOT / name) if name.endswith(".py") else (runpy.run_module, name)
    with pytest.raises(SystemExit) as stop, mock.patch.dict(chat_template.TEMPLATES):
        run(str(where), run_name="__main__")
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and out.startswith("usage: ") and err == ""
