"""One matrix product of matrices that are given as grids of tiles."""

from collections.abc import Sequence

import torch

Grid = Sequence[Sequence[torch.Tensor]]


def _flat(grid: Grid) -> tuple[list[torch.Tensor], list[int]]:
    """Tiles row by row, and how many each row has."""
    return [tile for row in grid for tile in row], [len(row) for row in grid]


def tiled_matmul(a: Grid, b: Grid) -> list[list[torch.Tensor]]:
    """`out[m][n] = sum over k of a[m][k] @ b[k][n]`, as one product of the merged matrices gives it: sums in fp32 (fp64
    for fp64), one rounding. Differentiable. AssertionError where the tiles don't make two matrices that fit."""
    try:
        flat = torch.ops.xformers.tiled_matmul_grids(*_flat(a), *_flat(b))
    except ValueError as error:
        raise AssertionError(str(error)) from None
    width = len(b[0])
    return [flat[start : start + width] for start in range(0, len(flat), width)]


def tiled_matmul_out(a: Grid, b: Grid, out: Grid) -> None:
    """`tiled_matmul` into given tiles. Not differentiable. AssertionError as there, and where out's sizes differ."""
    try:
        torch.ops.xformers.tiled_matmul_grids_out(*_flat(a), *_flat(b), *_flat(out))
    except ValueError as error:
        raise AssertionError(str(error)) from None


__all__ = ["tiled_matmul", "tiled_matmul_out"]
