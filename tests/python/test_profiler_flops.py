"""What operators are counted to cost, against formulas written by hand: by PyTorch's counter, and from traces."""

import inspect

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from xformers.ops._flops import cost
from xformers.profiler.profile_analyzer import AnalyzedTrace

import xformers.ops as xops
from xformers import _profiler_library
from xformers.ops import fmha

ab = fmha.attn_bias


def counted(run):
    """(forward, backward) operations of run(), which returns a loss, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        loss = run()
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def traced(run):
    """The analysis of a trace of run() and its backward pass."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as profile:
        run().backward()
    return AnalyzedTrace.from_profile(profile.profiler.kineto_results.events())


def check(run, forward, backward):
    """Both ways of counting agree with what was worked out by hand."""
    assert counted(run) == (forward, backward)
    trace = traced(run)
    assert trace.compute_num_ops(fw=True, bw=False) == forward
    assert trace.compute_num_ops(fw=False, bw=True) == backward
    assert sum(trace.operations_per_dtype_recomputed.values()) == 0


def seen_by_hand(m, n, left, right, bottom_right):
    """Visible pairs, one by one."""
    shift = n - m if bottom_right else 0
    rows = torch.arange(m)[:, None] + shift
    keys = torch.arange(n)[None]
    seen = torch.ones(m, n, dtype=torch.bool)
    if left >= 0:
        seen &= keys >= rows - left
    if right >= 0:
        seen &= keys <= rows + right
    return int(seen.sum()), int((keys == rows).sum())


@pytest.mark.parametrize("m, n", [(7, 7), (5, 9), (9, 5), (1, 6), (6, 1), (0, 4), (16, 16)])
@pytest.mark.parametrize("bottom_right", [False, True])
def test_windows_count_what_is_seen(m, n, bottom_right):
    for left in (-1, 0, 2, 100):
        for right in (-1, 0, 3, 100):
            q = torch.empty(2, m, 3, 8)
            k, v = torch.empty(2, n, 3, 8), torch.empty(2, n, 3, 16)
            got = cost(torch.ops.xformers.attention_forward.default, q, k, v, None, left, right, bottom_right)
            pairs, diagonal = seen_by_hand(m, n, left, right, bottom_right)
            # Without a window the diagonal of a causal mask counts half, so that a square is n^2.
            twice = 2 * pairs - (diagonal if right == 0 and (left < 0 or left + 1 >= n) else 0)
            assert got["flops"] == 2 * 3 * twice * (8 + 16), (left, right)


def qkv(*shapes, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", ["none", "causal", "from_bottom_right", "local"])
def test_attention(name):
    b, n, h, d = 2, 48, 3, 16
    bias, pairs = {
        "none": (None, n * n),
        "causal": (ab.LowerTriangularMask(), n * n / 2),
        "from_bottom_right": (ab.LowerTriangularFromBottomRightMask(), n * n / 2),
        "local": (ab.LowerTriangularFromBottomRightLocalAttentionMask(8), sum(min(i + 1, 8) for i in range(n))),
    }[name]
    tensors = qkv(*[(b, n, h, d)] * 3)
    forward = b * h * pairs * 2 * 2 * d
    check(lambda: xops.memory_efficient_attention(*tensors, bias).sum(), forward, 2.5 * forward)


def test_grouped_heads_count_every_query_head():
    q, k, v = qkv((1, 20, 2, 4, 16), (1, 20, 2, 1, 16), (1, 20, 2, 1, 16))
    forward = 8 * 20 * 20 * 2 * 2 * 16
    run = lambda: xops.memory_efficient_attention(q, k.expand(-1, -1, -1, 4, -1), v.expand(-1, -1, -1, 4, -1)).sum()  # noqa: E731
    check(run, forward, 2.5 * forward)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_count_their_own_lengths(causal):
    lengths = [5, 30, 13]
    tensors = qkv(*[(1, sum(lengths), 2, 16)] * 3)
    mask = ab.BlockDiagonalCausalMask if causal else ab.BlockDiagonalMask
    bias = mask.from_seqlens(lengths, device="cpu")
    forward = 2 * sum(n * n for n in lengths) * 2 * 2 * 16 // (2 if causal else 1)
    assert counted(lambda: xops.memory_efficient_attention(*tensors, bias).sum()) == (forward, 2.5 * forward)


def test_gradients_that_are_stacked_count_too():
    stacked = torch.randn(1, 24, 3, 2, 16, requires_grad=True)
    forward = 2 * 24 * 24 * 2 * 2 * 16
    check(lambda: xops.memory_efficient_attention(*xops.unbind(stacked, 2)).sum(), forward, 2.5 * forward)


@pytest.mark.parametrize("causal", [False, True])
def test_sdpa(causal):
    tensors = qkv(*[(2, 3, 32, 16)] * 3)
    forward = 2 * 3 * 32 * 32 * 2 * 2 * 16 / (2 if causal else 1)
    check(lambda: nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal).sum(), forward, 2.5 * forward)


