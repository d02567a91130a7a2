"""Activation checkpointing that chooses what is kept: by operator, by memory budget, or by bytes."""

from ._facts import OPS_TO_ALWAYS_SKIP
from ._fit import fit_to_memory
from ._function import checkpoint, list_operators, selective_checkpoint_context_fn
from ._optimal import get_optimal_checkpoint_policy
from ._policies import OptimalPolicy
from ._report import CheckpointReport
from ._solver import _optimize_runtime_with_given_memory
from ._wrapper import SelectiveCheckpointWrapper, selective_checkpoint_wrapper

__all__ = [
    "CheckpointReport",
    "OPS_TO_ALWAYS_SKIP",
    "OptimalPolicy",
    "SelectiveCheckpointWrapper",
    "_optimize_runtime_with_given_memory",
    "checkpoint",
    "fit_to_memory",
    "get_optimal_checkpoint_policy",
    "list_operators",
    "selective_checkpoint_context_fn",
    "selective_checkpoint_wrapper",
]
