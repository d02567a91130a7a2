"""From what the user gives as policy_fn to a yes or no for every operator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext

_KEPT = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)

# Attention under every name that it has: ours, and those of the contracts.
_ATTENTION = {
    "xformers.attention_forward.default",
    "xformers.efficient_attention_forward_cutlass.default",
    "xformers_flash.flash_fwd.default",
    "xformers_flash3.flash_fwd.default",
}
# What is kept where the user gives no policy: attention, and everything that is mostly a matrix product.
_DEFAULT = _ATTENTION | {
    "aten.addmm.default",
    "aten.mm.default",
    "xformers.fused_linear.default",
    "xformers.product.default",
    "xformers.swiglu_forward.default",
    "xformers.dual_gemm_silu_identity_mul.default",
    "xformers.gemm_fused_operand_sum.default",
    "xformers.tiled_matmul_grids.default",
    "xformers.sequence_parallel_leading_matmul_fwd.default",  # these hide collectives, which ranks must not run again
    "xformers.sequence_parallel_trailing_matmul_fwd.default",  # one without the other
    "xformers.column_parallel_matmul_fwd.default",
    "xformers.sum_over_ranks.default",
    "xformers.context_parallel_attention_fwd.default",
    "xformers.mlp_forward.default",
    "xformers.experts_mlp_forward.default",
}
# 16 bytes that make dropout's mask: always kept.
_DROPOUT_STATE = torch.ops.xformers.draw_philox_state_like.default


class Decisions:
    """Whether an operator's outputs are kept; one object a pass."""

    observes_recomputation = False  # wants to be asked again when operators are recomputed

    def keeps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Of the next operator in the order of their calls."""
        raise NotImplementedError


class _Listed(Decisions):
    """Operators by name or as objects, an overload or all of an operator's."""

    def __init__(self, ops: Any) -> None:
        names = {op if isinstance(op, str) else str(op) for op in ops}
        # A packet torch.ops.aten.mm is "aten.mm": it stands for all its overloads.
        if any(name in _ATTENTION or f"{name}.default" in _ATTENTION for name in names):
            names |= _ATTENTION
        self._names = names
        self._known: dict[Any, bool] = {_DROPOUT_STATE: True}

    def keeps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        known = self._known.get(func)
        if known is None:
            known = str(func) in self._names or str(getattr(func, "overloadpacket", None)) in self._names
            self._known[func] = known
        return known


class _Constant(Decisions):
    def __init__(self, policy: CheckpointPolicy) -> None:
        self._keeps = policy in _KEPT

    def keeps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return self._keeps or func is _DROPOUT_STATE


class _Asked(Decisions):
    """A function of the user, asked in both passes."""

    observes_recomputation = True

    def __init__(self, policy_fn: Callable[..., Any], is_recompute: bool) -> None:
        self._policy_fn = policy_fn
        self._context = SelectiveCheckpointContext(is_recompute=is_recompute)

    def keeps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        answer = self._policy_fn(self._context, func, *args, **kwargs)
        keeps = answer in _KEPT if isinstance(answer, CheckpointPolicy) else bool(answer)
        return keeps or func is _DROPOUT_STATE


class OptimalPolicy:
    """What get_optimal_checkpoint_policy found: which operators of one function are kept, by their order.

    Picklable. As a policy_fn it is asked operator by operator; a copy begins anew. Where the function runs other
    operators than when it was measured, the rest is recomputed."""

    def __init__(self, names: list[str], kept: list[bool], report: Any = None) -> None:
        self.names, self.kept, self.report = names, kept, report
        self._begin()

    def _begin(self) -> None:
        self._next = 0

        # torch.compile takes a function as a constant, and no object.
        def context_fn() -> Any:
            from ._function import selective_checkpoint_context_fn

            return selective_checkpoint_context_fn(self)

        self.context_fn = context_fn

    def __call__(self, ctx: Any, func: Any, *args: Any, **kwargs: Any) -> bool:
        return self.keeps(func)

    def keeps(self, func: Any) -> bool:
        """Of the next operator."""
        i = self._next
        if i >= len(self.names) or self.names[i] != str(func):
            self._next = len(self.names)
            return False
        self._next = i + 1
        return self.kept[i]

    def __deepcopy__(self, memo: Any) -> OptimalPolicy:
        return OptimalPolicy(self.names, self.kept, self.report)

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "kept": self.kept, "report": self.report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


class _Optimal(Decisions):
    def __init__(self, policy: OptimalPolicy) -> None:
        self._policy = copy.deepcopy(policy)

    def keeps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return self._policy.keeps(func) or func is _DROPOUT_STATE


def decisions(policy_fn: Any) -> tuple[Decisions, Decisions]:
    """For the forward pass and for the recomputation; an AssertionError where policy_fn is none that is known."""
    if policy_fn is None or isinstance(policy_fn, list | tuple | set | frozenset):
        listed = _Listed(_DEFAULT if policy_fn is None else policy_fn)
        return listed, listed
    if isinstance(policy_fn, CheckpointPolicy):
        constant = _Constant(policy_fn)
        return constant, constant
    if isinstance(policy_fn, OptimalPolicy):
        optimal = _Optimal(policy_fn)
        return optimal, optimal
    if not callable(policy_fn):
        raise AssertionError(
            f"checkpoint: policy_fn is {policy_fn!r}, expected None, a list of operators, a function (ctx, operator, "
            "*args, **kwargs) -> bool, or a CheckpointPolicy.  Fix: [] recomputes everything."
        )
    return _Asked(copy.deepcopy(policy_fn), False), _Asked(copy.deepcopy(policy_fn), True)