def test_linear():
    layer, x = nn.Linear(24, 40), torch.randn(5, 7, 24, requires_grad=True)
    forward = 2 * 5 * 7 * 24 * 40
    check(lambda: layer(x).sum(), forward, 2 * forward)


@pytest.mark.parametrize("pack", [False, True])
def test_swiglu(pack):
    layer, x = xops.SwiGLU(24, 40, 16, _pack_weights=pack), torch.randn(5, 24, requires_grad=True)
    forward = 2 * 5 * (2 * 24 * 40 + 40 * 16)
    check(lambda: layer(x).sum(), forward, 2 * forward)


def test_swiglu_without_gradient_of_its_input():
    layer, x = xops.SwiGLU(24, 40, 16), torch.randn(5, 24)
    wide, narrow = 2 * 5 * 2 * 24 * 40, 2 * 5 * 40 * 16
    check(lambda: layer(x).sum(), wide + narrow, wide + 2 * narrow)


def test_fused_linear():
    x, weight = qkv((6, 24), (40, 24))
    check(lambda: torch.ops.xformers.fused_linear(x, weight, None, "gelu").sum(), 2 * 6 * 24 * 40, 4 * 6 * 24 * 40)


def test_feed_forward():
    x, w1, w2 = qkv((6, 24), (40, 24), (16, 40))
    forward = 2 * 6 * (24 * 40 + 40 * 16)
    check(lambda: torch.ops.xformers.mlp(x, w1, None, w2, None, "gelu").sum(), forward, 2 * forward)
    x = x.detach()  # its gradient isn't needed
    backward = 2 * 6 * (24 * 40 + 2 * 40 * 16)
    check(lambda: torch.ops.xformers.mlp(x, w1, None, w2, None, "gelu").sum(), forward, backward)


def test_experts():
    x = torch.randn(7, 24, requires_grad=True)
    padded = torch.ops.xformers.experts_mlp_forward.default, torch.empty(9, 24), torch.tensor([3, 4])
    w1, w2 = ([torch.randn(shape, requires_grad=True) for _ in range(2)] for shape in ((40, 24), (16, 40)))
    counts = torch.tensor([3, 4])
    forward = 2 * 7 * (24 * 40 + 40 * 16)
    check(lambda: torch.ops.xformers.experts_mlp(x, counts, w1, [], w2, [], "gelu").sum(), forward, 2 * forward)
    assert cost(*padded, w1, [], w2, [])["flops"] == forward


def test_tiled_matmul():
    a, b = [[torch.randn(8, 6), torch.randn(8, 10)]], [[torch.randn(6, 4)], [torch.randn(10, 4)]]
    with FlopCounterMode(display=False) as counter:
        xops.tiled_matmul(a, b)
    assert counter.get_total_flops() == 2 * 8 * 16 * 4


def test_convolutions():
    for layer, x in (
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), torch.randn(2, 6, 11, 13, requires_grad=True)),
        (nn.Conv1d(4, 6, 5, dilation=2), torch.randn(3, 4, 20, requires_grad=True)),
    ):
        places = layer(x).numel() // layer.out_channels
        forward = 2 * places * layer.weight.numel()
        run = lambda layer=layer, x=x: layer(x).sum()  # noqa: E731
        if layer.groups == 1:  # PyTorch's counter takes groups for none in the backward pass
            check(run, forward, 2 * forward)
        trace = traced(run)
        assert trace.compute_num_ops(fw=True, bw=False) == forward
        assert trace.compute_num_ops(fw=False, bw=True) == 2 * forward


