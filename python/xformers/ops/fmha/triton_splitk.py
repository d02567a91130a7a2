"""The contract "split-K": decoding, parallel over the keys; keys and values may be integers (int4, fp8).

The name is that of old; the kernels are the library's own.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..common import get_xformers_operator, register_operator
from ._engine import Forward
from .common import Inputs


@dataclass(eq=False)
class InputsFp8(Inputs):
    """Keys and values of four e4m3 numbers per int32 word; a coefficient word of each row holds an fp16 scale (low
    half) and an fp16 shift."""

    k_fp8_scale_shift: torch.Tensor | None = None  # int32, shape of key without the last dimension
    v_fp8_scale_shift: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(x.untyped_storage().nbytes() for x in self._quantization().values())

    def normalize_bmhk(self) -> tuple[int, ...]:
        if self.query.ndim == 3:
            self.k_fp8_scale_shift, self.v_fp8_scale_shift = (
                x if x is None else x.unsqueeze(2) for x in (self.k_fp8_scale_shift, self.v_fp8_scale_shift)
            )
        return super().normalize_bmhk()

    def _quantization(self) -> dict[str, torch.Tensor]:
        coefficients = {"k_scale_shift": self.k_fp8_scale_shift, "v_scale_shift": self.v_fp8_scale_shift}
        given = {name: x for name, x in coefficients.items() if x is not None}
        if len(given) == 1:
            raise ValueError(
                f"attention: only {next(iter(given))} is given, expected coefficients of key and value.  "
                "Fix: give k_fp8_scale_shift and v_fp8_scale_shift."
            )
        return given


@register_operator
class FwOp(Forward, contract="triton_splitKF"):
    """Class attributes may be overridden in subclasses: SPLIT_K (parts that the keys are worked on in), NUM_GROUPS (of
    int4 coefficients per row). The rest tunes other kernels than these and is kept for programs that set it."""

    OPERATOR = get_xformers_operator("attention_forward")

    SPLIT_K: int | None = None
    NUM_GROUPS = 1
    NUM_GROUPS_VALUES = [1, 2, 4, 8]
    AUTOTUNE = False
    BLOCK_M = 16
    BLOCK_N = 64
    NUM_STAGES = 1
    NUM_WARPS = 2
    MAX_BLOCK_M = 32
    SPLIT_K_EARLY_EXIT = False

    @classmethod
    def check_own_options(cls, inp: Inputs) -> None:
        """A number of groups that the keys' rows don't have would be read as another head_dim."""
        int4 = inp.key.dtype == torch.int32 and not inp._quantization()
        expected = inp.key.shape[-1] - inp.query.shape[-1] // 8 if int4 else 1
        if cls.NUM_GROUPS not in cls.NUM_GROUPS_VALUES or cls.NUM_GROUPS != expected:
            raise ValueError(
                f"attention: NUM_GROUPS of {cls.__name__} is {cls.NUM_GROUPS}, expected {expected} for these keys.  "
                "Fix: int4 rows are NUM_GROUPS coefficient words, then head_dim / 8 words; all others have one group."
            )

    @classmethod
    def get_operator(
        cls,
        splitk: int,
        *,
        block_m: int | None = None,
        block_n: int | None = None,
        num_warps: int | None = None,
        num_stages: int | None = None,
        split_k_early_exit: bool | None = None,
    ) -> type[FwOp]:
        """This operator with a fixed number of splits; the same class for the same arguments, after pickling too."""
        given = {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "NUM_WARPS": num_warps,
            "NUM_STAGES": num_stages,
            "SPLIT_K_EARLY_EXIT": split_k_early_exit,
        }
        options = {name: value for name, value in given.items() if value is not None}
        key = (cls, splitk, *options.items())
        if key not in _operators:
            doc = f"`FwOp` with the keys in {splitk} parts that are worked on at once."
            named = {"NAME": f"triton_splitK{splitk}", "__module__": __name__, "__doc__": doc}
            attributes = {"SPLIT_K": splitk, **options, **named}
            made: Any = _Made(f"FwOp_S{splitk}", (cls,), attributes)
            made._made_by = (cls, splitk, {name.lower(): value for name, value in options.items()})
            _operators[key] = made
        return _operators[key]


class _Made(type):
    """The type of classes that get_operator makes: they pickle as the call that made them."""

    _made_by: tuple[type[FwOp], int, dict[str, Any]]


def _reduce(cls: _Made) -> str | tuple[Any, ...]:
    if "_made_by" not in vars(cls):
        return cls.__qualname__  # a class of the user's, derived from one of them
    base, splitk, options = cls._made_by
    return functools.partial(base.get_operator, **options), (splitk,)


copyreg.pickle(_Made, _reduce)
_operators: dict[tuple[Any, ...], type[FwOp]] = {}


FwOp_Map = {splits: FwOp.get_operator(splits) for splits in (1, 2, 4, 8, 16, 32, 48, 64, 72, 80, 96, 112, 128)}
FwOp_S1 = FwOp_Map[1]
FwOp_S2 = FwOp_Map[2]
FwOp_S4 = FwOp_Map[4]
FwOp_S8 = FwOp_Map[8]
FwOp_S16 = FwOp_Map[16]
FwOp_S32 = FwOp_Map[32]
FwOp_S64 = FwOp_Map[64]
FwOp_S128 = FwOp_Map[128]

_autotuner_caches: dict[int, object] = {}


def get_autotuner_cache(num_groups: int) -> object:
    """What was stored for this number of groups: these kernels need no tuning."""
    return _autotuner_caches.setdefault(num_groups, {})


def set_autotuner_cache(cache: object, num_groups: int) -> None:
    """Stores it for `get_autotuner_cache`."""
    _autotuner_caches[num_groups] = cache


def merge_attentions(
    attn_out: torch.Tensor, lse_out: torch.Tensor | None, attn_split: torch.Tensor, lse_split: torch.Tensor
) -> None:
    """Merges the parts [batch, groups, heads, parts, seqlen, head_dim] (lse without the last) into attn_out [batch,
    seqlen, groups, heads, head_dim] and, where given, lse_out [batch, groups, heads, seqlen]. ValueError where shapes,
    dtypes or devices don't fit."""
    parts = [part.permute(0, 3, 1, 2, 4) for part in attn_split.unbind(3)]
    merge_attentions_varargs(attn_out, lse_out, parts, lse_split.unbind(3))


def merge_attentions_varargs(
    attn_out: torch.Tensor,
    lse_out: torch.Tensor | None,
    attn_split: Sequence[torch.Tensor],
    lse_split: Sequence[torch.Tensor],
) -> None:
    """The same for parts in a list, each [batch, seqlen, groups, heads, head_dim] with lse [batch, groups, heads,
    seqlen]."""
    with torch.no_grad():
        out, lse = torch.ops.xformers.merge_attentions(
            list(attn_split), list(lse_split), lse_out is not None, attn_out.dtype
        )
        attn_out.copy_(out)
        if lse_out is not None:
            lse_out.copy_(lse)


def merge_attentions_varargs_backward(
    attn_split: Sequence[torch.Tensor],
    lse_split: Sequence[torch.Tensor],
    attn_out: torch.Tensor,
    lse_out: torch.Tensor,
    grad_attn: torch.Tensor,
    grad_lse: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of every part's out and lse."""
    dattn, dlse = torch.ops.xformers.merge_attentions_backward(grad_attn, grad_lse, list(attn_split), list(lse_split))
    return list(dattn.unbind(0)), list(dlse.unbind(0))
