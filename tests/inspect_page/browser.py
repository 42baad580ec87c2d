"""Headless Chromium for the page's checks: no network, and all that it says or asks for is kept."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

SKIPPED = 77


def skip(reason):
    print(f"skipped: {reason}", file=sys.stderr)
    sys.exit(SKIPPED)


try:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service
except ImportError:
    # Debian installs selenium for its own Python, which need not be the first on the path.
    system = "/usr/bin/python3"
    if os.path.exists(system) and not os.environ.get("INSPECT_PAGE_SYSTEM_PYTHON"):
        os.environ["INSPECT_PAGE_SYSTEM_PYTHON"] = "1"
        os.execv(system, [system, *sys.argv])
    skip("python3 has no selenium (Debian: python3-selenium)")


class Browser:
    """A browser with a profile of its own; both are gone when the `with` ends, also by a signal."""

    def __init__(self, width=1400, height=900):
        chromium = (
            shutil.which("chromium")
            or shutil.which("chromium-browser")
            or shutil.which("google-chrome")
        )
        driver = shutil.which("chromedriver")
        if not chromium or not driver:
            skip("chromium and chromedriver are needed (Debian: chromium, chromium-driver)")
        self.profile = tempfile.mkdtemp(prefix="inspect_page_")
        options = webdriver.ChromeOptions()
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--window-size={width},{height}",
            f"--user-data-dir={self.profile}",
        ):
            options.add_argument(argument)
        options.binary_location = chromium
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = None
        self.service = Service(driver)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        try:
            self.driver = webdriver.Chrome(service=self.service, options=options)
            self.driver.set_script_timeout(60)
        except WebDriverException as error:
            self.close()
            skip(f"Chromium does not start: {error.msg}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            if self.driver:
                self.driver.quit()
        except Exception:
            pass  # what remains is ended with the driver's process
        finally:
            self.driver = None
            try:
                self.service.stop()
            except Exception:
                pass
            shutil.rmtree(self.profile, ignore_errors=True)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def complaints(self):
        """Errors and warnings of the console since the last call; requests that leave the file."""
        found = [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] != "Network.requestWillBeSent":
                continue
            url = message["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                found.append("asked for " + url[:200])
        return found

    def open(self, path, fragment=""):
        """Loads a page and waits until it is usable, or says that its record is not."""
        self.driver.get("about:blank")  # so that a fragment alone is a load, too
        self.complaints()
        self.driver.get(Path(path).resolve().as_uri() + fragment)
        self.wait("document.documentElement.dataset.ready !== undefined", 20)
        return self.js("return document.documentElement.dataset.ready")

    def wait(self, condition, seconds=10):
        """Waits for a condition in JavaScript."""
        script = """
          const condition = new Function("return " + arguments[0]), done = arguments[2];
          const end = performance.now() + 1000 * arguments[1];
          const look = () => {
            if (condition()) done(true);
            else if (performance.now() > end) done(false);
            else setTimeout(look, 30);
          };
          look();"""
        if not self.driver.execute_async_script(script, condition, seconds):
            raise AssertionError(f"after {seconds} s still not: {condition}")

    def frame(self):
        """Waits until the browser has drawn twice."""
        self.driver.execute_async_script("""
          const done = arguments[0];
          requestAnimationFrame(() => requestAnimationFrame(() => done()));""")

    def choose(self, field, value):
        """Sets a <select> as a reader would."""
        script = """
          const field = document.getElementById(arguments[0]);
          field.value = arguments[1];
          field.dispatchEvent(new Event("change"));"""
        self.js(script, field, str(value))
