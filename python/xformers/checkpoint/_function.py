"""checkpoint, and what it is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from ._facts import FACTS
from ._policies import OptimalPolicy, decisions
from ._region import ForwardMode, RecomputeMode, Region


def selective_checkpoint_context_fn(policy_fn: Any = None) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """(forward context, recompute context) for one region, for the context_fn of torch.utils.checkpoint.checkpoint:
    functools.partial(selective_checkpoint_context_fn, policy_fn). policy_fn: as in checkpoint; it is copied, so that
    every region begins with it as it was given."""
    forward, recompute = decisions(policy_fn)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None:
        region = Region()
        return ForwardMode(region, forward), RecomputeMode(region, recompute)

    # torch.compile: PyTorch's own contexts mark the graph's nodes, and its partitioner does the rest.
    def mark(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if not FACTS[func].is_counted(args):
            return CheckpointPolicy.PREFER_RECOMPUTE
        keeps = (recompute if ctx.is_recompute else forward).keeps(func, args, kwargs) and FACTS[func].keepable
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(mark, allow_cache_entry_mutation=True)


def checkpoint(
    function: Callable[..., Any], *args: Any, preserve_rng_state: bool = True, policy_fn: Any = None, **kwargs: Any
) -> Any:
    """function(*args, **kwargs), whose backward recomputes what it needs, but for what policy_fn keeps.

    policy_fn, which operators' outputs are kept from forward to backward:
        None: attention, and matrix products;
        a list of operators: names ("aten.mm.default") or objects (torch.ops.aten.mm.default; torch.ops.aten.mm: every
            overload). [] keeps nothing. Any name of attention stands for attention;
        a function (ctx, operator, *args, **kwargs) -> bool or torch.utils.checkpoint.CheckpointPolicy, asked at every
            call of an operator, in both passes (ctx.is_recompute says which) by a copy of its own;
        a CheckpointPolicy: for all;
        a policy of get_optimal_checkpoint_policy.
    preserve_rng_state: random numbers are the same when recomputed.
    kwargs: of torch.utils.checkpoint.checkpoint (determinism_check, early_stop) and of the function.

    Outputs and gradients are those without it: views, operators in place, dropout, autocast, nested regions included.
    Where grad mode is off, nothing is kept. Works in torch.compile(fullgraph=True). A second backward through what was
    kept, and a function that runs other operators when repeated, are a RuntimeError that says so."""
    if kwargs.pop("use_reentrant", False):
        raise ValueError(
            "checkpoint: use_reentrant is True, expected False: a reentrant checkpoint keeps no operator's output.  "
            "Fix: leave it out."
        )
    if isinstance(policy_fn, OptimalPolicy):
        context_fn = policy_fn.context_fn
    else:
        context_fn = functools.partial(selective_checkpoint_context_fn, policy_fn)
    return _torch_checkpoint(
        function,
        *args,
        use_reentrant=False,
        preserve_rng_state=preserve_rng_state,
        context_fn=context_fn,
        **kwargs,
    )


class _ListMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def list_operators(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """The operators that function(*args, **kwargs) calls, in order, as objects (torch.ops.aten.mm.default): what a
    policy's list may name."""
    with _ListMode() as mode:
        function(*args, **kwargs)
    return mode.operators
