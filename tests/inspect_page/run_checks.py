"""Checks of the page of a run: names, figures, keys, steps, attention, themes."""

import json

from expectations import expect, expect_quiet, number, same, shown_figures
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SAMPLE = 50  # entries of gradients.csv that are looked up


def equals_table(browser, rows):
    figures = ["min", "max", "mean", "rms", "l2", "zeros", "non_finite"]
    sample = [rows[i * len(rows) // SAMPLE] for i in range(SAMPLE)] if len(rows) > SAMPLE else rows
    for row in sample:
        shown = shown_figures(browser, row["name"], figures)
        expect(
            row["name"] in (shown["key"], shown["key"] + row["name"][len(shown["key"]) :]),
            f"{row['name']} shows {shown['key']}",
        )
        for figure, text in zip(figures, shown["values"]):
            expect(
                text is not None and same(number(text), number(row[figure])),
                f"{row['name']} {figure}: page {text}, table {row[figure]}",
            )
    return f"{len(sample)} of {len(rows)} entries, {len(figures)} figures each"


def op_with_gradient(rows):
    return next(
        r["name"]
        for r in rows[len(rows) // 3 :]
        if r["op"] != "leaf" and not r["name"].endswith("]")
    )


def search_selects(browser, name):
    search = browser.driver.find_element(By.ID, "search")
    browser.js("document.getElementById('search').value = ''")
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("/")
    search.send_keys(name)
    browser.wait("document.querySelectorAll('#search-results [role=option]').length > 0")
    first = browser.js("return document.querySelector('#search-results [role=option]').dataset.key")
    expect(first == name, f"first result {first}")
    search.send_keys(Keys.ENTER)
    browser.frame()
    expect(
        browser.js("return macgradPage.selection") == name,
        "Enter selected " + str(browser.js("return macgradPage.selection")),
    )
    expect(
        name in browser.js("return decodeURIComponent(location.hash)"),
        "the address does not name it",
    )
    expect(
        any(b["key"] == name for b in browser.js("return macgradPage.boxes()")),
        "its box is not on the screen",
    )
    expect_quiet(browser)


def click_shows_histogram(browser, name):
    """A click of the mouse on the box of an op that is on the screen."""
    browser.js("macgradPage.select(arguments[0])", name)
    browser.frame()
    box = next(b for b in browser.js("return macgradPage.boxes()") if b["key"] == name)
    browser.js(
        "document.getElementById('details').replaceChildren()"
    )  # the click has to fill it again
    mouse = ActionChains(browser.driver)
    mouse.w3c_actions.pointer_action.move_to_location(
        int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
    )
    mouse.w3c_actions.pointer_action.click()
    mouse.perform()
    browser.wait("document.querySelector('#details [data-of=gradient] .histogram') !== null")
    expect(
        browser.js("return document.getElementById('details').dataset.key") == name,
        "another entry is shown",
    )
    bars = browser.js("""
      const bars = document.querySelectorAll("#details [data-of=gradient] .histogram rect");
      return [...bars].map((bar) => Number(bar.dataset.count));""")
    expect(len(bars) == 32 and sum(bars) > 0, f"{len(bars)} bars with {sum(bars)}")
    expect_quiet(browser)
    return name


def keyboard_alone(browser, page):
    browser.open(page)
    keys = lambda *k: ActionChains(browser.driver).send_keys(*k).perform()
    active = lambda: browser.js("return document.activeElement.id")
    seen = set()
    for _ in range(60):
        keys(Keys.TAB)
        seen.add(active())
        if active() == "tree":
            break
    expect({"tab-graph", "search", "tree"} <= seen, f"Tab reaches {sorted(seen)}")
    outline = browser.js("""
      const style = getComputedStyle(document.activeElement);
      return style.outlineStyle + " " + style.outlineWidth;""")
    expect(
        not outline.startswith("none") and not outline.endswith(" 0px"),
        f"focus is not seen: {outline}",
    )
    row = lambda: browser.js("""
      const tree = document.getElementById("tree");
      const row = document.getElementById(tree.getAttribute("aria-activedescendant"));
      const {key, index} = row.dataset;
      return {key, place: index, open: row.getAttribute("aria-expanded")};""")
    keys(Keys.HOME)
    expect(row()["place"] == "0", "Home is not the first row")
    keys(Keys.END)
    last = int(row()["place"])
    expect(last > 0, "End is not the last row")
    keys(Keys.HOME)
    for _ in range(last + 1):
        if row()["open"] is not None:
            break
        keys(Keys.ARROW_DOWN)
    scope, was = row()["key"], row()["open"]
    keys(Keys.ARROW_LEFT if was == "true" else Keys.ARROW_RIGHT)
    expect(
        row()["key"] == scope and row()["open"] != was, "arrow keys do not open and close a scope"
    )
    keys(Keys.ENTER)
    expect(browser.js("return macgradPage.selection") == scope, "Enter does not select")
    expect(
        browser.js("return document.getElementById('details').dataset.key") == scope,
        "the panel shows something else",
    )
    keys("/")
    expect(active() == "search", "/ does not reach the search")
    keys(Keys.ESCAPE)
    expect(active() == "graph", "Escape does not go on to the graph")
    boxes = browser.js("return macgradPage.boxes()")
    keys(Keys.ARROW_RIGHT)
    browser.frame()
    moved = browser.js("return macgradPage.boxes()")
    expect(boxes != moved, "an arrow key does not move the graph")
    keys("?")
    expect(browser.js("return document.getElementById('help').open"), "? shows no help")
    keys(Keys.ESCAPE)
    browser.driver.back()
    browser.wait("macgradPage.selection !== " + json.dumps(scope))
    expect_quiet(browser)
    return f"opened, closed and selected {scope}"


def steps_slider(browser, record):
    steps = record["steps"]
    if len(steps) < 2:
        expect(
            browser.js("return document.getElementById('step-control').hidden"),
            "a slider for one step",
        )
        return "one step, no slider"
    loss = lambda: number(
        browser.js(
            "return document.querySelector('#step-figures [data-figure=loss]').dataset.value"
        )
    )
    browser.js("document.activeElement.blur(); macgradPage.showStep(0)")
    expect(same(loss(), steps[0]["loss"]), "another loss")
    browser.driver.find_element(By.ID, "step-slider").send_keys(Keys.ARROW_RIGHT)
    expect(same(loss(), steps[1]["loss"]), "the slider does not change the step")
    ActionChains(browser.driver).send_keys(",").perform()
    expect(same(loss(), steps[0]["loss"]), "the key , does not go back")
    ActionChains(browser.driver).send_keys(".").perform()
    expect(same(loss(), steps[1]["loss"]), "the key . does not go on")
    expect(
        browser.js("return document.querySelectorAll('[data-curve] path').length") == 2,
        "no curves of loss and gradient norm",
    )
    browser.js("macgradPage.select(arguments[0])", steps[0]["ops"][0]["key"])
    expect(
        browser.js("return document.querySelectorAll('#over-steps svg').length") > 0,
        "no curves of the selection",
    )
    expect_quiet(browser)
    return f"{len(steps)} steps"


def attention_tab(browser, record):
    tab = browser.driver.find_element(By.ID, "tab-attention")
    if not record.get("attentions"):
        expect(not tab.is_displayed(), "a tab without an attention")
        return "none recorded, no tab"
    browser.js("document.getElementById('tab-attention').click()")
    browser.wait("document.querySelectorAll('canvas.heat').length > 0")
    first = record["attentions"][0]
    mode = next((m for m in first["modes"] if m["used_by_the_model"]), first["modes"][0])
    for name in ("logits", "exact", "estimate", "difference", "exact_weights", "estimated_weights"):
        expect(
            browser.js(
                "return document.querySelectorAll(`[data-map=${arguments[0]}]`).length", name
            )
            > 0,
            f"no map {name}",
        )
    heat = browser.driver.find_element(By.CSS_SELECTOR, "[data-map=estimate]")
    browser.js("arguments[0].focus()", heat)
    ActionChains(browser.driver).send_keys(Keys.ARROW_DOWN).perform()
    pair = browser.js(
        "return [...document.querySelectorAll('#pair .number')].map((n) => n.dataset.value)"
    )
    at = mode["exact"]["columns"] if mode["exact"]["rows"] > 1 else 0
    shown, wanted = number(pair[1]), mode["exact"]["values"][at]
    expect(same(shown, wanted), f"pair (1, 0) shows {shown}, record {wanted}")
    rows = browser.js("return document.querySelectorAll('#lesson-degrees tr').length")
    expect(rows == len(mode["degrees"]) + 1, f"{rows} rows of degrees")
    expect(
        browser.js("return document.querySelector('[data-chart=denominators] svg path') !== null"),
        "no plot of denominators",
    )
    buttons = browser.js("""
      const buttons = document.querySelectorAll("#attention-bar [data-mode]");
      return [...buttons].map((button) => button.dataset.mode);""")
    for button in buttons:
        browser.js(
            "document.querySelector(`#attention-bar [data-mode='${arguments[0]}']`).click()", button
        )
        expect(
            browser.js("return document.querySelectorAll('canvas.heat').length") > 0,
            f"mode {button} shows no map",
        )
    for n in range(len(record["attentions"])):
        browser.choose("attention-choice", n)
    expect_quiet(browser)
    browser.js("macgradPage.showTab('graph')")
    return f"{len(record['attentions'])} attentions, {len(first['modes'])} modes"


def contrast(a, b):
    def light(colour):
        parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        return sum(
            w * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
            for w, x in zip((0.2126, 0.7152, 0.0722), parts)
        )

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def light_and_dark(browser, page):
    worst = 99
    for scheme in ("light", "dark"):
        browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        browser.open(page)
        expect(
            browser.js("return document.documentElement.dataset.theme") == scheme,
            f"{scheme} is preferred and not shown",
        )
        for turn in range(2):
            colours = browser.js("""
              const panel = document.getElementById("details");
              const ground = getComputedStyle(panel).backgroundColor;
              const names = [".facts th", ".facts td", ".quiet", "td.forward", "th.backward", "a"];
              return names.map((name) => [name, panel.querySelector(name)])
                  .filter(([, element]) => element)
                  .map(([name, element]) => [name, getComputedStyle(element).color, ground]);""")
            for name, ink, ground in colours:
                worst = min(worst, contrast(ink, ground))
                expect(contrast(ink, ground) >= 4.5, f"{name} in {scheme}: {ink} on {ground}")
            browser.js("document.getElementById('theme-button').click()")
            expect(
                browser.js("return document.documentElement.dataset.theme")
                == (scheme if turn else {"light": "dark", "dark": "light"}[scheme]),
                "the switch does nothing",
            )
        expect_quiet(browser)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    return f"smallest contrast {worst:.1f}"
