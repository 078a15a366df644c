"""The one scaled-dot-product call site, and the transformer parts made from it.

Tokens are (B, N, C) everywhere in this file. Notation: B batch, N tokens, C channels, h heads, d = C / h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

BACKENDS = ("auto", "sdpa", "flex", "math")


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, dropout: float = 0.0, backend: str = "auto"
) -> Tensor:
    """Softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: queries, shape (B, h, N, d).
        k: keys, shape (B, h, M, d).
        v: values, shape (B, h, M, d).
        bias: added to the scores, broadcastable to (B, h, N, M); -inf masks a pair.
        dropout: probability of dropping an attention weight; pass 0 in evaluation.
        backend: `sdpa` is torch's fused kernel; `flex` is torch's FlexAttention, compiled on CUDA, which reads the
            bias where it is and never spreads it over the batch, but has no dropout, and no gradients on the CPU;
            `math` is the plain formula (exact, keeps the score matrix, for reference and for looking at attention
            weights); `auto` picks `sdpa`.

    Returns:
        Tensor of shape (B, h, N, d).

    Raises:
        ValueError: `flex` with dropout.
    """
    if backend == "math":
        return attention_weights(q, k, bias=bias, dropout=dropout) @ v
    if bias is not None:  # with four axes: on the CPU the fused kernels take no other
        bias = bias.view((1,) * (4 - bias.ndim) + tuple(bias.shape))
    if backend == "flex":
        return _flex(q, k, v, bias, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """FlexAttention (Dong et al. 2024, arXiv:2412.05496)."""
    if dropout:
        raise ValueError(f"attention_backend 'flex' has no dropout; got {dropout}")
    compiled = q.is_cuda and not torch.compiler.is_compiling()
    function: Any = _compiled_flex_attention() if compiled else flex_attention
    if bias is None:
        return function(q, k, v)
    table, single = bias, [n == 1 for n in bias.shape]

    def add_bias(score: Tensor, *position: Tensor) -> Tensor:
        b, h, i, j = (x * 0 if alone else x for x, alone in zip(position, single, strict=True))
        return score + table[b, h, i, j]

    return function(q, k, v, score_mod=add_bias)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """Without compilation FlexAttention makes the score matrix."""
    return torch.compile(flex_attention)


def attention_weights(q: Tensor, k: Tensor, *, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax(q k^T / sqrt(d) + bias), shape (B, h, N, M); arguments as in `attend`."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    return F.dropout(weights, dropout) if dropout else weights


def check_heads(hidden_size: int, num_heads: int, backend: str) -> None:
    """Raise ValueError unless channels divide into heads and the backend is one of `BACKENDS`."""
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size must be a multiple of num_heads; got {hidden_size=}, {num_heads=}")
    if backend not in BACKENDS:
        raise ValueError(f"attention_backend must be one of {BACKENDS}; got {backend!r}")


class Attention(nn.Module):
    """Multi-head self attention (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        hidden_size: channels C; must be a multiple of `num_heads`.
        num_heads: heads h.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        dropout_rate: dropout of attention weights and of the output, in training only.
        backend: see `attend`.

    Shape: (B, N, C) -> (B, N, C).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        dropout_rate: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads, backend)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.backend = backend
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, (B, N, C) -> (B, N, C)."""
        dropout = self.dropout_rate if self.training else 0.0
        q, k, v = self._heads(x)
        y = attend(q, k, v, dropout=dropout, backend=self.backend)
        return F.dropout(self.proj(y.transpose(1, 2).flatten(2)), dropout, self.training)

    def attention_map(self, x: Tensor) -> Tensor:
        """How much attention each token gets from the others, (B, h, N); see `attention_maps`."""
        q, k, _ = self._heads(x)
        return attention_weights(q, k).sum(dim=-2)

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values, (3, B, h, N, d)."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Linear, GELU, linear; each followed by dropout in training. Shape: (B, N, C) -> (B, N, C)."""

    def __init__(self, hidden_size: int, mlp_size: int, *, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_size)
        self.fc2 = nn.Linear(mlp_size, hidden_size)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        hidden_size: channels C.
        mlp_size: channels inside the MLP.
        num_heads: attention heads.
        qkv_bias: see `Attention`.
        dropout_rate: in attention weights, projections and MLP, in training only.
        backend: see `attend`.

    Shape: (B, N, C) -> (B, N, C).
    """

    def __init__(
        self,
        hidden_size: int,
        mlp_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        dropout_rate: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qkv_bias=qkv_bias, dropout_rate=dropout_rate, backend=backend)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_size, dropout_rate=dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then transform each."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect attention maps of a network while it runs.

        with attention_maps(network) as maps, torch.no_grad():
            network(image)
        maps["encoder.0.blocks.1.attn"]

    Every layer that has an `attention_map` computes it besides, so this is for looking, not for training.

    Yields:
        Layer name -> map of its last call. Of attention between tokens: the sum of the weights a token gets from all
        others, on average 1, shape (B, h, N) for sequences (in raster order of their grid) or (B, h, *G) for grids. Of
        shuffle attention: its spatial gates, from 0 to 1, shape (B, C / 2, *S).
    """
    maps: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            maps[name] = layer.attention_map(*inputs)  # type: ignore[operator]

    handles = [
        layer.register_forward_pre_hook(functools.partial(record, name))
        for name, layer in network.named_modules()
        if hasattr(layer, "attention_map")
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
