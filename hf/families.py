"""Families of models that model.py computes: their settings and weights in Hugging Face's words.

A weight of ours is one of theirs, or several whose rows follow one another: `attn.qkv` is Llama's
q_proj, k_proj and v_proj.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from model import GPTConfig


@dataclass(frozen=True)
class Family:
    name: str  # "model_type" in their config.json
    architecture: str  # their class
    prefix: str  # of all weights but the head's
    sizes: dict[str, str]  # settings, ours: theirs
    fixed: dict[str, object]  # their settings that must be so
    switches: dict[str, object]  # settings of ours that make the family
    modules: dict[str, tuple[str, ...]]  # ours: theirs; * is a layer's number
    turned: tuple[str, ...] = ()  # weights that are (in, out) there, (out, in) here

    def their_names(self, name: str) -> list[str]:
        """Those of a weight or a module, without the prefix: in GPT-2 "blocks.3.mlp.up.weight" is
        ["h.3.mlp.c_fc.weight"], in Llama it is that of two modules."""
        module = name.removesuffix(".weight").removesuffix(".bias")
        parts, ending = module.split("."), name[len(module) :]
        layer = parts[1] if parts[0] == "blocks" else ""
        theirs = self.modules[".".join([parts[0], "*", *parts[2:]]) if layer else module]
        return [their.replace("*", layer) + ending for their in theirs]

    def their_parts(self, config: GPTConfig, name: str, tensor: Tensor) -> list[Tensor]:
        """A weight of ours in their parts: views, which can be read from and written to."""
        if name.endswith(self.turned):
            return [tensor.T]
        if len(self.their_names(name)) == 3:
            H, K, D = config.heads
            return list(tensor.split([H * D, K * D, K * D]))
        return list(tensor.chunk(len(self.their_names(name))))


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    sizes={"vocab_size": "vocab_size", "context_length": "n_positions", "n_hidden": "n_inner"}
    | {name: name for name in ("n_layer", "n_head", "n_embd")},
    fixed={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    switches={"norm": "layer", "gated": False, "bias": "all", "qk_norm": False},
    modules={
        "tok_emb": ("wte",),
        "pos_emb": ("wpe",),
        "blocks.*.attn_norm": ("h.*.ln_1",),
        "blocks.*.attn.qkv": ("h.*.attn.c_attn",),
        "blocks.*.attn.proj": ("h.*.attn.c_proj",),
        "blocks.*.mlp_norm": ("h.*.ln_2",),
        "blocks.*.mlp.up": ("h.*.mlp.c_fc",),
        "blocks.*.mlp.down": ("h.*.mlp.c_proj",),
        "final_norm": ("ln_f",),
    },
    turned=("qkv.weight", "proj.weight", "up.weight", "down.weight"),
)
LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    sizes={
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_kv_head": "num_key_value_heads",
        "head_size": "head_dim",
        "n_embd": "hidden_size",
        "n_hidden": "intermediate_size",
    },
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    },
    switches={"norm": "rms", "gated": True, "bias": "none", "qk_norm": False},
    modules={
        "tok_emb": ("embed_tokens",),
        "blocks.*.attn_norm": ("layers.*.input_layernorm",),
        "blocks.*.attn.qkv": tuple(f"layers.*.self_attn.{part}_proj" for part in "qkv"),
        "blocks.*.attn.q_norm": ("layers.*.self_attn.q_norm",),
        "blocks.*.attn.k_norm": ("layers.*.self_attn.k_norm",),
        "blocks.*.attn.proj": ("layers.*.self_attn.o_proj",),
        "blocks.*.mlp_norm": ("layers.*.post_attention_layernorm",),
        "blocks.*.mlp.up": ("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"),
        "blocks.*.mlp.down": ("layers.*.mlp.down_proj",),
        "final_norm": ("norm",),
    },
)
QWEN2 = replace(
    LLAMA,
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed={"hidden_act": "silu", "tie_word_embeddings": True},
    switches=LLAMA.switches | {"bias": "qkv"},
)
QWEN3 = replace(
    LLAMA,
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    fixed={"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True},
    switches=LLAMA.switches | {"qk_norm": True},
)
FAMILIES = {family.name: family for family in (GPT2, LLAMA, QWEN2, QWEN3)}
OPTIONAL = ("n_hidden", "n_kv_head", "head_size")  # sizes that may be unsaid: 0 here
EPSILON = ("rms_norm_eps", "layer_norm_epsilon")  # of all others; of GPT-2
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# In


def read_settings(path: Path, settings: dict) -> tuple[Family, GPTConfig]:
    """What a config.json describes. Raises ValueError where model.py computes something else."""
    family = FAMILIES.get(str(settings.get("model_type", "gpt2")))
    if family is None:
        known = f"this model knows {', '.join(FAMILIES)} only"
        raise ValueError(f"{path}: model_type is {settings['model_type']!r:.60}; {known}")
    check_fixed(path, family, settings)
    sizes = {"norm_eps": number(path, settings, EPSILON[family is GPT2], 1e-5)}
    for ours, theirs in family.sizes.items():
        size = settings.get(theirs)
        if size is None and ours in OPTIONAL:
            continue
        if type(size) is not int or not 0 < size < 2**20:
            needs = f"{theirs} must be a whole number from 1 to a million"
            raise ValueError(f"{path}: {needs}, not {size!r:.60}")
        sizes[ours] = size
    if family is not GPT2:
        check_windows(path, settings)
        sizes |= read_rope(path, settings)
    try:
        return family, plainest(GPTConfig(**sizes, **family.switches))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def plainest(config: GPTConfig) -> GPTConfig:
    """The same configuration, with 0 for the sizes that would be the same anyway."""
    H, K, D = config.heads
    same = {"n_kv_head": K == H, "head_size": D * H == config.n_embd}
    same |= {"n_hidden": config.n_hidden == 4 * config.n_embd}
    return replace(config, **{name: 0 for name, is_same in same.items() if is_same})


def number(path: Path, settings: dict, key: str, default: float | None = None) -> float:
    """A setting that must be a number above 0."""
    value = settings.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {key} must be a number above 0, not {value!r:.60}")
    return float(value)


def check_fixed(path: Path, family: Family, settings: dict) -> None:
    if settings.get("quantization_config"):
        needs = "give the same model in bfloat16 or float32"
        raise ValueError(f"{path}: its weights are quantised (quantization_config); {needs}")
    unsaid = family.fixed | {"tie_word_embeddings": family is GPT2}  # means this
    for key, value in family.fixed.items():
        found = settings.get(key, unsaid[key])
        if found != value:
            why = f"this model knows {value!r} only"
            if key == "tie_word_embeddings":
                why = "this model has one matrix for both, the embedding and the head"
            raise ValueError(f"{path}: {key} is {found!r:.60}; {why}")


def check_windows(path: Path, settings: dict) -> None:
    """Raises ValueError where a layer would look at a part of the context alone."""
    context, window = settings["max_position_embeddings"], settings.get("sliding_window")
    has_window = "sliding_attention" in str(settings.get("layer_types"))
    if not settings.get("layer_types") and settings.get("use_sliding_window"):
        has_window = settings.get("max_window_layers") != settings["num_hidden_layers"]
    if has_window and (type(window) is not int or window < context):
        what = f"attention in a sliding window of {window!r:.60} tokens"
        raise ValueError(f"{path}: {what}; this model looks at the whole context ({context:,})")


def read_rope(path: Path, settings: dict) -> dict[str, object]:
    """The rotations: by today's names, or those of before transformers 5."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_scaling must be a JSON object, not {rope!r:.60}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        known = "this model knows default and llama3, of whole heads, only"
        raise ValueError(f"{path}: rotations of the kind {kind!r:.60}; {known}")
    theta = number(path, {"rope_theta": 1e4} | settings | rope, "rope_theta")
    scaling = tuple(number(path, rope, key) for key in SCALING) if kind == "llama3" else ()
    if scaling and scaling[1] >= scaling[2]:
        raise ValueError(f"{path}: low_freq_factor must be below high_freq_factor")
    return {"rope_theta": theta, "rope_scaling": scaling}


