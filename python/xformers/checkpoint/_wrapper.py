"""Modules whose forward is checkpointed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper

from ._function import checkpoint
from ._optimal import check_budget, optimal_policy
from ._profile import profile_operators


def same_on_all_ranks(policy: Any) -> Any:
    """The one of the default group's first rank: what ranks measure differs, and operators that communicate must be
    repeated by all or by none."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # Objects travel through the CPU with Gloo, through the GPU with NCCL.
        holder = [policy]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]
    return policy


class SelectiveCheckpointWrapper(ActivationWrapper):
    """A module whose forward keeps some operators' outputs for backward and recomputes the others'.

    Attributes and state-dict keys are the wrapped module's. See selective_checkpoint_wrapper."""

    def __init__(
        self, mod: torch.nn.Module, memory_budget: float | None = None, policy_fn: Any = None, times: str = "measure"
    ) -> None:
        super().__init__(mod)  # type: ignore[no-untyped-call]
        if (memory_budget is None) == (policy_fn is None):
            raise ValueError(
                f"selective_checkpoint_wrapper: memory_budget is {memory_budget} and policy_fn is {policy_fn}, "
                "expected exactly one of them.  Fix: memory_budget=0.5 finds a policy, policy_fn=[] recomputes "
                "everything."
            )
        self.memory_budget = None if memory_budget is None else check_budget(memory_budget)
        self.times = times
        self.policy_fn = policy_fn  # None: not found yet

    def _find_policy(self, *args: Any, **kwargs: Any) -> bool:
        """Sets the policy, where there is none yet."""
        if self.policy_fn is None:
            assert self.memory_budget is not None
            operators = profile_operators(self._checkpoint_wrapped_module, args, kwargs, self.times)
            self.policy_fn = same_on_all_ranks(optimal_policy(operators, self.memory_budget, (*args, *kwargs.values())))
        return True

    # torch.compile calls it while it traces, on real inputs, and what it sets is a constant of the graph. The mark is
    # that of torch.compiler.assume_constant_result, which would import the compiler here.
    _find_policy._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def get_policy_fn(self, *args: Any, **kwargs: Any) -> Any:
        """The policy, found now where there is none yet: by six calls of the module with every operator timed, or,
        with times="estimate", without computing anything. All ranks call it together."""
        self._find_policy(*args, **kwargs)
        return self.policy_fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of the wrapped module."""
        # Without gradients nothing is kept, and nothing can be learnt about what would be.
        if self.memory_budget == 1 or not torch.is_grad_enabled():
            return self._checkpoint_wrapped_module(*args, **kwargs)
        policy = [] if self.memory_budget == 0 else self.get_policy_fn(*args, **kwargs)
        return checkpoint(self._checkpoint_wrapped_module, *args, policy_fn=policy, **kwargs)


def selective_checkpoint_wrapper(
    module: torch.nn.Module, memory_budget: float | None = None, policy_fn: Any = None, *, times: str = "measure"
) -> SelectiveCheckpointWrapper:
    """`module` with its forward checkpointed, by exactly one of

    memory_budget: which part (0: nothing, recompute all; 1: everything) of the memory that the forward keeps for
        backward may be kept; the policy that recomputes least is found at the first call that records gradients, or by
        get_policy_fn, and is that of the first rank on all ranks. times: how, see get_optimal_checkpoint_policy.
    policy_fn: as in checkpoint.

    ValueError where both or none are given, or the budget is outside of [0, 1]."""
    return SelectiveCheckpointWrapper(module, memory_budget, policy_fn, times)
