"""Attention masks that are added to the scores."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

Self = TypeVar("Self", bound="AttentionMask")


class AttentionMask:
    """A mask `[batch, seq_len, to_seq_len]` that is added to the scores: 0 where a query attends, -inf where not.

    Arguments:
        additive_mask: floating, without gradient; `[seq_len, to_seq_len]` becomes `[1, seq_len, to_seq_len]`.
        is_causal: whether no query sees a later key.

    AssertionError for a mask that is not floating or requires a gradient. A causal mask of `make_causal` has values
    only once somebody reads them; attention needs none. In C++: xformers::nn::AttentionMask.
    """

    is_sparse = False

    def __init__(self, additive_mask: torch.Tensor, is_causal: bool = False):
        assert additive_mask.is_floating_point(), (
            f"AttentionMask: additive_mask is {additive_mask.dtype}, expected a floating type.  Fix: use "
            "AttentionMask.from_bool or from_multiplicative."
        )
        assert not additive_mask.requires_grad, (
            "AttentionMask: additive_mask requires a gradient, expected none.  Fix: detach it."
        )
        self._values: torch.Tensor | None = additive_mask[None] if additive_mask.ndim == 2 else additive_mask
        self.is_causal = is_causal
        self._shape, self._device, self._dtype = self._values.shape, self._values.device, self._values.dtype

    @classmethod
    def from_bool(cls: type[Self], x: torch.Tensor) -> Self:
        """True attends. AssertionError for anything but bool."""
        assert x.dtype == torch.bool, f"AttentionMask.from_bool: x is {x.dtype}, expected bool.  Fix: compare it first."
        return cls(torch.ops.xformers.additive_mask(x))

    @classmethod
    def from_multiplicative(cls: type[Self], x: torch.Tensor) -> Self:
        """What is not 0 attends. AssertionError for bool."""
        assert x.dtype != torch.bool, "AttentionMask.from_multiplicative: x is bool.  Fix: use AttentionMask.from_bool."
        return cls.from_bool(x != 0)

    @classmethod
    def make_causal(
        cls: type[Self],
        seq_len: int,
        to_seq_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Query i sees the keys j <= i."""
        return cls._lazy(seq_len, to_seq_len or seq_len, device, dtype)

    @classmethod
    def _lazy(cls: type[Self], seq_len: int, to_seq_len: int, device: Any, dtype: torch.dtype | None) -> Self:
        mask = cls.__new__(cls)
        mask._values = None
        mask.is_causal = True
        mask._shape = torch.Size((1, seq_len, to_seq_len))
        mask._device = torch.device(device) if device is not None else torch.empty(0).device
        mask._dtype = dtype or torch.get_default_dtype()
        return mask

    @property
    def values(self) -> torch.Tensor:
        """What is added to the scores."""
        if self._values is None:
            self._values = torch.ops.xformers.causal_mask(
                self.seq_len, self.to_seq_len, dtype=self._dtype, device=self._device
            )
        return self._values

    def _is_band(self, seqlen_q: int, seqlen_k: int) -> bool:
        """Whether for these sequences the mask is j <= i and nothing else, without a look at values."""
        fits = self._shape[-2:] == (seqlen_q, seqlen_k)
        cropped = seqlen_q == seqlen_k and min(self._shape[-2:]) >= seqlen_q
        return self._values is None and (fits or cropped)

    def make_crop(self, seq_len: int, to_seq_len: int | None = None) -> AttentionMask:
        """The first rows and columns, a view."""
        to_seq_len = to_seq_len or seq_len
        if self._values is None:
            rows, columns = min(seq_len, self.seq_len), min(to_seq_len, self.to_seq_len)
            return self._lazy(rows, columns, self._device, self._dtype)
        return AttentionMask(self._values[:, :seq_len, :to_seq_len], is_causal=self.is_causal)

    def to_bool(self) -> torch.Tensor:
        """True where a query attends."""
        return self.values != -torch.inf

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AttentionMask:
        """On another device, in another dtype (AssertionError for neither); itself where nothing changes."""
        assert device is not None or dtype is not None, "AttentionMask.to: name a device, a dtype or both"
        device = self._device if device is None else torch.device(device)
        dtype = dtype or self._dtype
        if (device, dtype) == (self._device, self._dtype):
            return self
        if self._values is None:
            return self._lazy(self.seq_len, self.to_seq_len, device, dtype)
        return AttentionMask(self._values.to(device=device, dtype=dtype), is_causal=self.is_causal)

    def __add__(self, other: AttentionMask) -> AttentionMask:
        return AttentionMask(self.values + other.values, is_causal=False)

    def __and__(self, other: AttentionMask) -> AttentionMask:
        """A query attends where both let it: causal if one of them is."""
        both = AttentionMask.from_bool(self.to_bool() & other.to_bool())
        both.is_causal = self.is_causal or other.is_causal
        return both

    @property
    def seq_len(self) -> int:
        return self._shape[-2]

    @property
    def to_seq_len(self) -> int:
        return self._shape[-1]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)


__all__ = ["AttentionMask"]
