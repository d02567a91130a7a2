"""Which blocks of the score matrix are computed: the layouts of DeepSpeed's sparse attention.

A layout is int64 `[heads, rows, columns]` over blocks of block_size x block_size elements, 1 where a block of queries
sees a block of keys. Each kind is built of steps that write into the layout of one head, `(h, layout) -> layout`, and
may be called alone. Attention is "bidirectional" or "unidirectional" (NotImplementedError for another word); the latter
has nothing right of the diagonal. Options that do not fit each other or the sequence are a ValueError. Random blocks
come from `generator`, a torch.Generator of the CPU, or its default one, which `torch.manual_seed` sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch


def _is_causal(attention: str) -> bool:
    if attention not in ("bidirectional", "unidirectional"):
        raise NotImplementedError(
            f"SparsityConfig: attention is {attention}, expected bidirectional or unidirectional.  Fix: choose one of "
            "these."
        )
    return attention == "unidirectional"


class SparsityConfig:
    """Base of layouts.

    Arguments:
        num_heads: of the layout.
        block_size: of a block's rows and columns.
        different_layout_per_head: whether each head has a layout of its own, or all that of the first.
    """

    _steps: ClassVar[tuple[str, ...]] = ()  # names of methods

    def __init__(self, num_heads: int, block_size: int = 16, different_layout_per_head: bool = False):
        self.num_heads = num_heads
        self.block_size = block_size
        self.different_layout_per_head = different_layout_per_head
        self.num_layout_heads = num_heads if different_layout_per_head else 1

    def setup_layout(self, seq_len: int) -> torch.Tensor:
        """Zeros `[num_heads, seq_len // block_size, seq_len // block_size]`. ValueError unless block_size divides."""
        return torch.ops.xformers._sparsity_setup(self.num_heads, self.block_size, seq_len)

    def check_and_propagate_first_head_layout(self, layout: torch.Tensor) -> torch.Tensor:
        """The first head's layout for all heads, unless they differ; in place."""
        if not self.different_layout_per_head:
            layout[1:] = layout[:1]
        return layout

    def make_layout(self, seq_len: int) -> torch.Tensor:
        """The layout `[num_heads, seq_len // block_size, seq_len // block_size]`."""
        layout = self.setup_layout(seq_len)
        for h in range(self.num_layout_heads):
            for step in self._steps:
                layout = getattr(self, step)(h, layout)
        return self.check_and_propagate_first_head_layout(layout)


class DenseSparsityConfig(SparsityConfig):
    """All blocks."""

    def make_layout(self, seq_len: int) -> torch.Tensor:
        return self.setup_layout(seq_len).fill_(1)


class FixedSparsityConfig(SparsityConfig):
    """Windows of blocks, whose last blocks are global: Sparse Transformers, Child et al., arXiv:1904.10509.

    Arguments:
        num_local_blocks: of a window, dense inside.
        num_global_blocks: of each window, the last ones, which all see (unidirectional: those behind); divides
            num_local_blocks.
        horizontal_global_attention: global blocks see all, too (bidirectional only).
        num_different_global_patterns: head h takes the global blocks h % patterns places before the last ones; more
            than 1 needs different_layout_per_head, and at most num_local_blocks / num_global_blocks fit.
    """

    _steps = ("set_local_layout", "set_global_layout")

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_local_blocks: int = 4,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        num_different_global_patterns: int = 1,
    ):
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.num_local_blocks = num_local_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self.num_different_global_patterns = num_different_global_patterns
        torch.ops.xformers._sparsity_check_fixed(*self._rule(), different_layout_per_head)

    def _rule(self) -> tuple[int, int, bool, bool, int]:
        return (
            self.num_local_blocks,
            self.num_global_blocks,
            _is_causal(self.attention),
            self.horizontal_global_attention,
            self.num_different_global_patterns,
        )

    def set_local_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The windows."""
        torch.ops.xformers._sparsity_windows_(layout[h], [self.num_local_blocks], _is_causal(self.attention))
        return layout

    def set_global_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The global columns, and rows."""
        torch.ops.xformers._sparsity_fixed_global_(layout[h], h, *self._rule())
        return layout


