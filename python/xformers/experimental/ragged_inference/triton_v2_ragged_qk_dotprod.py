"""Scores of ragged sequences from their packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .garbage_pad_ragged_acts import RaggedActivations
from .seq_kv_cache import scores_via_qk_dotprod

BLOCK_Q, BLOCK_K = 16, 128


@dataclass
class RaggedQkPidLookupTable:
    """The blocks of scores that hold real tokens, sequence by sequence, row of blocks by row; int64 `[n_pids_total]`
    each."""

    pid_to_in_q_token_offset: torch.Tensor  # of the block's first query in the packed tensor
    pid_to_in_k_token_offset: torch.Tensor
    pid_to_out_q_block: torch.Tensor  # the block's row and column among those of its sequence
    pid_to_out_k_block: torch.Tensor
    pid_to_out_seq_idx: torch.Tensor
    n_pids_total: int

    @staticmethod
    def from_query_and_key_tokens_per_seq(
        n_ctx_q_per_seq: Sequence[int],
        n_ctx_k_per_seq: Sequence[int],
        block_q_override: int | None = None,
        block_k_override: int | None = None,
    ) -> RaggedQkPidLookupTable:
        in_q, in_k, out_q, out_k, sequences = torch.ops.xformers.ragged_block_table(
            list(n_ctx_q_per_seq), list(n_ctx_k_per_seq), block_q_override or BLOCK_Q, block_k_override or BLOCK_K
        )
        return RaggedQkPidLookupTable(in_q, in_k, out_q, out_k, sequences, in_q.numel())

    @staticmethod
    def from_single_seq(n_ctx_q: int, n_ctx_k: int) -> RaggedQkPidLookupTable:
        return RaggedQkPidLookupTable.from_query_and_key_tokens_per_seq([n_ctx_q], [n_ctx_k])


def ragged_qk_dotprod(
    query: RaggedActivations, key: RaggedActivations, lut: RaggedQkPidLookupTable | None = None
) -> torch.Tensor:
    """q k^T of every sequence, `[n_seqs, longest of queries, longest of keys]`, of real tokens alone: a product per
    sequence. The table is upstream's schedule; it isn't needed."""
    return scores_via_qk_dotprod(query, key)


def ragged_single_seq_qk_dotprod(
    query: torch.Tensor, key: torch.Tensor, lut: RaggedQkPidLookupTable | None = None
) -> torch.Tensor:
    """q k^T of one sequence, `[n_ctx_q, n_ctx_k]`."""
    return torch.ops.xformers.ragged_scores(query, key, [query.shape[0]], [key.shape[0]])[0]


__all__ = ["RaggedQkPidLookupTable", "ragged_qk_dotprod", "ragged_single_seq_qk_dotprod"]
