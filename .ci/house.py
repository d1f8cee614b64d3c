#!/usr/bin/env python3
"""What keeps the repository readable: sizes of its rooms, widths, lengths, and who imports whom.

    python .ci/house.py         one line for each rule that is broken; exit status 1 if there is one

Lines are counted whole, comments and docstrings included. Imports are counted wherever they stand,
inside functions too; not under `if __name__ == "__main__":` or `if TYPE_CHECKING:`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINES = {
    "tokenizer.py": 250,
    "chat_template.py": 430,
    "model.py": 400,
    "lora.py": 170,
    "sft.py": 500,
    "chat.py": 180,
    "evaluate.py": 170,
}
CORE = ("tokenizer.py", "chat_template.py", "model.py", "lora.py", "sft.py")
CORE_LINES, CORE_BYTES, RUNTIME_LINES, DATA_LINES = 1750, 80 * 1024, 1600, 2000
WIDTH, FUNCTION_LINES, README_WORDS = 100, 70, 1500
FOLDERS = {".ci", "bench", "data", "docs", "experiments", "hf", "runtime", "tests"}
OTHER_FILES = {".gitignore", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
# Who may import what of ours at the top of the file; the rest may import as it likes.
MAY_IMPORT = {
    "tokenizer.py": set(),
    "chat_template.py": {"tokenizer.py"},
    "model.py": set(),
    "lora.py": set(),
}


def tracked_files() -> list[str]:
    """Paths of the files that git knows or would add, relative to the repository."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    names = listed.decode().split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def counted(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, but for those that only a script or a type checker runs."""
    if isinstance(node, ast.If):
        condition = ast.unparse(node.test)
        if "__main__" in condition or "TYPE_CHECKING" in condition:
            return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from counted(child)


def imports_of(name: str, tree: ast.AST, modules: dict[str, str]) -> set[str]:
    """The files of ours that a file imports. A script's own folder is on its path, a package's
    is not."""
    folder = ".".join(name.split("/")[:-1])
    found = set()
    for node in counted(tree):
        wanted = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [module for module in below if module in modules] or [node.module]
        for module in wanted:
            beside = f"{folder}.{module}"
            found.add(modules.get(module) or modules.get(beside) or name)
    return found - {name}


def in_a_circle(arrows: dict[str, set[str]]) -> list[str]:
    """The files from which a way along the imports leads back to themselves."""

    def reached(name: str) -> set[str]:
        seen, waiting = set(), list(arrows[name])
        while waiting:
            here = waiting.pop()
            if here not in seen:
                seen.add(here)
                waiting += arrows[here]
        return seen

    return sorted(name for name in arrows if name in reached(name))


def broken_rules() -> Iterator[str]:
    names = tracked_files()
    texts = {n: (ROOT / n).read_text(encoding="utf-8") for n in names if n.endswith(".py")}
    lines = {name: text.count("\n") for name, text in texts.items()}

    def most(what: str, value: int, limit: int) -> Iterator[str]:
        if value > limit:
            yield f"{what}: {value:,}, at most {limit:,}"

    for name in sorted({name.split("/")[0] for name in names}):
        if name not in FOLDERS | LINES.keys() | OTHER_FILES:
            yield f"{name}: has no place at the top level"
    for name, limit in LINES.items():
        yield from most(f"lines of {name}", lines[name], limit)
    yield from most("lines of the core", sum(lines[name] for name in CORE), CORE_LINES)
    core_bytes = sum(len(texts[name].encode()) for name in CORE)
    yield from most("bytes of the core", core_bytes, CORE_BYTES)
    for room, limit in (("runtime/", RUNTIME_LINES), ("data/", DATA_LINES)):
        n_lines = sum(n for name, n in lines.items() if name.startswith(room))
        yield from most(f"lines of {room}", n_lines, limit)

    trees = {name: ast.parse(text) for name, text in texts.items()}
    for name, tree in trees.items():
        if name.startswith(("tests/", "docs/", "data/")):
            continue
        for number, line in enumerate(texts[name].splitlines(), 1):
            yield from most(f"{name}:{number}: characters", len(line), WIDTH)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                n_lines = node.end_lineno - node.lineno + 1
                yield from most(f"{name}: lines of {node.name}", n_lines, FUNCTION_LINES)

    code = {n: tree for n, tree in trees.items() if not n.startswith(("tests/", "docs/"))}
    stems = {name: name.removesuffix(".py").removesuffix("/__init__") for name in code}
    modules = {stem.replace("/", "."): name for name, stem in stems.items()}
    arrows = {name: imports_of(name, tree, modules) for name, tree in code.items()}
    for name, allowed in MAY_IMPORT.items():
        for other in sorted(arrows[name] - allowed):
            yield f"{name}: imports {other}"
    for name in arrows:
        for other in ("sft.py", "chat.py", "evaluate.py"):
            if name.startswith("runtime/") and other in arrows[name]:
                yield f"{name}: imports {other}"
    if circle := in_a_circle(arrows):
        yield f"a circle of imports: {', '.join(circle)}"
    words = (ROOT / "README.md").read_text(encoding="utf-8").replace("|", " ").split()
    yield from most("words of README.md", len([w for w in words if w.strip("-:")]), README_WORDS)


if __name__ == "__main__":
    broken = list(broken_rules())
    print("\n".join(broken) or "the house is in order")
    sys.exit(bool(broken))
