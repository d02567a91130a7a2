"""Who attends to whom: masks `[seqlen, seqlen]`, True where a query sees a key, and layouts, the same over blocks.

Tokens of a grid are numbered with its last coordinate fastest. Masks are made on `device`, torch's default device if it
is None. What is random comes from `generator`, on its device, or from the CPU's default one, which `torch.manual_seed`
sets: one seed gives one mask on every device. Sizes that do not fit are an AssertionError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    FixedSparsityConfig,
    VariableSparsityConfig,
)

Device = torch.device | str | None


def _at(device: Device) -> torch.device:
    return torch.get_default_device() if device is None else torch.device(device)


@contextmanager
def _asserted() -> Iterator[None]:
    """The library's ValueError as an AssertionError."""
    try:
        yield
    except ValueError as error:
        raise AssertionError(str(error)) from None


def local_nd_distance(
    *sizes: int, p: float = 2.0, weights: Sequence[float] | None = None, device: Device = None
) -> torch.Tensor:
    """The p-distance of any two points of a grid, fp32 `[points, points]`; `weights` of each coordinate (1). p = 0
    counts the coordinates that differ."""
    with _asserted():
        return torch.ops.xformers.local_nd_distance(sizes, p, [*(weights or ())], _at(device))


def local_nd_gaussian_distribution(*sizes: int, sigma: float = 1, device: Device = None) -> torch.Tensor:
    """exp(-distance^2 / (2 sigma^2)) of any two points of a grid, fp32 `[points, points]`."""
    with _asserted():
        return torch.ops.xformers.local_nd_gaussian_distribution(sizes, sigma, _at(device))


def local_nd_pattern(*sizes: int, distance: float, p: float = 2.0, device: Device = None) -> torch.Tensor:
    """Points of a grid that are nearer than `distance`."""
    with _asserted():
        return torch.ops.xformers.local_nd_pattern(sizes, distance, p, _at(device))


def axial_nd_pattern(*sizes: int, device: Device = None) -> torch.Tensor:
    """Points of a grid that differ in one coordinate at most: axial attention, Ho et al., arXiv:1912.12180."""
    with _asserted():
        return torch.ops.xformers.axial_nd_pattern(sizes, _at(device))


def local_2d_distance(H: int, W: int, p: float = 2.0) -> torch.Tensor:
    """`local_nd_distance` of an H x W grid."""
    return local_nd_distance(H, W, p=p)


def local_2d_gausian_distribution(H: int, W: int, sigma: float = 1.0) -> torch.Tensor:
    """`local_nd_gaussian_distribution` of an H x W grid."""
    return local_nd_gaussian_distribution(H, W, sigma=sigma)


def local_2d_pattern(H: int, W: int, distance: float, p: float = 2.0) -> torch.Tensor:
    """`local_nd_pattern` of an H x W grid."""
    return local_nd_pattern(H, W, distance=distance, p=p)


def axial_2d_pattern(H: int, W: int) -> torch.Tensor:
    """`axial_nd_pattern` of an H x W grid."""
    return axial_nd_pattern(H, W)


def horizontal_axial_2d_distance(H: int, W: int, p: float = 2.0) -> torch.Tensor:
    """The distance in the first coordinate alone."""
    return local_nd_distance(H, W, p=p, weights=(1, 0))


def vertical_axial_2d_distance(H: int, W: int, p: float = 2.0) -> torch.Tensor:
    """The distance in the second coordinate alone."""
    return local_nd_distance(H, W, p=p, weights=(0, 1))


def local_1d_pattern(attn_size: int, window_size: int, device: Device = None) -> torch.Tensor:
    """|i - j| <= window_size // 2, for an odd window_size."""
    with _asserted():
        return torch.ops.xformers.local_1d_pattern(attn_size, window_size, _at(device))


def causal_1d_pattern(attn_size: int, device: Device = None) -> torch.Tensor:
    """j <= i"""
    with _asserted():
        return torch.ops.xformers.causal_1d_pattern(attn_size, _at(device))


def random_pattern(
    attn_size: int, sparsity: float, generator: torch.Generator | None = None, device: Device = None
) -> torch.Tensor:
    """Each element with probability 1 - sparsity, 0 < sparsity < 1."""
    with _asserted():
        return torch.ops.xformers.random_pattern(attn_size, sparsity, generator, _at(device))


