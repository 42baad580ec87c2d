"""Made-up records for the page of inspect: a small Transformer's training steps, a large one, and
records that a page must survive. Their numbers are random.
"""

import base64
import json
import math
import random
from pathlib import Path

from made_up_attention import attention_view


def numbers(rng, count, scale, image=None, zeros=0, histogram=True):
    """min ... count of `count` made-up normal values of this scale."""
    rms = scale * (1 + 0.1 * rng.random())
    n = {
        "min": -3.1 * rms * (1 + 0.2 * rng.random()),
        "max": 3.1 * rms * (1 + 0.2 * rng.random()),
        "mean": 0.05 * rms * rng.gauss(0, 1),
        "rms": rms,
        "l2": rms * math.sqrt(count),
        "zeros": zeros,
        "non_finite": 0,
        "count": count,
    }
    if histogram:
        middle = [math.exp(-0.5 * ((b - 15.5) / 5.2) ** 2) for b in range(32)]
        n["histogram"] = {
            "low": n["min"],
            "high": n["max"],
            "counts": [int(count * m / sum(middle) * (0.8 + 0.4 * rng.random())) for m in middle],
        }
    if image:
        rows, columns = min(image[0], 48), min(image[1], 48)
        pixels = bytes(
            max(-127, min(127, round(rng.gauss(0, 40)))) & 0xFF for _ in range(rows * columns)
        )
        n["image"] = {
            "rows": rows,
            "columns": columns,
            "of": list(image),
            "slice": "[0, :, :]",
            "scale": 3.1 * rms,
            "pixels": base64.b64encode(pixels).decode(),
        }
    return n


class Builder:
    """Writes down ops in the order of recording."""

    def __init__(self, seed, step=1, detail=True):
        self.rng, self.step, self.detail = random.Random(seed), step, detail
        self.ops, self.leaves, self.seen = [], [], {}

    def value(self, shape, scale, gradient):
        count = math.prod(shape)
        image = shape[-2:] if self.detail and len(shape) > 1 else None
        return {
            "shape": list(shape),
            "dtype": "float32",
            "value": numbers(self.rng, count, scale, histogram=self.detail),
            "gradient": (
                None
                if gradient is None
                else numbers(self.rng, count, gradient, image, histogram=self.detail)
            ),
        }

    def leaf(self, key, shape, kind="parameter", gradient=1e-3):
        scope = key.rpartition(".")[0]
        self.leaves.append(
            {
                "key": key,
                "scope": scope,
                "kind": kind,
                **self.value(shape, 0.1, None if kind != "parameter" else gradient),
            }
        )
        return [-1, len(self.leaves) - 1]

    def op(self, scope, op, inputs, shape, gradient=1e-3, outputs=1, attributes=()):
        place = (scope, op)
        self.seen[place] = self.seen.get(place, 0) + 1
        name = op if self.seen[place] == 1 else f"{op}#{self.seen[place]}"
        count = math.prod(shape)
        one = {
            "key": f"{scope}/{name}",
            "scope": scope,
            "op": op,
            "attributes": [list(a) for a in attributes],
            "inputs": inputs,
            "outputs": [self.value(shape, 0.8, gradient) for _ in range(outputs)],
            "seconds": 1e-8 * count * (1 + self.rng.random()),
            "backward_seconds": None if gradient is None else 2e-8 * count,
            "bytes": 4 * count * outputs,
        }
        if op == "softmax":
            one["fused_difference"] = 3.1e-8
        self.ops.append(one)
        return [len(self.ops) - 1, 0]

    def record_step(self):
        return {
            "step": self.step,
            "loss": 4.5 * 0.93**self.step + 0.02 * self.rng.random(),
            "gradient_norm": 1.2 * 0.97**self.step,
            "learning_rate": 1e-3,
            "seconds": sum(o["seconds"] for o in self.ops) * 3,
            "ops": self.ops,
            "leaves": self.leaves,
        }


def linear(b, scope, x, rows, width, g):
    w, bias = b.leaf(f"{scope}.weight", (width, width), gradient=g), b.leaf(
        f"{scope}.bias", (width,), gradient=g
    )
    return b.op(
        scope, "add", [b.op(scope, "matmul", [x, w], (*rows, width), g), bias], (*rows, width), g
    )


def norm(b, scope, x, rows, width, g):
    mean = b.op(scope, "mean", [x], (*rows, 1), g, attributes=[("dim", "2")])
    centred = b.op(scope, "sub", [x, mean], (*rows, width), g)
    variance = b.op(
        scope, "mean", [b.op(scope, "mul", [centred, centred], (*rows, width), g)], (*rows, 1), g
    )
    unit = b.op(
        scope, "mul", [centred, b.op(scope, "rsqrt", [variance], (*rows, 1), g)], (*rows, width), g
    )
    return b.op(
        scope, "mul", [unit, b.leaf(f"{scope}.weight", (width,), gradient=g)], (*rows, width), g
    )