def test_int8_fp8_and_sparse_products():
    x, y = torch.empty(32, 64, dtype=torch.int8), torch.empty(64, 16, dtype=torch.int8)
    assert cost(torch.ops.aten._int_mm.default, x, y) == {
        "flops": 2 * 32 * 64 * 16,
        "bytes": 32 * 64 + 64 * 16 + 32 * 16,
        "dtype": "int8",
    }
    a, b = (torch.empty(s, dtype=torch.float8_e4m3fn) for s in ((32, 64), (64, 16)))
    one = torch.ones(())
    got = cost(torch.ops.aten._scaled_mm.default, a, b, one, one)
    assert (got["flops"], got["dtype"]) == (2 * 32 * 64 * 16, "float8")
    # 2:4: a [32, 64] of which half is kept, and its positions
    dense = torch.empty(64, 16, dtype=torch.bfloat16)
    kept, positions = torch.empty(32, 32, dtype=torch.bfloat16), torch.empty(32, 4, dtype=torch.int16)
    got = cost(torch.ops.aten._sparse_semi_structured_mm.default, kept, positions, torch.empty(32, 16).bfloat16())
    assert got["flops"] == 32 * 64 * 16
    compressed = torch.empty(32 * 64 * 9 // 16, dtype=torch.bfloat16)
    assert cost(torch.ops.aten._cslt_sparse_mm.default, compressed, dense)["flops"] == 32 * 64 * 16


def test_memory_bound_operators_count_bytes():
    x = torch.empty(100, 64)
    weight = torch.empty(64)
    size = 4 * 100 * 64
    assert cost(torch.ops.xformers.rms_norm.default, x, weight)["bytes"] == 2 * size + 4 * 64
    assert cost(torch.ops.aten.copy_.default, x, x)["bytes"] == 2 * size
    assert cost(torch.ops.aten.add.Tensor, x, weight)["bytes"] == 2 * size + 4 * 64
    assert cost(torch.ops.xformers.silu_gate.default, x, x)["bytes"] == 3 * size
    assert cost(torch.ops.aten.view.default, x, [6400]) is None


def test_names_of_arguments_are_those_of_the_schemas():
    for rule in _profiler_library.call("cost_rules"):
        namespace, name = rule["name"].split("::")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        assert packet is not None or namespace == "aten", rule["name"]  # some of torch's are newer or older
        if packet is None or namespace == "aten":
            continue
        schema = getattr(packet, packet.overloads()[0])._schema
        named = [n.strip() for n in rule["arguments"].split(",")]
        assert named == [a.name for a in schema.arguments][: len(named)], rule["name"]
        backward = "backward" in name or name.endswith("bwd") or name == "silu_bw_fused"
        assert rule["backward"] == backward, rule["name"]


# Operators that are opaque to PyTorch's counter and compute nothing that counts: queries, conversions, copies, draws of
# random state.
NOTHING = {
    "attention_check_inputs", "attention_check_named", "attention_check_pair", "attention_dispatch",
    "attention_flops", "attention_not_supported_reasons", "attention_priority", "attention_require", "context_shard",
    "context_unshard", "copy_to_ranks", "draw_dropout_state", "draw_philox_state_like", "exchange_rows",
    "expert_places", "gather_columns", "gather_rows", "get_stack_strides", "init_weights_", "lse_format",
    "lse_from_format", "lse_to_format", "stack_or_none", "sum_over_ranks", "sum_rows", "swiglu_check",
    "take_columns", "unbind",
}  # fmt: skip
# Made of products and of attention, which a trace counts inside of them; PyTorch's counter doesn't look there.
FROM_WITHIN = {
    "column_parallel_matmul_bwd", "column_parallel_matmul_fwd", "context_parallel_attention_bwd",
    "context_parallel_attention_fwd", "fourier_mix", "fused_allgather_and_linear", "fused_allgather_and_linear_out",
    "fused_linear_and_reducescatter", "fused_linear_and_reducescatter_out",
    "sequence_parallel_leading_matmul_bwd", "sequence_parallel_leading_matmul_fwd",
    "sequence_parallel_trailing_matmul_bwd", "sequence_parallel_trailing_matmul_fwd",
}  # fmt: skip


def test_every_operator_has_a_cost():
    """An operator that is added gets a formula, is made of others that PyTorch's counter sees, or is named above."""
    known = {rule["name"] for rule in _profiler_library.call("cost_rules")}
    missing = []
    for schema in torch._C._jit_get_all_schemas():
        namespace, name = schema.name.split("::")
        takes_tensors = any("Tensor" in str(a.type) for a in schema.arguments)
        if namespace != "xformers" or not takes_tensors or name.startswith("_") or schema.name in known:
            continue
        full_name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        is_opaque = not torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "CompositeImplicitAutograd")
        if is_opaque and name not in NOTHING | FROM_WITHIN:
            missing.append(name)
    assert not missing


# ---- whole models ----
class LlamaBlock(nn.Module):
    """RMS norm, grouped heads, causal attention, SwiGLU: nothing but the library's operators."""

    def __init__(self, width, heads, heads_kv, hidden):
        super().__init__()
        self.heads, self.heads_kv, self.head_dim = heads, heads_kv, width // heads
        self.norm, self.norm2 = xops.RMSNorm(width), xops.RMSNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * heads_kv) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feedforward = xops.SwiGLU(width, hidden, width, bias=False)

    def forward(self, x):
        b, n, width = x.shape
        groups = self.heads // self.heads_kv
        sizes = [self.heads * self.head_dim] + [self.heads_kv * self.head_dim] * 2
        q, k, v = self.qkv(self.norm(x)).split(sizes, dim=-1)
        q = q.view(b, n, self.heads_kv, groups, self.head_dim)
        k, v = (t.view(b, n, self.heads_kv, 1, self.head_dim).expand_as(q) for t in (k, v))
        attended = xops.memory_efficient_attention(q, k, v, ab.LowerTriangularMask())
        x = x + self.out(attended.reshape(b, n, width))
        return x + self.feedforward(self.norm2(x))


