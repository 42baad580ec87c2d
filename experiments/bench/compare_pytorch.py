#!/usr/bin/env python3
"""Runs `bench` and the same work in PyTorch in turns, and prints one table of both.

    python3 experiments/bench/compare_pytorch.py --bench build/release/bin/bench \
        [--threads 2] [--filter softmax] [--json results.json] [--markdown table.md]

Needs PyTorch (pip install torch, in a virtual environment outside the repository). Every row is
measured as ours, PyTorch, ours, PyTorch, and the better median of each is taken: the machines are
noisy, and what disturbs one measurement rarely disturbs both.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

B, H, D = 16, 8, 64


def median_ms(f, seconds=0.6, least=5):
    start = time.perf_counter()
    f()
    if time.perf_counter() - start < 1:
        f()
    else:
        least = min(least, 2)
    samples = []
    while sum(samples) < seconds * 1e3 or len(samples) < least:
        start = time.perf_counter()
        f()
        samples.append((time.perf_counter() - start) * 1e3)
    return sorted(samples)[len(samples) // 2]


def attention_work(batch, n, causal, backward):
    q, k, v, g = (torch.randn(batch, H, n, D) for _ in range(4))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if not backward:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    for t in (q, k, v):
        t.requires_grad_()

    def run():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.autograd.grad(out, (q, k, v), g)

    return run


class Translator(torch.nn.Module):
    """The model of the training rows: 3+3 layers, post-norm, tied output."""

    def __init__(self, vocabulary=10000, width=256, heads=8, ffn=1024, layers=3):
        super().__init__()
        self.width = width
        self.source = torch.nn.Embedding(vocabulary, width)
        self.target = torch.nn.Embedding(vocabulary, width)
        self.dropout = torch.nn.Dropout(0.1)
        self.register_buffer("positions", torch.randn(1, 64, width))
        self.body = torch.nn.Transformer(width, heads, layers, layers, ffn, 0.1, batch_first=True)

    def embed(self, table, ids):
        return self.dropout(table(ids) * self.width**0.5 + self.positions[:, : ids.shape[1]])

    def forward(self, source, target):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.body(self.embed(self.source, source), self.embed(self.target, target),
                      tgt_mask=mask, tgt_is_causal=True)
        return x @ self.target.weight.t()


def training_work():
    model = Translator()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    source, target, wanted = (torch.randint(4, 10000, (128, 20)) for _ in range(3))

    def run():
        adam.zero_grad(set_to_none=True)
        logits = model(source, target)
        loss = F.cross_entropy(logits.reshape(-1, 10000), wanted.reshape(-1), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return run


def peers():
    """Row name -> function that builds the same work."""
    rows = {}
    big = lambda: torch.randn(4096, 4096)

    def no_grad(make, work):
        def build():
            args = make()

            def run():
                with torch.no_grad():
                    work(*args)

            return run

        return build

    rows["limit/sgemm 1024x1024x1024"] = no_grad(
        lambda: (torch.randn(1024, 1024), torch.randn(1024, 1024)), torch.matmul)
    rows["matmul 2560x1024x256"] = no_grad(
        lambda: (torch.randn(2560, 256), torch.randn(256, 1024)), torch.matmul)
    rows["linear 2560x256 -> 1024"] = no_grad(
        lambda: (torch.randn(2560, 256), torch.randn(1024, 256), torch.randn(1024)), F.linear)
    rows["exp 64 MiB"] = no_grad(lambda: (big(),), torch.exp)
    rows["add 64 MiB"] = no_grad(lambda: (big(),), lambda x: x + x)
    rows["softmax 4096x4096"] = no_grad(lambda: (big(),), lambda x: torch.softmax(x, -1))
    rows["layer_norm 65536x256"] = no_grad(
        lambda: (torch.randn(65536, 256), torch.randn(256), torch.randn(256)),
        lambda x, w, b: F.layer_norm(x, (256,), w, b))
    rows["cross_entropy 1678x10000"] = no_grad(
        lambda: (torch.randn(1678, 10000), torch.arange(1678) * 37 % 10000),
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1))
    for n in (200, 500, 1000, 2000, 4000):
        rows[f"softmax_attention n={n} forward"] = lambda n=n: attention_work(B, n, False, False)
        rows[f"softmax_attention n={n} forward+backward"] = lambda n=n: attention_work(
            B, n, False, True)
    small = "softmax_attention 128x8x20x64 causal"
    rows[f"{small} forward"] = lambda: attention_work(128, 20, True, False)
    rows[f"{small} forward+backward"] = lambda: attention_work(128, 20, True, True)
    rows["training step softmax"] = training_work
    return rows


def run_bench(args, name_filter):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [args.bench, "--threads", str(args.threads), "--json", file.name]
        if name_filter:
            command += ["--filter", name_filter]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.load(open(file.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", required=True, help="the bench program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--filter", default="", help="only rows whose name contains this")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--markdown", help="write the table to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    ours, theirs, first = {}, {}, None
    for _ in range(2):
        result = run_bench(args, args.filter)
        first = first or result
        for row in result["rows"]:
            kept = ours.get(row["name"])
            if kept is None or row["ms"] < kept["ms"]:
                ours[row["name"]] = row
        for name, build in peers().items():
            if args.filter in name:
                ms = median_ms(build())
                theirs[name] = min(ms, theirs.get(name, ms))

    lines = ["| row | macgrad ms | PyTorch ms | PyTorch / macgrad | remark |", "|---|---|---|---|---|"]
    for name, row in ours.items():
        peer = theirs.get(name)
        remark = row["note"]
        if row["against"]:
            remark = f"{row['ratio']:.2f} x the speed of {row['against']}; " + remark
        lines.append("| {} | {:.3f} | {} | {} | {} |".format(
            name, row["ms"], "%.3f" % peer if peer else "",
            "%.2f" % (peer / row["ms"]) if peer else "", remark.rstrip("; ")))
    table = "\n".join(lines)
    print(f"PyTorch {torch.__version__}, {args.threads} threads\n\n{table}")
    if args.markdown:
        open(args.markdown, "w").write(table + "\n")
    if args.json:
        json.dump({"bench": first, "ours": ours, "pytorch_ms": theirs,
                   "pytorch": torch.__version__}, open(args.json, "w"), indent=2)


if __name__ == "__main__":
    main()
