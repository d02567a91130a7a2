"""pictures.py <folder of the staged pages>   draws what pages ask for by `<!-- picture: name -->`, light and dark, and
puts the pictures there."""

import json
import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "xformers", "svg.fonttype": "none", "font.size": 9}
COLOURS = {"light": ("#1b1b1b", "#2f6fb2", "#c9dcef", "#c8553d"), "dark": ("#e6e6e6", "#7fb2e5", "#2b3a4a", "#f0997d")}
PICTURES = {}


def picture(alt):
    """Registers a function (colours) -> figure under its own name, with a sentence for those who do not see it."""

    def add(draw):
        PICTURES[draw.__name__] = (draw, alt)
        return draw

    return add


@picture("Grids of queries and keys: full, causal, a window, packed sequences, padded keys, blocks.")
def masks(ink, strong, weak, warm):
    import torch
    from xformers.ops.fmha import attn_bias

    from xformers.ops import BlockSparseMask

    size = 12
    layout = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    shown = {
        "LowerTriangularMask": attn_bias.LowerTriangularMask(),
        "...LocalAttentionMask(4)": attn_bias.LowerTriangularFromBottomRightLocalAttentionMask(4),
        "BlockDiagonalMask": attn_bias.BlockDiagonalMask.from_seqlens([3, 5, 4]),
        "...PaddedKeysMask": attn_bias.BlockDiagonalPaddedKeysMask.from_seqlens(
            [4] * 3, kv_padding=4, kv_seqlen=[2, 4, 1]
        ),
        "BlockSparseMask": BlockSparseMask(layout.bool(), 16),
    }
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 2.2))
    for axis, (name, bias) in zip(axes, shown.items(), strict=True):
        length = 48 if name == "BlockSparseMask" else size
        seen = bias.materialize((1, 1, length, length))[0, 0] == 0
        axis.pcolormesh(
            seen.flip(0).int(), cmap=matplotlib.colors.ListedColormap([weak, strong]), edgecolors=ink, linewidth=0.2
        )
        axis.set_title(name, color=ink, fontsize=9)
        axis.set_aspect("equal")
    axes[0].set_ylabel("queries", color=ink)
    for axis in axes:
        axis.set_xlabel("keys", color=ink)
        axis.set_xticks([]), axis.set_yticks([])
    return figure


@picture("Rates of attention over the length, forward and backward, under the rate of a matrix product.")
def roofs(ink, strong, weak, warm):
    path = max(
        (ROOT / "benchmarks/results").glob("attention-cuda*.json"),
        key=lambda file: json.loads(file.read_text())["date"],
    )
    result = json.loads(path.read_text())
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for dim, colour in ((64, strong), (128, warm)):
            points = []
            for row in result["rows"]:
                match = re.fullmatch(rf"D{dim} S(\d+) full", row["case"])
                if match and row["dtype"] == "bfloat16" and direction in row:
                    points.append((int(match[1]), row[direction]["xformers"]["tflops"]))
            if points:
                axis.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=f"head_dim {dim}")
        axis.axhline(result["gemm_tflops"]["bfloat16"], color=ink, linestyle="--", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_title(f"{direction}, bf16, {result['gpu']}", color=ink)
        axis.set_xlabel("length", color=ink)
        axis.legend(frameon=False, labelcolor=ink, loc="lower right")
    axes[0].set_ylabel("TFLOP/s (dashed: matrix product)", color=ink)
    axes[0].set_ylim(bottom=0)
    return figure


@picture("Two consumers take turns: while one multiplies, the other takes its softmax; a loader follows.")
def schedule(ink, strong, weak, warm):
    """A step of Hopper's forward: docs/design/hopper.md."""
    figure, axis = plt.subplots(figsize=(9, 1.8))
    boxes = []  # (row, from, to, what, colour)
    for row, first in ((2, 0), (1, 2)):
        for turn in range(first, 9, 4):
            boxes += [(row, turn, turn + 1, "S' = Q K", strong), (row, turn + 1, turn + 2, "O += P V", strong)]
            boxes.append((row, turn + 2, turn + 4, "softmax of S'", weak))
    # As soon as both consumers are done with the tile before.
    boxes += [(0, start, start + 1, what, warm) for start, what in ((3, "K'"), (4, "V'"), (7, "K''"), (8, "V''"))]
    for row, start, end, what, colour in boxes:
        axis.barh(row, end - start, left=start, color=colour, edgecolor=ink, alpha=0.8)
        axis.text((start + end) / 2, row, what, ha="center", va="center", color=ink, fontsize=8, clip_on=True)
    axis.set_yticks(range(3), ["loader", "consumer 1", "consumer 0"], color=ink)
    axis.set_xlim(0, 10)
    axis.set_xlabel("time, not to scale", color=ink)
    axis.set_xticks([])
    return figure


def draw_for(stage):
    folder = stage / "pictures"
    folder.mkdir(exist_ok=True)
    for page in stage.rglob("*.md"):
        text = page.read_text()
        up = "../" * (len(page.relative_to(stage).parts) - 1)
        for name in re.findall(r"<!-- picture: (\w+) -->", text):
            draw, alt = PICTURES[name]
            both = ""
            for theme, colours in COLOURS.items():
                figure = draw(*colours)
                for axis in figure.axes:
                    axis.set_facecolor("none")
                    axis.tick_params(colors=colours[0])
                    for spine in axis.spines.values():
                        spine.set_color(colours[0])
                figure.savefig(
                    folder / f"{name}-{theme}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
                )
                plt.close(figure)
                both += f"```{{image}} {up}pictures/{name}-{theme}.svg\n:alt: {alt}\n:class: only-{theme}\n```\n"
            text = text.replace(f"<!-- picture: {name} -->", both)
        page.write_text(text)


if __name__ == "__main__":
    draw_for(Path(sys.argv[1]))
