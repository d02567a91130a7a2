"""What every module can do, whatever it computes: begin without memory, be loaded, copied and pickled."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from xformers.checkpoint import selective_checkpoint_wrapper
from xformers.components import (
    Activation,
    Attention,
    FusedMLP,
    InputProjection,
    InputProjectionConfig,
    MultiHeadDispatch,
    RotaryEmbedding,
    build_activation,
    build_attention,
    build_multi_head_attention,
)
from xformers.components.attention import ATTENTION_REGISTRY
from xformers.components.attention.feature_maps.softmax import SMHyperbolic, SMOrf, SMReg, SoftMaxMap
from xformers.components.attention.visual import LKA
from xformers.components.feedforward import MLP, Conv2DFeedforward, MixtureOfExperts
from xformers.components.feedforward.mixture_of_experts import Experts, RoundRobinGate, TopKGate
from xformers.components.nvfuser import (
    NVFusedBiasActivationDropout,
    NVFusedBiasDropoutRes,
    NVFusedBiasDropoutResLayerNorm,
)
from xformers.components.patch_embedding import ConditionalReshape, PatchToSequence
from xformers.components.positional_embedding import (
    LearnablePositionalEmbedding,
    SinePositionalEmbedding,
    VocabEmbedding,
)
from xformers.components.residual import PostNorm, PreNorm, Residual, Skip
from xformers.components.reversible import Deterministic, ReversibleBlock, ReversibleSequence
from xformers.components.simplicial_embedding import SimplicialEmbedding
from xformers.factory import xFormer, xFormerDecoderBlock, xFormerEncoderBlock
from xformers.factory.block_configs import build_block_config
from xformers.helpers.timm_sparse_attention import TimmSparseAttention
from xformers.ops.sp24 import MLP24, Linear24
from xformers.ops.swiglu_op import SwiGLUOp
from xformers.triton import FusedDropoutBias, FusedLayerNorm, FusedLinear

from xformers.ops import (
    ColumnParallelLinear,
    RMSNorm,
    RowParallelLinear,
    SwiGLU,
    SwiGLUEagerOp,
    SwiGLUFusedOp,
    SwiGLUPackedFusedOp,
    fmha,
)


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory):
    """For the modules that need a process group."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stack(kind):
    """A config of one layer."""
    heads = {"num_heads": 4, "attention": {"name": "scaled_dot_product", "dropout": 0.0, "causal": False}}
    names = ["multi_head_config"] if kind == "encoder" else ["multi_head_config_masked", "multi_head_config_cross"]
    feedforward = {"name": "MLP", "dropout": 0.1, "activation": "relu", "hidden_layer_multiplier": 2}
    return {"block_type": kind, "dim_model": 32, "feedforward_config": feedforward, **dict.fromkeys(names, heads)}