class VariableSparsityConfig(SparsityConfig):
    """Windows of several sizes, global blocks and random ones.

    Arguments:
        num_random_blocks: of each row.
        local_window_blocks: sizes of the windows; the last one is repeated.
        global_block_indices: columns that all see (unidirectional: those behind); what is beyond the sequence is not.
        global_block_end_indices: where the ranges that begin at these end.
        horizontal_global_attention: global blocks see all, too (bidirectional only).
    """

    _steps = ("set_random_layout", "set_local_layout", "set_global_layout")

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 0,
        local_window_blocks: Sequence[int] = (4,),
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
        horizontal_global_attention: bool = False,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.num_random_blocks = num_random_blocks
        self.local_window_blocks = local_window_blocks
        self.global_block_indices = global_block_indices
        self.global_block_end_indices = global_block_end_indices
        self.attention = attention
        self.horizontal_global_attention = horizontal_global_attention
        self.generator = generator
        torch.ops.xformers._sparsity_check_global(*self._rule())

    def _rule(self) -> tuple[Sequence[int], Sequence[int], bool, bool]:
        ends = self.global_block_end_indices or ()
        return self.global_block_indices, ends, _is_causal(self.attention), self.horizontal_global_attention

    def set_random_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """Random blocks, others in each call."""
        causal = _is_causal(self.attention)
        torch.ops.xformers._sparsity_random_(layout[h], self.num_random_blocks, causal, self.generator)
        return layout

    def set_local_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The windows."""
        torch.ops.xformers._sparsity_windows_(layout[h], self.local_window_blocks, _is_causal(self.attention))
        return layout

    def set_global_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The global columns, and rows."""
        torch.ops.xformers._sparsity_global_(layout[h], *self._rule())
        return layout


class BigBirdSparsityConfig(SparsityConfig):
    """Random blocks, a sliding window, and first blocks that see all and are seen by all ("internal transformer
    construction"): Zaheer et al., arXiv:2007.14062. More blocks of a kind than the sequence has are a ValueError."""

    _steps = ("set_random_layout", "set_sliding_window_layout", "set_global_layout_itc")

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_random_blocks: int = 1,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 1,
        attention: str = "bidirectional",
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.num_random_blocks = num_random_blocks
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.num_global_blocks = num_global_blocks
        self.attention = attention
        self.generator = generator
        _is_causal(attention)

    def set_random_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """Random blocks, others in each call."""
        causal = _is_causal(self.attention)
        torch.ops.xformers._sparsity_random_(layout[h], self.num_random_blocks, causal, self.generator)
        return layout

    def set_sliding_window_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """num_sliding_window_blocks // 2 blocks on both sides of the diagonal."""
        causal = _is_causal(self.attention)
        torch.ops.xformers._sparsity_sliding_window_(layout[h], self.num_sliding_window_blocks, causal)
        return layout

    def set_global_layout_itc(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The first rows and columns."""
        torch.ops.xformers._sparsity_first_global_(layout[h], self.num_global_blocks, _is_causal(self.attention))
        return layout


class BSLongformerSparsityConfig(SparsityConfig):
    """A sliding window, and global blocks that see all and are seen by all: Longformer over blocks, Beltagy et al.,
    arXiv:2004.05150. `global_block_end_indices`: where the ranges that begin at `global_block_indices` end."""

    _steps = ("set_sliding_window_layout", "set_global_layout")

    def __init__(
        self,
        num_heads: int,
        block_size: int = 16,
        different_layout_per_head: bool = False,
        num_sliding_window_blocks: int = 3,
        global_block_indices: Sequence[int] = (0,),
        global_block_end_indices: Sequence[int] | None = None,
        attention: str = "bidirectional",
    ):
        super().__init__(num_heads, block_size, different_layout_per_head)
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.global_block_indices = global_block_indices
        self.global_block_end_indices = global_block_end_indices
        self.attention = attention
        ends = global_block_end_indices or ()
        torch.ops.xformers._sparsity_check_global(global_block_indices, ends, _is_causal(attention), False)

    def set_sliding_window_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """num_sliding_window_blocks // 2 blocks on both sides of the diagonal."""
        causal = _is_causal(self.attention)
        torch.ops.xformers._sparsity_sliding_window_(layout[h], self.num_sliding_window_blocks, causal)
        return layout

    def set_global_layout(self, h: int, layout: torch.Tensor) -> torch.Tensor:
        """The global rows and columns."""
        ends, causal = self.global_block_end_indices or (), _is_causal(self.attention)
        torch.ops.xformers._sparsity_global_(layout[h], self.global_block_indices, ends, causal, True)
        return layout


__all__ = [
    "BSLongformerSparsityConfig",
    "BigBirdSparsityConfig",
    "DenseSparsityConfig",
    "FixedSparsityConfig",
    "SparsityConfig",
    "VariableSparsityConfig",
]
