"""Norms, softmax, and rows gathered and added."""

from collections.abc import Callable, Iterator

import torch
import torch._functorch.config
from torch.nn import functional

from .row import Row, Run

ops = torch.ops.xformers
torch._functorch.config.donated_buffer = False  # a backward is run many times


def sides(run: Run, sets: list, ours: Callable, eager: Callable) -> dict[str, list[Callable]]:
    functions = {"ours": ours, "eager": eager, **run.compiled(eager)}
    return {name: [lambda f=f, given=given: f(*given) for given in sets] for name, f in functions.items()}


def backward_sides(run: Run, sets: list, ours: Callable, eager: Callable) -> dict[str, list[Callable]]:
    """ours(gradient, *inputs) is a backward; of eager(*inputs) the backward alone is measured."""
    result = {"ours": [lambda given=given: ours(*given) for given in sets]}
    for name, function in {"eager": eager, **run.compiled(eager)}.items():
        result[name] = []
        for gradient, *inputs in sets:
            leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
            out = function(*leaves)
            wanted = [t for t in leaves if t.requires_grad]
            result[name].append(
                lambda out=out, wanted=wanted, gradient=gradient: torch.autograd.grad(
                    out, wanted, gradient, retain_graph=True
                )
            )
    return result


def rms(x, weight):
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def layer(x, weight, bias):
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def rms_add(x, y, weight):
    x += y
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def norm_rows(run: Run, wanted, rows: int, width: int) -> Iterator[Row]:
    size = 2.0 * rows * width
    case = f"{rows} x {width}"

    def make(count, weights):
        return run.sets(
            lambda: [run.randn(rows, width) for _ in range(count)] + [run.randn(width) for _ in range(weights)],
            count * size,
        )

    name = f"rms_norm {case}"
    if wanted.search(name):
        yield Row(name, 2 * size, sides(run, make(1, 1), lambda x, w: ops.rms_norm(x, w), rms))
    name = f"rms_norm_add {case}"
    if wanted.search(name):
        yield Row(name, 4 * size, sides(run, make(2, 1), lambda x, y, w: ops.rms_norm_add_(x, y, w), rms_add))
    name = f"rms_norm backward {case}"
    if wanted.search(name):
        ours = lambda g, x, w: ops.rms_norm_backward(g, x, w)  # noqa: E731
        yield Row(name, 3 * size, backward_sides(run, make(2, 1), ours, rms))
    name = f"layer_norm {case}"
    if wanted.search(name):
        yield Row(name, 2 * size, sides(run, make(1, 2), lambda x, w, b: ops.layer_norm(x, w, b), layer))
    name = f"layer_norm backward {case}"
    if wanted.search(name):
        ours = lambda g, x, w, b: ops.layer_norm_backward(g, x, w)  # noqa: E731
        yield Row(name, 3 * size, backward_sides(run, make(2, 2), ours, layer))


def softmax_rows(run: Run, wanted, log: bool, *shape: int) -> Iterator[Row]:
    name, ours = ("log_softmax", ops.log_softmax) if log else ("softmax", ops.softmax)
    eager = (lambda x: x.log_softmax(-1)) if log else (lambda x: x.softmax(-1))
    size, case = 2.0 * torch.Size(shape).numel(), " x ".join(map(str, shape))
    if wanted.search(f"{name} {case}"):
        sets = run.sets(lambda: [run.randn(*shape)], size)
        yield Row(f"{name} {case}", 2 * size, sides(run, sets, ours, eager))
    if wanted.search(f"{name} backward {case}"):
        sets = run.sets(lambda: [run.randn(*shape), run.randn(*shape)], 2 * size)
        results = {x.data_ptr(): ours(x) for _, x in sets}
        mine = lambda g, x: ops.softmax_backward(g, results[x.data_ptr()], False, log)  # noqa: E731
        yield Row(f"{name} backward {case}", 3 * size, backward_sides(run, sets, mine, eager))


