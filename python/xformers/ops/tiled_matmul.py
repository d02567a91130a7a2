"""One matrix product of matrices that are given as grids of tiles."""

from collections.abc import Sequence

import torch

Grid = Sequence[Sequence[torch.Tensor]]


def _refuse(name: str, got: object, expected: str) -> None:
    raise AssertionError(f"tiled_matmul: {name} is {got}, expected {expected}.  Fix: give a regular grid of 2-D tiles.")


def _check_tiles(name: str, grid: Grid, heights: list[int], widths: list[int]) -> None:
    if [len(row) for row in grid] != [len(widths)] * len(heights):
        _refuse(name, f"rows of {[len(row) for row in grid]} tiles", f"{len(heights)} rows of {len(widths)}")
    for i, row in enumerate(grid):
        for j, tile in enumerate(row):
            if tuple(tile.shape) != (heights[i], widths[j]):
                _refuse(f"{name}[{i}][{j}]", list(tile.shape), str([heights[i], widths[j]]))


def _sizes(a: Grid, b: Grid) -> tuple[list[int], list[int], list[int]]:
    """Heights of a's rows, widths of b's columns, and what lies between; AssertionError where the grids don't fit."""
    for name, grid in (("a", a), ("b", b)):
        if len(grid) == 0 or len(grid[0]) == 0:
            _refuse(name, "empty", "at least one tile")
        if any(tile.ndim != 2 for row in grid for tile in row):
            _refuse(name, "a grid with tiles of other dimensions", "2-D tiles")
        if any(len(row) == 0 for row in grid):
            _refuse(name, "irregular", "rows of one length")
    ms, ks, ns = [row[0].shape[0] for row in a], [tile.shape[1] for tile in a[0]], [tile.shape[1] for tile in b[0]]
    _check_tiles("a", a, ms, ks)
    _check_tiles("b", b, ks, ns)
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
    _check_tiles("out", out, ms, ns)
    with torch.no_grad():
        for row, products in zip(out, tiled_matmul(a, b), strict=True):
            for tile, product in zip(row, products, strict=True):
                tile.copy_(product)


__all__ = ["tiled_matmul", "tiled_matmul_out"]
