"""Slow, obvious, float64: what the fast code is compared with."""

import numpy as np


def attention(q, k, v, bias=None):
    """Softmax(q k^T / sqrt(d) + bias) v by loops, for arrays (N, d), (M, d), (M, e) and bias (N, M)."""
    out = np.zeros((q.shape[0], v.shape[1]))
    for i in range(q.shape[0]):
        scores = np.array([sum(q[i, c] * k[j, c] for c in range(q.shape[1])) for j in range(k.shape[0])])
        scores = scores / np.sqrt(q.shape[1]) + (0 if bias is None else bias[i])
        weights = np.exp(scores - scores.max())
        for j in range(k.shape[0]):
            out[i] += weights[j] / weights.sum() * v[j]
    return out


def window_attention(q, k, v, bias, window, shift):
    """Attention of each token of a grid (*G, C), one head, to those between the same (shifted) cuts.

    `bias` is (N, N) for the tokens of a window in raster order.
    """
    grid = q.shape[:-1]
    positions = list(np.ndindex(*grid))
    between = [tuple((p + w - s) // w for p, w, s in zip(at, window, shift, strict=True)) for at in positions]
    place = [
        np.ravel_multi_index([(p - s) % w for p, w, s in zip(at, window, shift, strict=True)], window)
        for at in positions
    ]
    scores = np.array(
        [
            [bias[place[i], place[j]] if between[i] == between[j] else -np.inf for j in range(len(positions))]
            for i in range(len(positions))
        ]
    )
    flat = (x.reshape(len(positions), -1) for x in (q, k, v))
    return attention(*flat, scores).reshape(*grid, -1)
