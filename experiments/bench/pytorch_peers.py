"""What compare_pytorch.py runs in PyTorch: for each row of `bench`, under the same name, the work
at the same sizes. Sizes stand in place.h and place.cpp; a name that no row has is reported.
"""
import contextlib
import math
import time
from collections import namedtuple

import torch
import torch.nn.functional as F

from pytorch_translation import translation_work

# build(device) gives the work, a callable that returns its results; or (work, label) where the
# label is known only then. memory: its peak is measured beside its operands and results.
Peer = namedtuple("Peer", "row label precision build memory")

PRECISIONS = ("exact", "tf32", "bf16", "bf16 storage")
B, H, D, FEATURES = 16, 8, 64, 128


def row_name(name, precision):
    return name if precision == "exact" else f"{name} {precision}"


def set_precision(precision):
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def dtype_of(precision):
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


class Clock:
    """Medians of samples that end when the device has finished."""

    def __init__(self, device, time_factor=1):
        self.device = device
        self.seconds = time_factor * (0.3 if device == "cuda" else 0.6)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def sample_ms(self, f, runs=1):
        start = time.perf_counter()
        for _ in range(runs):
            f()
        self.wait()
        return (time.perf_counter() - start) * 1e3 / runs

    def median_ms(self, f, least=5):
        self.wait()
        runs = 1
        if self.sample_ms(f) < 1e3:
            once = self.sample_ms(f)
            # A wait costs some microseconds: samples of at least a millisecond.
            if self.device == "cuda" and once < 1:
                runs = min(1000, int(1 / self.sample_ms(f, 10)) + 1)
        else:
            least = min(least, 2)
        samples, spent = [], 0.0
        while spent < self.seconds * 1e3 or len(samples) < least:
            samples.append(self.sample_ms(f, runs))
            spent += samples[-1] * runs
        return sorted(samples)[len(samples) // 2]

    def extra_bytes(self, f):
        f()  # what libraries allocate once
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = f()
        self.wait()
        results = results if isinstance(results, (tuple, list)) else (results,)
        held = sum(t.numel() * t.element_size() for t in results)
        return torch.cuda.max_memory_allocated() - before - held

    def measure(self, peer):
        self.release()
        built = peer.build(self.device)
        work, label = built if isinstance(built, tuple) else (built, peer.label)
        result = {"label": label}
        if peer.memory and self.device == "cuda":
            result["extra_bytes"] = self.extra_bytes(work)
        result["ms"] = self.median_ms(work)
        return result

    def release(self):
        """Gives memory back, which the other side's program may need."""
        if self.device == "cuda":
            torch.cuda.empty_cache()


def no_grad(make, work):
    def build(device):
        with torch.device(device):
            args = make()

        def run():
            with torch.no_grad():
                return work(*args)

        return run

    return build


def sdpa_label(q, k, v, causal):
    """The backend that scaled_dot_product_attention chooses for these operands."""
    if q.device.type == "cpu":
        return "PyTorch"
    try:
        choice = int(torch._fused_sdp_choice(q, k, v, None, 0.0, causal))
        names = {int(member): name for name, member in
                 torch.nn.attention.SDPBackend.__members__.items()}
        return f"PyTorch attention ({names[choice]})"
    except Exception:  # an internal function; without it the backend stays unnamed
        return "PyTorch attention"


def attention_inputs(device, dtype, batch, n):
    q, k, v, g = (torch.randn(batch, H, n, D, device=device) for _ in range(4))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return [t.to(dtype) for t in (q, k, v, g)]


def attention_work(f, label, batch, n, backward, precision):
    """f(q, k, v) forward, or forward and backward; label(q, k, v) names it."""

    def build(device):
        q, k, v, g = attention_inputs(device, dtype_of(precision), batch, n)
        if not backward:
            def run():
                with torch.no_grad():
                    return f(q, k, v)

            return run, label(q, k, v)
        for t in (q, k, v):
            t.requires_grad_()
        return lambda: torch.autograd.grad(f(q, k, v), (q, k, v), g), label(q, k, v)

    return build


class MaclaurinFeatures:
    """phi of the exponential kernel as the paper's authors published it: the constant as one
    feature, D - 1 random ones with degrees from P[N = k] ~ 2^-k, k = 1..20, all held in memory."""

    def __init__(self, device, dtype):
        generator = torch.Generator().manual_seed(1)
        law = torch.tensor([2.0**-k for k in range(1, 21)])
        law /= law.sum()
        degrees = torch.multinomial(law, FEATURES - 1, replacement=True, generator=generator) + 1
        self.groups = []
        for k in sorted(set(degrees.tolist())):
            count = int((degrees == k).sum())
            signs = torch.randint(0, 2, (k, D, count), generator=generator) * 2.0 - 1
            weight = math.sqrt(1 / math.factorial(k) / float(law[k - 1]) / (FEATURES - 1))
            self.groups.append((signs.to(device, dtype), weight))

    def __call__(self, x):
        x = x * D**-0.25
        parts = [torch.ones_like(x[..., :1])]
        for signs, weight in self.groups:
            product = x @ signs[0]
            for factor in signs[1:]:
                product = product * (x @ factor)
            parts.append(product * weight)
        return torch.cat(parts, -1)


def published_rmfa(features):
    """The published form, always causal: cumulative sums of n outer products, D x d each."""

    def f(q, k, v):
        phi_q, phi_k = features(q), features(k)
        state = (phi_k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2)
        numerator = torch.einsum("bhnD,bhnDd->bhnd", phi_q, state)
        denominator = (phi_q * phi_k.cumsum(2)).sum(-1, keepdim=True).clamp_min(1.0)
        return numerator / denominator

    return f


def linear_rmfa(features):
    """Without a mask two products suffice; the features still lie in memory."""

    def f(q, k, v):
        phi_q, phi_k = features(q), features(k)
        numerator = phi_q @ (phi_k.transpose(-1, -2) @ v)
        return numerator / (phi_q @ phi_k.sum(-2, keepdim=True).transpose(-1, -2))

    return f


def attention_peers(device):
    lengths = [(n, False) for n in (200, 500, 1000, 2000, 4000)]
    if device == "cuda":
        lengths += [(8000, False), (16000, False), (1000, True), (4000, True)]
    for precision in PRECISIONS if device == "cuda" else PRECISIONS[:1]:
        def rows(name, label, f, batch, n, memory=False):
            for backward, part in ((False, "forward"), (True, "forward+backward")):
                named = label if callable(label) else lambda q, k, v: label
                yield Peer(row_name(f"{name} {part}", precision), label if isinstance(label, str)
                           else "PyTorch attention", precision,
                           attention_work(f, named, batch, n, backward, precision), memory)

        def sdpa(causal):
            return (lambda q, k, v: sdpa_label(q, k, v, causal),
                    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal))

        for n, causal in lengths:
            kind = " causal" if causal else ""
            label, f = sdpa(causal)
            yield from rows(f"softmax_attention{kind} n={n}", label, f, B, n)
            if device == "cuda":
                name = f"rmfa{kind} D={FEATURES} n={n}"
                features = MaclaurinFeatures(device, dtype_of(precision))
                yield from rows(name, label, f, B, n)
                yield from rows(name, "RMFA as published (cumulative sums)",
                                published_rmfa(features), B, n, memory=True)
                if not causal:
                    yield from rows(name, "RMFA, features in memory", linear_rmfa(features), B, n,
                                    memory=True)
        label, f = sdpa(True)
        yield from rows(f"softmax_attention 128x{H}x20x{D} causal", label, f, 128, 20)


