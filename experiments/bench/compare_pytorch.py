#!/usr/bin/env python3
"""Runs `bench` and the same work in PyTorch in turns, and prints one table of both.

    python3 experiments/bench/compare_pytorch.py --bench build/release/bin/bench \
        [--device cuda] [--threads 2] [--filter softmax] [--json results.json] [--markdown table.md]

Needs PyTorch (pip install torch, in a virtual environment outside the repository). Every row is
measured as ours, PyTorch, ours, PyTorch, and the better median of each is taken: the machines are
noisy, and what disturbs one measurement rarely disturbs both. On a GPU exact rows meet PyTorch with
allow_tf32 off, tf32 rows with it on, and both kinds of bf16 rows PyTorch on bfloat16 tensors
(training: autocast). pytorch_peers.py holds what is run.
"""
import argparse
import json
import subprocess
import sys
import tempfile

import torch

from pytorch_peers import PRECISIONS, Clock, peers, set_precision


def wanted(name, name_filter):
    return not name_filter or any(part in name for part in name_filter.split(","))


def run_bench(args):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [args.bench, "--threads", str(args.threads), "--device", args.device,
                   "--time-factor", str(args.time_factor), "--json", file.name]
        if args.filter:
            command += ["--filter", args.filter]
        status = subprocess.run(command, stdout=sys.stderr).returncode
        text = open(file.name).read()
        if not text:
            sys.exit(f"{args.bench} failed ({status}), see above")
        return json.loads(text)


def run_peers(args, clock, ours, theirs):
    """Adds what was measured to theirs: row -> label -> {ms, extra_bytes, error}."""
    for peer in peers(args.device, ours):
        if not wanted(peer.row, args.filter):
            continue
        if peer.label == "torch.compile" and not wanted(peer.row, args.compile):
            continue
        labels = theirs.setdefault(peer.row, {})
        if labels.get(peer.label, {}).get("error"):
            continue
        set_precision(peer.precision)
        try:
            result = clock.measure(peer)
        except Exception as error:  # out of memory, or a compiler that is missing
            result = {"error": "out of memory" if "out of memory" in str(error)
                      else f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        label = result.pop("label", peer.label)
        kept = labels.get(label)
        if kept is None or result.get("ms", 0) < kept.get("ms", 0):
            labels[label] = result
        shown = result.get("error") or "%.3f ms" % result["ms"]
        print(f"PyTorch: {peer.row:<50} {label}: {shown}", file=sys.stderr, flush=True)
    set_precision(PRECISIONS[0])
    clock.release()


def remark_of(row):
    remark = row["note"]
    if row["against"]:
        remark = f"{row['ratio']:.2f} x the speed of {row['against']}; " + remark
    return remark.rstrip("; ")


def cpu_table(ours, theirs):
    lines = ["| row | macgrad ms | PyTorch ms | PyTorch / macgrad | remark |",
             "|---|---|---|---|---|"]
    for name, row in ours.items():
        peer = next(iter(theirs.get(name, {}).values()), {}).get("ms")
        # On the same batches the ratio of times is that of tokens a second.
        lines.append("| {} | {:.3f} | {} | {} | {} |".format(
            name, row["ms"], "%.3f" % peer if peer else "",
            "%.2f" % (peer / row["ms"]) if peer else "", remark_of(row)))
    return lines


def gpu_table(ours, theirs):
    """A line for each peer of a row."""
    lines = ["| row | mode | macgrad ms | peer | peer ms | peer / macgrad | remark |",
             "|---|---|---|---|---|---|---|"]
    for name, row in ours.items():
        remark = remark_of(row)
        # A replayed step does the work of the eager one.
        labels = theirs.get(name) or theirs.get(name.replace(" replayed", "")) or {"": {}}
        for label, peer in labels.items():
            ratio, text = "", ""
            if "ms" in peer:
                text = "%.3f" % peer["ms"]
                ratio = "%.2f" % (peer["ms"] / row["ms"])
            extra = row.get("extra_bytes")
            memory = ""
            if extra is not None and "extra_bytes" in peer:
                memory = "extra memory {:.1f} MiB against {:.1f} MiB".format(
                    peer["extra_bytes"] / 2**20, extra / 2**20)
                if extra > 0:
                    memory += " ({:.1f} x)".format(peer["extra_bytes"] / extra)
            lines.append("| {} | {} | {:.3f} | {} | {} | {} | {} |".format(
                name, row["precision"], row["ms"], label, text or peer.get("error", ""), ratio,
                "; ".join(part for part in (memory, remark) if part)))
            remark = ""
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", required=True, help="the bench program")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2, help="turns of each side")
    parser.add_argument("--filter", default="",
                        help="only rows whose name contains this, or one of several between commas")
    parser.add_argument("--compile", default="",
                        help="torch.compile only in rows whose name contains this ('none': nowhere); "
                             "compiling takes up to a minute for each row")
    parser.add_argument("--time-factor", type=float, default=1,
                        help="multiplies the time for which each row is measured")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--markdown", help="write the table to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = Clock(args.device, args.time_factor)

    ours, theirs, first = {}, {}, None
    text = ""
    for _ in range(args.passes):
        result = run_bench(args)
        first = first or result
        for row in result.get("rows", []):
            kept = ours.get(row["name"])
            if kept is None or row["ms"] < kept["ms"]:
                ours[row["name"]] = row
        run_peers(args, clock, ours, theirs)
        # After every pass, so that a run cut short leaves what it has.
        lines = cpu_table(ours, theirs) if args.device == "cpu" else gpu_table(ours, theirs)
        where = f"{args.threads} threads" if args.device == "cpu" else torch.cuda.get_device_name()
        text = f"PyTorch {torch.__version__}, {where}\n\n" + "\n".join(lines)
        if args.markdown:
            open(args.markdown, "w").write("\n".join(lines) + "\n")
        if args.json:
            json.dump({"bench": first, "ours": ours, "peers": theirs,
                       "pytorch": torch.__version__, "where": where},
                      open(args.json, "w"), indent=2)
    print(text)
    for name in theirs:
        if name not in ours:
            print(f"the bench gave no row '{name}'", file=sys.stderr)
    failures = first.get("failures", []) if first else []
    for failure in failures:
        print(f"failed in the bench: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
