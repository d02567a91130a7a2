"""The columns of the matrix, and how a case is run and compared with the formula in fp64."""

import itertools
import zlib
from dataclasses import dataclass

import torch
from attention_inputs import random
from attention_problems import DENSE
from attention_reference import answers, assert_close, to_bhm, to_bhmk, to_scores
from devices import seed
from dropout_stream import kept_weights
from matrix_rows import Row

from xformers.ops import fmha, memory_efficient_attention, memory_efficient_attention_forward

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# name -> heads of query, and heads of key and value before they are expanded
HEADS = {
    "one_head": ((1,), (1,)),
    "mha": ((3,), (3,)),
    "grouped": ((2, 3), (2, 1)),
    "mqa": ((4,), (1,)),
    "3d": ((), ()),
}
HEAD_DIMS = [(16, 24), (33, 7), (40, 64)]
# forward: no gradients. backward: of query, key, value and a trained bias. functional: the two halves by hand.
# lse: the gradient reaches out and lse, through memory_efficient_attention_partial.
# An lse is fp32 for 16-bit inputs too. Their exponentials may be coarser than fp32's, but no coarser than this.
LSE_ATOL = {torch.bfloat16: 2e-4, torch.float16: 2e-5}
MODES = {0.0: ["forward", "backward", "functional", "lse"], 0.3: ["forward", "backward"]}


@dataclass
class Case:
    row: Row
    dtype: torch.dtype
    heads: str
    same_head_dim: bool
    p: float
    size: str
    head_dim: int
    head_dim_v: int
    device: str

    def __str__(self):
        return (
            f"{self.row.name}:{SHORT[self.dtype]},{self.heads},d{self.head_dim},dv{self.head_dim_v},p{self.p},"
            f"{self.size},{self.device}"
        )

    @property
    def seed(self):
        return zlib.crc32(str(self).encode()) % 10**6


