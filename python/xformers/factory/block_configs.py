"""What a stack of equal layers is made of, as plain data. Configs stay as the user wrote them: whatever is filled in is
filled into copies."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, ClassVar

from xformers.components import NormalizationType, ResidualNormStyle


class BlockType(str, Enum):
    """Kinds of layers."""

    Encoder = "encoder"
    Decoder = "decoder"


@dataclass(frozen=True)
class LayerPosition:
    """Whether a layer is the first of its encoder or decoder stack, and the last of the model."""

    first: bool = True
    last: bool = True

    def is_first(self) -> bool:
        return self.first

    def is_last(self) -> bool:
        return self.last


def options_as_dict(config: Any, path: str) -> dict[str, Any]:
    """A copy of a part of a config: a mapping, or a config dataclass, whose None means "not given"."""
    if isinstance(config, Mapping):
        return dict(config)
    if is_dataclass(config) and not isinstance(config, type):
        found = {field.name: getattr(config, field.name, None) for field in fields(config)}
        return {name: value for name, value in found.items() if value is not None}
    raise TypeError(f"{path} is {config!r}, expected a dict or a config dataclass.  Fix: pass its options by name.")


def member(kind: type[Enum], value: Any, path: str) -> Any:
    """The member of an enum that `value` names, also written as `Kind.Member`."""
    text = value.value if isinstance(value, Enum) else value
    names = {member.value: member for member in kind} | {str(member): member for member in kind}
    names |= {f"{kind.__name__}.{member.name}": member for member in kind}
    if text in names:
        return names[text]
    known = ", ".join(repr(member.value) for member in kind)
    raise ValueError(f"{path} is {value!r}, expected one of {known}.  Fix: choose one of them.")


def refuse_unknown(given: Mapping[str, Any], known: list[str], path: str) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean {nearest[0]!r}?" if nearest else "leave it out."
            raise TypeError(
                f"{path}{'.' if path else ''}{key} is given, expected one of {', '.join(known)}.  Fix: {fix}"
            )


# Names of earlier versions.
_ALIASES = {"layer_norm_style": "residual_norm_style"}


@dataclass(init=False)
class xFormerBlockConfig:
    """What encoder and decoder layers have in common."""

    dim_model: int
    feedforward_config: Any  # of build_feedforward
    position_encoding_config: Any | None  # of build_positional_embedding; the first layer has it
    residual_norm_style: ResidualNormStyle
    normalization: NormalizationType
    patch_embedding_config: Any | None  # of build_patch_embedding; the first of `num_layers` has it
    use_triton: bool  # FusedLayerNorm, else nn.LayerNorm
    num_layers: int
    layer_position: LayerPosition
    simplicial_embeddings: Any | None  # of SimplicialEmbedding; the last layer has it
    reversible: bool  # encoders alone

    block_type: ClassVar[BlockType]
    attentions: ClassVar[tuple[str, ...]]  # names of the fields that configure attentions

    def __init__(self, path: str = "", **given: Any):
        given = {_ALIASES.get(name, name): value for name, value in given.items()}
        known = [field.name for field in fields(self)]
        given.pop("block_type", None)
        refuse_unknown(given, [name for name in known if name != "layer_position"] + ["layer_position"], path)
        for required in ("dim_model", "feedforward_config", *self.attentions):
            if given.get(required) is None:
                raise TypeError(
                    f"{path}{'.' if path else ''}{required} is missing, expected for an {self.block_type.value} "
                    "block.  Fix: add it."
                )
        self.dim_model = given["dim_model"]
        self.use_triton = given.get("use_triton", True)
        self.num_layers = given.get("num_layers", 1)
        self.reversible = bool(given.get("reversible", False))
        self.layer_position = given.get("layer_position") or LayerPosition()
        at = f"{path}." if path else ""
        style, norm = given.get("residual_norm_style", "post"), given.get("normalization", "layernorm")
        self.residual_norm_style = member(ResidualNormStyle, style, f"{at}residual_norm_style")
        self.normalization = member(NormalizationType, norm, f"{at}normalization")
        for name in ("feedforward_config", "position_encoding_config", *self.attentions):
            setattr(self, name, self._completed(given.get(name), {"dim_model": self.dim_model}, f"{at}{name}"))
        patch = {"out_channels": self.dim_model}
        self.patch_embedding_config = self._completed(
            given.get("patch_embedding_config"), patch, f"{at}patch_embedding_config"
        )
        self.simplicial_embeddings = self._completed(
            given.get("simplicial_embeddings"), {}, f"{at}simplicial_embeddings"
        )

    @staticmethod
    def _completed(config: Any, filled: dict[str, Any], path: str) -> dict[str, Any] | None:
        return None if config is None else {**filled, **options_as_dict(config, path)}


@dataclass(init=False)
class xFormerEncoderConfig(xFormerBlockConfig):
    """`num_layers` equal encoder layers. Required: dim_model, feedforward_config, multi_head_config.

    TypeError for an option that is missing or that there is not, with the nearest name."""

    multi_head_config: Any  # of build_multi_head_attention

    block_type: ClassVar[BlockType] = BlockType.Encoder
    attentions: ClassVar[tuple[str, ...]] = ("multi_head_config",)


@dataclass(init=False)
class xFormerDecoderConfig(xFormerBlockConfig):
    """`num_layers` equal decoder layers. Required: dim_model, feedforward_config, multi_head_config_masked,
    multi_head_config_cross. Errors as of xFormerEncoderConfig."""

    multi_head_config_masked: Any  # of build_multi_head_attention: among the targets
    multi_head_config_cross: Any  # from the targets to the memory

    block_type: ClassVar[BlockType] = BlockType.Decoder
    attentions: ClassVar[tuple[str, ...]] = ("multi_head_config_masked", "multi_head_config_cross")


def build_block_config(config: Any, path: str) -> xFormerBlockConfig:
    """A config as it is; a mapping by its `block_type` (KeyError without one)."""
    if isinstance(config, xFormerBlockConfig):
        return config
    options = options_as_dict(config, path)
    if "block_type" not in options:
        raise KeyError(f"{path}.block_type is missing, expected 'encoder' or 'decoder'.  Fix: add it.")
    kind = member(BlockType, options["block_type"], f"{path}.block_type")
    cls = xFormerEncoderConfig if kind == BlockType.Encoder else xFormerDecoderConfig
    return cls(path=path, **options)


__all__ = ["BlockType", "LayerPosition", "xFormerBlockConfig", "xFormerDecoderConfig", "xFormerEncoderConfig"]
