"""The rules of the house (.ci/house.py): the repository keeps them, and each is noticed if
broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(folder: Path) -> tuple[int, str]:
    command = [sys.executable, str(folder / ".ci" / "house.py")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_the_house_is_in_order() -> None:
    assert check(ROOT) == (0, "the house is in order\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code and the README alone, as a repository of its own."""
    folder = tmp_path_factory.mktemp("copy")
    for path in [ROOT / "README.md", ROOT / ".gitignore", *ROOT.rglob("*.py")]:
        place = path.relative_to(ROOT)
        if not any(part.startswith(".venv") or part == "out" for part in place.parts):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / place)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("utils.py", "", "utils.py: has no place at the top level"),
        ("lora.py", "\n" * 200, "lines of lora.py: "),
        ("model.py", "import runtime.console\n", "model.py: imports runtime/console.py"),
        ("lora.py", "def f():\n    import sft\n", "lora.py: imports sft.py"),
        ("runtime/console.py", "def f():\n    import sft\n", "runtime/console.py: imports sft.py"),
        ("runtime/console.py", "from runtime import files\n", None),
        ("runtime/files.py", "import runtime.load\n", "a circle of imports: "),
        ("chat_template.py", "x = '" + "x" * 100 + "'\n", "characters: 106, at most 100"),
        ("hf/__init__.py", "def f():\n" + "    x = 1\n" * 70, "lines of f: 71, at most 70"),
        ("README.md", "word " * 1200, "words of README.md: "),
        ("tests/test_new.py", "x = '" + "x" * 100 + "'\n", None),
        ("bench/new.py", 'if __name__ == "__main__":\n    import chat\n', None),
    ],
)
def test_a_broken_rule_is_noticed(copy: Path, file: str, text: str, complaint: str | None) -> None:
    path = copy / file
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + text)
    status, output = check(copy)
    if complaint:
        assert status == 1 and complaint in output
    else:
        assert (status, output) == (0, "the house is in order\n")
    path.write_text(before) if before is not None else path.unlink()
