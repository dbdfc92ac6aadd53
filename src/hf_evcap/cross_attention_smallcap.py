"""SmallCap's decoders: transformers' language models with narrow cross-attention to the photo (section 3.1)."""

from __future__ import annotations

import inspect
from functools import cache as cached
from functools import wraps
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, EncoderDecoderCache
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.pytorch_utils import Conv1D

from .cache_name import CACHE, pop_cache, takes_cache
from .configuration_smallcap import SmallCapConfig
from .offloading import to_part


class SmallCapGPT2CrossAttention(GPT2Attention):
    """GPT-2's cross-attention with heads that are narrower by `cross_attention_reduce_factor`."""

    def __init__(self, config: SmallCapConfig, layer_idx: int) -> None:
        text = config.text_config
        super().__init__(text, is_cross_attention=True, layer_idx=layer_idx)
        self.head_dim = config.cross_attention_head_dim
        self.split_size = self.head_dim * self.num_heads
        if text.scale_attn_weights:
            self.scaling = self.head_dim**-0.5
            if text.scale_attn_by_inverse_layer_idx:
                self.scaling /= layer_idx + 1
        self.c_attn = Conv1D(2 * self.split_size, config.encoder_hidden_size)
        self.q_attn = Conv1D(self.split_size, self.embed_dim)
        self.c_proj = Conv1D(self.embed_dim, self.split_size)