def causal_softmax_rows(run: Run, wanted, *shape: int) -> Iterator[Row]:
    hidden = torch.ones(shape[-2:], device=run.device, dtype=torch.bool).triu(1)

    def eager(x):
        return x.masked_fill(hidden, float("-inf")).softmax(-1)

    name = f"softmax causal {' x '.join(map(str, shape))}"
    if wanted.search(name):  # half of x is not read
        size = 2.0 * torch.Size(shape).numel()
        sets = run.sets(lambda: [run.randn(*shape)], size)
        yield Row(name, 1.5 * size, sides(run, sets, lambda x: ops.softmax(x, None, True), eager))


def indexing_rows(run: Run, wanted) -> Iterator[Row]:
    width = run.size(1536, 16)
    shapes = [(48, 257 * width, 28), (50, 192 * width, 30)]
    moved = 2.0 * sum(count * row for _, row, count in shapes)
    whole = 2.0 * sum(rows * row for rows, row, _ in shapes)

    def indices(rows, count):
        return torch.randperm(rows, device=run.device)[:count]

    def cat(a, b, i, j):
        return torch.cat([a[i].flatten(), b[j].flatten()])

    def sources():
        return [run.randn(rows, row) for rows, row, _ in shapes] + [indices(rows, n) for rows, _, n in shapes]

    if wanted.search("index_select_cat"):
        ours = lambda a, b, i, j: ops.index_select_cat([a, b], [i, j])  # noqa: E731
        yield Row("index_select_cat", 2 * moved, sides(run, run.sets(sources, moved), ours, cat))
    if wanted.search("index_select_cat backward"):
        sets = run.sets(lambda: [run.randn(int(moved // 2)), *sources()], moved)
        rows, widths = [s[0] for s in shapes], [s[1] for s in shapes]
        ours = lambda g, a, b, i, j: ops.index_select_cat_backward(g, [i, j], rows, widths)  # noqa: E731
        yield Row("index_select_cat backward", moved + whole, backward_sides(run, sets, ours, cat))

    size = 2.0 * 28 * 257 * width

    def add(x, source, scaling, index):
        return x.index_add_(0, index, source * scaling, alpha=0.5)

    def added(x, source, scaling, index):
        return x.index_add(0, index, source * scaling, alpha=0.5)

    def rows_to_add():
        return [run.randn(48, 257, width), run.randn(28, 257, width), run.randn(width), indices(48, 28)]

    if wanted.search("scaled_index_add"):
        ours = lambda x, s, c, i: ops.scaled_index_add_(x, i, s, c, 0.5)  # noqa: E731
        yield Row("scaled_index_add", 3 * size, sides(run, run.sets(rows_to_add, 3 * size), ours, add))
    if wanted.search("scaled_index_add backward"):
        sets = run.sets(lambda: [run.randn(48, 257, width), *rows_to_add()], 3 * size)
        ours = lambda g, x, s, c, i: ops.scaled_index_add_backward(g, i, s, c, 0.5)  # noqa: E731
        yield Row("scaled_index_add backward", 3 * size, backward_sides(run, sets, ours, added))


def with_copy(run: Run, row: Row) -> Row:
    """Beside a call of a few microseconds: a copy that moves as many bytes, as starting and ending take their share."""
    if row.work < 2e8:
        count = int(row.work / 4)
        pairs = run.sets(lambda: (run.randn(count), run.randn(count)), row.work)
        row.sides["copy"] = [lambda a=a, b=b: b.copy_(a) for a, b in pairs]
    return row


def all_rows(run: Run, wanted) -> Iterator[Row]:
    for rows, width in ((16384, 4096), (4096, 1024), (16384, 8192)):
        yield from norm_rows(run, wanted, run.size(rows, 4), run.size(width, 64))
    for log, *shape in ((False, 32, 1024, 1024), (False, 16384, 4096), (True, 8192, 32000)):
        yield from softmax_rows(run, wanted, log, *(run.size(n, 16) for n in shape))
    yield from causal_softmax_rows(run, wanted, *(run.size(n, 16) for n in (8, 2048, 2048)))
    yield from indexing_rows(run, wanted)


def rows(run: Run, wanted) -> Iterator[Row]:
    for row in all_rows(run, wanted):
        yield with_copy(run, row)
