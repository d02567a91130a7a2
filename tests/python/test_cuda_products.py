"""Large products, whose algorithm is chosen by measuring: the bits are PyTorch's, before and after."""

import pytest
import torch
from devices import NO_CUDA

from xformers.ops import SwiGLU

pytestmark = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
ops = torch.ops.xformers
ROWS, WIDTH, HIDDEN = 4096, 3072, 8192 + 64  # 2e11 operations, from where there is a choice


@pytest.fixture(autouse=True)
def on_gpu():
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # cuBLAS can't begin while a graph is captured
        yield
    torch.cuda.empty_cache()


def operand(rows, columns, transposed, dtype):
    t = torch.randn((columns, rows) if transposed else (rows, columns), dtype=dtype)
    return t.t() if transposed else t


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [(False, True), (False, False), (True, False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bits_are_those_of_pytorch(dtype, transposed, bias):
    """The first call is PyTorch's, the second measures, the others take what was found; each on numbers of its own."""
    b, added = operand(WIDTH, HIDDEN, transposed[1], dtype), torch.randn(HIDDEN, dtype=dtype) if bias else None
    for _ in range(4):
        a = operand(ROWS, WIDTH, transposed[0], dtype)
        expected = torch.addmm(added, a, b) if bias else torch.mm(a, b)
        assert torch.equal(ops.product(a, b, added), expected)


def test_in_a_graph():
    a, b = (operand(*shape, True, torch.bfloat16) for shape in ((ROWS + 8, WIDTH), (WIDTH, HIDDEN)))
    for warm in (False, True):  # captured before the shape was measured, and after
        if warm:
            for _ in range(3):
                ops.product(a, b)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = ops.product(a, b)
        a.copy_(torch.randn(WIDTH, ROWS + 8, dtype=torch.bfloat16).t())
        graph.replay()
        assert torch.equal(out, torch.mm(a, b))


def test_layer_keeps_its_bits():
    module = SwiGLU(WIDTH, HIDDEN).to(torch.bfloat16)
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    leaves = [x, *module.parameters()]
    results = []
    for _ in range(4):
        out = module(x)
        results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