MODULES = {
    "RMSNorm": lambda: RMSNorm(32),
    "SwiGLU": lambda: SwiGLU(32, 24),
    "Linear24": lambda: Linear24(32, 24),
    "MLP24": lambda: MLP24(32, 24),
    "SwiGLU, apart": lambda: SwiGLU(32, 24, _pack_weights=False),
    "ColumnParallelLinear": lambda: ColumnParallelLinear(32, 24, process_group=dist.group.WORLD),
    "RowParallelLinear": lambda: RowParallelLinear(32, 24, process_group=dist.group.WORLD),
    "FusedLayerNorm": lambda: FusedLayerNorm(32),
    "FusedLinear": lambda: FusedLinear(32, 24, bias=True, activation="gelu"),
    "FusedDropoutBias": lambda: FusedDropoutBias(0.1, 32, "relu"),
    "FusedMLP": lambda: FusedMLP(32, 0.1, "gelu", 2),
    "RotaryEmbedding": lambda: RotaryEmbedding(32),
    "SelectiveCheckpointWrapper": lambda: selective_checkpoint_wrapper(RMSNorm(32), policy_fn=[]),
    "activation": lambda: build_activation("star_relu"),
    "NVFusedBiasActivationDropout": lambda: NVFusedBiasActivationDropout(0.1, "gelu", 32),
    "NVFusedBiasDropoutRes": lambda: NVFusedBiasDropoutRes(0.1, 32),
    "NVFusedBiasDropoutResLayerNorm": lambda: NVFusedBiasDropoutResLayerNorm(0.1, 32, 32),
    "MLP": lambda: MLP(32, 0.1, "gelu", 2),
    "Conv2DFeedforward": lambda: Conv2DFeedforward(32, 2),
    "MixtureOfExperts": lambda: MixtureOfExperts(32, 0.1, "gelu", 4, "top_2"),
    "Experts": lambda: Experts(RoundRobinGate(32, 2), [MLP(32, 0.1, "relu", 2) for _ in "ab"], None, 2),
    "RoundRobinGate": lambda: RoundRobinGate(32, 4),
    "TopKGate": lambda: TopKGate(32, 4),
    "SinePositionalEmbedding": lambda: SinePositionalEmbedding(32),
    "VocabEmbedding": lambda: VocabEmbedding(32, 8, 10),
    "LearnablePositionalEmbedding": lambda: LearnablePositionalEmbedding(5, 32, True),
    "SimplicialEmbedding": lambda: SimplicialEmbedding(4),
    "ConditionalReshape": lambda: ConditionalReshape(),
    "PatchToSequence": lambda: PatchToSequence(),
    "Skip": lambda: Skip(32),
    "Residual": lambda: Residual(MLP(32, 0.1, "gelu", 2)),
    "PreNorm": lambda: PreNorm(32, MLP(32, 0.1, "gelu", 2), "layernorm"),
    "PostNorm": lambda: PostNorm(32, MLP(32, 0.1, "gelu", 2), "layernorm"),
    "Deterministic": lambda: Deterministic(MLP(32, 0.1, "gelu", 2)),
    "ReversibleBlock": lambda: ReversibleBlock(MLP(16, 0.1, "gelu", 2), MLP(16, 0.1, "gelu", 2)),
    "xFormer": lambda: xFormer(stack("encoder")),
    "xFormerEncoderBlock": lambda: xFormerEncoderBlock(build_block_config(stack("encoder"), "")),
    "xFormerDecoderBlock": lambda: xFormerDecoderBlock(build_block_config(stack("decoder"), "")),
    "ReversibleSequence": lambda: ReversibleSequence([(MLP(16, 0.1, "gelu", 2), MLP(16, 0.1, "gelu", 2))]),
}
# What modules take that don't take [3, 5, 32] alone.
INPUTS = {
    "NVFusedBiasDropoutRes": lambda x: [x, x],
    "NVFusedBiasDropoutResLayerNorm": lambda x: [x, x],
    "RotaryEmbedding": lambda x: [x, x],
    "Conv2DFeedforward": lambda x: [x[:, :4]],
    "ConditionalReshape": lambda x: [x[:, :4]],
    "PatchToSequence": lambda x: [x.unsqueeze(0)],
    "VocabEmbedding": lambda x: [x[0].abs().long()[:, :8]],
    "Experts": lambda x: [x[0]],
    "RoundRobinGate": lambda x: [x[0]],
    "TopKGate": lambda x: [x[0]],
    "xFormerDecoderBlock": lambda x: [x, x],
    "Residual": lambda x: [[x]],
    "PreNorm": lambda x: [[x]],
    "PostNorm": lambda x: [[x]],
}
ATTENTION_OPTIONS = {"dropout": 0.0, "num_heads": 1, "dim_model": 32, "dim_head": 32, "seq_len": 8, "num_landmarks": 2}


OPTIONS_OF_ONE = {
    "global": {"attention_query_mask": torch.arange(5)[:, None] < 2},
    "blocksparse": {"layout": torch.ones(1, 1, 1, dtype=torch.long), "block_size": 16},
}


def attention(name):
    return lambda: build_attention({"name": name, **ATTENTION_OPTIONS, **OPTIONS_OF_ONE.get(name, {})})


MODULES.update({f"attention {name}": attention(name) for name in ATTENTION_REGISTRY})
MODULES.update({cls.__name__: lambda cls=cls: cls(8) for cls in (SMOrf, SMReg, SMHyperbolic, SoftMaxMap)})
MODULES["TimmSparseAttention"] = lambda: TimmSparseAttention(32, 4)
MODULES["LKA"] = lambda: LKA(3)
MODULES["InputProjection"] = lambda: InputProjection(*[InputProjectionConfig(32, 32, True)] * 3)
MODULES["MultiHeadDispatch"] = lambda: build_multi_head_attention(
    {"dim_model": 32, "num_heads": 4, "attention": {"name": "linformer", "dropout": 0.0, "seq_len": 8}}
)
each_module = pytest.mark.parametrize("name", MODULES)


def test_every_module_has_a_row():
    def classes(base):
        return {cls for derived in base.__subclasses__() for cls in {derived, *classes(derived)}}

    ours = {cls for cls in classes(torch.nn.Module) if cls.__module__.startswith("xformers.")}
    ours -= {cls for cls in ours if cls.__module__.startswith("xformers.benchmarks")}
    ours -= {cls for cls in ours if inspect.isabstract(cls) or cls.forward is torch.nn.Module.forward}
    assert ours == {type(build()) for build in MODULES.values()}


def attention_inputs(module, x):
    """x [batch, seqlen, dim] as query, key and value, with a dimension of heads where the module wants one."""
    return [x[:, None] if getattr(module, "requires_head_dimension", False) else x] * 3


def call(module):
    torch.manual_seed(1)
    if isinstance(module, LKA):
        return module(torch.randn(2, 3, 4, 4))
    if isinstance(module, Attention | InputProjection | MultiHeadDispatch):
        out = module.eval()(*attention_inputs(module, torch.randn(3, 4, 32)))  # a grid
        return torch.stack(out) if isinstance(out, tuple) else out
    x = torch.randn(3, 5, 32)
    out = module.eval()(*INPUTS.get(type(module).__name__, lambda x: [x])(x))
    return torch.cat([t.double().flatten() for t in out if t is not None]) if isinstance(out, tuple) else out


