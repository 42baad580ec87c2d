"""What several checks of the page share."""

import math

MOST_BYTES = 15e6
MOST_READY_MS = 3000  # until a page is usable


class Refused(Exception):
    """The program does not write a page of this record."""


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def expect_quiet(browser):
    complaints = browser.complaints()
    expect(not complaints, "; ".join(complaints)[:500])


def number(text):
    """A number of the page or of the table; None for what is not finite."""
    try:
        x = float(text)
    except (TypeError, ValueError):
        return None
    return x if math.isfinite(x) else None


def same(a, b):
    return a == b or (
        a is not None and b is not None and math.isclose(a, b, rel_tol=2e-6, abs_tol=1e-300)
    )


def loads(browser, page):
    size = page.stat().st_size
    expect(size < MOST_BYTES, f"{size / 1e6:.1f} MB")
    expect(
        browser.open(page) == "yes",
        "not usable: " + browser.js("return document.getElementById('problem').textContent"),
    )
    ready = float(browser.js("return document.documentElement.dataset.readyMs"))
    expect(ready < MOST_READY_MS, f"ready after {ready:.0f} ms")
    expect_quiet(browser)
    return f"{size / 1e6:.2f} MB, ready after {ready:.0f} ms"


def shown_figures(browser, name, figures):
    """Selects by name; figures of the gradient as the panel shows them."""
    found = browser.js("return macgradPage.select(arguments[0])", name)
    expect(found, f"no entry {name}")
    output = int(name[name.rindex("[") + 1 : -1]) if name.endswith("]") and "[" in name else 0
    script = """
      const [output, figures] = arguments, panel = document.getElementById("details");
      const cell = (f) => `[data-of=gradient][data-figure=${f}][data-output="${output}"]`;
      return {
        key: panel.dataset.key,
        values: figures.map((f) => panel.querySelector(cell(f))?.dataset.value),
      };"""
    return browser.js(script, output, figures)
