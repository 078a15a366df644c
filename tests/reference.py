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
