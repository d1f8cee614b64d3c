"""The pictures of the documents, drawn from what the code does.

    python docs/pictures.py                                mask.svg, house.svg, forgetting.svg
    python docs/pictures.py out/tiny_instruct-1/log.csv    loss.svg as well, from that run's log

loss.svg and forgetting.svg are plots, for which matplotlib is needed.
"""

import argparse
import ast
import csv
import html
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from chat_template import TEMPLATES, Message, render  # noqa: E402
from sft import load_checkpoint  # noqa: E402

MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, GREY, PALE, LINE = "#1b1b1b", "#6a6a6a", "#f3f3f3", "#bdbdbd"
GREEN, DARK_GREEN, BLUE = "#cdebcf", "#2e7d32", "#1f5fa8"


# SVG, by hand


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """A whole picture. The white ground keeps it legible on a dark page."""
    marker = '<marker id="{0}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    marker += ' orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{1}"/></marker>'
    markers = "".join(marker.format(colour[1:], colour) for colour in (GREY, DARK_GREEN, BLUE))
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<defs>{markers}</defs>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>\n"])


def rectangle(
    x: float, y: float, width: float, height: float, fill: str, stroke: str, dash: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect {place} fill="{fill}" stroke="{stroke}"{dashes}/>'


def words(
    x: float,
    y: float,
    text: str,
    size: int = 13,
    fill: str = INK,
    font: str = SANS,
    anchor: str = "middle",
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    style = f'font-family="{font}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>'


def arrow(start: tuple[float, float], end: tuple[float, float], colour: str, both=False) -> str:
    ends = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    heads = f'marker-end="url(#{colour[1:]})"'
    heads += f' marker-start="url(#{colour[1:]})"' if both else ""
    return f'<line {ends} stroke="{colour}" stroke-width="1.4" {heads}/>'


# mask.svg: what is trained on

CONVERSATION = [Message("user", "Tell me the capital of Italy."), Message("assistant", "Rome")]
IGNORED = -100


def tokens_mask_labels(template: str = "chatml") -> list[tuple[str, int, str]]:
    """(token, mask, label) of each position of CONVERSATION, by the base's own tokenizer.

    A label is the next token where that one is supervised; "-100" stands for none.
    """
    _, tokenizer, _ = load_checkpoint(ROOT / "data" / "base.pt")
    tokenizer = tokenizer.with_special(TEMPLATES[template].special_tokens)
    ids, mask = render(CONVERSATION, tokenizer, template)
    labels = [after if m else IGNORED for after, m in zip(ids[1:], mask[1:])] + [IGNORED]

    def shown(token_id: int) -> str:
        if token_id == IGNORED:
            return str(IGNORED)
        return tokenizer.decode([token_id]).replace(" ", "·").replace("\n", "↵")

    return [(shown(i), m, shown(label)) for i, m, label in zip(ids, mask, labels)]


def mask_picture() -> str:
    """The tokens of one conversation, a line a turn, with the mask and the labels under them."""
    positions = tokens_mask_labels()
    opening = positions[0][0]
    starts = [i for i, (token, _, _) in enumerate(positions) if token == opening]
    parts: list[str] = []
    y, left, right = 44.0, 70.0, 0.0
    for start, end in itertools.pairwise([*starts, len(positions)]):
        x = left
        gap = 20 if any(mask for _, mask, _ in positions[start:end]) else 0  # for the arrows
        for caption, below in (("token", 18), ("mask", 44), ("label", 68 + gap)):
            parts.append(words(left - 12, y + below, caption, fill=GREY, anchor="end"))
        middle_before: float | None = None
        for token, mask, label in positions[start:end]:
            width = max(40.0, 7.3 * max(len(token), len(label)) + 12)
            middle = x + width / 2
            fill, stroke = (GREEN, DARK_GREEN) if mask else (PALE, LINE)
            parts.append(rectangle(x, y, width, 26, fill, stroke))
            parts.append(words(middle, y + 17.5, token, font=MONO, size=12))
            parts.append(words(middle, y + 44, str(mask), font=MONO, size=12, bold=bool(mask)))
            if label == str(IGNORED):
                parts.append(words(middle, y + 67.5 + gap, label, font=MONO, size=11, fill=GREY))
            else:
                parts.append(rectangle(x, y + 50 + gap, width, 26, GREEN, DARK_GREEN, dash="4 2"))
                parts.append(words(middle, y + 67.5 + gap, label, font=MONO, size=12))
            if mask and middle_before is not None:
                parts.append(arrow((middle, y + 49), (middle_before + 4, y + 48 + gap), DARK_GREEN))
            x, middle_before = x + width + 4, middle
        right, y = max(right, x), y + 102 + gap
    title = "One conversation as token ids, rendered by chat_template.render with ChatML"
    legend = (
        "Mask 1 (green): the answer and one stop token. Nothing else is trained on.",
        "Label: the next token where that one is green, and -100 elsewhere, which the loss skips.",
        "· is a space, ↵ is a line's end.",
    )
    parts.insert(0, words(left, 26, title, size=14, anchor="start", bold=True))
    for i, line in enumerate(legend):
        parts.append(words(left, y + 2 + 19 * i, line, fill=GREY, anchor="start"))
    return svg(right + 16, y + 52, parts)


# house.svg: who imports whom

# A room's place, what it does, and whether it is of the core. Of outer rooms, arrows go first.
ROOMS: dict[str, tuple[int, int, str]] = {
    "experiments/": (700, 40, "forks that compare"),
    "bench/": (360, 40, "speed side by side"),
    "data/": (530, 40, "world, base, JSONL"),
    "chat.py": (20, 40, "talk to a model"),
    "evaluate.py": (190, 40, "numbers for models"),
    "hf/": (700, 330, "other formats"),
    "runtime/": (700, 185, "fast, safe, resumable"),
    "sft.py": (190, 185, "objective and loop"),
    "model.py": (20, 330, "GPT and generation"),
    "lora.py": (180, 330, "adapters"),
    "chat_template.py": (340, 330, "records to ids, mask"),
    "tokenizer.py": (500, 330, "text to ids"),
}
CORE = ("sft.py", "model.py", "lora.py", "chat_template.py", "tokenizer.py")
ROOM_WIDTH, ROOM_HEIGHT = 140, 50


def room_of(path: Path) -> str:
    first, *rest = path.relative_to(ROOT).parts
    return first + "/" if rest else first


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but those of `if __name__ == "__main__"` and `if TYPE_CHECKING`."""
    test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
    if "__main__" in test or "TYPE_CHECKING" in test:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child)


def imported(path: Path) -> Iterator[str]:
    """The first names of the modules that a file imports, wherever in it."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def room_imports() -> dict[str, set[str]]:
    """room -> the rooms that it imports from, read from the files."""
    files = [path for room in ROOMS for path in sorted(ROOT.glob(room.replace("/", "/**/*.py")))]
    arrows: dict[str, set[str]] = {room: set() for room in ROOMS if (ROOT / room).exists()}
    for path in files:
        for name in imported(path):
            for room in (f"{name}.py", f"{name}/"):
                if room in arrows and room != room_of(path):
                    arrows[room_of(path)].add(room)
    return arrows


def reach(arrows: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(arrows[start])
    while todo:
        room = todo.pop()
        if room not in seen:
            seen.add(room)
            todo += arrows[room]
    return seen


def without_shortcuts(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow that other arrows lead along anyway, but none inside the core."""
    kept = {room: set(targets) for room, targets in arrows.items()}
    for room in arrows:
        for target in sorted(arrows[room]):
            if room in CORE and target in CORE:
                continue
            kept[room].remove(target)
            if target not in reach(kept, room):
                kept[room].add(target)
    return kept


def border(room: str, towards: str) -> tuple[float, float]:
    """Where the line between the middles of two rooms leaves the first: on its side if they stand
    in one row, else at its upper or lower edge."""
    (x, y), (to_x, to_y) = (
        (ROOMS[name][0] + ROOM_WIDTH / 2, ROOMS[name][1] + ROOM_HEIGHT / 2)
        for name in (room, towards)
    )
    across, down = to_x - x, to_y - y
    if not down:
        return x + math.copysign(ROOM_WIDTH / 2 + 3, across), y
    edge, most = ROOM_HEIGHT / 2 + 3, 0.42 * ROOM_WIDTH
    return x + max(-most, min(most, across * edge / abs(down))), y + math.copysign(edge, down)


def house_picture() -> str:
    arrows = room_imports()
    kept = without_shortcuts(arrows)
    parts = [rectangle(8, 150, 645, 245, "#fbfdf8", DARK_GREEN, dash="6 4")]
    parts.append(words(20, 170, "the core, to be read", fill=DARK_GREEN, anchor="start", bold=True))
    for room, targets in kept.items():
        for target in sorted(targets):
            both = room in kept[target]
            if not both or room < target:
                colour = DARK_GREEN if room in CORE and target in CORE else GREY
                parts.append(arrow(border(room, target), border(target, room), colour, both))
    for room in arrows:
        x, y, purpose = ROOMS[room]
        fill, stroke = (GREEN, DARK_GREEN) if room in CORE else (PALE, GREY)
        parts.append(rectangle(x, y, ROOM_WIDTH, ROOM_HEIGHT, fill, stroke))
        middle = x + ROOM_WIDTH / 2
        parts.append(words(middle, y + 21, room, font=MONO, bold=True))
        parts.append(words(middle, y + 39, purpose, size=12, fill=GREY))
    notes = (
        "An arrow goes from the room that imports to the one that is imported.",
        "Inside the core all are drawn; elsewhere, what follows from other arrows is left out.",
    )
    for i, line in enumerate(notes):
        parts.append(words(20, 420 + 18 * i, line, size=12, fill=GREY, anchor="start"))
    return svg(860, 450, parts)


# Plots, which need matplotlib


def figure(width: float, height: float, columns: int = 1):
    """A figure and its axes. Text stays text, and the same numbers give the same file."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "docs", "font.size": 10})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams["font.family"] = "sans-serif"
    return plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")


def write_figure(drawing, path: Path) -> None:
    import matplotlib.pyplot as plt

    drawing.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(drawing)


def loss_picture(log: Path, path: Path, most_points: int = 150) -> None:
    """Training and validation loss of a run, from its log.csv. The training loss of single steps is
    noisy: a point is the mean over some of them, weighed by their supervised tokens."""
    with open(log, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    together = max(1, math.ceil(len(rows) / most_points))
    steps, losses = [], []
    for start in range(0, len(rows), together):
        part = rows[start : start + together]
        tokens = [int(row["supervised_tokens"]) for row in part]
        nll = sum(float(row["loss"]) * n for row, n in zip(part, tokens))
        steps.append(sum(int(row["step"]) for row in part) / len(part))
        losses.append(nll / sum(tokens))
    held_out = [(int(row["step"]), float(row["val_loss"])) for row in rows if row["val_loss"]]
    drawing, [[axes]] = figure(7, 3.4)
    label = "training" + (f", mean of {together} steps" if together > 1 else "")
    axes.plot(steps, losses, color=BLUE, linewidth=1.3, label=label)
    if held_out:
        axes.plot(*zip(*held_out), "o-", color=DARK_GREEN, label="validation (held out)")
    axes.set(xlabel="step", ylabel="loss, nats a supervised token", yscale="log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_figure(drawing, path)


def table(title: str, page: Path) -> dict[str, list[float]]:
    """label -> numbers of the Markdown table whose head begins with `title`."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {title} |"):
            break
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {label: [float(n) for n in numbers] for label, *numbers in cells[1:]}


def forgetting_picture(path: Path) -> None:
    """Loss on pretraining text and right answers by learning rate, from experiments.md's table."""
    rows = table("What is forgotten", DOCS / "experiments.md")
    by_rate = [
        (float(match[1]), numbers)
        for label, numbers in rows.items()
        if (match := re.match(r"learning rate (\S+)", label))
    ]
    rates = [rate for rate, _ in by_rate]
    drawing, [[loss, right]] = figure(8, 3.3, columns=2)
    loss.plot(rates, [numbers[3] for _, numbers in by_rate], "o-", color=BLUE, label="tuned")
    loss.axhline(rows["base"][3], color=GREY, linestyle="--", label="base")
    replayed = [numbers[3] for label, numbers in rows.items() if label.endswith("replayed")]
    default = 1.5e-4  # at which the rows with replay were trained
    loss.plot(
        [default] * len(replayed), replayed, "s", color=DARK_GREEN, label="with 5, 10, 20 % replay"
    )
    loss.set(ylabel="loss on pretraining text, nats", ylim=(0, None), title="what is forgotten")
    for i, split in enumerate(("entities", "wordings", "tasks")):
        right.plot(rates, [numbers[i] for _, numbers in by_rate], "os^"[i] + "-", label=split)
    right.set(ylabel="right answers, %", ylim=(0, 100), title="what is learned")
    for axes in (loss, right):
        axes.set(xlabel="learning rate", xscale="log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    write_figure(drawing, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the pictures of the documents.")
    parser.add_argument("log", nargs="?", type=Path, help="a run's log.csv, for loss.svg")
    args = parser.parse_args(argv)
    (DOCS / "mask.svg").write_text(mask_picture(), encoding="utf-8")
    (DOCS / "house.svg").write_text(house_picture(), encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        forgetting_picture(DOCS / "forgetting.svg")
        if args.log:
            loss_picture(args.log, DOCS / "loss.svg")
    elif args.log:
        print("error: loss.svg needs matplotlib", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
