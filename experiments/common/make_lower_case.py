"""Makes lower_case.inc from Python's str.lower, so that --lowercase is sacreBLEU's.

    python3 experiments/common/make_lower_case.py > experiments/common/lower_case.inc
"""
import unicodedata

SIGMA, FINAL = "\u03a3", "\u03c2"
POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def mappings():
    """(first, last, step, delta): every step-th code point from first to last moves by delta."""
    rows = []
    for c in POINTS:
        low = c.lower()
        if low == c or len(low) != 1 or c == SIGMA:
            continue
        at, delta = ord(c), ord(low) - ord(c)
        if rows and rows[-1][3] == delta:
            first, last, step, _ = rows[-1]
            gap = at - last
            if gap <= 2 and (first == last or gap == step):
                rows[-1] = (first, at, gap, delta)
                continue
        rows.append((at, at, 1, delta))
    return rows


def ranges(member):
    rows = []
    for at in (ord(c) for c in POINTS if member(c)):
        if rows and rows[-1][1] == at - 1:
            rows[-1][1] = at
        else:
            rows.append([at, at])
    return rows


def table(kind, name, rows, text):
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        item = " " + text(row) + ","
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")


def main():
    longer = [c for c in POINTS if len(c.lower()) > 1]
    assert longer == ["\u0130"], longer  # stands in lower_case.cpp
    # What a final sigma looks at: letters with case, and what it looks past.
    def cased(c):
        return ("." + c + SIGMA).lower().endswith(FINAL)

    def ignorable(c):
        return not cased(c) and ("A" + c + SIGMA).lower().endswith(FINAL)

    print(f"// By make_lower_case.py: lower case in Unicode {unicodedata.unidata_version}.")
    table("Mapping", "kMappings", mappings(), lambda r: "{0x%X, 0x%X, %d, %d}" % r)
    table("Range", "kCased", ranges(cased), lambda r: "{0x%X, 0x%X}" % tuple(r))
    table("Range", "kIgnorable", ranges(ignorable), lambda r: "{0x%X, 0x%X}" % tuple(r))


main()