class Translator(torch.nn.Module):
    """The model of the training rows: post-norm, tied output."""

    def __init__(self, layers, width, ffn, heads, length, vocabulary=10000):
        super().__init__()
        self.width = width
        self.source = torch.nn.Embedding(vocabulary, width)
        self.target = torch.nn.Embedding(vocabulary, width)
        self.dropout = torch.nn.Dropout(0.1)
        self.register_buffer("positions", torch.randn(1, length, width))
        self.register_buffer("mask",
                             torch.nn.Transformer.generate_square_subsequent_mask(length))
        self.body = torch.nn.Transformer(width, heads, layers, layers, ffn, 0.1, batch_first=True)

    def embed(self, table, ids):
        return self.dropout(table(ids) * self.width**0.5 + self.positions)

    def forward(self, source, target):
        x = self.body(self.embed(self.source, source), self.embed(self.target, target),
                      tgt_mask=self.mask, tgt_is_causal=True)
        return x @ self.target.weight.t()


def training_work(layers, width, ffn, heads, length, precision="exact", compiled=False):
    def build(device):
        model = Translator(layers, width, ffn, heads, length).to(device)
        adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0,
                                 fused=device == "cuda")
        source, target, wanted = (torch.randint(4, 10000, (128, length), device=device)
                                  for _ in range(3))
        if compiled:
            torch._dynamo.reset()  # every row is compiled afresh; none counts as a recompilation
        forward = torch.compile(model) if compiled else model

        def run():
            adam.zero_grad(set_to_none=True)
            cast = (torch.autocast(device, torch.bfloat16) if precision.startswith("bf16")
                    else contextlib.nullcontext())
            with cast:
                logits = forward(source, target)
                loss = F.cross_entropy(logits.reshape(-1, 10000), wanted.reshape(-1),
                                       label_smoothing=0.1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()

        return run

    return build


def training_peers(device):
    if device == "cpu":
        yield Peer("training step softmax", "PyTorch", "exact", training_work(3, 256, 1024, 8, 20),
                   False)
        return
    for precision in PRECISIONS:
        for name, sizes in (("tiny", (4, 128, 256, 4, 64)), ("base", (6, 512, 2048, 8, 64))):
            row = row_name(f"training step {name} softmax", precision)
            yield Peer(row, "PyTorch eager", precision, training_work(*sizes, precision), False)
            yield Peer(row, "torch.compile", precision,
                       training_work(*sizes, precision, compiled=True), False)


def product_peers(device):
    if device == "cpu":
        yield Peer("limit/sgemm 1024x1024x1024", "PyTorch", "exact", no_grad(
            lambda: (torch.randn(1024, 1024), torch.randn(1024, 1024)), torch.matmul), False)
        products, linear = [(2560, 1024, 256)], (2560, 256, 1024)
    else:
        products = [(4096, 4096, 4096), (8192, 128, 128), (8192, 256, 128), (8192, 512, 512),
                    (8192, 2048, 512), (8192, 10000, 512)]
        linear = (8192, 512, 2048)
    for precision in PRECISIONS if device == "cuda" else PRECISIONS[:1]:
        dtype = dtype_of(precision)

        def randn(*shape, dtype=dtype):
            return torch.randn(*shape).to(dtype)

        for m, n, k in products:
            yield Peer(row_name(f"matmul {m}x{n}x{k}", precision), "PyTorch", precision, no_grad(
                lambda m=m, n=n, k=k, randn=randn: (randn(m, k), randn(k, n)), torch.matmul), False)
        rows, inputs, outputs = linear
        yield Peer(row_name(f"linear {rows}x{inputs} -> {outputs}", precision), "PyTorch",
                   precision, no_grad(lambda randn=randn: (
                       randn(rows, inputs), randn(outputs, inputs), randn(outputs)), F.linear),
                   False)


def row_peers(device):
    gpu = device == "cuda"
    size = "512 MiB" if gpu else "64 MiB"
    rows, columns = (32768, 4096) if gpu else (4096, 4096)
    norm_rows, norm_columns = (262144, 512) if gpu else (65536, 256)
    loss_rows, vocabulary = (13422, 10000) if gpu else (1678, 10000)

    def big():
        return torch.randn(rows, columns)

    def norm():
        return torch.randn(norm_rows, norm_columns)

    def targets():
        return torch.arange(loss_rows) * 37 % vocabulary

    def peer(name, make, work):
        return Peer(name, "PyTorch", "exact", no_grad(make, work), False)

    yield peer(f"exp {size}", lambda: (big(),), torch.exp)
    yield peer(f"add {size}", lambda: (big(),), lambda x: x + x)
    yield peer(f"softmax {rows}x{columns}", lambda: (big(),), lambda x: torch.softmax(x, -1))
    yield peer(f"layer_norm {norm_rows}x{norm_columns}",
               lambda: (norm(), torch.randn(norm_columns), torch.randn(norm_columns)),
               lambda x, w, b: F.layer_norm(x, (norm_columns,), w, b))
    yield peer(f"cross_entropy {loss_rows}x{vocabulary}",
               lambda: (torch.randn(loss_rows, vocabulary), targets()),
               lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1))
    if not gpu:
        return
    yield peer("limit/copy 1 GiB", lambda: (torch.empty(1 << 28), torch.empty(1 << 28)),
               lambda x, y: y.copy_(x))
    yield peer(f"dropout {size}", lambda: (big(),), lambda x: F.dropout(x, 0.1, True))
    yield peer(f"softmax_backward {rows}x{columns}", lambda: (big(), big()),
               lambda g, y: torch.ops.aten._softmax_backward_data(g, y, -1, torch.float32))

    def norm_backward(x, g, w, b):
        mean, rstd = x[:, :1].contiguous(), x[:, 1:2].contiguous()
        return lambda: torch.ops.aten.native_layer_norm_backward(
            g, x, [norm_columns], mean, rstd, w, b, [True, True, True])

    yield peer(f"layer_norm_backward {norm_rows}x{norm_columns}",
               lambda: (norm_backward(norm(), norm(), torch.randn(norm_columns),
                                      torch.randn(norm_columns)),), lambda f: f())

    def cross_entropy_backward(device):
        x = torch.randn(loss_rows, vocabulary, device=device, requires_grad=True)
        loss = F.cross_entropy(x, targets().to(device), label_smoothing=0.1)
        return lambda: torch.autograd.grad(loss, x, retain_graph=True)

    yield Peer(f"cross_entropy_backward {loss_rows}x{vocabulary}", "PyTorch", "exact",
               cross_entropy_backward, False)

    def adam(device):
        x = torch.nn.Parameter(torch.randn(rows, columns, device=device))
        x.grad = torch.randn_like(x)
        return torch.optim.AdamW([x], lr=1e-3, fused=True).step

    yield Peer(f"adam {size}", "PyTorch", "exact", adam, False)


def translation_peers(rows):
    """Rows that say what batches they trained on."""
    for name, row in rows.items():
        if "batches" in row:
            yield Peer(name, "PyTorch, fused Adam", "exact", translation_work(row["batches"]),
                       False)


def peers(device, rows):
    """rows: what the bench measured, by name."""
    yield from product_peers(device)
    yield from row_peers(device)
    yield from attention_peers(device)
    yield from training_peers(device)
    yield from translation_peers(rows)
