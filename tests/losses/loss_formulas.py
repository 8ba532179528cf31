"""The losses once more, in NumPy float64, written from their definitions."""

import numpy as np


def probabilities(logits, temperature=1.0):
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def divergence(a, b):
    """KL(a ‖ b) per row with 0 · log 0 = 0."""
    out = np.zeros(a.shape[:-1])
    for row in np.ndindex(*a.shape[:-1]):
        out[row] = sum(x * np.log(x / y) for x, y in zip(a[row], b[row], strict=True) if x > 0)
    return out


def kl(s, t, T):
    return T**2 * divergence(probabilities(t, T), probabilities(s, T))


def reverse(s, t, T):
    return T**2 * divergence(probabilities(s, T), probabilities(t, T))


def js(s, t, T):
    p, q = probabilities(t, T), probabilities(s, T)
    m = (p + q) / 2
    return T**2 * (divergence(p, m) + divergence(q, m)) / 2


def cross_entropy(s, t, T):
    p, q = probabilities(t, T), probabilities(s, T)
    out = np.zeros(p.shape[:-1])
    for row in np.ndindex(*p.shape[:-1]):
        out[row] = -sum(x * np.log(y) for x, y in zip(p[row], q[row], strict=True) if x > 0)
    return T**2 * out


def squared(s, t, T):
    return ((s - t) ** 2).sum(axis=-1)


def cosine(s, t, T):
    return 1 - (s * t).sum(-1) / np.sqrt((s * s).sum(-1) * (t * t).sum(-1))


def corrected(t, labels, T, tau):
    """The teacher's distribution after minifinetuning's correction, row by row."""
    out = probabilities(t, T)
    for row in np.ndindex(*labels.shape):
        p, y = out[row], labels[row]
        if p.argmax() == y:
            factor = min(1.0, tau / (1 - p[y])) if p[y] < 1 else 0.0
        else:
            gap = p.max() - p[y]
            factor = (gap + tau) / (1 + gap)
        out[row] = (1 - factor) * p
        out[row][y] += factor
    return out


def reduced(rows, reduction, classes):
    return {
        "none": rows,
        "sum": rows.sum(),
        "batchmean": rows.sum() / rows.size,
        "mean": rows.sum() / (rows.size * classes),
    }[reduction]