def attention(b, scope, x, memory, rows, width, g):
    q, k, v = (
        linear(b, f"{scope}.{n}", y, rows, width, g)
        for n, y in (("query", x), ("key", memory), ("value", memory))
    )
    core = f"{scope}.core"
    scores = b.op(
        core, "matmul", [q, k], (rows[0], rows[1], rows[1]), g, attributes=[("transpose_b", "true")]
    )
    weights = b.op(core, "softmax", [scores, [-2, 0]], (rows[0], rows[1], rows[1]), g)
    return linear(
        b, f"{scope}.output", b.op(core, "matmul", [weights, v], (*rows, width), g), rows, width, g
    )


def layer(b, scope, x, memory, rows, width, g):
    x = b.op(
        scope,
        "add",
        [
            x,
            attention(
                b,
                f"{scope}.self_attention",
                norm(b, f"{scope}.norm1", x, rows, width, g),
                x,
                rows,
                width,
                g,
            ),
        ],
        (*rows, width),
        g,
    )
    if memory:
        x = b.op(
            scope,
            "add",
            [
                x,
                attention(
                    b,
                    f"{scope}.cross_attention",
                    norm(b, f"{scope}.norm2", x, rows, width, g),
                    memory,
                    rows,
                    width,
                    g,
                ),
            ],
            (*rows, width),
            g,
        )
    h = linear(
        b,
        f"{scope}.feed_forward.inner",
        norm(b, f"{scope}.norm3", x, rows, width, g),
        rows,
        width,
        g,
    )
    h = b.op(f"{scope}.feed_forward", "relu", [h], (*rows, width), g)
    return b.op(
        scope,
        "add",
        [x, linear(b, f"{scope}.feed_forward.outer", h, rows, width, g)],
        (*rows, width),
        g,
    )


def training_step(layers=2, seed=1, step=1, rows=(4, 9), width=32, detail=True, growth=1.6):
    """A step of an encoder-decoder with a shared embedding, whose scope is used three times."""
    b = Builder(seed * 1000 + step, step, detail)
    table = b.leaf("embedding.weight", (60, width))
    x = y = None
    for side in ("source", "target"):
        tokens = b.leaf(f"{side}_tokens", rows, kind="input")
        h = b.op("embedding", "take", [table, tokens], (*rows, width))
        h = b.op(
            "positions",
            "add",
            [h, b.leaf(f"positions.{side}_table", (rows[1], width), kind="constant")],
            (*rows, width),
        )
        x, y = (h, y) if side == "source" else (x, h)
    for n in range(layers):
        x = layer(b, f"encoder.layers.{n}", x, None, rows, width, 1e-3 * growth ** (-n))
    for n in range(layers):
        y = layer(b, f"decoder.layers.{n}", y, x, rows, width, 1e-3 * growth**n)
    logits = b.op("embedding", "matmul", [y, table], (*rows, 60), 1e-3 * growth**layers)
    parts = b.op("loss", "log_softmax_and_sum", [logits], (*rows, 60), 1e-3, outputs=2)
    b.op("loss", "mean", [parts, [parts[0], 1]], (), 1.0)
    return b.record_step()


def transformer_record(layers=2, steps=3, attentions=True, seed=1):
    return {
        "format": "macgrad-inspect-1",
        "title": "toy language, rmfa, ppSBN",
        "about": [["seed", str(seed)], ["attention", "rmfa"], ["commit", "0123abc"]],
        "formulas": {
            "matmul": "y = a·b",
            "add": "y = a + b",
            "mul": "y = a ⊙ b",
            "mean": "y = Σ x / n",
            "softmax": "y_i = exp x_i / Σ_j exp x_j",
            "relu": "y = max(x, 0)",
            "rsqrt": "y = x^(−1/2)",
            "sub": "y = a − b",
        },
        "steps": [training_step(layers, seed, s + 1) for s in range(steps)],
        "attentions": (
            [
                attention_view(seed, causal=False),
                attention_view(seed + 1, name="decoder.layers.0.self_attention", causal=True),
            ]
            if attentions
            else []
        ),
    }


def large_record(ops=5000):
    """Layers until there are at least `ops` operations, in one step and without pictures."""
    layers = 1
    while len(training_step(layers, detail=False)["ops"]) < ops:
        layers = max(
            layers + 1, round(layers * ops / len(training_step(layers, detail=False)["ops"]))
        )
    return {
        **transformer_record(1, 1, attentions=False),
        "steps": [training_step(layers, detail=False, growth=1.02)],
    }


