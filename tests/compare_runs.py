#!/usr/bin/env python3
"""Compares 20 updates of `multi30k --toy` by two builds of the program, bit for bit.

Usage: tests/compare_runs.py OLD_MULTI30K NEW_MULTI30K

Both run softmax attention, RMFA with ppSBN and exact attention with ppSBN on one thread, in the
paper's form. Losses, the parameters and buffers of the model and its translations must be equal; the
exit code is 1 where they are not. It is meant for changes that must not change results.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

PAPER = ["--ppsbn", "--presbn", "auto", "--logit-scale", "1"]
RUNS = {
    "softmax": ["--attention", "softmax"],
    "rmfa": ["--attention", "rmfa", "--draws", "iid", *PAPER],
    "exact": ["--attention", "exact", *PAPER],
}


def tensors(path):
    """Bytes of every tensor of a safetensors file."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    header.pop("__metadata__", None)
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def run(program, options, folder):
    command = [program, "--toy", "--epochs", "1", "--max-updates", "20", "--threads", "1",
               "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    with open(os.path.join(folder, "metrics.csv"), encoding="utf-8") as file:
        names, values = (line.strip().split(",") for line in file)
    losses = {name: value for name, value in zip(names, values) if name.endswith("_loss")}
    with open(os.path.join(folder, "translations-val.txt"), encoding="utf-8") as file:
        return losses, tensors(os.path.join(folder, "best.safetensors")), file.read()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    different = False
    for name, options in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            (old_loss, old, old_text), (new_loss, new, new_text) = (
                run(program, options, os.path.join(folder, f"{i}"))
                for i, program in enumerate(sys.argv[1:]))
        wrong = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        same = old_loss == new_loss and not wrong and old_text == new_text
        different |= not same
        print(f"{name}: {'same bits' if same else 'DIFFERENT'}, {len(new)} tensors, {new_loss}")
        if wrong:
            print(f"  {len(wrong)} tensors differ, for instance {', '.join(wrong[:3])}")
        if old_loss != new_loss:
            print(f"  losses before: {old_loss}")
    sys.exit(int(different))


if __name__ == "__main__":
    main()
