"""What ranks do in the tests: functions of a group and plain values. References are made from the whole problem."""

import contextlib
import os
import pickle
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from xformers import ops as xops
from xformers.ops import differentiable_collectives as collectives

DIMS = [(2, 2, 512, 512, 256), (2, 1023, 511, 257)]  # batch, of which the first is sharded; outer and inner features
KINDS = ["unfused", "fallback", "fused"]


def zeros_and_ones(shape, dtype, seed):
    """No sum of their products rounds in any dtype."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(0, 2, shape, generator=generator, device="cpu").to(torch.get_default_device(), dtype)


def randoms(shape, dtype, seed):
    generator = torch.Generator("cpu").manual_seed(seed)
    made = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return made.to(torch.get_default_device(), dtype)


def shard(x, rank, ranks):
    return x.chunk(ranks)[rank].clone()


@contextlib.contextmanager
def kind_of(group, kind):
    """A new group with the same ranks, since how it works is decided at its first call."""
    os.environ["DISABLE_FUSED_SEQUENCE_PARALLEL"] = "1" if kind == "fallback" else "0"
    new = dist.new_group(list(range(group.size())))
    try:
        yield new
    finally:
        os.environ.pop("DISABLE_FUSED_SEQUENCE_PARALLEL")
        dist.destroy_process_group(new)


def problem(ranks, dims, dtype, weights=2, make=zeros_and_ones):
    """x of all ranks, and for each rank its weights [K, N_i]."""
    *batch, outer, inner = dims
    batch[0] = max(ranks, batch[0] // ranks * ranks)
    x = make((*batch, outer), dtype, 0)
    w = [
        [make((outer, max(inner // ranks, 1) + i), dtype, 10 * rank + i + 1) for i in range(weights)]
        for rank in range(ranks)
    ]
    return x, w


def seqpar_matmuls(group, dims, dtype, kind, compiled=False):
    """Leading and trailing products and their gradients, equal to the whole problem in fp64, rounded once."""
    rank, ranks, fuse = group.rank(), group.size(), kind != "unfused"
    x, all_w = problem(ranks, dims, dtype)
    with kind_of(group, kind) as own:

        def leading(x, *w):
            return xops.sequence_parallel_leading_matmul(x, list(w), fuse=fuse, process_group=own)

        def trailing(x, w):
            return xops.sequence_parallel_trailing_matmul(x, w, fuse=fuse, process_group=own)

        if compiled:
            leading = torch.compile(leading, fullgraph=True, backend="aot_eager")
            trailing = torch.compile(trailing, fullgraph=True, backend="aot_eager")
        mine = shard(x, rank, ranks).requires_grad_()
        w = [t.clone().requires_grad_() for t in all_w[rank]]
        outs = leading(mine, *w)
        whole = x.double()
        assert len(outs) == 2
        for out, t in zip(outs, w, strict=True):
            assert torch.equal(out, (whole @ t.double()).to(dtype))
        grads = [
            [zeros_and_ones((*x.shape[:-1], t.shape[1]), dtype, 50 + 10 * r + i) for i, t in enumerate(all_w[r])]
            for r in range(ranks)
        ]
        dx, *dws = torch.autograd.grad(outs, (mine, *w), grads[rank])
        expected = sum(g.double() @ t.double().T for r in range(ranks) for g, t in zip(grads[r], all_w[r], strict=True))
        assert torch.equal(dx, shard(expected, rank, ranks).to(dtype))
        flat = whole.flatten(0, -2).T
        for dw, g in zip(dws, grads[rank], strict=True):
            assert torch.equal(dw, (flat @ g.double().flatten(0, -2)).to(dtype))

        # The second product of a layer: rank's part of the inner features.
        hidden = [zeros_and_ones((*x.shape[:-1], all_w[r][0].shape[1]), dtype, 90 + r) for r in range(ranks)]
        back = [zeros_and_ones((all_w[r][0].shape[1], dims[-2]), dtype, 95 + r) for r in range(ranks)]
        h, v = hidden[rank].clone().requires_grad_(), back[rank].clone().requires_grad_()
        out = trailing(h, v)
        expected = sum(a.double() @ b.double() for a, b in zip(hidden, back, strict=True))
        assert torch.equal(out, shard(expected, rank, ranks).to(dtype))
        grad = zeros_and_ones(expected.shape, dtype, 99)
        dh, dv = torch.autograd.grad(out, (h, v), shard(grad, rank, ranks))
        assert torch.equal(dh, (grad.double() @ v.double().T).to(dtype))
        assert torch.equal(dv, (h.double().flatten(0, -2).T @ grad.double().flatten(0, -2)).to(dtype))


def fused_linears(group, dims, dtype, kind, compiled=False):
    """Without gradients, with one weight and a list, with and without out, several stripes."""
    rank, ranks = group.rank(), group.size()
    x, all_w = problem(ranks, dims, dtype, weights=3)
    with kind_of(group, kind) as own:
        weights = [t.T.contiguous() for t in all_w[rank]]
        mine = shard(x, rank, ranks)

        def gather(x, w, **options):
            return xops.fused_allgather_and_linear(x, w, group=own, num_stripes=2, **options)

        def scatter(x, w, **options):
            return xops.fused_linear_and_reducescatter(x, w, group=own, num_stripes=2, timeout_s=50, **options)

        if compiled:
            gather, scatter = (torch.compile(f, fullgraph=True, backend="aot_eager") for f in (gather, scatter))
        expected = [(x.double() @ t.double()).to(dtype) for t in all_w[rank]]
        assert torch.equal(gather(mine, weights[0]), expected[0])
        outs = [torch.full((ranks, *mine.shape[:-1], t.shape[0]), torch.nan, dtype=dtype) for t in weights]
        for got in (gather(mine, weights), gather(mine, weights, out=outs)):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert all(torch.equal(a.flatten(0, 1), b) for a, b in zip(outs, expected, strict=True))

        n = [zeros_and_ones((37 + i, dims[-2]), dtype, 40 + 10 * r + i) for r in range(ranks) for i in range(2)]
        inputs = [zeros_and_ones(x.shape, dtype, 70 + r) for r in range(ranks)]
        sums = [sum(inputs[r].double() @ n[2 * r + i].double().T for r in range(ranks)) for i in range(2)]
        expected = [shard(t, rank, ranks).to(dtype) for t in sums]
        own_w = n[2 * rank : 2 * rank + 2]
        assert torch.equal(scatter(inputs[rank], own_w[0]), expected[0])
        outs = [torch.full_like(t, torch.nan) for t in expected]
        for got in (scatter(inputs[rank], own_w), scatter(inputs[rank], own_w, out=outs), outs):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def fp8(group, kind):
    rank, ranks, dtype = group.rank(), group.size(), torch.float8_e4m3fn
    x = zeros_and_ones((4 * ranks, 3, 32), torch.float32, 0)
    w = [[zeros_and_ones((48 - 16 * i, 32), torch.float32, 10 * r + i + 1) for i in range(2)] for r in range(ranks)]
    scale, scales = torch.tensor(2.0), [torch.tensor(0.5), torch.tensor(4.0)]
    with kind_of(group, kind) as own:
        got = xops.fused_allgather_and_linear(
            shard(x, rank, ranks).to(dtype), [t.to(dtype) for t in w[rank]], group=own,
            scale_scattered_input=scale, scale_weight=scales, out_dtype=torch.bfloat16,
        )  # fmt: skip
        for out, t, s in zip(got, w[rank], scales, strict=True):
            assert torch.equal(out, (x @ t.T * 2 * s).bfloat16())
        out = xops.fused_linear_and_reducescatter(
            x.to(dtype), w[rank][0].to(dtype), group=own,
            scale_gathered_input=scale, scale_weight=scales[0], out_dtype=torch.bfloat16,
        )  # fmt: skip
        expected = sum(x @ w[r][0].T for r in range(ranks))
        assert torch.equal(out, shard(expected, rank, ranks).bfloat16())
        for wrong in ({"scale_weight": scales[0]}, {"scale_weight": scales[0], "scale_gathered_input": scale}):
            with pytest.raises(AssertionError, match="scales|out_dtype"):
                xops.fused_linear_and_reducescatter(x.to(dtype), w[rank][0].to(dtype), group=own, **wrong)


def anything(group, kind):
    rank, ranks = group.rank(), group.size()
    shards = [
        [zeros_and_ones((5, 3), torch.float32, r), zeros_and_ones((2,), torch.float32, 9 + r)] for r in range(ranks)
    ]
    in_turn = list(range(ranks))
    with kind_of(group, kind) as own:
        seen, order = {}, []

        def gathered(arrived, source, stream_factory):
            with torch.cuda.stream(stream_factory()):
                order.append(source)
                seen[source] = [t.clone() for t in arrived]

        xops.fused_allgather_and_anything(shards[rank], gathered, group=own)
        assert order == (in_turn if kind == "fallback" else [(rank - i) % ranks for i in range(ranks)])
        assert all(torch.equal(a, b) for r in range(ranks) for a, b in zip(seen[r], shards[r], strict=True))
        order.clear()

        def summands(outputs, destination, stream_factory):
            order.append(destination)
            for i, out in enumerate(outputs):
                out.fill_(100 * rank + 10 * destination + i)

        outputs = [torch.full((4, 3), torch.nan), torch.full((7,), torch.nan)]
        xops.fused_anything_and_reducescatter(summands, outputs, group=own)
        assert order == (in_turn if kind == "fallback" else [(rank + 1 + i) % ranks for i in range(ranks)])
        for i, out in enumerate(outputs):
            assert torch.equal(out, torch.full_like(out, sum(100 * r + 10 * rank + i for r in range(ranks))))
        order.clear()
        xops.fused_allgather_and_anything([], lambda t, r, s: order.append((t, r)), group=own)
        xops.fused_anything_and_reducescatter(lambda t, r, s: order.append((t, r)), [], group=own)
        assert [t for t, _ in order] == [[]] * 2 * ranks and sorted(r for _, r in order) == sorted(in_turn * 2)


def anything_raises(group):
    """On the last rank. A gather gives the others all shards; a sum is an error and NaN everywhere."""
    rank, ranks = group.rank(), group.size()
    last = ranks - 1
    with kind_of(group, "fused") as own:
        seen = []

        def gathered(arrived, source, stream_factory):
            if rank == last and source == rank:
                raise KeyError("mine")
            seen.append(source)

        with pytest.raises(KeyError) if rank == last else contextlib.nullcontext():
            xops.fused_allgather_and_anything([torch.ones(3)], gathered, group=own)
        assert len(seen) == (0 if rank == last else ranks)

        def summands(outputs, destination, stream_factory):
            outputs[0].fill_(1)
            if rank == last:
                raise KeyError("mine")

        out = torch.zeros(3)
        with (
            pytest.raises(KeyError)
            if rank == last
            else pytest.raises(RuntimeError, match=f"my_matmul raised on rank {last}")
        ):
            xops.fused_anything_and_reducescatter(summands, [out], group=own)
        assert out.isnan().all()
        xops.fused_allgather_and_anything([torch.ones(3)], lambda t, r, s: seen.append(r), group=own)  # still usable


def numbers(group):
    """Sums are made in fp32 and rounded once, in the order of ranks: the same bits whichever way the bytes move."""
    rank, ranks = group.rank(), group.size()
    x = [randoms((8 * ranks, 64), torch.bfloat16, r) for r in range(ranks)]
    w = [randoms((32, 64), torch.bfloat16, 9 + r) for r in range(ranks)]
    summands = [(a @ b.T).float() for a, b in zip(x, w, strict=True)]
    total = summands[0].clone()
    for t in summands[1:]:
        total += t
    results = []
    for kind in ("fallback", "fused"):
        with kind_of(group, kind) as own:
            results.append(xops.fused_linear_and_reducescatter(x[rank], w[rank], group=own))
    for out in results:
        assert torch.equal(out, shard(total, rank, ranks).bfloat16())


def checks(group):
    """opcheck, gradcheck of a group of one, non-contiguous inputs, gradients with stride 0, autocast, empty."""
    rank, ranks, name = group.rank(), group.size(), group.group_name
    python_ops = torch.ops.xformers_python
    x, w = randoms((2 * ranks, 5), torch.float32, 0), randoms((5, 3), torch.float32, rank)
    mine = shard(x, rank, ranks).requires_grad_()
    w.requires_grad_()
    if ranks == 2:
        torch.library.opcheck(python_ops.sequence_parallel_leading_matmul_fwd, (mine, [w, w], True, name))
        torch.library.opcheck(python_ops.sequence_parallel_trailing_matmul_fwd, (x, w, True, name))
        torch.library.opcheck(torch.ops.xformers.column_parallel_matmul_fwd, (x, [w.T], name))
        torch.library.opcheck(torch.ops.xformers.fused_allgather_and_linear, (mine.detach(), [w.detach().T], [], name))
        for op in ("gather_rows", "sum_rows", "copy_to_ranks", "sum_over_ranks", "gather_columns"):
            torch.library.opcheck(getattr(torch.ops.xformers, op), (x.clone().requires_grad_(), name))
    grad = torch.ones(2 * ranks, 3)
    dx, dws = python_ops.sequence_parallel_leading_matmul_bwd(mine.detach(), [w.detach()], [grad], True, name)
    assert dx.shape == mine.shape and [t.shape for t in dws] == [w.shape]
    dx, dw = python_ops.sequence_parallel_trailing_matmul_bwd(x, w.detach(), grad[:2], True, name)
    assert dx.shape == x.shape and dw.shape == w.shape
    (out,) = xops.sequence_parallel_leading_matmul(mine, [w], fuse=True, process_group=group)
    out.sum().backward()  # a gradient with stride 0
    assert torch.allclose(w.grad, x.T @ grad, atol=1e-5)
    strided = mine.detach().T.contiguous().T
    assert torch.equal(xops.sequence_parallel_leading_matmul(strided, [w], fuse=True, process_group=group)[0], out)
    with torch.autocast("cpu", torch.bfloat16):
        (low,) = xops.sequence_parallel_leading_matmul(mine, [w], fuse=True, process_group=group)
        assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), out, atol=0.1, rtol=0.05)
    empty = torch.zeros(0, 5)
    assert xops.sequence_parallel_leading_matmul(empty, [w], fuse=True, process_group=group)[0].shape == (0, 3)
    assert xops.fused_allgather_and_linear(empty, w.detach().T, group=group).shape == (0, 3)
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    for function in (
        lambda a, b: tuple(xops.sequence_parallel_leading_matmul(a, [b, b], fuse=True, process_group=alone)),
        lambda a, b: xops.sequence_parallel_trailing_matmul(a, b, fuse=True, process_group=alone),
        lambda a, b: torch.ops.xformers.column_parallel_linear(a, [b.T], [], alone.group_name)[0],
        lambda a, b: torch.ops.xformers.row_parallel_linear(a, b.T, None, alone.group_name),
    ):
        inputs = [randoms(s, torch.float64, i).requires_grad_() for i, s in enumerate([(2, 3), (3, 2)])]
        assert torch.autograd.gradcheck(function, inputs)
    dist.destroy_process_group(alone)


def bad_input(group):
    _rank, ranks = group.rank(), group.size()
    x, w, odd = torch.ones(2, 5), torch.ones(5, 3), torch.ones(ranks + 1, 5)
    leading, trailing = xops.sequence_parallel_leading_matmul, xops.sequence_parallel_trailing_matmul
    expected = [
        (lambda: leading(x, [w[:4]], fuse=True, process_group=group), r"weight.size\(0\) is 4, expected 5"),
        (lambda: leading(x, [w.double()], fuse=True, process_group=group), "weight.dtype is fp64, expected fp32"),
        (lambda: leading(x[0], [w], fuse=True, process_group=group), "x is .*, expected 2 or more dimensions"),
        (lambda: trailing(odd, w, fuse=True, process_group=group), f"a multiple of the number of ranks, {ranks}"),
        (lambda: xops.fused_allgather_and_linear(x, w.T, group=group, out=[x]), "out is list, expected a tensor"),
        (lambda: xops.fused_allgather_and_linear(x, w.T, group=group, out=x), "out is .*, expected"),
        (lambda: xops.fused_linear_and_reducescatter(odd, w.T, group=group), "a multiple of the number of ranks"),
        (lambda: collectives.reduce_scatter_along_first_dim(torch.ones(ranks + 1), process_group=group), "multiple"),
        (lambda: xops.ColumnParallelLinear(4, [ranks + 1], process_group=group), "a multiple of the number of ranks"),
        (lambda: xops.RowParallelLinear(ranks + 1, 4, process_group=group), "a multiple of the number of ranks"),
    ]  # fmt: skip
    for call, message in expected:
        with pytest.raises(AssertionError, match=message):
            call()
    with pytest.raises(TypeError):
        xops.fused_allgather_and_linear(x, w.T, group=group, no_such_option=1)
    with pytest.raises(TypeError, match="out_features is str"):
        xops.ColumnParallelLinear(4, "4", process_group=group)
    with kind_of(group, "fused") as own:
        xops.fused_allgather_and_linear(x, w.T, group=own, num_stripes=2)
        with pytest.raises(AssertionError, match="num_stripes is 1, expected 2, as in the calls before"):
            xops.fused_allgather_and_linear(x, w.T, group=own)
    with pytest.raises(ValueError, match="process_group is 'nobody', which this process does not have"):
        torch.ops.xformers.gather_rows(x, "nobody")


def different_calls(group):
    """Every rank sees who called with what."""
    rank, ranks = group.rank(), group.size()
    with kind_of(group, "fused") as own:
        x, w = torch.ones(3 if rank == ranks - 1 else 2, 5), torch.ones(5, 3)
        message = rf"the call of rank {ranks - 1} of group .* \[3, 5\] fp32.*expected .*\[2, 5\] fp32.*as on rank 0"
        with pytest.raises(AssertionError, match=message):
            xops.sequence_parallel_leading_matmul(x, [w], fuse=True, process_group=own)
        xops.sequence_parallel_leading_matmul(x[:2], [w], fuse=True, process_group=own)  # still usable
        os.environ["XFORMERS_CHECK_RANKS"] = "1"  # then known calls are compared too
        try:
            xops.sequence_parallel_leading_matmul(x[:2], [w], fuse=True, process_group=own)
            with pytest.raises(AssertionError, match="the call of rank"):
                xops.sequence_parallel_leading_matmul(
                    x if rank == ranks - 1 else x[:2], [w], fuse=True, process_group=own
                )
        finally:
            os.environ.pop("XFORMERS_CHECK_RANKS")


def collectives_and_gradients(group):
    rank, ranks = group.rank(), group.size()
    parts = [randoms((ranks * 2, 6), torch.float64, r) for r in range(ranks)]
    whole, total = torch.cat(parts), sum(parts)
    x = parts[rank].clone().requires_grad_()
    grads = [randoms(whole.shape, torch.float64, 20 + r) for r in range(ranks)]

    out = collectives.gather_from_sequence_parallel_region(x, group)
    assert torch.equal(out, whole)
    (dx,) = torch.autograd.grad(out, x, grads[rank])
    assert torch.allclose(dx, shard(sum(grads), rank, ranks), rtol=1e-12)

    out = collectives.scatter_to_sequence_parallel_region(x, group)
    assert torch.allclose(out, shard(total, rank, ranks), rtol=1e-12)
    (dx,) = torch.autograd.grad(out, x, shard(total, rank, ranks))
    assert torch.equal(dx, total) or torch.allclose(dx, total, rtol=1e-12)

    out = collectives.copy_to_model_parallel_region(x, group)
    assert torch.equal(out, x)
    (dx,) = torch.autograd.grad(out, x, parts[rank])
    assert torch.allclose(dx, total, rtol=1e-12)

    out = collectives.reduce_from_model_parallel_region(x, group)
    assert torch.allclose(out, total, rtol=1e-12) and torch.equal(x, parts[rank])  # the input stays
    (dx,) = torch.autograd.grad(out, x, parts[rank])
    assert torch.equal(dx, parts[rank])

    for n in ((), (3,), (70001,)):  # small sums move at once, large ones in two steps; neither divides by the ranks
        long = [randoms(n, torch.float32, r) for r in range(ranks)]
        y = long[rank].clone()
        collectives.all_reduce(y, process_group=group)
        assert torch.allclose(y, sum(long), atol=1e-5)

    for function, expected in (
        (collectives.gather_along_first_dim, whole),
        (collectives.reduce_scatter_along_first_dim, shard(total, rank, ranks)),
    ):
        assert torch.allclose(function(parts[rank], process_group=group), expected, rtol=1e-12)
    for function, expected in (
        (collectives.gather_along_first_dim_async, whole),
        (collectives.reduce_scatter_along_first_dim_async, shard(total, rank, ranks)),
    ):
        out, work = function(parts[rank], process_group=group)
        work.wait()
        assert torch.allclose(out, expected, rtol=1e-12)
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    assert collectives.gather_along_first_dim_async(x, process_group=alone) == (x, None)


def layers(group, sequence_parallel, compiled=False):
    """The same layer, results and gradients as one process with whole weights; whole weights in and out."""
    rank, ranks = group.rank(), group.size()
    name_of_group = group if not sequence_parallel else init_device_mesh("cpu", (ranks,))
    options = {"process_group": name_of_group, "sequence_parallel": sequence_parallel, "dtype": torch.float64}
    torch.manual_seed(7)
    up = xops.ColumnParallelLinear(6, [12, 24], bias=True, gather_output=False, **options)
    down = xops.RowParallelLinear(12, 10, bias=True, input_is_parallel=True, **options)
    torch.manual_seed(7)
    whole = [
        torch.nn.init.xavier_normal_(torch.empty(o, i, dtype=torch.float64)) for o, i in ((12, 6), (24, 6), (10, 12))
    ]
    assert all(torch.equal(w, full[rank::ranks]) for w, full in zip(up.weights, whole, strict=False))
    assert torch.equal(down.weight, whole[2][:, rank::ranks])
    biases = [randoms((n,), torch.float64, n) for n in (12, 24, 10)]
    state = {"weights.0": whole[0], "weights.1": whole[1], "biases.0": biases[0], "biases.1": biases[1]}
    up.load_full_state_dict(state)
    down.load_full_state_dict({"weight": whole[2], "bias": biases[2]})
    got = up.full_state_dict() | down.full_state_dict()
    assert all(torch.equal(value, got[key]) for key, value in (state | {"weight": whole[2], "bias": biases[2]}).items())

    def model(x):
        a, b = up(x)
        return down(torch.sin(a) * b[..., : a.shape[-1]].detach().abs() + a)

    def reference(x, w0, w1, w2, b0, b1, b2):
        a, b = x @ w0.T + b0, x @ w1.T + b1
        second = b.detach().abs()
        # a rank's a[j] meets its b[j]: features r + j ranks of both
        return (torch.sin(a) * second[..., :12] + a) @ w2.T + b2

    x = randoms((4 * ranks, 3, 6), torch.float64, 1)
    mine = (shard(x, rank, ranks) if sequence_parallel else x.clone()).requires_grad_()
    leaves = [t.clone().requires_grad_() for t in (x, *whole, *biases)]
    expected = reference(*leaves)
    grad = randoms(expected.shape, torch.float64, 2)
    grads = torch.autograd.grad(expected, leaves, grad, allow_unused=True)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    out = run(mine)

    def local(t):
        return shard(t, rank, ranks) if sequence_parallel else t

    assert torch.allclose(out, local(expected), rtol=1e-11)
    out.backward(local(grad))
    assert torch.allclose(mine.grad, local(grads[0]), rtol=1e-10)
    assert torch.allclose(up.weights[0].grad, grads[1][rank::ranks], rtol=1e-10)
    assert torch.allclose(up.biases[0].grad, grads[4][rank::ranks], rtol=1e-10)
    assert torch.allclose(down.weight.grad, grads[3][:, rank::ranks], rtol=1e-10)
    assert torch.allclose(down.bias.grad, grads[6], rtol=1e-10)
    copy = pickle.loads(pickle.dumps(down))
    assert copy.process_group is down.process_group and torch.equal(copy.weight, down.weight)


def layers_that_gather(group):
    """An int of out_features, gather_output, input_is_parallel=False: what upstream refuses."""
    rank, ranks = group.rank(), group.size()
    torch.manual_seed(3)
    up = xops.ColumnParallelLinear(6, 12, process_group=group, dtype=torch.float64)
    down = xops.RowParallelLinear(12, 5, process_group=group, bias=False, dtype=torch.float64)
    w0, w1 = up.full_state_dict()["weights.0"].requires_grad_(), down.full_state_dict()["weight"].requires_grad_()
    x = randoms((3, 6), torch.float64, 0)
    hidden = up(x)
    assert torch.allclose(hidden, x @ w0.T)
    out, expected = down(hidden), x @ w0.T @ w1.T
    assert torch.allclose(out, expected)
    grad = randoms(out.shape, torch.float64, 1)
    out.backward(grad)
    expected.backward(grad)
    assert torch.allclose(up.weights[0].grad, w0.grad[rank::ranks])
    assert torch.allclose(down.weight.grad, w1.grad[:, rank::ranks])


def whole_weights(group, seed):
    """For the comparison between numbers of ranks."""
    torch.manual_seed(seed)
    layer = xops.ColumnParallelLinear(6, [12, 24], process_group=group, bias=False, gather_output=False)
    return {key: value.tolist() for key, value in layer.full_state_dict().items()}


def pipes(group):
    rank, _ranks = group.rank(), group.size()
    for _ in range(2):
        ends = xops.init_ipc(group, device="cpu")
        assert [i for i, end in enumerate(ends) if end is None] == [rank]
        mine = torch.zeros(3, 4)[:, ::2]
        others = {}
        for end in ends:
            if end is not None:
                end.send(mine)
        for peer, end in enumerate(ends):
            if end is not None:
                others[peer] = end.recv()
                assert others[peer].stride() == mine.stride()
        mine.fill_(rank + 1)
        dist.barrier(group)
        assert all(torch.equal(t, torch.full((3, 2), peer + 1.0)) for peer, t in others.items())
        with pytest.raises(AssertionError, match="the tensor is on meta, expected cpu"):
            next(end for end in ends if end is not None).send(torch.empty(2, device="meta"))
        dist.barrier(group)


def die(group, how):
    """The last rank dies, or sleeps; the others' errors and how long they took."""
    rank, ranks = group.rank(), group.size()
    x, w = torch.ones(2, 5), torch.ones(3, 5)
    xops.fused_allgather_and_linear(x, w, group=group)
    if rank == ranks - 1:
        if how == "exit":
            os._exit(1)
        time.sleep(1000)
    begin = time.monotonic()
    out = torch.zeros(ranks, 2, 3)
    with pytest.raises(RuntimeError) as error:
        for _ in range(2):
            xops.fused_allgather_and_linear(x, w, group=group, out=out, timeout_s=2)
    assert out.isnan().all()
    return str(error.value), time.monotonic() - begin
