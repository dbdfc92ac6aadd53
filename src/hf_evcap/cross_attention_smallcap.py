"""SmallCap's decoders: transformers' GPT-2 and OPT with narrow cross-attention to the photo (section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, EncoderDecoderCache, OPTForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.pytorch_utils import Conv1D

from .cache_name import CACHE, takes_cache
from .configuration_smallcap import SmallCapConfig


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


class SmallCapOPTCrossAttention(nn.Module):
    """The same for OPT, which has no cross-attention of its own. Scores are scaled as for full heads, as released."""

    def __init__(self, config: SmallCapConfig, layer_idx: int) -> None:
        super().__init__()
        text = config.text_config
        self.layer_idx = layer_idx
        self.num_heads = text.num_attention_heads
        self.dropout = text.attention_dropout
        self.scaling = (text.hidden_size // self.num_heads) ** -0.5
        width = self.num_heads * config.cross_attention_head_dim
        self.k_proj = nn.Linear(config.encoder_hidden_size, width, bias=text.enable_bias)
        self.v_proj = nn.Linear(config.encoder_hidden_size, width, bias=text.enable_bias)
        self.q_proj = nn.Linear(text.hidden_size, width, bias=text.enable_bias)
        self.out_proj = nn.Linear(width, text.hidden_size, bias=text.enable_bias)

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
        self.crossattention = SmallCapOPTCrossAttention(config, layer_idx)
        self.ln_cross_attn = nn.LayerNorm(
            self.embed_dim, elementwise_affine=config.text_config.layer_norm_elementwise_affine
        )

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


class SmallCapOPTForCausalLM(OPTForCausalLM):
    """OPT whose layers attend to photos, too."""

    def __init__(self, config: SmallCapConfig) -> None:
        super().__init__(config.text_config)
        for number in range(len(self.model.decoder.layers)):
            self.model.decoder.layers[number] = SmallCapOPTDecoderLayer(config, number)
        self.post_init()

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Args as those of [`OPTForCausalLM`], and `encoder_hidden_states`, the photos."""
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and not isinstance(cache, EncoderDecoderCache):
            cache = empty_cache(self.config, cache)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **{CACHE: cache},
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            **kwargs,
        )


def empty_cache(text_config: Any, self_attention: Cache | None = None) -> EncoderDecoderCache:
    """A cache for the decoder's own keys and values (or the given one) and for those of the photos."""
    own = DynamicCache(config=text_config) if self_attention is None else self_attention
    return EncoderDecoderCache(own, DynamicCache(config=text_config))


def build_decoder(config: SmallCapConfig) -> Any:
    """Makes the decoder that `text_config` names, with cross-attention in every layer."""
    if config.text_config.model_type == "opt":
        return SmallCapOPTForCausalLM(config)
    decoder = AutoModelForCausalLM.from_config(config.text_config)
    for number, block in enumerate(decoder.transformer.h):
        block.crossattention = SmallCapGPT2CrossAttention(config, number)
    decoder.init_weights()  # of the new modules, as GPT-2 does it; the others are initialised already
    return decoder


__all__ = ["build_decoder", "empty_cache"]
