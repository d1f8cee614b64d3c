"""Ten times the data need hardly more memory, and a second start finds them tokenised.

`--full` takes a million conversations, CI some ten thousand.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import children, conversation

import sft

WORDS = (
    "a list of words that are as long as words are in English, and that come in any order".split()
)


def write_conversations(path: Path, number: int) -> None:
    """About 250 bytes each, no two alike."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(5, 30))) for _ in range(10_000)]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(number):
            question, answer = draw.choices(texts, k=2)
            file.write(json.dumps(conversation(f"{i} {question}?", answer)) + "\n")


def run(folder: Path, arguments: str) -> tuple[str, int]:
    """What a run prints, and the most memory in MB that it and its helpers have held, added up."""
    command, peaks = [sys.executable, sft.__file__, *arguments.split()], {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "out.txt", "w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    while process.poll() is None:
        for number in (process.pid, *children(process.pid)):
            try:
                status = Path(f"/proc/{number}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
                peaks[number] = int(found[1])
        time.sleep(0.05)
    said = (folder / "out.txt").read_text()
    assert process.returncode == 0, said
    return said, sum(peaks.values()) // 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for memory in /proc")
def test_memory_is_flat_and_the_cache_is_found(request, counts: Counter, tmp_path: Path) -> None:
    few, many = (100_000, 1_000_000) if request.config.getoption("--full") else (35_000, 70_000)
    peaks = {}
    for number in (few, many):
        write_conversations(tmp_path / "large.jsonl", number)
        arguments = "--data large.jsonl --device cpu --steps 1 --batch-tokens 500 --save-every 9"
        arguments += " --overwrite --out run"
        first, peaks[number] = run(tmp_path, arguments)
        assert (
            f"large.jsonl: {number:,} conversations tokenised in" in first
            and "cache     out/cache/" in first
        )
        second, _ = run(tmp_path, arguments)
        assert f"large.jsonl: {number:,} conversations, " in second and "tokenised" not in second
        counts[f"MB for {number:,} conversations"] = peaks[number]
    assert peaks[many] - peaks[few] <= 1024
