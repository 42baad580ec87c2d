#!/usr/bin/env python3
"""Compares `multi30k score` with sacreBLEU on random hard texts, to 1e-9, corpus and sentences.

    python3 tests/compare_sacrebleu.py --multi30k build/release/bin/multi30k [--rounds 20]

Needs `pip install sacrebleu` (a virtual environment outside the repository). Exits with 1 and the
sentence when a score differs.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parent / "fixtures"))
sys.dont_write_bytecode = True

from make_bleu import hard_corpus  # noqa: E402
from sacrebleu.metrics import BLEU, CHRF  # noqa: E402

warnings.simplefilter("ignore")
METRICS = {"BLEU": lambda tokenize, **o: (BLEU(tokenize=tokenize, **o),
                                          BLEU(tokenize=tokenize, effective_order=True, **o)),
           "chrF2": lambda tokenize, **o: (CHRF(**o),) * 2,
           "chrF2++": lambda tokenize, **o: (CHRF(word_order=2, **o),) * 2}


def write(folder, name, lines):
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--multi30k", required=True, help="the program")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lines", type=int, default=100)
    args = parser.parse_args()
    worst, compared = 0.0, 0
    for seed in range(args.rounds):
        count = 1 + seed % 4
        hypotheses, references = hard_corpus(1000 + seed, args.lines, count)
        # A byte order mark at the very start belongs to the file for one side, to the text for the
        # other.
        hypotheses.insert(0, "x")
        for stream in references:
            stream.insert(0, "x")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            command = [args.multi30k, "score", "--json", "--sentences", "--metrics",
                       "bleu,chrf,chrf++", "--hypotheses", write(folder, "h", hypotheses),
                       "--references"]
            command += [write(folder, f"r{i}", r) for i, r in enumerate(references)]
            for tokenize in ("none", "13a"):
                for lowercase in (False, True):
                    options = ["--tokenize", tokenize] + ["--lowercase"] * lowercase
                    ours = json.loads(subprocess.run(command + options, check=True,
                                                     stdout=subprocess.PIPE).stdout)
                    for score in ours["scores"]:
                        corpus, sentence = METRICS[score["name"]](tokenize, lowercase=lowercase)
                        pairs = [("corpus", score["score"],
                                  corpus.corpus_score(hypotheses, references).score)]
                        for i, value in enumerate(score["sentences"]):
                            own = [r[i] for r in references]
                            pairs.append(((hypotheses[i], own), value,
                                          sentence.sentence_score(hypotheses[i], own).score))
                        for what, value, wanted in pairs:
                            worst = max(worst, abs(value - wanted))
                            compared += 1
                            if abs(value - wanted) > 1e-9:
                                sys.exit(f"{score['name']} {tokenize} lowercase {lowercase}: "
                                         f"{value}, sacreBLEU {wanted}: {what!r}")
    print(f"{compared} scores agree, the largest difference is {worst:.1e}")


if __name__ == "__main__":
    main()