def cases(row, dtype, device):
    """Every combination of heads, head_dim_v and dropout; sizes take turns, so that each meets each of the others."""
    start = zlib.crc32(f"{row.name}{dtype}".encode())
    kinds = [name for name in HEADS if name != "3d" or row.takes_3d]
    for turn, (heads, same, p) in enumerate(itertools.product(kinds, (True, False), MODES)):
        sizes = list(DENSE)
        head_dim, other = HEAD_DIMS[(start + turn) % len(HEAD_DIMS)]
        size = sizes[(start // 7 + turn + turn // len(sizes)) % len(sizes)]
        yield Case(row, dtype, heads, same, p, size, head_dim, head_dim if same else other, device)


class Run:
    """The inputs of a case, what the formula says of them, and what the library says in each mode."""

    def __init__(self, case: Case):
        self.case = case
        heads, kv_heads = HEADS[case.heads]
        p = self.problem = case.row.problem(case.size, heads, case.dtype, case.seed)
        self.query = random((p.batch, p.nq, *heads, case.head_dim), case.dtype, case.seed + 1)
        key, value = (
            random((p.batch, p.nk, *kv_heads, dim), case.dtype, case.seed + 2 + i)
            for i, dim in enumerate((case.head_dim, case.head_dim_v))
        )
        # Keys of nobody hold NaN where the library reads, 0 in the formula.
        unused = ~p.used_keys()
        self.clean, self.given = [], []
        for x in (key, value):
            for kept, fill in ((self.clean, 0.0), (self.given, torch.nan)):
                x = x.clone()
                x[unused] = fill
                kept.append(x.expand(p.batch, p.nk, *heads, x.shape[-1]) if kv_heads else x)
        num_heads = max(1, len(self.query[0, 0].flatten()) // case.head_dim) if p.nq else 1
        self.kept = None
        if case.p:
            seed(case.seed)
            state = torch.ops.xformers.draw_philox_state(device=case.device).tolist()
            self.kept = kept_weights(p, num_heads, case.p, state)
        visible = p.visible()
        scores = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)
        self.scores = scores if p.tensor is None else scores + to_scores(p.tensor, torch.float64)
        generator = torch.Generator().manual_seed(case.seed + 4)
        out_shape = (*self.query.shape[:-1], case.head_dim_v)
        self.grad_out = torch.randn(out_shape, generator=generator, dtype=torch.float64).to(case.dtype)
        lse_shape = (p.batch, *(heads or (1,)), p.nq)
        blind = (self.scores == -torch.inf).all(-1).expand(p.batch, num_heads, p.nq).reshape(lse_shape)
        lse_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        self.grad_lse = torch.randn(lse_shape, generator=generator, dtype=torch.float64).to(lse_dtype)
        self.grad_lse.masked_fill_(blind, 0.0)  # no gradient comes in for a row that sees no key
        self._truths = {}

    def truth(self, with_lse):
        """(formula in fp64, formula in the inputs' dtype, allowance for roundings) by name of result."""
        if with_lse not in self._truths:
            case = self.case
            scale = case.head_dim**-0.5
            problem = (self.query, *self.clean, self.scores, scale, self.kept, case.p, self.grad_out)
            exact, plain, rounding = answers(*problem, self.grad_lse if with_lse else None)
            rounding["lse"] = rounding["lse"] + LSE_ATOL.get(case.dtype, 0.0)
            self._truths[with_lse] = exact, plain, rounding
        return self._truths[with_lse]

    def compare(self, name, got, with_lse):
        exact, plain, rounding = (table[name] for table in self.truth(with_lse))
        family = f"{self.case.device}/{str(self.case.dtype).removeprefix('torch.')}"
        assert_close(name, got.cpu(), exact, plain, rounding, family)

    def inputs(self, requires_grad):
        """query, key, value and bias on the device, as leaves or as expanded views of nothing that matters."""
        device, p = self.case.device, self.problem
        qkv = [x.to(device).detach().requires_grad_(requires_grad) for x in (self.query, *self.given)]
        tensor = p.tensor
        if tensor is not None:
            tensor = tensor.to(device).detach().requires_grad_(requires_grad and p.trained)
        bias = self.case.row.bias(p, tensor)
        return qkv, tensor, bias.to(device) if tensor is None and self.case.row.has_a_device else bias

    def run(self, mode):
        case = self.case
        qkv, tensor, bias = self.inputs(mode in ("backward", "lse"))
        seed(case.seed)
        lse, grads = None, []
        if mode == "forward":
            out = memory_efficient_attention_forward(*qkv, bias, case.p)
        elif mode == "backward":
            out = memory_efficient_attention(*qkv, bias, case.p)
            wanted = [*qkv, tensor] if self.problem.trained else qkv
            grads = torch.autograd.grad(out, wanted, self.grad_out.to(case.device))
        elif mode == "functional":
            out, lse = fmha.memory_efficient_attention_forward_requires_grad(*qkv, bias)
            grads = fmha.memory_efficient_attention_backward(self.grad_out.to(case.device), out, lse, *qkv, bias)
        else:
            out, lse = fmha.memory_efficient_attention_partial(*qkv, bias)
            wanted = [*qkv, tensor] if self.problem.trained else qkv
            incoming = [self.grad_out.to(out), self.grad_lse.to(lse)]
            grads = torch.autograd.grad([out, lse], wanted, incoming)
        self.check(mode, out, lse, grads, [*qkv, tensor])

    def check(self, mode, out, lse, grads, inputs):
        case, with_lse = self.case, mode == "lse"
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        assert out.dtype == (wide if mode == "lse" else case.dtype), f"out is {out.dtype}"
        assert out.shape == self.grad_out.shape, f"out has shape {list(out.shape)}"
        assert out.is_contiguous() and out.device.type == case.device
        self.compare("out", to_bhmk(out), with_lse)
        if lse is not None:
            assert lse.dtype == wide and lse.shape == self.grad_lse.shape, f"lse is {lse.dtype} {list(lse.shape)}"
            self.compare("lse", to_bhm(lse), with_lse)
        for name, x, grad in zip(("query", "key", "value", "bias"), inputs, grads, strict=False):
            assert grad.shape == x.shape and grad.dtype == x.dtype, f"gradient of {name}: {grad.dtype} {grad.shape}"
            if name == "bias":
                grad = grad.flatten(1, 2) if grad.ndim == 5 else grad[:, None] if grad.ndim == 3 else grad
            else:
                grad = to_bhmk(grad)
            self.compare(name, grad, with_lse)


def matches(case, mode, only):
    """Whether `only`, the text of a case with or without its mode, means this one."""
    return only in (str(case), f"{case},{mode}")


def run_all(row, dtype, device, only=None):
    """(number of cases run, texts of the failures); only: the one case to run."""
    count, failures = 0, []
    for case in cases(row, dtype, device):
        modes = [mode for mode in MODES[case.p] if only is None or matches(case, mode, only)]
        if not modes:
            continue
        run = Run(case)
        for mode in modes:
            count += 1
            try:
                run.run(mode)
            except Exception as error:  # every case that fails is named, whatever the failure
                failures.append(f"--case='{case},{mode}': {type(error).__name__}: {error}")
    return count, failures
