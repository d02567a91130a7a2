"""layout_pictures.py [--check]   the pictures of docs/ops/attention-patterns.md from the library (on PYTHONPATH)."""

import sys
from pathlib import Path

import torch
from xformers.components.attention import attention_patterns as patterns
from xformers.components.attention import sparsity_config as configs

PAGE = Path(__file__).parents[1] / "docs/ops/attention-patterns.md"
BEGIN, END = "<!-- drawn by scripts/layout_pictures.py -->\n", "<!-- end -->\n"


def pictures():
    """Rows of pictures: (title, layout or pattern)."""

    def layout(config):
        return config.make_layout(192)[-1]

    def seeded():
        return torch.Generator().manual_seed(4)

    uni = {"attention": "unidirectional"}
    heads = {"num_heads": 2, "different_layout_per_head": True}
    yield "Layouts of 12 x 12 blocks: a row per block of queries, x where it sees a block of keys."
    yield [
        ("Fixed", layout(configs.FixedSparsityConfig(1))),
        ("Fixed, unidirectional", layout(configs.FixedSparsityConfig(1, **uni))),
        ("Fixed, horizontal", layout(configs.FixedSparsityConfig(1, horizontal_global_attention=True))),
        ("Fixed, head 1 of 4 patterns", layout(configs.FixedSparsityConfig(**heads, num_different_global_patterns=4))),
    ]
    yield [
        ("Variable", layout(configs.VariableSparsityConfig(1))),
        ("Variable, windows 2, 4", layout(configs.VariableSparsityConfig(1, local_window_blocks=[2, 4], **uni))),
        ("BigBird", layout(configs.BigBirdSparsityConfig(1, generator=seeded()))),
        ("BigBird, unidirectional", layout(configs.BigBirdSparsityConfig(1, generator=seeded(), **uni))),
    ]
    yield [
        ("BSLongformer", layout(configs.BSLongformerSparsityConfig(1))),
        ("BSLongformer, unidirectional", layout(configs.BSLongformerSparsityConfig(1, **uni))),
        ("BSLongformer, blocks 0, 6", layout(configs.BSLongformerSparsityConfig(1, global_block_indices=[0, 6]))),
        ("Dense", layout(configs.DenseSparsityConfig(1))),
    ]
    yield "Patterns of 12 tokens, those of a grid of 3 rows and 4 columns where there is one."
    yield [
        ("local_1d, window 5", patterns.local_1d_pattern(12, 5)),
        ("causal_1d", patterns.causal_1d_pattern(12)),
        (
            "global_token, tokens 0, 5",
            patterns.global_token_pattern(torch.isin(torch.arange(12), torch.tensor([0, 5]))),
        ),
        ("random, sparsity 0.7", patterns.random_pattern(12, 0.7, seeded())),
    ]
    yield [
        ("local_nd, distance 1.5", patterns.local_nd_pattern(3, 4, distance=1.5)),
        ("axial_nd", patterns.axial_nd_pattern(3, 4)),
        ("dilated_2d, k 2", patterns.dilated_2d_pattern(3, 4, 2)),
        ("swin of 2 x 6, window 2", patterns.swin_attention_pattern(2, 6, 2)),
    ]


def text():
    lines = []
    for row in pictures():
        if isinstance(row, str):
            lines += ["```", "", row, "", "```"] if lines else [row, "", "```"]
            continue
        if lines[-1] != "```":
            lines.append("")
        width = max(len(title) for title, _ in row) + 3
        lines.append("".join(title.ljust(width) for title, _ in row).rstrip())
        drawn = [["".join(".x"[int(seen)] for seen in line) for line in mask.tolist()] for _, mask in row]
        lines += ["".join(part.ljust(width) for part in parts).rstrip() for parts in zip(*drawn, strict=True)]
    return "\n".join([*lines, "```"]) + "\n"


def page_with_pictures():
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + text() + END + rest.split(END)[1]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text() == page_with_pictures() else f"{PAGE} shows others.  Fix: {sys.argv[0]}")
    PAGE.write_text(page_with_pictures())