class SmallCapCrossAttention(nn.Module):
    """
    Narrow cross-attention for decoders that have none of their own.

    Args:
        config ([`SmallCapConfig`]): Of the model.
        layer_idx (`int`): Number of the layer, for the cache.
        bias (`bool`, *optional*, defaults to `False`): Whether the projections have one.
        dropout (`float`, *optional*, defaults to 0.0): Of attention weights.
        scaling (`float`, *optional*): Of the scores; the inverse root of the head's width when absent.
    """

    def __init__(
        self,
        config: SmallCapConfig,
        layer_idx: int,
        bias: bool = False,
        dropout: float = 0.0,
        scaling: float | None = None,
    ) -> None:
        super().__init__()
        text = config.text_config
        self.layer_idx = layer_idx
        self.num_heads = text.num_attention_heads
        self.dropout = dropout
        self.scaling = scaling
        width = self.num_heads * config.cross_attention_head_dim
        self.k_proj = nn.Linear(config.encoder_hidden_size, width, bias=bias)
        self.v_proj = nn.Linear(config.encoder_hidden_size, width, bias=bias)
        self.q_proj = nn.Linear(text.hidden_size, width, bias=bias)
        self.out_proj = nn.Linear(width, text.hidden_size, bias=bias)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, cache: Cache | None = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Of the decoder.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, encoder_hidden_size)`): Photos.
            cache (`EncoderDecoderCache`, *optional*): Keeps the photos' keys and values.
        """
        kept: Any = cache if isinstance(cache, EncoderDecoderCache) else None
        if kept is not None and kept.is_updated.get(self.layer_idx):
            layer = kept.cross_attention_cache.layers[self.layer_idx]
            keys, values = layer.keys, layer.values
        else:
            keys = self._heads(self.k_proj(encoder_hidden_states))
            values = self._heads(self.v_proj(encoder_hidden_states))
            if kept is not None:
                keys, values = kept.cross_attention_cache.update(keys, values, self.layer_idx)
                kept.is_updated[self.layer_idx] = True
        attended = nn.functional.scaled_dot_product_attention(
            self._heads(self.q_proj(hidden_states)),
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scaling,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class SmallCapOPTDecoderLayer(OPTDecoderLayer):
    """OPT's layer with cross-attention between self-attention and feed-forward."""

    def __init__(self, config: SmallCapConfig, layer_idx: int) -> None:
        super().__init__(config.text_config, layer_idx=layer_idx)
        text = config.text_config
        # Scores are scaled as for full heads, as released.
        self.crossattention = SmallCapCrossAttention(
            config,
            layer_idx,
            bias=text.enable_bias,
            dropout=text.attention_dropout,
            scaling=(text.hidden_size // text.num_attention_heads) ** -0.5,
        )
        self.ln_cross_attn = nn.LayerNorm(self.embed_dim, elementwise_affine=text.layer_norm_elementwise_affine)

    def __call__(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Passes the photos by position: reentrant checkpointing loses the gradients of keyword arguments."""
        return super().__call__(hidden_states, encoder_hidden_states, **kwargs)

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Args as those of OPT's layer, and `encoder_hidden_states`, the photos."""
        own_cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        norm = self.self_attn_layer_norm
        # Before the norm where it comes first (125m, 1.3b, ...), after it in OPT-350m.
        attended, _ = self.self_attn(
            hidden_states=norm(hidden_states) if self.do_layer_norm_before else hidden_states,
            attention_mask=attention_mask,
            **{CACHE: own_cache},
            **kwargs,
        )
        hidden_states = hidden_states + self._dropped(attended)
        if encoder_hidden_states is not None:
            seen = self.crossattention(self.ln_cross_attn(hidden_states), encoder_hidden_states, cache)
            hidden_states = hidden_states + self._dropped(seen)
        if not self.do_layer_norm_before:
            hidden_states = norm(hidden_states)
        inner = self.final_layer_norm(hidden_states) if self.do_layer_norm_before else hidden_states
        hidden_states = hidden_states + self._dropped(self.fc2(self.activation_fn(self.fc1(inner))))
        return hidden_states if self.do_layer_norm_before else self.final_layer_norm(hidden_states)

    def _dropped(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(states, p=self.dropout, training=self.training)


def attend_to_photos(layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """
    Adds what a decoder layer's cross-attention sees in the photos to the layer's input: a pre-hook of the layer, which
    itself never hears of photos. It takes `encoder_hidden_states` out of the arguments that the decoder hands down.
    """
    hidden_states, *others = args
    if others:  # XGLM hands everything down by position
        names = [*inspect.signature(layer.forward).parameters][1:]
        kwargs = {**kwargs, **dict(zip(names, others, strict=False))}
    photos, cache = kwargs.pop("encoder_hidden_states", None), kwargs.get(CACHE)
    if isinstance(cache, EncoderDecoderCache):
        kwargs[CACHE] = cache.self_attention_cache
    if photos is None:
        return (hidden_states,), kwargs
    attention = layer.crossattention
    hidden_states, photos = to_part(hidden_states, attention), to_part(photos, attention)
    seen = attention(layer.ln_cross_attn(hidden_states), photos, cache)
    return (hidden_states + seen,), kwargs


@cached
def decoder_class(plain: Any) -> Any:
    """
    A language model's class with `encoder_hidden_states` in its `forward`, by which `generate` knows the argument.

    Args:
        plain (`type`): Such as `LlamaForCausalLM`.
    """

    @wraps(plain.forward)
    def forward(self: Any, *args: Any, encoder_hidden_states: torch.Tensor | None = None, **kwargs: Any) -> Any:
        cache, use_cache = pop_cache(kwargs), kwargs.get("use_cache")
        if encoder_hidden_states is not None:
            kwargs["encoder_hidden_states"] = encoder_hidden_states
            if (self.config.use_cache if use_cache is None else use_cache) and not isinstance(
                cache, EncoderDecoderCache
            ):
                cache = empty_cache(self.config, cache)
        return plain.forward(self, *args, **{CACHE: cache}, **kwargs)

    signature = inspect.signature(plain.forward)
    photos = inspect.Parameter("encoder_hidden_states", inspect.Parameter.KEYWORD_ONLY, default=None)
    named = [one for one in signature.parameters.values() if one.name != photos.name]
    signed: Any = forward
    signed.__signature__ = signature.replace(parameters=[*named[:-1], photos, named[-1]])
    return type(f"{_PREFIX}{plain.__name__}", (plain,), {"forward": forward, "__module__": __name__})


_PREFIX = "SmallCap"


def __getattr__(name: str) -> Any:
    """Classes of [`decoder_class`] by name: pickles look for them here."""
    plain = getattr(transformers, name.removeprefix(_PREFIX), None) if name.startswith(_PREFIX) else None
    if not isinstance(plain, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return decoder_class(plain)


def empty_cache(text_config: Any, self_attention: Cache | None = None) -> EncoderDecoderCache:
    """A cache for the decoder's own keys and values (or the given one) and for those of the photos."""
    own = DynamicCache(config=text_config) if self_attention is None else self_attention
    return EncoderDecoderCache(own, DynamicCache())  # of a photo all is kept, whatever window the decoder has


def build_decoder(config: SmallCapConfig) -> Any:
    """
    Makes the decoder that `text_config` names, with cross-attention in every layer: in GPT-2 and OPT between
    self-attention and feed-forward, as released; in all others in front of the layer.

    Raises:
        ValueError: The decoder's layers cannot be found.
    """
    text = config.text_config
    decoder = AutoModelForCausalLM.from_config(text)
    if text.model_type == "gpt2":
        for number, block in enumerate(decoder.transformer.h):
            block.crossattention = SmallCapGPT2CrossAttention(config, number)
        decoder.init_weights()  # of the new modules, as GPT-2 does it; the others are initialised already
        return decoder
    layers = getattr(decoder.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != text.num_hidden_layers:
        raise ValueError(
            f"The layers of a {text.model_type!r} decoder are not where other decoders have them (`model.layers`): "
            "cross-attention cannot be put there."
        )
    for number, layer in enumerate(layers):
        if text.model_type == "opt":
            layers[number] = SmallCapOPTDecoderLayer(config, number)
            continue
        layer.crossattention = SmallCapCrossAttention(config, number)
        layer.ln_cross_attn = nn.LayerNorm(text.hidden_size)
        layer.register_forward_pre_hook(attend_to_photos, with_kwargs=True)
    plain: Any = type(decoder)
    decoder.__class__ = decoder_class(plain)
    decoder.init_weights()
    return decoder


__all__ = ["build_decoder", "empty_cache"]