def random_pattern_from_probability_matrix(
    dist_matrix: torch.Tensor, nnz: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """`nnz` different elements, drawn one after the other in proportion to dist_matrix, which may have any number of
    elements; on its device."""
    with _asserted():
        return torch.ops.xformers.random_pattern_from_probability_matrix(dist_matrix, nnz, generator)


def global_token_pattern(attention_query_mask: torch.Tensor) -> torch.Tensor:
    """Of a bool vector: its True tokens see all and are seen by all. Beltagy et al., arXiv:2004.05150."""
    with _asserted():
        return torch.ops.xformers.global_token_pattern(attention_query_mask)


def swin_attention_pattern(
    H: int, W: int, window_size: int, shift_size: int = 0, device: Device = None
) -> torch.Tensor:
    """Tokens in the same window of an H x W grid cut into windows from row and column `shift_size` on, those at the
    border cut too: Liu et al., arXiv:2103.14030. window_size divides H and W; 0 <= shift_size < window_size."""
    with _asserted():
        return torch.ops.xformers.swin_attention_pattern(H, W, window_size, shift_size, _at(device))


def dilated_2d_pattern(H: int, W: int, k: int = 2, device: Device = None) -> torch.Tensor:
    """Tokens of an H x W grid whose rows and columns differ by multiples of k."""
    with _asserted():
        return torch.ops.xformers.dilated_2d_pattern(H, W, k, _at(device))


def alibi_pattern(threshold: float, mask_shape: Sequence[int], device: Device = None) -> torch.Tensor:
    """`[heads, seqlen_q, seqlen_k]` (mask_shape): keys whose position times the slope of the head is below `threshold`.
    Slopes 2^(-8 (h + 1) / heads), for other than powers of 2 as Press et al. do, arXiv:2108.12409."""
    with _asserted():
        return torch.ops.xformers.alibi_pattern(threshold, mask_shape, _at(device))


def quick_fixed_layout(num_heads: int, block_size: int, seq_len: int) -> torch.Tensor:
    """The layout of a `FixedSparsityConfig` with its default options."""
    return FixedSparsityConfig(num_heads, block_size).make_layout(seq_len)


def quick_variable_layout(num_heads: int, block_size: int, seq_len: int) -> torch.Tensor:
    """The layout of a `VariableSparsityConfig` with its default options."""
    return VariableSparsityConfig(num_heads, block_size).make_layout(seq_len)


def quick_bigbird_layout(num_heads: int, block_size: int, seq_len: int) -> torch.Tensor:
    """The layout of a `BigBirdSparsityConfig` with its default options."""
    return BigBirdSparsityConfig(num_heads, block_size).make_layout(seq_len)


def quick_bslongformer_layout(num_heads: int, block_size: int, seq_len: int) -> torch.Tensor:
    """The layout of a `BSLongformerSparsityConfig` with its default options."""
    return BSLongformerSparsityConfig(num_heads, block_size).make_layout(seq_len)


def block_sparsify_tensor(x: torch.Tensor, mask: torch.Tensor, block_size: int) -> torch.Tensor:
    """x `[batch, heads, seqlen_q, seqlen_k]` at the blocks of a layout `[heads, rows, columns]`, in the order of
    `mask.nonzero()`: `[batch, blocks, block_size, block_size]`."""
    with _asserted():
        return torch.ops.xformers.block_sparsify_tensor(x, mask, block_size)


def pattern_to_layout(mask: torch.Tensor, block_size: int) -> torch.Tensor:
    """Of a mask `[(heads,) seqlen_q, seqlen_k]`: int64 `[(heads,) rows, columns]`, 1 where any element of a block of
    block_size x block_size is not 0. block_size divides both lengths."""
    with _asserted():
        return torch.ops.xformers.pattern_to_layout(mask, block_size)


def layout_to_pattern(layout: torch.Tensor, block_size: int) -> torch.Tensor:
    """The mask, bool, of whole blocks that a layout `[(heads,) rows, columns]` names."""
    with _asserted():
        return torch.ops.xformers.layout_to_pattern(layout, block_size)


__all__ = [
    "alibi_pattern",
    "axial_2d_pattern",
    "axial_nd_pattern",
    "block_sparsify_tensor",
    "causal_1d_pattern",
    "dilated_2d_pattern",
    "global_token_pattern",
    "horizontal_axial_2d_distance",
    "layout_to_pattern",
    "local_1d_pattern",
    "local_2d_distance",
    "local_2d_gausian_distribution",
    "local_2d_pattern",
    "local_nd_distance",
    "local_nd_gaussian_distribution",
    "local_nd_pattern",
    "pattern_to_layout",
    "quick_bigbird_layout",
    "quick_bslongformer_layout",
    "quick_fixed_layout",
    "quick_variable_layout",
    "random_pattern",
    "random_pattern_from_probability_matrix",
    "swin_attention_pattern",
    "vertical_axial_2d_distance",
]
