"""Rotary position embeddings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """`(-x2, x1)` of the halves `(x1, x2)` of the last dimension."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x * cos + rotate_half(x) * sin`, x `[..., S, D]`, tables `[1, 1, at least S, D]`, cut to x's length."""
    cos, sin = cos[..., : x.shape[-2], :], sin[..., : x.shape[-2], :]
    return x * cos + rotate_half(x) * sin


class RotaryEmbedding(nn.Module):
    """Turns queries and keys `[..., seqlen, dim_model]` by positions 0 ... seqlen - 1, element i with i + dim / 2.

    Pair j turns by `position * theta ** (-2 j / dim_model)`. No tables are kept: angles are computed in the kernel, in
    fp64. The results keep the inputs' dtypes. From "RoFormer" (Su et al., arXiv:2104.09864).

    scaling: for texts longer than those of training, a dict with `kind` ("linear", "ntk", "yarn", "llama3"), `factor`
    and, for the last two, `original_seq_len` (8192), `low_freq_factor` (1) and `high_freq_factor` (32 for yarn, 4 for
    llama3); the formulas are in xformers/ops/rope/rope.h. ValueError for another kind or numbers that make no sense.

    Loading a state dict of other frequencies is a ValueError.
    """

    inv_freq: torch.Tensor

    def __init__(
        self,
        dim_model: int,
        *_: object,
        theta: float = 10000.0,
        scaling: Mapping[str, Any] | None = None,
        **__: object,
    ):
        super().__init__()
        self.dim_model = dim_model
        self.theta = float(theta)
        self.scaling = dict(scaling) if scaling else None
        options = dict(self.scaling or {})
        known = ("kind", "factor", "original_seq_len", "low_freq_factor", "high_freq_factor")
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(
                f"RotaryEmbedding: scaling has {unknown[0]!r}, expected keys out of {', '.join(known)}.  "
                "Fix: rename it."
            )
        self._arguments = (
            self.theta,
            str(options.get("kind", "none")),
            *(float(options.get(name, value)) for name, value in zip(known[1:4], (1.0, 8192.0, 1.0), strict=True)),
            options.get("high_freq_factor"),
        )
        self.register_buffer("inv_freq", self._frequencies())

    def _frequencies(self, device: torch.device | str | None = None) -> torch.Tensor:
        """What the angles advance by from one position to the next: part of state dicts, not read by the kernel."""
        frequencies: torch.Tensor = torch.ops.xformers.rotary_frequencies(self.dim_model, *self._arguments)
        return frequencies.to(device or torch.get_default_device(), torch.float32)

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
                    f"RotaryEmbedding: inv_freq of the state dict belongs to another base, expected {self.theta:g} and "
                    f"scaling {self.scaling}.  Fix: build the module with the theta and scaling of the checkpoint."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turn = torch.ops.xformers.rotary_embedding
        return turn(q, *self._arguments), turn(k, *self._arguments)

    def extra_repr(self) -> str:
        return f"{self.dim_model}, theta={self.theta:g}, scaling={self.scaling}"


__all__ = ["RotaryEmbedding", "apply_rotary_pos_emb", "rotate_half"]
