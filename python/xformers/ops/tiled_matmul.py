"""One matrix product of matrices that are given as grids of tiles."""

from collections.abc import Sequence

import torch

Grid = Sequence[Sequence[torch.Tensor]]


def _sizes(a: Grid, b: Grid) -> tuple[list[int], list[int], list[int]]:
    """Heights of a's rows, widths of b's columns, and what lies between; AssertionError where the grids don't fit."""
    for name, grid in (("a", a), ("b", b)):
        assert len(grid) > 0 and len(grid[0]) > 0, f"tiled_matmul: {name} is empty, expected at least one tile"
        assert all(len(row) == len(grid[0]) for row in grid), f"tiled_matmul: the rows of {name} differ in length"
        assert all(tile.ndim == 2 for row in grid for tile in row), f"tiled_matmul: {name} has tiles that are not 2-D"
    assert len(a[0]) == len(b), f"tiled_matmul: a has {len(a[0])} columns of tiles, expected {len(b)}, the rows of b"
    ms, ks, ns = [row[0].shape[0] for row in a], [tile.shape[1] for tile in a[0]], [tile.shape[1] for tile in b[0]]
    for name, grid, heights, widths in (("a", a, ms, ks), ("b", b, ks, ns)):
        for i, row in enumerate(grid):
            for j, tile in enumerate(row):
                assert tuple(tile.shape) == (heights[i], widths[j]), (
                    f"tiled_matmul: {name}[{i}][{j}] is {list(tile.shape)}, expected {[heights[i], widths[j]]}"
                )
    return ms, ns, ks


def _flat(grid: Grid) -> list[torch.Tensor]:
    return [tile for row in grid for tile in row]


def tiled_matmul(a: Grid, b: Grid) -> list[list[torch.Tensor]]:
    """`out[m][n] = sum over k of a[m][k] @ b[k][n]`, as one product of the merged matrices gives it. Differentiable."""
    ms, ns, ks = _sizes(a, b)
    flat = torch.ops.xformers.tiled_matmul(_flat(a), _flat(b), ms, ns, ks)
    return [flat[m * len(ns) : (m + 1) * len(ns)] for m in range(len(ms))]


def tiled_matmul_out(a: Grid, b: Grid, out: Grid) -> None:
    """tiled_matmul into given tiles. Not differentiable."""
    ms, ns, _ = _sizes(a, b)
    assert [len(row) for row in out] == [len(ns)] * len(ms), (
        f"tiled_matmul: out is no grid of {len(ms)} x {len(ns)} tiles"
    )
    for m, row in enumerate(out):
        for n, tile in enumerate(row):
            assert tuple(tile.shape) == (ms[m], ns[n]), (
                f"tiled_matmul: out[{m}][{n}] is {list(tile.shape)}, expected {[ms[m], ns[n]]}"
            )
    with torch.no_grad():
        for row, products in zip(out, tiled_matmul(a, b), strict=True):
            for tile, product in zip(row, products, strict=True):
                tile.copy_(product)


__all__ = ["tiled_matmul", "tiled_matmul_out"]