def llama_flops(b, n, width, heads, heads_kv, hidden):
    head_dim = width // heads
    products = 2 * b * n * (width * (heads + 2 * heads_kv) * head_dim + width * width + 3 * width * hidden)
    attention = b * heads * n * n * 2 * head_dim  # causal: half of 4 n^2 d
    return products + attention, 2 * products + 2.5 * attention


SIZES = dict(width=64, heads=4, heads_kv=2, hidden=96)


def llama_run():
    torch.manual_seed(0)
    block, x = LlamaBlock(**SIZES), torch.randn(2, 32, 64, requires_grad=True)
    return block, x


def test_llama_block_eager():
    block, x = llama_run()
    check(lambda: block(x).sum(), *llama_flops(2, 32, **SIZES))


def test_llama_block_compiled():
    block, x = llama_run()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    trace = traced(lambda: compiled(x).sum())
    forward, backward = llama_flops(2, 32, **SIZES)
    assert trace.compute_num_ops(fw=True, bw=False) == forward
    assert trace.compute_num_ops(fw=False, bw=True) == backward


def test_llama_block_checkpointed():
    """What is recomputed counts as hardware's work, not as the model's."""
    block, x = llama_run()
    forward, backward = llama_flops(2, 32, **SIZES)
    run = lambda: checkpoint(block, x, use_reentrant=False, early_stop=False).sum()  # noqa: E731
    assert counted(run) == (forward, backward + forward)
    trace = traced(run)
    assert trace.compute_num_ops(fw=True, bw=False) == forward
    assert trace.compute_num_ops(fw=False, bw=True) == backward + forward
    assert sum(trace.operations_per_dtype_recomputed.values()) == forward


def test_stack_of_linear_layers_checkpointed():
    """HFU / MFU of a checkpointed stack is 4/3, less what stopping early saves: the last layer of each block."""
    from xformers.profiler.device_limits import DeviceLimit

    layers, x = (
        nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(4)]),
        torch.randn(8, 32, requires_grad=True),
    )
    trace = traced(lambda: checkpoint(layers, x, use_reentrant=False).sum())
    limit = DeviceLimit("made up", "", (0, 0), 1e12, {torch.float32: 1.0})
    one = 2 * 8 * 32 * 32
    ratio = trace.compute_hfu(limit) / trace.compute_mfu(limit)
    recomputed = sum(trace.operations_per_dtype_recomputed.values())
    assert recomputed in (3 * one, 4 * one)
    assert ratio == pytest.approx((12 * one + recomputed) / (12 * one))


def test_gpt():
    """A GPT of two layers: 24 b n w^2 (1 + n / (6 w)) for a layer that isn't causal, and the head."""
    b, n, w, vocabulary = 2, 24, 32, 50
    layer = lambda: nn.TransformerEncoderLayer(w, 4, 4 * w, dropout=0.0, batch_first=True, norm_first=True)  # noqa: E731
    model = nn.Sequential(layer(), layer(), nn.Linear(w, vocabulary, bias=False))
    x = torch.randn(b, n, w, requires_grad=True)
    attention = 4 * b * n * n * w
    products = 2 * b * n * 12 * w * w
    forward = 2 * (products + attention) + 2 * b * n * w * vocabulary
    backward = 2 * (2 * products + 2.5 * attention) + 4 * b * n * w * vocabulary
    check(lambda: model(x).sum(), forward, backward)


def test_vit_large():
    """ViT-L/16: 61.6 G multiply-adds an image, forward; nothing is computed, tensors are on the meta device."""
    width, depth, heads, n = 1024, 24, 16, 197
    with torch.device("meta"):
        patches = nn.Conv2d(3, width, 16, stride=16)
        layers = [nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True) for _ in range(depth)]
        head = nn.Linear(width, 1000)
        image = torch.empty(1, 3, 224, 224)
        tokens = torch.empty(1, n, width)
        for layer in layers:
            layer.train()
    with FlopCounterMode(display=False) as counter:
        patches(image)
        for layer in layers:
            tokens = layer(tokens)
        head(tokens[:, 0])
    assert counter.get_total_flops() / 2 == pytest.approx(61.6e9, rel=1e-3)


def test_formulas_wait_for_the_counter():
    """Importing the library doesn't import the counter, which imports Triton."""
    from xformers.ops import _flops

    assert "flop_counter" not in inspect.getsource(_flops).split("import torch\n")[0].split('"""')[-1]
