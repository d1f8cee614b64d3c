"""Hugging Face's formats: GPT-2's weights in; model, tokenizer, chat template and adapter out.

    python sft.py --init gpt2 --data mine.jsonl      trains published weights, or a folder's
    python -m hf export out/mine-1 DIR               writes a folder that transformers loads
    python -m hf export out/mine-1 DIR --adapter     writes a LoRA run's adapter, for peft
    python -m hf check gpt2 FILE                     the mean loss on a text, to compare

weights.py has the names and layouts of that world's weights, tokenizer_files.py those of its
tokenizers and chat templates.
"""

from pathlib import Path

from chat_template import TEMPLATES
from hf.tokenizer_files import find_template
from hf.weights import cache_folder, find_gpt2, load_gpt2
from model import GPT
from tokenizer import END_OF_TEXT, Tokenizer


def load(name_or_dir: str | Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer, dict]:
    """What `load_checkpoint` gives, for a model in this format. Its template is known where it is
    one of ours, as in a folder that `export` wrote. Raises what `load_gpt2` does."""
    model, tokenizer = load_gpt2(name_or_dir, dropout=dropout)
    folder = find_gpt2(name_or_dir)
    template = find_template(folder)
    stop = tokenizer.special(TEMPLATES[template].stop if template else END_OF_TEXT)
    file = name_or_dir if folder == cache_folder(str(name_or_dir)) else folder
    return model, tokenizer, {"file": str(file), "template": template, "stop": [stop]}
