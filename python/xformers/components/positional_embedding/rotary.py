"""Rotary position embeddings."""

import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    """Turns queries and keys `[..., seqlen, dim_model]` by positions 0 ... seqlen - 1, element i with i + dim / 2.

    No tables are kept: angles are computed in the kernel, in fp64. The results keep the inputs' dtypes.
    """

    def __init__(self, dim_model: int, *_, **__):
        super().__init__()
        # What the angles advance by from one position to the next: part of state dicts, not read by the kernel.
        exponents = torch.arange(0, dim_model, 2, dtype=torch.float64) / dim_model
        self.register_buffer("inv_freq", (10000.0**-exponents).float())

    def _load_from_state_dict(self, state_dict, prefix, *args):
        loaded = state_dict.get(prefix + "inv_freq")
        if loaded is not None and not torch.allclose(loaded.float().cpu(), self.inv_freq.float().cpu(), rtol=1e-2):
            raise ValueError(
                "RotaryEmbedding: inv_freq of the state dict belongs to another base, expected 10000.  Fix: call "
                "torch.ops.xformers.rotary with theta."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.xformers.rotary(q), torch.ops.xformers.rotary(k)


__all__ = ["RotaryEmbedding"]
