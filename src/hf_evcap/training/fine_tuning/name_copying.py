"""Starts the fusion Q-Former as a reader: object-name query i hands on name token i, so any name can be copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def initialize_word_copying(language_model: Any, gain: float = 0.6, seed: int = 0) -> None:
    """
    Initialises a Llama-type language model so that attending to a token is a start at writing it, whichever it is.

    Token embeddings become large, nearly orthogonal codes, and the final norm scales them back, so that logits begin
    with a deviation of one: the residual stream then holds a token as it was looked up, and a slow optimizer leaves
    rare tokens what they are. In each layer value and output maps begin near inverses of one another. From a small
    random start a model writes frequent tokens long before it copies, and rare ones never (cf. mimetic initialization,
    Trockman and Kolter 2023, arXiv 2305.09828).

    Args:
        language_model (`LlamaForCausalLM`): Changed in place; tied embeddings, as many key-value heads as heads.
        gain (`float`, *optional*, defaults to 0.6): Scale of the value and of the output map.
        seed (`int`, *optional*, defaults to 0): Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    words = language_model.get_input_embeddings().weight
    width = words.shape[1]
    words.normal_(generator=generator)
    language_model.model.norm.weight.fill_(width**-0.5)
    for layer in language_model.model.layers:
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        layer.self_attn.v_proj.weight.add_(gain * basis)
        layer.self_attn.o_proj.weight.add_(gain * basis.T)


@torch.no_grad()
def initialize_name_copying(model: Any, seed: int = 0) -> None:
    """
    Initialises the fusion Q-Former and the projection near the identity on the names.

    Object-name query i and name position i get the same code; the first layer's cross-attention matches codes and
    hands on what it finds; self-attention and feed-forward layers start silent. Eight queries of a random start must
    squeeze many-token names and garble them; these have nothing to squeeze. The image Q-Former's outputs start around
    the embedding of the placeholder that stood for a photo while the language model learned to read names.

    Args:
        model ([`EVCapForConditionalGeneration`]): Changed in place. Needs `tie_name_embeddings`, and a width of at
            least twice the number of object-name queries.
        seed (`int`, *optional*, defaults to 0): Seed of the codes.

    Raises:
        ValueError: if the names are not embedded by the language model or the width is too small.
    """
    config = model.config
    width, count = config.fusion_qformer_config.hidden_size, config.num_name_query_tokens
    heads = config.fusion_qformer_config.num_attention_heads
    if not config.tie_name_embeddings or width // heads < count:
        raise ValueError(
            "Copying names needs tie_name_embeddings=True and heads at least as wide as num_name_query_tokens; got "
            f"tie_name_embeddings={config.tie_name_embeddings}, heads of {width // heads}, {count} queries."
        )
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    codes, rest = basis[:count], basis[count:]
    words = model.get_input_embeddings().weight
    scale = float(words.norm(dim=-1).mean())
    fusion = model.fusion_qformer
    positions = fusion.embeddings.position_embeddings.weight
    positions[:count] = codes * scale
    positions[count:] = 0
    model.name_query_tokens.copy_((codes * width**0.5)[None])
    for layer in fusion.encoder.layer:
        for block in (layer.attention.output.dense, layer.output_query.dense, layer.output.dense):
            block.weight.mul_(0.1)
            block.bias.zero_()
    cross = fusion.encoder.layer[0].crossattention
    matcher = torch.zeros(width, width)
    for head in range(heads):
        matcher[head * (width // heads) : head * (width // heads) + count] = codes
    for name, weight in (("query", matcher), ("key", matcher), ("value", rest.T @ rest)):
        linear = getattr(cross.attention, name)
        linear.weight.copy_(weight)
        linear.bias.zero_()
    cross.output.dense.weight.copy_(2 * torch.eye(width))
    cross.output.dense.bias.zero_()
    model.language_projection.weight.copy_(torch.eye(width) * scale / width**0.5)
    model.language_projection.bias.zero_()
    outputs = query_output_norm(model)
    outputs.weight.fill_(0.5)
    known = config.image_token_id < len(words)  # else the placeholder has no embedding: start from the mean of all
    start = words[config.image_token_id] if known else words.float().mean(dim=0)
    outputs.bias.copy_(start * width**0.5 / scale)


def query_output_norm(model: Any) -> nn.LayerNorm:
    """The layer that the image Q-Former's outputs leave last."""
    return model.qformer.encoder.layer[-1].output_query.LayerNorm


def align_names_with_words(
    model: Any,
    name_lists: Sequence[Sequence[int]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    log: Any = None,
    seed: int = 0,
) -> float:
    """
    Trains the fusion Q-Former and the projection until object-name feature i is the embedding of name token i.

    The language model, which learned to read names as plain tokens, then reads the fusion's output just as well.
    Query outputs are random here: no photo is needed, nor the language model's layers.

    Args:
        model ([`EVCapForConditionalGeneration`]): Its fusion, object-name queries and projection are trained.
        name_lists (`Sequence[Sequence[int]]`): Joined names as token ids, at least one each.
        steps, batch_size (`int`), learning_rate (`float`): Of AdamW with a warm-up and a cosine.
        log (`Callable`, *optional*): Called with step and loss now and then.
        seed (`int`, *optional*, defaults to 0): Seed of the batches.

    Returns:
        `float`: The last squared error, relative to the embeddings' variance.
    """
    count = model.config.num_name_query_tokens
    weights = [*model.fusion_qformer.parameters(), model.name_query_tokens, *model.language_projection.parameters()]
    generator = torch.Generator().manual_seed(seed)
    words, outputs = model.get_input_embeddings().weight.detach().float(), query_output_norm(model)
    variance = words.var(dim=0).sum()

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random query outputs, what the fusion makes of names beside them, and the names' own embeddings."""
        rows = [list(name_lists[int(i)]) for i in torch.randint(len(name_lists), (batch_size,), generator=generator)]
        separator = model.name_tokenizer.sep_token_id
        longest = max(map(len, rows))
        ids = torch.tensor([row + [separator] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        target = torch.tensor([row + [separator] * (count - len(row)) for row in rows])
        with torch.no_grad():
            query_output = outputs(
                torch.randn(batch_size, model.config.num_query_tokens, words.shape[1], generator=generator)
            )
        return query_output, model.fuse_names(query_output, ids, mask), words[target]

    fit_projection(model.language_projection, batch)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
    )
    error = float("nan")
    for step in range(steps):
        with torch.autocast(words.device.type, torch.bfloat16):
            query_output, fused, target = batch()
            projected = model.project(query_output, fused)[:, -count:]
        loss = (projected.float() - target).pow(2).sum(-1).mean() / variance
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        error = float(loss.detach())
        if log is not None and step % 50 == 0:
            log(step, error)
    return error


@torch.no_grad()
def fit_projection(
    projection: nn.Linear, batch: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> None:
    """Solves for the projection that is nearest in squares to the names' embeddings, before anything is trained."""
    inputs: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    while len(inputs) < 8 or sum(part.shape[0] for part in inputs) < 16 * projection.in_features:
        _, fused, target = batch()
        inputs.append(fused.float().flatten(0, 1))
        targets.append(target.flatten(0, 1))
    features = nn.functional.pad(torch.cat(inputs), (0, 1), value=1.0).double()
    gram = features.T @ features
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, features.T @ torch.cat(targets).double()).float()
    projection.weight.copy_(solved[:-1].T)
    projection.bias.copy_(solved[-1])
