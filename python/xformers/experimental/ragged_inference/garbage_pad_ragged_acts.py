"""Tokens of several sequences in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


class RaggedActivations:
    """Sequences one behind the other: raw_tensor `[sum of n_ctx_per_seq, dim]`. ValueError where the lengths do not add
    up, from what reads them."""

    def __init__(self, raw_tensor: torch.Tensor, n_ctx_per_seq: Sequence[int]):
        self.raw_tensor = raw_tensor
        self.n_ctx_per_seq = list(n_ctx_per_seq)

    @classmethod
    def from_list(cls, tensors: Sequence[torch.Tensor]) -> RaggedActivations:
        """Of tensors `[n_ctx, dim]`."""
        return cls(torch.cat(list(tensors)), [t.shape[0] for t in tensors])

    @property
    def n_seqs(self) -> int:
        return len(self.n_ctx_per_seq)

    @property
    def max_n_ctx_per_seq(self) -> int:
        return max(self.n_ctx_per_seq)

    @property
    def device(self) -> torch.device:
        return self.raw_tensor.device

    @property
    def dtype(self) -> torch.dtype:
        return self.raw_tensor.dtype

    def iter_full_tensors(self) -> Iterator[torch.Tensor]:
        """Views of the sequences."""
        yield from self.raw_tensor.split(self.n_ctx_per_seq)

    def to_garbage_padded(self) -> torch.Tensor:
        """`[n_seqs, max_n_ctx_per_seq, dim]`. What is behind a sequence is 0 here, and nothing to rely on."""
        return torch.ops.xformers.ragged_to_padded(self.raw_tensor, self.n_ctx_per_seq)

    def triton_to_garbage_padded(self) -> torch.Tensor:
        """The same."""
        return self.to_garbage_padded()


__all__ = ["RaggedActivations"]
