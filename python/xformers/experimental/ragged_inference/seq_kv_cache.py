"""Keys and values of sequences that grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .garbage_pad_ragged_acts import RaggedActivations


@dataclass
class SingleSeqKVCache:
    """Of one sequence: keys and values `[n_ctx, dim]`."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def n_ctx(self) -> int:
        return self.keys.shape[0]


def extend_kv_caches(
    seq_kv_cache: Sequence[SingleSeqKVCache], active_keys: RaggedActivations, active_values: RaggedActivations
) -> list[SingleSeqKVCache]:
    """New caches: each sequence's, followed by its new keys and values."""
    new = zip(seq_kv_cache, active_keys.iter_full_tensors(), active_values.iter_full_tensors(), strict=True)
    return [
        SingleSeqKVCache(torch.cat([cache.keys, keys]), torch.cat([cache.values, values]))
        for cache, keys, values in new
    ]


def garbage_pad_keys(seq_kv_cache: Sequence[SingleSeqKVCache]) -> torch.Tensor:
    """Keys as `[n_seqs, longest, dim]`."""
    return RaggedActivations.from_list([cache.keys for cache in seq_kv_cache]).to_garbage_padded()


def garbage_pad_seq_kv_cache(seq_kv_cache: Sequence[SingleSeqKVCache]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as `[n_seqs, longest, dim]`."""
    values = RaggedActivations.from_list([cache.values for cache in seq_kv_cache])
    return garbage_pad_keys(seq_kv_cache), values.to_garbage_padded()


def _create_indices(tokens_per_seq: Sequence[int]) -> torch.Tensor:
    """int64 `[n_seqs, longest]`: where the tokens of each sequence are in the packed tensor; behind a sequence, its
    last."""
    lengths = torch.tensor(list(tokens_per_seq))
    steps = torch.arange(int(lengths.max()))
    return (lengths.cumsum(0) - lengths)[:, None] + torch.minimum(steps, (lengths - 1)[:, None])


def calculate_scores_via_qk_dotprod(
    seq_kv_cache: Sequence[SingleSeqKVCache], active_queries: RaggedActivations
) -> torch.Tensor:
    """q k^T of every sequence's new queries with its cached keys, `[n_seqs, longest of queries, longest of keys]`."""
    return scores_via_qk_dotprod(active_queries, RaggedActivations.from_list([cache.keys for cache in seq_kv_cache]))


def scores_via_qk_dotprod(query: RaggedActivations, key: RaggedActivations) -> torch.Tensor:
    """q k^T of every sequence, `[n_seqs, longest of queries, longest of keys]`; 0 outside, nothing to rely on."""
    return torch.ops.xformers.ragged_scores(query.raw_tensor, key.raw_tensor, query.n_ctx_per_seq, key.n_ctx_per_seq)


__all__ = [
    "SingleSeqKVCache",
    "calculate_scores_via_qk_dotprod",
    "extend_kv_caches",
    "garbage_pad_keys",
    "garbage_pad_seq_kv_cache",
    "scores_via_qk_dotprod",
]
