"""All-gather and linear, linear and reduce-scatter, whose transfers hide behind their products. Without gradients."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from .common import BaseOperator, register_operator

_DEFAULT_TIMEOUT_S = 3600

StreamFactory = Callable[[], "torch.cuda.Stream | None"]
MyMatmul = Callable[[list[torch.Tensor], int, StreamFactory], None]


def _within(group: dist.ProcessGroup, timeout_s: float) -> contextlib.AbstractContextManager[None]:
    """Waits of the group end after timeout_s, if that is less than the group's own timeout; and errors of arguments are
    AssertionErrors. A compiled graph has the group's timeout."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _limited(group, timeout_s)


@contextlib.contextmanager
def _limited(group: dist.ProcessGroup, timeout_s: float) -> Iterator[None]:
    backend = None
    if timeout_s != _DEFAULT_TIMEOUT_S:
        device = "cpu" if "gloo" in dist.get_backend(group) else "cuda"
        backend = group._get_backend(torch.device(device))
        before = backend.options._timeout
        c10d._set_pg_timeout(min(before, datetime.timedelta(seconds=timeout_s)), group)
    try:
        yield
    except ValueError as error:
        raise AssertionError(str(error)) from None
    finally:
        if backend is not None:
            c10d._set_pg_timeout(before, group)


def _linear(
    name: str,
    input_: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    group: dist.ProcessGroup,
    timeout_s: float,
    out: torch.Tensor | Sequence[torch.Tensor] | None,
    scale_input: torch.Tensor | None,
    scale_weight: torch.Tensor | Sequence[torch.Tensor] | None,
    *rest: Any,
) -> torch.Tensor | list[torch.Tensor]:
    """One tensor, or lists of them, for the operator of this name, which takes lists."""
    is_one = isinstance(weight, torch.Tensor)
    weights = [weight] if isinstance(weight, torch.Tensor) else list(weight)
    scales: list[torch.Tensor] = []
    if (scale_input is None) != (scale_weight is None):
        raise AssertionError(
            f"{name}: one of the scales is None, expected both, or neither.  Fix: give the scales of input and weight."
        )
    for argument, given in (("scale_weight", scale_weight), ("out", out)):
        if given is not None and isinstance(given, torch.Tensor) != is_one:
            raise AssertionError(
                f"{name}: {argument} is {type(given).__name__}, expected "
                f"{'a tensor' if is_one else 'a list'}, as weight.  Fix: a list exactly where weight is one."
            )
    if scale_weight is not None:
        scales = [scale_weight] if isinstance(scale_weight, torch.Tensor) else list(scale_weight)
    arguments = (input_, weights, scales, group.group_name, scale_input, *rest)
    with _within(group, timeout_s):
        if out is None:
            results = getattr(torch.ops.xformers, name)(*arguments)
        else:
            results = [out] if isinstance(out, torch.Tensor) else list(out)
            getattr(torch.ops.xformers, name + "_out")(*arguments, out=results)
    return results[0] if is_one else results


