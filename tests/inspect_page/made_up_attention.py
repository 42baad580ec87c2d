"""A made-up kernelized attention: kernel exp and iid Maclaurin features of random rows, computed by
the definitions of nn/README.md."""

import math
import random


def matrix(rows):
    return {
        "rows": len(rows),
        "columns": len(rows[0]),
        "values": [None if v is None or not math.isfinite(v) else v for r in rows for v in r],
    }


def attention_view(
    seed,
    name="encoder.layers.0.self_attention",
    causal=False,
    length=9,
    d=8,
    features=64,
    redraws=40,
):
    """Exact kernel exp, and iid Maclaurin features of unit rows and of longer ones."""
    rng = random.Random(seed)
    tokens = ["ein", "mann", "liest", "unter", "einem", "großen", "baum", ".", "<eos>"][:length]

    def rows(norm):
        made = [[rng.gauss(0, 1) for _ in range(d)] for _ in range(length)]
        return [[x * norm / math.sqrt(sum(y * y for y in r)) for x in r] for r in made]

    def draw():
        drawn = []
        for _ in range(features):
            degree = 0
            while rng.random() < 0.5 and degree < 12:
                degree += 1
            drawn.append((degree, [[rng.choice((-1, 1)) for _ in range(d)] for _ in range(degree)]))
        return drawn

    visible = [[not causal or j <= i for j in range(length)] for i in range(length)]
    own, others = draw(), [draw() for _ in range(redraws)]
    modes = [
        attention_mode(n, used, rows(norm), rows(norm), d, own, others, visible)
        for n, used, norm in (("with ppSBN", True, 1.0), ("without ppSBN", False, 1.9))
    ]
    count = {g: sum(1 for degree, _ in own if degree == g) for g in range(13)}
    return {
        "name": name,
        "head": 0,
        "sentence": 0,
        "kernel": "exp",
        "formula": "exp t",
        "draws": "iid",
        "features": features,
        "logit_scale": 1,
        "head_dim": d,
        "causal": causal,
        "redraws": redraws,
        "query_tokens": tokens,
        "key_tokens": tokens,
        "draw": {
            "constant": count[0] * 2 / features,
            "linear": 0.0,
            "projections": sum(g * c for g, c in count.items()),
            "degrees": [
                {
                    "degree": g,
                    "features": c,
                    "weight": math.sqrt(2 ** (g + 1) / math.factorial(g) / features),
                }
                for g, c in count.items()
                if g and c
            ],
        },
        "modes": modes,
    }


def estimate(q, k, d, drawn):
    """What the features of each degree add to the kernel: by degree, query and key."""
    by_degree = {}
    dot = lambda u, v: sum(a * b for a, b in zip(u, v))
    for degree, omegas in drawn:
        left = [math.prod(dot(w, x) for w in omegas) for x in q]
        right = [math.prod(dot(w, x) for w in omegas) for x in k]
        weight = 2 ** (degree + 1) / math.factorial(degree) / d ** (degree / 2) / len(drawn)
        total = by_degree.setdefault(degree, [[0.0] * len(k) for _ in q])
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                total[i][j] += weight * a * b
    return by_degree


def attention_mode(name, used, q, k, d, own, others, visible):
    n, pairs = len(q), [(i, j) for i in range(len(q)) for j in range(len(k)) if visible[i][j]]
    shown = lambda f: [[f(i, j) if visible[i][j] else None for j in range(n)] for i in range(n)]
    total = lambda parts: [
        [sum(p[i][j] for p in parts.values()) for j in range(n)] for i in range(n)
    ]
    sums = lambda m: [sum(m[i][j] for j in range(n) if visible[i][j]) for i in range(n)]
    rms = lambda f: math.sqrt(sum(f(i, j) ** 2 for i, j in pairs) / len(pairs))
    logits = [[sum(a * b for a, b in zip(x, y)) / math.sqrt(d) for y in k] for x in q]
    exact = [[math.exp(t) for t in row] for row in logits]
    parts = estimate(q, k, d, own)
    guess = total(parts)
    zero = [[0.0] * n for _ in range(n)]
    redrawn = [estimate(q, k, d, drawn) for drawn in others]
    totals, many = [total(p) for p in redrawn], len(others)
    mean = [[sum(t[i][j] for t in totals) / many for j in range(n)] for i in range(n)]
    spread = lambda ms: shown(
        lambda i, j: math.sqrt(
            sum((m[i][j] - sum(x[i][j] for x in ms) / many) ** 2 for m in ms) / (many - 1)
        )
    )
    weights = lambda m: [[m[i][j] / s for j in range(n)] for i, s in enumerate(sums(m))]
    denominators = [sums(t) for t in totals]
    degrees = []
    for g in range(max(parts) + 1):
        exact_part = lambda i, j: logits[i][j] ** g / math.factorial(g)
        own_part = parts.get(g, zero)
        degrees.append(
            {
                "degree": g,
                "exact_rms": rms(exact_part),
                "estimate_rms": rms(lambda i, j: own_part[i][j]),
                "error_rms": rms(lambda i, j: own_part[i][j] - exact_part(i, j)),
                "deviation": math.sqrt(
                    sum(
                        rms(lambda i, j: p.get(g, zero)[i][j] - exact_part(i, j)) ** 2
                        for p in redrawn
                    )
                    / many
                ),
            }
        )
    mean_of = lambda values: sum(values) / len(values)
    return {
        "name": name,
        "used_by_the_model": used,
        "logits": matrix(shown(lambda i, j: logits[i][j])),
        "exact": matrix(shown(lambda i, j: exact[i][j])),
        "estimate": matrix(shown(lambda i, j: guess[i][j])),
        "difference": matrix(shown(lambda i, j: guess[i][j] - exact[i][j])),
        "exact_weights": matrix(shown(lambda i, j: weights(exact)[i][j])),
        "estimated_weights": matrix(shown(lambda i, j: weights(guess)[i][j])),
        "exact_denominators": sums(exact),
        "estimated_denominators": sums(guess),
        "degrees": degrees,
        "redraw": {
            "mean": matrix(shown(lambda i, j: mean[i][j])),
            "deviation": matrix(spread(totals)),
            "weights_deviation": matrix(spread([weights(t) for t in totals])),
            "denominator_deviation": [
                math.sqrt(
                    mean_of(
                        [(s[i] - mean_of([x[i] for x in denominators])) ** 2 for s in denominators]
                    )
                )
                for i in range(n)
            ],
            "not_positive": sum(s <= 0 for one in denominators for s in one),
        },
    }
