#!/usr/bin/env python3
"""Checks the page of inspect in headless Chromium, without a network.

    check_page.py PAGE_PROGRAM [FOLDER]   `PAGE_PROGRAM page graph.json --out DIR` writes a page
    check_page.py --template PAGE_FOLDER  assembles pages here, from experiments/inspect/page

FOLDER is one that a real run wrote (inspect.html, graph.json, gradients.csv); without it a made-up
run is checked. A line a check; exit code 0, 1, or 77 with a reason when there is no browser.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import made_up_records as made_up
from browser import Browser  # first of all: it ends the program where there is no selenium
from expectations import Refused, loads
import record_checks
import run_checks


class Pages:
    """Writes pages of records, by the program or from the template."""

    def __init__(self, arguments, folder):
        self.program, self.template, self.folder = (
            arguments.program,
            arguments.template,
            Path(folder),
        )

    def write(self, name, text):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if self.template:
            (folder / "inspect.html").write_text(
                made_up.assemble(self.template, text), encoding="utf-8"
            )
            return folder / "inspect.html"
        (folder / "graph.json").write_text(text, encoding="utf-8")
        command = [
            *shlex.split(self.program),
            "page",
            str(folder / "graph.json"),
            "--out",
            str(folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise Refused(f"{shlex.join(command)}: {done.stderr.strip()[-400:]}")
        return folder / "inspect.html"


class Checks:
    def __init__(self):
        self.failed = 0

    def run(self, name, check, *arguments):
        start = time.monotonic()
        try:
            note = check(*arguments)
            print(
                f"ok    {name}"
                + (f": {note}" if note else "")
                + f" ({time.monotonic() - start:.1f} s)",
                flush=True,
            )
        except Exception as error:  # a check that breaks has failed, and the others still run
            self.failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {str(error).strip()[:700]}", flush=True)


def run_of(arguments, pages):
    """Page, record and rows of gradients.csv of a real run, or of a made-up one."""
    if arguments.folder:
        run = Path(arguments.folder)
        with open(run / "gradients.csv", encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        record = json.loads((run / "graph.json").read_text(encoding="utf-8"))
        return run / "inspect.html", record, rows
    record = made_up.transformer_record()
    head, *lines = made_up.gradient_rows(record)
    return pages.write("run", json.dumps(record)), record, [dict(zip(head, l)) for l in lines]


def screenshot(browser, page, name, path):
    browser.open(page)
    browser.js("macgradPage.select(arguments[0])", name)
    browser.frame()
    time.sleep(0.2)
    browser.driver.save_screenshot(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", help="the command that has `page`")
    parser.add_argument("folder", nargs="?", help="what a real run wrote")
    parser.add_argument(
        "--template", help="the folder experiments/inspect/page, instead of a program"
    )
    parser.add_argument(
        "--screenshot", metavar="FILE", help="saves a picture of the page with a selection"
    )
    arguments = parser.parse_args()
    if bool(arguments.program) == bool(arguments.template):
        parser.error("either PAGE_PROGRAM or --template")
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="inspect_page_") as folder, Browser() as browser:
        # Chromium's window is smaller than asked for by its frame: this sets the page itself.
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        pages = Pages(arguments, folder)
        page, record, rows = run_of(arguments, pages)
        name = run_checks.op_with_gradient(rows)
        checks.run("loads", loads, browser, page)
        checks.run("search", run_checks.search_selects, browser, name)
        checks.run("click", run_checks.click_shows_histogram, browser, name)
        checks.run("figures equal gradients.csv", run_checks.equals_table, browser, rows)
        checks.run("steps", run_checks.steps_slider, browser, record)
        checks.run("attention tab", run_checks.attention_tab, browser, record)
        checks.run("keyboard alone", run_checks.keyboard_alone, browser, page)
        checks.run("light and dark", run_checks.light_and_dark, browser, page)
        if arguments.folder:
            again = (Path(arguments.folder) / "graph.json").read_text(encoding="utf-8")
            checks.run("written again", lambda: loads(browser, pages.write("again", again)))
        for what, check, made in (
            ("5,000 ops", record_checks.large, made_up.large_record),
            ("hostile names and numbers", record_checks.hostile, made_up.hostile_record),
        ):
            checks.run(what, lambda: check(browser, pages.write("made_up", json.dumps(made()))))
        for what, text, word in made_up.broken_records():
            checks.run("broken record, " + what, record_checks.broken, browser, pages, text, word)
        if arguments.screenshot:
            screenshot(browser, page, name, arguments.screenshot)
    print("all checks passed" if checks.failed == 0 else f"{checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
