"""Checks of the page of made-up records: large, hostile and broken ones."""

import made_up_records as made_up
from expectations import Refused, expect, expect_quiet, loads, number, shown_figures

MOST_FRAME_MS = 2000  # of any handler or frame on 5,000 ops: generous, for busy machines


def large(browser, page):
    loads(browser, page)
    longest = browser.driver.execute_async_script("""
      const done = arguments[0], times = {};
      const time = (name, action) => {
        const start = performance.now();
        action();
        macgradPage.draw();
        times[name] = Math.max(times[name] ?? 0, performance.now() - start);
      };
      const set = (id, value, event) => {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event(event));
      };
      macgradPage.forgetFrames();
      time("expand all", () => macgradPage.expandAll());
      for (let i = 0; i < 20; ++i) time("pan", () => macgradPage.pan(17, -9));
      time("select", () => macgradPage.select(macgradPage.boxes()[0].key));
      for (const colour of ["ratio", "rms", "time", "memory", "gradient"])
        time("colour", () => set("colour-by", colour, "change"));
      for (let i = 0; i < 10; ++i) time("pan near", () => macgradPage.pan(200, 30));
      time("search", () => set("search", "mul", "input"));
      time("collapse all", () => document.getElementById("collapse-all").click());
      requestAnimationFrame(() => requestAnimationFrame(() => done(times)));""")
    for name, ms in longest.items():
        expect(ms < MOST_FRAME_MS, f"{name} takes {ms:.0f} ms")
    expect_quiet(browser)
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in longest.items())


def hostile(browser, page):
    loads(browser, page)
    browser.js("macgradPage.expandAll()")
    browser.frame()
    expect(
        browser.js("return document.querySelectorAll('img, b, iframe, object, embed, link').length")
        == 0,
        "a name became an element",
    )
    expect(browser.js("return document.scripts.length") == 2, "a name became a script")
    for name in made_up.HOSTILE_NAMES:
        key = f"{name}/{name}"
        expect(
            browser.js("return macgradPage.select(arguments[0])", key), f"no entry {name[:40]!r}"
        )
        browser.frame()
        expect(
            browser.js("return document.getElementById('selected-name').textContent") == key,
            f"{name[:40]!r} is shown as something else",
        )
        expect(
            browser.js("return document.getElementById('formula').textContent") == name,
            f"formula of {name[:40]!r}",
        )
    expect(
        browser.js("return document.getElementById('title').textContent")
        == made_up.HOSTILE_NAMES[0],
        "title",
    )
    expect(
        "non_finite/div" in browser.driver.find_element("id", "non-finite").text,
        "the first non-finite op is not named",
    )
    shown = shown_figures(browser, "non_finite/div", ["l2", "non_finite"])["values"]
    expect(number(shown[0]) is None and shown[1] == "6", f"non-finite gradient shows {shown}")
    shown = shown_figures(browser, "huge/mul", ["l2", "zeros", "count"])["values"]
    expect([number(x) for x in shown] == [1e30, 1e6, 1e6], f"huge gradient shows {shown}")
    expect(browser.js("return macgradPage.select('empty/slice')"), "no empty tensor")
    for colour in ("ratio", "rms", "time", "memory"):
        browser.choose("colour-by", colour)
        browser.js("macgradPage.draw()")
    browser.js("document.getElementById('about-button').click()")
    expect(browser.js("return document.getElementById('about').open"), "no panel about the run")
    width = browser.js("return document.documentElement.scrollWidth")
    expect(width <= 1400, f"a long name makes the page {width} pixels wide")
    expect_quiet(browser)
    return f"{len(made_up.HOSTILE_NAMES)} names"


def broken(browser, pages, text, word):
    try:
        page = pages.write("broken", text)
    except Refused as error:
        return "refused by the program: " + str(error)[-120:]
    ready = browser.open(page)
    problem = browser.js(
        "const p = document.getElementById('problem'); return p.hidden ? '' : p.textContent"
    )
    expect(ready == "no" and word in problem, f"ready is {ready}, the page says {problem!r}")
    expect_quiet(browser)
    return problem[:90]
