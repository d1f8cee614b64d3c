"""Small, hermetic stand-ins: a tokenizer of 256 bytes, a GPT of a few thousand parameters, a base
made of both."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from runtime.files import save_checkpoint
from runtime.records import Dataset
from tokenizer import END_OF_TEXT, Tokenizer

# tests/peers compares with packages that this project does not need; they have an environment of
# their own.
HAS_PEERS = all(importlib.util.find_spec(name) for name in ("transformers", "peft", "safetensors"))
collect_ignore = [] if HAS_PEERS else ["peers"]
os.environ["HF_HUB_OFFLINE"] = "1"  # else transformers asks a server even for what lies in a folder

# A shell starts what runs in its background with SIGINT ignored, nohup SIGHUP too; sft.py keeps to
# that, as the tests' own processes would, which are sent these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

CONFIG = GPTConfig(vocab_size=257, context_length=256, n_layer=2, n_head=4, n_embd=32)


# The switches of other families than GPT-2, on the sizes of CONFIG.
RMS_GATED = dict(norm="rms", norm_eps=1e-6, gated=True, n_hidden=40, rope_theta=100.0)
LLAMA3 = (4.0, 1.0, 4.0, 24.0)  # factor, low, high, context: some of the pairs slower, some not
FAMILIES: dict[str, dict] = {
    "gpt2": {},
    "llama": RMS_GATED | dict(bias="none", n_kv_head=2, rope_scaling=LLAMA3),
    "qwen2": RMS_GATED | dict(bias="qkv", n_kv_head=1, rope_theta=1e4),
    "qwen3": RMS_GATED | dict(bias="none", n_kv_head=2, head_size=12, qk_norm=True),
}


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="tests/faults: all faults, not the share that CI takes"
    )


class Zygote:
    """Runs of sft.py that something happens to, each in a process of its own; see
    faults/zygote.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "faults/zygote.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def run(
        self, folder: Path, arguments: str, fault: dict | None = None, processes: int = 1
    ) -> list[dict]:
        """The end of each process: "status", "out", "err"; and the "lines" that the fault has
        counted."""
        folder.mkdir(exist_ok=True)
        request = {
            "argv": arguments.split(),
            "cwd": str(folder),
            "fault": fault or {},
            "processes": processes,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.process.stdin.close()
    zygote.process.wait()


FAULTS: Counter[str] = Counter()


@pytest.fixture(scope="session")
def counts() -> Counter[str]:
    """What tests/faults did to runs, records and files, shown at the end."""
    return FAULTS


def pytest_terminal_summary(terminalreporter) -> None:
    if FAULTS:
        terminalreporter.write_line(
            "faults: " + ", ".join(f"{n:,} {name}" for name, n in FAULTS.items())
        )
    asked = " ".join(terminalreporter.config.args)
    if "tests/faults" not in asked:
        terminalreporter.write_line("apart: python -m pytest tests/faults, kills and hostile files")
    if "tests/peers" not in asked:
        how = "pip install -r tests/peers/requirements.txt && python -m pytest tests/peers"
        terminalreporter.write_line(f"apart: {how}, against transformers and peft")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These matrices are far too small to share; on a busy machine, waiting for a second thread
    costs seconds."""
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Every byte is a token, so that a test's expected ids can be read: ord("a") is the id of
    "a"."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> GPT:
    """A small GPT with large random weights (biases and norms too), so that nothing is hidden by
    being zero or one."""
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(CONFIG, **changes)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_base(path: Path, seed: int = 0, **changes) -> Path:
    """A base checkpoint of the small GPT and the byte tokenizer."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(CONFIG, **changes))
    content = {
        "config": dataclasses.asdict(model.config),
        "model": model.state_dict(),
        "tokenizer": tokenizer.state(),
    }
    save_checkpoint(path, content | {"template": None, "stop": [256], "step": 0, "args": {}})
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base.pt")


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        encoding="utf-8",
    )
    return path


def conversation(*turns: str, **more) -> dict:
    """Alternating user and assistant turns as a record in the messages form."""
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)],
        **more,
    }


def dataset_of(conversations: list[tuple[list[int], list[int]]]) -> Dataset:
    """A data set of conversations given as (ids, mask)."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in conversations)])
    ids, mask = (np.concatenate([pair[part] for pair in conversations]) for part in (0, 1))
    sources = np.stack([np.zeros(len(conversations), int), np.arange(len(conversations))], axis=1)
    return Dataset(ids.astype(np.int32), mask.astype(np.float32), offsets, sources)


def random_dataset(seed: int, number: int, longest: int = 40, weights=(0, 1)) -> Dataset:
    """Ragged conversations; ids 0 and 256, which padding might be made of, stand everywhere among
    the real ones. The mask is drawn from the `weights`."""
    random = np.random.default_rng(seed)
    conversations = []
    for length in random.integers(2, longest + 1, number):
        ids = random.choice([0, 256, *range(257)], length)
        mask = np.array(weights)[random.integers(0, len(weights), length)]
        mask[0], mask[random.integers(1, length)] = 0, 1
        conversations.append((ids, mask))
    return dataset_of(conversations)


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """What the claims call exact, in float64."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


def children(process: int) -> set[int]:
    """The processes that a process has started, and those that they have. (Only on Linux.)"""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    direct = {int(child) for task in tasks for child in task.read_text().split()}
    return direct.union(*map(children, direct))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 300
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