HOSTILE_NAMES = [
    '"</script><img src=x onerror=alert(1)>',
    "<!--<script>",
    "]]>&amp;&lt;",
    "a'b\"c\\d",
    "ключ.名前.🙂",
    "\u202eright to left",
    "__proto__",
    "constructor",
    "%E0%A4%A scope",
    "scope:fake",
    "tab\tand\nnew line",
    "x" * 5000,
    "/*STYLE*/RECORD" + "_JSON$&$1",
    "..",
    "a..b",
    "-0",
    "[1]",
]


def hostile_record():
    b = Builder(5)
    last = b.leaf("<b>bold</b>.weight", (3, 3))
    for name in HOSTILE_NAMES:
        last = b.op(name, name, [last], (2, 3), 1e-3, attributes=[(name, name)])
    b.op("non_finite", "div", [last], (2, 3))
    bad = b.ops[-1]["outputs"][0]
    for numbers_ in (bad["value"], bad["gradient"]):
        numbers_.update(dict.fromkeys(("min", "max", "mean", "rms", "l2")), non_finite=6, zeros=0)
        numbers_.pop("histogram", None)
    bad["gradient"]["image"] = {
        "rows": 2,
        "columns": 3,
        "of": [2, 3],
        "slice": "[:, :]",
        "scale": 0,
        "pixels": base64.b64encode(b"\x80" * 6).decode(),
    }
    b.op("huge", "mul", [[len(b.ops) - 1, 0]], (1000, 1000))
    b.ops[-1]["outputs"][0]["gradient"].update(
        l2=1e30, rms=1e27, max=1e30, min=-1e30, zeros=10**6, count=10**6
    )
    b.op("empty", "slice", [[len(b.ops) - 1, 0]], (0, 4), None)
    b.ops[-1]["outputs"][0]["value"] = {
        "min": None,
        "max": None,
        "mean": None,
        "rms": 0,
        "l2": 0,
        "zeros": 0,
        "non_finite": 0,
        "count": 0,
    }
    return {
        **transformer_record(1, 1, attentions=False),
        "title": HOSTILE_NAMES[0],
        "about": [[n, n] for n in HOSTILE_NAMES],
        "formulas": {n: n for n in HOSTILE_NAMES},
        "steps": [b.record_step()],
    }


def broken_records():
    """Name, text of the record, and what the page has to say."""
    good = transformer_record(1, 1, attentions=False)
    ahead = json.loads(json.dumps(good))
    ahead["steps"][0]["ops"][0]["inputs"] = [[7, 0]]
    twice = json.loads(json.dumps(good))
    twice["steps"][0]["ops"][1]["key"] = twice["steps"][0]["ops"][0]["key"]
    return [
        ("nothing", "", "no record"),
        ("an empty object", "{}", "empty"),
        ("no steps", json.dumps({**good, "steps": []}), "empty"),
        (
            "a step without ops",
            json.dumps({**good, "steps": [{"step": 1, "ops": [], "leaves": []}]}),
            "no operations",
        ),
        ("another format", json.dumps({**good, "format": "other-9"}), "other-9"),
        ("half a text", json.dumps(good)[:500], "not JSON"),
        ("an input ahead", json.dumps(ahead), "broken"),
        ("a key twice", json.dumps(twice), "broken"),
    ]


def gradient_rows(record):
    """Rows of gradients.csv: outputs of ops and leaves with a gradient, of the last step."""
    step, figures = record["steps"][-1], ("min", "max", "mean", "rms", "l2", "zeros", "non_finite")
    rows = [("name", "op", "shape", *figures)]
    for entry in [*step["ops"], *step["leaves"]]:
        for o, value in enumerate(entry.get("outputs", [entry])):
            if value["gradient"] is not None:
                rows.append(
                    (
                        entry["key"] + (f"[{o}]" if o else ""),
                        entry.get("op", "leaf"),
                        "x".join(map(str, value["shape"])),
                        *(value["gradient"][f] for f in figures),
                    )
                )
    return rows


def assemble(template, text):
    """inspect.html from the files of the page, as the program does it."""
    for plain, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(plain, escaped)
    folder = Path(template)
    scripts = "".join(p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.js")))
    page = (folder / "page.html").read_text(encoding="utf-8")
    for mark, content in (
        ("/*STYLE*/", (folder / "style.css").read_text(encoding="utf-8")),
        ("/*SCRIPT*/", scripts),
        ("RECORD_JSON", text),
    ):
        before, found, after = page.partition(mark)
        assert found, f"page.html has no {mark}"
        page = before + content + after
    return page