# Out


def family_of(config: GPTConfig) -> Family:
    """The family that computes what `config` says. Raises ValueError where there is none."""
    for family in FAMILIES.values():
        fits = all(getattr(config, name) == value for name, value in family.switches.items())
        if fits and (config.rope_theta > 0) == (family is not GPT2):
            if family is not GPT2 or config == replace(config, n_kv_head=0, head_size=0):
                return family
    raise ValueError(f"none of {', '.join(FAMILIES)} computes what this model does: {config}")


def settings_of(config: GPTConfig, family: Family) -> dict[str, object]:
    """The same in their words."""
    H, K, D = config.heads
    full = {"n_kv_head": K, "head_size": D, "n_hidden": config.n_hidden or 4 * config.n_embd}
    values = vars(config) | full | {"vocab_size": config.n_vocab}
    settings = {"model_type": family.name, "architectures": [family.architecture], **family.fixed}
    settings |= {theirs: values[ours] for ours, theirs in family.sizes.items()}
    settings[EPSILON[family is GPT2]] = config.norm_eps
    if family is GPT2:
        # n_ctx is what llama.cpp's converter calls n_positions.
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return settings | {"n_ctx": config.context_length} | no_dropout
    scaling = {"rope_type": "llama3", **dict(zip(SCALING, config.rope_scaling))}
    return settings | {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling if config.rope_scaling else None,
        "attention_dropout": 0.0,
    }
