"""Attention within the (shifted) windows of a grid of tokens (Liu et al. 2021, arXiv:2103.14030), any number of axes.

Differences from the paper's code: nothing is rolled and nothing is masked, see `monai_attention.blocks.windows`; the
score matrix is made a few boxes at a time, and made again in the backward pass instead of being kept, unless windows
are small.

Grids of tokens are (B, *G, C) everywhere in this file. Notation: B batch, G grid, C channels, N tokens of a window,
T tokens of a box, h heads, d = C / h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from monai_attention.blocks.attention import attend, attention_weights
from monai_attention.blocks.windows import (
    Boxes,
    cut,
    from_boxes,
    inside_window,
    to_boxes,
)

KEEP_BELOW = 128
"""Windows of fewer tokens keep their attention weights for the backward pass: making them again costs more time than
the memory is worth."""

_CHUNK_BYTES = {"cpu": 4 << 20}  # attention weights made at a time: what fits the cache
_DEFAULT_CHUNK_BYTES = 256 << 20


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    num_heads: int,
    window: Sequence[int],
    shift: Sequence[int],
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention within (shifted) windows.

    Args:
        q: queries, shape (B, *G, C), G multiples of `window`.
        k: keys, same shape.
        v: values, same shape.
        bias: added to the scores, shape (h, N, N), or None.
        num_heads: heads h.
        window: tokens along each axis.
        shift: tokens along each axis, smaller than the window.
        dropout: probability of dropping an attention weight; pass 0 in evaluation.
        backend: `auto` is an operator of its own that keeps attention weights for the backward pass only where windows
            have fewer than `KEEP_BELOW` tokens, and makes them again otherwise, on every device; with dropout it is
            `sdpa`. `sdpa`, `flex` and `math` are those of `monai_attention.blocks.attention.attend`, box by box.

    Returns:
        Tensor of shape (B, *G, C).
    """
    window, shift = list(window), list(shift)
    if backend == "auto" and not dropout:
        keep = math.prod(window) < KEEP_BELOW and torch.is_grad_enabled()
        return _window_attention(q, k, v, bias, num_heads, window, shift, keep)[0]
    out = q.new_empty(q.shape)
    for boxes in cut(q.shape[1:-1], window, shift):
        qkv = (_heads(to_boxes(x, boxes), num_heads) for x in (q, k, v))
        y = attend(*qkv, bias=_bias_of(bias, boxes, window), dropout=dropout, backend=backend)
        from_boxes(_tokens(y), boxes, out)
    return out