def fused_allgather_and_linear(
    scattered_input: torch.Tensor,
    weight: torch.Tensor | list[torch.Tensor],
    *,
    group: dist.ProcessGroup,
    out: torch.Tensor | list[torch.Tensor] | None = None,
    num_stripes: int = 1,
    timeout_s: int = _DEFAULT_TIMEOUT_S,
    scale_scattered_input: torch.Tensor | None = None,
    scale_weight: torch.Tensor | list[torch.Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    _wait: bool = True,
    _memcpy: bool = True,
    _triton: bool = True,
) -> torch.Tensor | list[torch.Tensor]:
    """`all_gather(scattered_input) @ weight.T`, a tensor, or a list where weight is one.

    scattered_input: [n, ..., K], n the same on all ranks; weight: [N, K] each. Result: [ranks * n, ..., N].
    out: takes the results, contiguous, [ranks, n, ..., N] each; a list exactly where weight is one.
    num_stripes: one number for all calls with a group; without effect where collectives move the bytes.
    timeout_s: waits end with an error after this long, or after the group's timeout, if that is shorter.
    scale_*, out_dtype: of fp8 inputs and weights: what their stored values are multiplied with, and the result's dtype.
    _wait, _memcpy: False leaves out waiting or moving (results undefined), to bound the time from below. _triton: none.
    Not differentiable; compiles with fullgraph=True. AssertionError for arguments that don't fit.
    """
    results = _linear(
        "fused_allgather_and_linear",
        scattered_input,
        weight,
        group,
        timeout_s,
        out,
        scale_scattered_input,
        scale_weight,
        out_dtype,
        num_stripes,
        _wait,
        _memcpy,
    )
    if out is None:
        return results
    return results.flatten(0, 1) if isinstance(results, torch.Tensor) else [t.flatten(0, 1) for t in results]


def fused_linear_and_reducescatter(
    gathered_input: torch.Tensor,
    weight: torch.Tensor | list[torch.Tensor],
    *,
    group: dist.ProcessGroup,
    out: torch.Tensor | list[torch.Tensor] | None = None,
    num_stripes: int = 1,
    timeout_s: int = _DEFAULT_TIMEOUT_S,
    scale_gathered_input: torch.Tensor | None = None,
    scale_weight: torch.Tensor | list[torch.Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    _wait: bool = True,
    _memcpy: bool = True,
    _triton: bool = True,
) -> torch.Tensor | list[torch.Tensor]:
    """This rank's rows of the sum over ranks of `gathered_input @ weight.T`, a tensor, or a list where weight is one.

    gathered_input: [S, ..., K], S a multiple of the number of ranks; weight: [N, K] each. Result: [S / ranks, ..., N].
    Summands travel in the result's dtype; the sum is made in fp32, in the order of ranks, and rounded once.
    out: takes the results, contiguous, of the result's shape. The rest as in `fused_allgather_and_linear`.
    """
    return _linear(
        "fused_linear_and_reducescatter",
        gathered_input,
        weight,
        group,
        timeout_s,
        out,
        scale_gathered_input,
        scale_weight,
        out_dtype,
        num_stripes,
        _wait,
        _memcpy,
    )


def _stream_factory(device: torch.device) -> StreamFactory:
    """Where collectives move the bytes, whatever is launched goes to the current stream (None on the CPU)."""
    return lambda: torch.cuda.current_stream(device) if device.type == "cuda" else None


def fused_allgather_and_anything(
    scattered_inputs: list[torch.Tensor],
    my_matmul: MyMatmul,
    *,
    group: dist.ProcessGroup,
    num_stripes: int = 1,
    timeout_s: int = _DEFAULT_TIMEOUT_S,
    _wait: bool = True,
    _memcpy: bool = True,
    _triton: bool = True,
) -> None:
    """Calls `my_matmul(shards, src_rank, stream_factory)` once for each rank, with its shards as they arrive.

    scattered_inputs: of one device and dtype, of the same shapes on all ranks. Own shards come first, then those of
    rank - 1, rank - 2, ...; where DISABLE_FUSED_SEQUENCE_PARALLEL=1, ranks 0, 1, .... An empty list: called so with [].
    stream_factory: returns the stream to launch on (None on the CPU); what is launched there is done in order before
    what the caller launches afterwards. An error in my_matmul stays on its rank: the others get all shards.
    """
    ops, name = torch.ops.xformers, group.group_name
    with _within(group, timeout_s):
        order = ops._spread_steps(True, name)
        if not scattered_inputs:
            for rank in order:
                my_matmul([], rank, lambda: None)
            return
        stream_factory = _stream_factory(scattered_inputs[0].device)
        if not _memcpy:
            for rank in order:
                my_matmul(list(scattered_inputs), rank, stream_factory)
            return
        in_flight = ops._start_gathering(scattered_inputs, num_stripes, name)
    done = 0
    try:
        for rank in order:
            with _within(group, timeout_s):
                shards = ops._arrived(in_flight[rank], scattered_inputs, name)
            done += 1
            my_matmul(shards, rank, stream_factory)
    finally:  # an error leaves nothing unread
        for rank in order[done:]:
            with contextlib.suppress(RuntimeError):
                ops._arrived(in_flight[rank], scattered_inputs, name)


def fused_anything_and_reducescatter(
    my_matmul: MyMatmul,
    scattered_outputs: list[torch.Tensor],
    *,
    group: dist.ProcessGroup,
    num_stripes: int = 1,
    timeout_s: int = _DEFAULT_TIMEOUT_S,
    _wait: bool = True,
    _memcpy: bool = True,
    _triton: bool = True,
) -> None:
    """Calls `my_matmul(outputs, dst_rank, stream_factory)` once for each rank, to fill what is added up on that rank.

    scattered_outputs: get the sums over ranks, made in fp32; of one device and dtype. my_matmul is given tensors of
    their shapes to write into. Ranks rank + 1, rank + 2, ... first, own last; where DISABLE_FUSED_SEQUENCE_PARALLEL=1,
    ranks 0, 1, .... An error in my_matmul, on the CPU, is an error on every rank, whose outputs are then NaN.
    """
    ops, name = torch.ops.xformers, group.group_name
    with _within(group, timeout_s):
        order = ops._spread_steps(False, name)
        if not scattered_outputs:
            for rank in order:
                my_matmul([], rank, lambda: None)
            return
        stream_factory = _stream_factory(scattered_outputs[0].device)
        if not _memcpy:
            for rank in order:
                my_matmul(list(scattered_outputs), rank, stream_factory)
            return
        buffer = ops._begin_scattering(scattered_outputs, num_stripes, name)
    received: list[torch.Tensor] = [buffer[0]] * len(order)
    raised: BaseException | None = None
    for rank in order:
        try:
            if raised is None:
                my_matmul(ops._places(buffer, rank, scattered_outputs), rank, stream_factory)
        except BaseException as error:  # noqa: BLE001  (raised again below, when nobody waits for this rank any more)
            raised = error
        received[rank] = ops._start_scattering(buffer, rank, raised is not None, name)
    try:
        with _within(group, timeout_s):
            ops._finish_scattering(buffer, received, scattered_outputs, name)
    except RuntimeError:
        if raised is None:
            raise
    if raised is not None:
        raise raised


class _PeerMemory(BaseOperator):
    """Operators of the reference on memory that GPUs share. Here bytes move through collectives."""

    OPERATOR = None
    OPERATOR_CATEGORY = "sequence_parallel_fused"
    NOT_AVAILABLE = "peer memory is not used: bytes move through the group's collectives"


for _name in ("write_values", "wait_values", "cuda_memset_32b_async"):
    register_operator(type(_name, (_PeerMemory,), {"NAME": _name, "__doc__": _PeerMemory.__doc__}))

__all__ = [
    "fused_allgather_and_anything",
    "fused_allgather_and_linear",
    "fused_anything_and_reducescatter",
    "fused_linear_and_reducescatter",
]