def assert_same(module, other):
    assert type(module) is type(other)
    state = other.state_dict()
    assert module.state_dict().keys() == state.keys()
    assert all(not t.is_meta and torch.equal(t, state[key]) for key, t in module.state_dict().items())
    assert torch.equal(call(module), call(other))


def without_memory(name):
    with torch.device("meta"):
        module = MODULES[name]()
    assert all(t.is_meta for t in module.state_dict().values())
    return module


@each_module
@pytest.mark.parametrize("way", ["assign", "to_empty", "copy", "prefix"])
def test_loading_where_there_was_no_memory(name, way):
    source = MODULES[name]()
    for t in source.parameters():
        torch.nn.init.uniform_(t)
    module = without_memory(name)
    if way == "assign":
        module.load_state_dict(source.state_dict(), assign=True)
    elif way == "to_empty":
        module.to_empty(device="cpu")
        for t in module.state_dict().values():
            t.fill_(torch.nan)
        module.load_state_dict(source.state_dict())
    elif way == "copy":
        module = MODULES[name]()
        module.load_state_dict(source.state_dict())
    else:
        outer = torch.nn.ModuleDict({"a": module, "b": MODULES[name]()})
        outer.load_state_dict(torch.nn.ModuleDict({"a": source, "b": source}).state_dict(), assign=True)
        assert_same(outer["b"], source)
    assert_same(module, source)


@each_module
def test_a_state_without_memory(name):
    """As FSDP and deferred loading pass it."""
    module = without_memory(name)
    module.load_state_dict(without_memory(name).state_dict(), assign=True)
    assert all(t.is_meta for t in module.state_dict().values())


@pytest.mark.parametrize("way", ["assign", "to_empty", "copy"])
def test_rotary_embeddings_of_another_base_are_refused(way):
    state = {"inv_freq": 500.0 ** -(torch.arange(0, 32, 2) / 32)}
    module = RotaryEmbedding(32) if way == "copy" else without_memory("RotaryEmbedding")
    if way == "to_empty":
        module.to_empty(device="cpu")
    with pytest.raises(ValueError, match="belongs to another base"):
        module.load_state_dict(state, assign=way == "assign")


def test_rotary_embeddings_of_another_width_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch for inv_freq"):
        RotaryEmbedding(32).load_state_dict(RotaryEmbedding(16).state_dict())


def test_rotary_embedding_after_to_empty():
    module = without_memory("RotaryEmbedding").to_empty(device="cpu")
    module.reset_parameters()
    assert torch.equal(module.inv_freq, RotaryEmbedding(32).inv_freq)


def pickled(thing, protocol):
    return pickle.loads(pickle.dumps(thing, protocol))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each_module
def test_copies(name):
    module = MODULES[name]()
    for copied in (pickled(module, 2), pickled(module, pickle.HIGHEST_PROTOCOL), saved(module), copy.deepcopy(module)):
        assert_same(copied, module)


MINE = SwiGLUOp(torch.nn.functional.linear, False, "mine", callable)


class Groups(fmha.triton_splitk.FwOp):
    NUM_GROUPS = 2


class OfSplits(fmha.triton_splitk.FwOp_S4):
    pass


NAMED = {
    "packed": SwiGLUPackedFusedOp,
    "fused": SwiGLUFusedOp,
    "eager": SwiGLUEagerOp,
    "forward": fmha.flash.FwOp,
    "backward": fmha.cutlass.BwOp,
    "not built": fmha.ck_splitk.FwOp_S8,
    "split": fmha.triton_splitk.FwOp_S32,
    "splits": fmha.triton_splitk.FwOp.get_operator(3),
    "splits and blocks": fmha.triton_splitk.FwOp.get_operator(5, block_m=32, num_stages=2, split_k_early_exit=True),
    "user's": Groups,
    "user's splits": Groups.get_operator(7),
    "derived from splits": OfSplits,
    "splits of splits": fmha.triton_splitk.FwOp.get_operator(3).get_operator(4),
    "activation": Activation.SmeLU,
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_module_can_hold_is_pickled_by_its_name(name):
    thing = NAMED[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickled(thing, protocol) is thing
    assert saved([thing])[0] is thing and copy.copy(thing) is thing and copy.deepcopy(thing) is thing


def test_a_module_with_its_operator():
    layer = SwiGLU(8, 12)
    layer.op = SwiGLUPackedFusedOp
    layer.attention = fmha.MemoryEfficientAttentionFlashAttentionOp
    for copied in (pickled(layer, 4), saved(layer), copy.deepcopy(layer)):
        assert copied.op is SwiGLUPackedFusedOp
        assert copied.attention == fmha.MemoryEfficientAttentionFlashAttentionOp


def test_an_operator_of_the_user_s():
    mine = pickled(MINE, 4)
    assert (mine.NAME, mine.PACKED_WEIGHTS, mine.op) == ("mine", False, torch.nn.functional.linear)
