"""Models from stacks of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._deprecation import warn_deprecated
from xformers.components import ResidualNormStyle
from xformers.components.residual import get_deepnorm_coefficients
from xformers.components.reversible import ReversibleSequence

from .block_configs import (
    BlockType,
    LayerPosition,
    build_block_config,
    refuse_unknown,
    xFormerBlockConfig,
    xFormerDecoderConfig,
    xFormerEncoderConfig,
)
from .block_factory import (
    embeddings_of,
    masked,
    patches_of,
    simplices_of,
    xFormerDecoderBlock,
    xFormerEncoderBlock,
)
from .weight_init import DeferredInit, init_weights, xFormerWeightInit


def _stacks(stack_configs: Any) -> list[tuple[str, Any]]:
    """(path, config) of each stack of a list, a dict or one config."""
    if isinstance(stack_configs, Mapping) and "block_type" not in stack_configs:
        return [(f"stack_configs[{key!r}]", config) for key, config in stack_configs.items()]
    if isinstance(stack_configs, (xFormerBlockConfig, Mapping)):
        return [("stack_configs[0]", stack_configs)]
    return [(f"stack_configs[{i}]", config) for i, config in enumerate(stack_configs)]


@dataclass(init=False)
class xFormerConfig:
    """A model: stacks of encoder and decoder layers, each a dict with `block_type` or a config, in a list or a dict.

    tie_embedding_weights: encoder and decoder share their position encoding. weight_init: "timm", "vit", "moco",
    "small". TypeError for an option that there is not or that is missing, KeyError for a missing block_type, each with
    its path (`stack_configs[1].multi_head_config`). The caller's dicts stay as they are.
    """

    stack_configs: list[xFormerBlockConfig] | dict[str, xFormerBlockConfig]
    tie_embedding_weights: bool = False
    weight_init: xFormerWeightInit = xFormerWeightInit.ViT

    def __init__(
        self,
        stack_configs: Any,
        tie_embedding_weights: bool = False,
        weight_init: xFormerWeightInit | str = xFormerWeightInit.ViT,
        **unknown: Any,
    ):
        refuse_unknown(unknown, [field.name for field in dataclasses.fields(self)], "")
        built = [build_block_config(config, path) for path, config in _stacks(stack_configs)]
        is_dict = isinstance(stack_configs, Mapping) and "block_type" not in stack_configs
        self.stack_configs = dict(zip(stack_configs, built, strict=True)) if is_dict else built
        self.tie_embedding_weights = tie_embedding_weights
        self.weight_init = _weight_init(weight_init)


def _weight_init(value: xFormerWeightInit | str) -> xFormerWeightInit:
    try:
        return xFormerWeightInit(value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in xFormerWeightInit)
        raise ValueError(f"weight_init is {value!r}, expected one of {names}.  Fix: choose one of them.") from None


class xFormer(nn.Module):
    """A model of encoders, decoders, or both.

    `forward(src, tgt=None, encoder_input_mask=None, decoder_input_mask=None)`: the encoders' result, the memory; with
    decoders what they make of (tgt or src, memory). ValueError for decoders without encoders.

    Built by `from_config`, or from one config, a list or a dict of them. AssertionError for stacks of which only some
    are reversible or have DeepNorm, and for reversible ones with DeepNorm or tied embeddings.
    """

    def __init__(
        self,
        stack_configs: Any,
        tie_embedding_weights: bool = False,
        weight_init: xFormerWeightInit | str = xFormerWeightInit.ViT,
    ):
        super().__init__()
        warn_deprecated(type(self).__name__)
        paths, configs = [], []
        for path, config in _stacks(stack_configs):
            paths.append(path)
            configs.append(build_block_config(config, path))
        self._check(configs, tie_embedding_weights)
        counts = [sum(c.num_layers for c in configs if c.block_type == kind) for kind in BlockType]
        self.deepnorm = any(c.residual_norm_style == ResidualNormStyle.DeepNorm for c in configs)
        coefficients = get_deepnorm_coefficients(*counts) if self.deepnorm else (None, None)
        alphas = [None if c is None else c.alpha for c in coefficients]
        self.gains = [1.0 if c is None else c.beta for c in coefficients]
        self.reversible_encoder = any(c.reversible for c in configs)

        deferred = DeferredInit()
        with deferred:
            encoders: list[nn.Module] = []
            decoders: list[nn.Module] = []
            pairs: list[tuple[nn.Module, nn.Module]] = []
            self.rev_enc_patch_emb: nn.Module | None = None
            self.rev_enc_pose_encoding: nn.Module | None = None
            self.rev_enc_embedding_projector: nn.Module | None = None
            self.rev_enc_simplicial_embedding: nn.Module | None = None
            started = dict.fromkeys(BlockType, False)
            for index, (path, config) in enumerate(zip(paths, configs, strict=True)):
                for layer in range(config.num_layers):
                    position = LayerPosition(
                        first=not started[config.block_type],
                        last=index + 1 == len(configs) and layer + 1 == config.num_layers,
                    )
                    started[config.block_type] = True
                    one = _layer_of(config, layer, position)
                    if isinstance(one, xFormerDecoderConfig):
                        decoders.append(xFormerDecoderBlock(one, alpha=alphas[1], path=path))
                    elif config.reversible:
                        assert isinstance(one, xFormerEncoderConfig)
                        self._add_reversible(one, path, pairs)
                    else:
                        assert isinstance(one, xFormerEncoderConfig)
                        encoders.append(xFormerEncoderBlock(one, alpha=alphas[0], path=path))
            self.encoders: nn.Module = ReversibleSequence(pairs) if pairs else nn.ModuleList(encoders)
            self.decoders = nn.ModuleList(decoders)
        if tie_embedding_weights and encoders and decoders:
            encoders[0].pose_encoding = decoders[0].pose_encoding
        self.init_weights(weight_init, deferred)
        deferred.finish()

    @classmethod
    def from_config(cls, config: xFormerConfig) -> xFormer:
        """A model of the config."""
        return cls(config.stack_configs, config.tie_embedding_weights, config.weight_init)

    @staticmethod
    def _check(configs: list[xFormerBlockConfig], tied: bool) -> None:
        reversible = [c.reversible for c in configs if c.block_type == BlockType.Encoder]
        deepnorm = [c.residual_norm_style == ResidualNormStyle.DeepNorm for c in configs]
        for what, flags in (("reversible", reversible), ("residual_norm_style 'deepnorm'", deepnorm)):
            assert all(flags) or not any(flags), (
                f"xFormer: {what} is that of {sum(flags)} of {len(flags)} stacks, expected all or none.  Fix: change "
                "the others."
            )
        assert not (any(reversible) and any(deepnorm)), (
            "xFormer: residual_norm_style is 'deepnorm' in reversible stacks, expected 'pre' or 'post'.  Fix: change "
            "one of both."
        )
        assert not (any(reversible) and tied), (
            "xFormer: tie_embedding_weights is True with reversible encoders, expected False.  Fix: change one of both."
        )
        assert not any(c.reversible for c in configs if c.block_type == BlockType.Decoder), (
            "xFormer: a decoder is reversible, expected encoders alone.  Fix: leave the option out."
        )

    def _add_reversible(
        self, config: xFormerEncoderConfig, path: str, pairs: list[tuple[nn.Module, nn.Module]]
    ) -> None:
        if config.patch_embedding_config is not None:
            assert not pairs, (
                f"{path}.patch_embedding_config is given, expected in the first of the reversible stacks alone.  Fix: "
                "leave it out."
            )
            self.rev_enc_patch_emb = patches_of(config, path)
        if config.layer_position.is_first():
            self.rev_enc_pose_encoding, self.rev_enc_embedding_projector = embeddings_of(config, path)
        pairs.append(xFormerEncoderBlock.get_reversible_layer(config, path))
        self.rev_enc_simplicial_embedding = simplices_of(config)

    def init_weights(
        self,
        weight_init: xFormerWeightInit | str = xFormerWeightInit.ViT,
        deferred: DeferredInit | None = None,
        **_: Any,
    ) -> None:
        """Fills the parameters by a scheme; those of DeepNorm get its gain."""
        scheme = _weight_init(weight_init)
        for name, child in self.named_children():
            gain = self.gains[1] if name == "decoders" else self.gains[0]
            init_weights(child, name, scheme, gain, self.deepnorm, deferred)

    def forward(
        self,
        src: torch.Tensor,
        tgt: torch.Tensor | None = None,
        encoder_input_mask: torch.Tensor | None = None,
        decoder_input_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        memory: torch.Tensor | None = None
        if self.reversible_encoder:
            memory = self._reversed(src, encoder_input_mask)
        elif isinstance(self.encoders, nn.ModuleList) and len(self.encoders):
            memory = src
            for encoder in self.encoders:
                memory = encoder(memory, input_mask=encoder_input_mask)
        if not len(self.decoders):
            return memory
        if memory is None:
            raise ValueError(
                "xFormer: there are decoders without an encoder, expected one whose result they attend to.  Fix: add a "
                "stack with block_type 'encoder'."
            )
        target = src if tgt is None else tgt
        for decoder in self.decoders:
            target = decoder(target=target, memory=memory, input_mask=decoder_input_mask)
        return target

    def _reversed(self, x: torch.Tensor, input_mask: torch.Tensor | None) -> torch.Tensor:
        """The reversible encoders on two copies of x; the mean of both. Numbers of a mask are added to its token; False
        and -inf leave zeros of it."""
        for layer in (self.rev_enc_patch_emb, self.rev_enc_pose_encoding, self.rev_enc_embedding_projector):
            x = x if layer is None else layer(x)
        x = torch.cat([x, x], dim=-1)
        if input_mask is not None:
            if input_mask.dtype == torch.bool:
                x = masked(x, input_mask)
            else:
                hidden = input_mask == float("-inf")
                x = masked(x, ~hidden) + input_mask.masked_fill(hidden, 0).unsqueeze(-1).to(x.dtype)
        x = torch.stack(self.encoders(x).chunk(2, dim=-1)).mean(dim=0)
        return x if self.rev_enc_simplicial_embedding is None else self.rev_enc_simplicial_embedding(x)


def _layer_of(config: xFormerBlockConfig, layer: int, position: LayerPosition) -> xFormerBlockConfig:
    """The config of one of its layers: patches are made by the first one."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    given["layer_position"] = position
    if layer > 0:
        given["patch_embedding_config"] = None
    return type(config)(**given)


def components() -> dict[str, dict[str, Any]]:
    """What configs can name: for each kind its names, and for each name its options with their defaults."""
    from xformers.components.attention import ATTENTION_REGISTRY
    from xformers.components.feedforward import FEEDFORWARD_REGISTRY
    from xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY

    def options(config: Any) -> dict[str, Any]:
        return {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(config)}

    registries: dict[str, Any] = {
        "attention": ATTENTION_REGISTRY,
        "feedforward": FEEDFORWARD_REGISTRY,
        "positional_embedding": POSITION_EMBEDDING_REGISTRY,
    }
    return {
        kind: {name: options(item.config) for name, item in sorted(registry.items())}
        for kind, registry in registries.items()
    }


__all__: Sequence[str] = ["components", "xFormer", "xFormerConfig"]
