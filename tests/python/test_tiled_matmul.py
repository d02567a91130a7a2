"""tiled_matmul is one product of the merged matrices, tile by tile."""

import pytest
import torch
from blocks_reference import random
from devices import on_each_device  # noqa: F401

from xformers.ops import tiled_matmul
from xformers.ops.tiled_matmul import tiled_matmul_out

GRIDS = [([5], [3], [4]), ([2, 7], [4, 1], [3, 6]), ([16, 5, 9], [33, 2, 8], [20, 7, 64]), ([4] * 5, [3], [6] * 4)]


def integers(shape, dtype, seed):
    numbers = torch.randint(-2, 3, shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return numbers.to(torch.get_default_device(), dtype)


def split(matrix, heights, widths):
    return [list(row.split(widths, 1)) for row in matrix.split(heights, 0)]


def merged(grid):
    return torch.cat([torch.cat(list(row), 1) for row in grid], 0)


@pytest.mark.parametrize("strides", ["views", "contiguous", "transposed", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{len(g[0])}x{len(g[1])}x{len(g[2])}")
def test_exact(grid, dtype, strides):
    ms, ns, ks = grid
    whole_a, whole_b = integers((sum(ms), sum(ks)), dtype, 0), integers((sum(ks), sum(ns)), dtype, 1)
    a, b = split(whole_a, ms, ks), split(whole_b, ks, ns)

    def laid_out(tiles):
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):
                if strides == "contiguous" or (strides == "mixed" and (i + j) % 2):
                    row[j] = tile.contiguous()
                elif strides == "transposed":
                    row[j] = tile.t().contiguous().t()
        return tiles

    out = tiled_matmul(laid_out(a), laid_out(b))
    assert [len(row) for row in out] == [len(ns)] * len(ms)
    assert torch.equal(merged(out), (whole_a.double() @ whole_b.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_partial_sums_are_not_rounded(dtype):
    a, b = random((8, 96), dtype), random((96, 8), dtype, 1)
    tiles = tiled_matmul(split(a, [8], [32, 32, 32]), split(b, [32, 32, 32], [8]))
    assert torch.equal(tiles[0][0], a @ b)


def test_parts_of_one_matrix_are_not_copied():
    a, b = random((8, 96), torch.bfloat16), random((96, 8), torch.bfloat16, 1)
    for left, right, copies in (
        (split(a, [4, 4], [32, 64]), split(b, [32, 64], [6, 2]), False),
        (split(a.t().contiguous().t(), [8], [32, 64]), split(b, [32, 64], [8]), False),
        (split(a, [8], [32, 64]), [[b[:32].clone()], [b[32:].clone()]], True),
        ([[a[:, 64:], a[:, :64]]], split(torch.cat([b[64:], b[:64]]), [32, 64], [8]), True),
    ):
        with torch.profiler.profile(acc_events=True) as profile:
            out = tiled_matmul(left, right)
        assert ("aten::cat" in {event.name for event in profile.events()}) == copies
        assert torch.allclose(merged(out), a @ b, rtol=1e-2, atol=1e-2)


def test_gradients():
    ms, ns, ks = [2, 3], [4, 1], [3, 2]
    whole_a, whole_b = random((5, 5), torch.float64, 0, True), random((5, 5), torch.float64, 1, True)
    out = merged(tiled_matmul(split(whole_a, ms, ks), split(whole_b, ks, ns)))
    grad = random((5, 5), torch.float64, 2)
    grads = torch.autograd.grad(out, (whole_a, whole_b), grad)
    expected = torch.autograd.grad(whole_a @ whole_b, (whole_a, whole_b), grad)
    assert all(torch.allclose(x, y, rtol=1e-12) for x, y in zip(grads, expected, strict=True))

    def flat(*tiles):
        return tuple(t for row in tiled_matmul([tiles[:2]], [[tiles[2]], [tiles[3]]]) for t in row)

    tiles = [random(s, torch.float64, i, True) for i, s in enumerate([(2, 3), (2, 2), (3, 4), (2, 4)])]
    assert torch.autograd.gradcheck(flat, tiles) and torch.autograd.gradgradcheck(flat, tiles)


def test_one_result_unused():
    a, b = random((4, 3), seed=0, requires_grad=True), random((3, 6), seed=1, requires_grad=True)
    tiles = tiled_matmul([[a[:2]], [a[2:]]], [[b[:, :2], b[:, 2:]]])
    tiles[0][1].sum().backward()
    expected = torch.autograd.grad((a[:2] @ b[:, 2:]).sum(), (a, b))
    assert torch.allclose(a.grad, expected[0]) and torch.allclose(b.grad, expected[1])


def test_out():
    a, b = integers((5, 6), torch.float32, 0), integers((6, 7), torch.float32, 1)
    out = torch.zeros(7, 5).t()
    tiled_matmul_out(split(a, [2, 3], [6]), split(b, [6], [4, 3]), split(out, [2, 3], [4, 3]))
    assert torch.equal(out, a @ b)
    with pytest.raises(AssertionError, match="out"):
        tiled_matmul_out([[a]], [[b]], [[torch.zeros(5, 6)]])


def test_operator_under_its_old_name():
    a, b = random((4, 3)), random((3, 5), seed=1)
    (out,) = torch.ops.xformers_python.tiled_matmul_fwd([a], [b], [4], [5], [3])
    assert torch.allclose(out, a @ b)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    def f(a, b, c, d):
        return tiled_matmul([[a, b]], [[c], [d]])[0][0]

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for m in (4, 6):
        tiles = [integers(s, torch.float32, i).requires_grad_() for i, s in enumerate([(m, 3), (m, 2), (3, 5), (2, 5)])]
        out = compiled(*tiles)
        assert torch.equal(out, f(*tiles))
        grads = torch.autograd.grad(out.sum(), tiles)
        assert all(torch.equal(x, y) for x, y in zip(grads, torch.autograd.grad(f(*tiles).sum(), tiles), strict=True))


@pytest.mark.parametrize(
    "a, b",
    [
        ([], [[torch.ones(2, 2)]]),
        ([[]], [[torch.ones(2, 2)]]),
        ([[torch.ones(2, 2)]], [[torch.ones(2, 2)], [torch.ones(2, 2)]]),
        ([[torch.ones(2, 2), torch.ones(2, 2)], [torch.ones(2, 2)]], [[torch.ones(2, 2)], [torch.ones(2, 2)]]),
        ([[torch.ones(2, 3)]], [[torch.ones(2, 2)]]),
        ([[torch.ones(2, 2)], [torch.ones(2, 3)]], [[torch.ones(2, 2)]]),
        ([[torch.ones(2)]], [[torch.ones(2, 2)]]),
    ],
)
def test_irregular_grids(a, b):
    with pytest.raises(AssertionError):
        tiled_matmul(a, b)


def test_operator_errors():
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    op = torch.ops.xformers.tiled_matmul
    for arguments, message in (
        (([a], [b], [2], [2], [2, 2]), "the number of tiles of a is 1, expected 1 x 2"),
        (([a], [b], [2], [3], [2]), "b[0][0] is [2, 2] fp32 cpu, expected [2, 3]"),
        (([a], [b.half()], [2], [2], [2]), "b.dtype is fp16, expected fp32"),
    ):
        with pytest.raises(ValueError) as error:
            op(*arguments)
        assert message.replace(" cpu", f" {a.device}") in str(error.value)