def received_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    num_heads: int,
    window: Sequence[int],
    shift: Sequence[int],
) -> Tensor:
    """The sum of the attention weights that each token gets, (B, *G, h); arguments as in `window_attention`."""
    out = q.new_empty(*q.shape[:-1], num_heads)
    for boxes in cut(q.shape[1:-1], window, shift):
        queries, keys = (_heads(to_boxes(x, boxes), num_heads) for x in (q, k))
        weights = attention_weights(queries, keys, bias=_bias_of(bias, boxes, window))
        from_boxes(weights.sum(dim=-2).transpose(1, 2).contiguous(), boxes, out)
    return out


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(boxes, T, C) -> (boxes, h, T, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    """(boxes, h, T, d) -> (boxes, T, C)."""
    return x.transpose(1, 2).flatten(2)


def _bias_of(bias: Tensor | None, boxes: Boxes, window: Sequence[int]) -> Tensor | None:
    """The part (h, T, T) of a window's bias (h, N, N) that a box needs."""
    tokens = None if bias is None else inside_window(boxes, window, bias.device)
    if bias is None or tokens is None:
        return bias
    return bias.index_select(1, tokens).index_select(2, tokens)


def _weight_shape(batch: int, boxes: Boxes, num_heads: int) -> tuple[int, int, int, int]:
    """Shape of the attention weights of equal boxes."""
    return batch * math.prod(boxes.number), num_heads, math.prod(boxes.size), math.prod(boxes.size)


def _chunks(shape: Sequence[int], x: Tensor) -> Iterator[slice]:
    """Runs of boxes whose attention weights, of `shape` in all, are made at a time."""
    a_box = math.prod(shape[1:]) * max(4, x.element_size())
    step = max(1, _CHUNK_BYTES.get(x.device.type, _DEFAULT_CHUNK_BYTES) // a_box)
    return (slice(first, first + step) for first in range(0, shape[0], step))


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax(q k^T + bias) in float32 at least; q is scaled already."""
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32))
    return (scores if bias is None else scores.add_(bias)).softmax(dim=-1)


@torch.library.custom_op("monai_attention::window_attention", mutates_args=())
def _window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and all attention weights in one row (none unless `keep`).

    An operator, so that autograd keeps nothing else, and compilers and exporters see one step.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    groups = cut(q.shape[1:-1], window, shift)
    shapes = [_weight_shape(q.shape[0], boxes, num_heads) for boxes in groups]
    kept = q.new_empty((sum(map(math.prod, shapes)) if keep else 0,))
    # Detached, or the fused kernel of the CPU gives way to the formula that makes all of the score matrix.
    bias = None if bias is None else bias.detach().to(q.dtype).contiguous()
    for boxes, shape, weights in zip(groups, shapes, _split(kept, shapes), strict=True):
        part = _bias_of(bias, boxes, window)
        queries, keys, values = (_heads(to_boxes(x, boxes), num_heads) for x in (q, k, v))
        if weights is None and (q.is_cuda or shape[-1] >= KEEP_BELOW):
            y = attend(queries, keys, values, bias=part)
        else:  # for small boxes plain products are faster than the fused kernel of the CPU
            y = torch.empty(values.shape, dtype=v.dtype, device=v.device)
            queries = queries * queries.shape[-1] ** -0.5
            for chunk in _chunks(shape, q):
                made = _weights(queries[chunk], keys[chunk], part).to(v.dtype)
                torch.matmul(made, values[chunk], out=y[chunk])
                if weights is not None:
                    weights[chunk] = made
        from_boxes(_tokens(y), boxes, out)
    return out, kept


def _split(kept: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor | None]:
    """The kept attention weights box by box, None each if there are none."""
    if not kept.numel():
        return [None] * len(shapes)
    parts = kept.split([math.prod(shape) for shape in shapes])
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


@_window_attention.register_fake
def _(q, k, v, bias, num_heads, window, shift, keep):  # type: ignore[no-untyped-def]
    groups = cut(q.shape[1:-1], window, shift)
    numbers = sum(math.prod(_weight_shape(q.shape[0], boxes, num_heads)) for boxes in groups)
    return q.new_empty(q.shape), q.new_empty(numbers if keep else 0)


@torch.library.custom_op("monai_attention::window_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    num_heads: int,
    window: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, and of the bias (empty if there is none), a few boxes at a time."""
    grads = [torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3)]
    exact = torch.promote_types(q.dtype, torch.float32)
    bias_grad = torch.zeros((0,) if bias is None else bias.shape, dtype=exact, device=q.device)
    groups = cut(q.shape[1:-1], window, shift)
    shapes = [_weight_shape(q.shape[0], boxes, num_heads) for boxes in groups]
    for boxes, shape, weights in zip(groups, shapes, _split(kept, shapes), strict=True):
        part = _bias_of(bias, boxes, window)
        part_grad = None if part is None else torch.zeros_like(part, dtype=exact)
        inputs = [_heads(to_boxes(x, boxes), num_heads) for x in (grad, q, k, v)]
        results = [torch.empty(inputs[0].shape, dtype=q.dtype, device=q.device) for _ in range(3)]
        for chunk in _chunks(shape, q):
            kept_here = None if weights is None else weights[chunk]
            _backward_of_chunk([x[chunk] for x in inputs], part, kept_here, [x[chunk] for x in results], part_grad)
        for x, whole in zip(results, grads, strict=True):
            from_boxes(_tokens(x), boxes, whole)
        if part_grad is not None:
            _add_bias_of(part_grad, boxes, window, bias_grad)
    return (*grads, bias_grad)  # type: ignore[return-value]


def _backward_of_chunk(
    inputs: Sequence[Tensor],
    bias: Tensor | None,
    weights: Tensor | None,
    results: Sequence[Tensor],
    bias_grad: Tensor | None,
) -> None:
    """Write the gradients for a few boxes (n, h, T, d) into `results`, and add the bias's to `bias_grad`."""
    grad, q, k, v = inputs
    scale = q.shape[-1] ** -0.5
    q = q * scale
    weights = _weights(q, k, bias) if weights is None else weights.to(torch.promote_types(q.dtype, torch.float32))
    torch.matmul(weights.to(q.dtype).transpose(-2, -1), grad, out=results[2])
    of_weights = (grad @ v.transpose(-2, -1)).to(weights.dtype)
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    if bias_grad is not None:
        bias_grad += of_scores.sum(dim=0)
    of_scores = of_scores.to(q.dtype)
    torch.matmul(of_scores, k * scale, out=results[0])
    torch.matmul(of_scores.transpose(-2, -1), q, out=results[1])


def _add_bias_of(part: Tensor, boxes: Boxes, window: Sequence[int], whole: Tensor) -> None:
    """Add to (h, N, N) what `_bias_of` took from it, (h, T, T)."""
    tokens = inside_window(boxes, window, whole.device)
    if tokens is None:
        whole += part
    else:
        whole[:, tokens[:, None], tokens] += part


@_backward.register_fake
def _(grad, q, k, v, bias, kept, num_heads, window, shift):  # type: ignore[no-untyped-def]
    exact = torch.promote_types(q.dtype, torch.float32)
    bias_grad = q.new_empty((0,) if bias is None else bias.shape, dtype=exact)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), bias_grad


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, bias, ctx.num_heads, ctx.window, ctx.shift, _ = inputs
    ctx.save_for_backward(q, k, v, bias, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, bias, kept = ctx.saved_tensors
    *grads, bias_grad = _backward(grad, q, k, v, bias, kept, ctx.num_heads, ctx.window, ctx.shift)
    return (*grads, None if bias is None else bias_grad.to(bias.dtype), None, None, None, None)


_window_attention.register_autograd(_differentiate, setup_context=_setup_context)
