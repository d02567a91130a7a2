"""Rotary position embeddings."""

from typing import Any

import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    """Turns queries and keys `[..., seqlen, dim_model]` by positions 0 ... seqlen - 1, element i with i + dim / 2.

    No tables are kept: angles are computed in the kernel, in fp64. The results keep the inputs' dtypes. Loading a state
    dict of another base than 10000 is a ValueError. From "RoFormer" (Su et al., arXiv:2104.09864).
    """

    inv_freq: torch.Tensor

    def __init__(self, dim_model: int, *_: object, **__: object):
        super().__init__()
        self.dim_model = dim_model
        self.register_buffer("inv_freq", self._frequencies())

    def _frequencies(self, device: torch.device | str | None = None) -> torch.Tensor:
        """What the angles advance by from one position to the next: part of state dicts, not read by the kernel."""
        exponents = torch.arange(0, self.dim_model, 2, dtype=torch.float64, device=device) / self.dim_model
        return (10000.0**-exponents).float()

    def reset_parameters(self) -> None:
        """The buffer as it was built, for modules that got their memory later (`to_empty`)."""
        with torch.no_grad():
            self.inv_freq.copy_(self._frequencies(self.inv_freq.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "inv_freq")
        if loaded is not None and not loaded.is_meta:  # the module's own buffer may hold nothing yet
            expected = self._frequencies("cpu")
            if loaded.shape == expected.shape and not torch.allclose(loaded.float().cpu(), expected, rtol=1e-2):
                raise ValueError(
                    "RotaryEmbedding: inv_freq of the state dict belongs to another base, expected 10000.  Fix: call "
                    "torch.ops.xformers.rotary with theta."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.xformers.rotary(q), torch.ops.xformers.rotary(k)


__all__ = ["RotaryEmbedding"]
