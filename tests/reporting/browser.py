"""A real browser for pages on this disk: what it has to say about them, what it asks for, and how they look."""

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

NEEDED = "AGL_NEED_BROWSER"
"""Environment variable: 1 where a missing browser is a failure, as in CI."""
CHROMIUM, DRIVER = "chromium", "chromedriver"


def reason() -> str | None:
    """Why there can be no browser here; None if there can."""
    missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    return f"no {', '.join(missing)} here (apt-get install chromium chromium-driver)" if missing else None


def needed() -> bool:
    """Whether it must be there."""
    return os.environ.get(NEEDED, "") not in ("", "0")


class Browser:
    """Chromium without a window."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = str(shutil.which(CHROMIUM))
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "no-first-run"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(executable_path=str(shutil.which(DRIVER))))
        self.driver.set_page_load_timeout(60)

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        """Open a file in a window of this width."""
        self.size(width)
        self.media(dark)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(path.absolute().as_uri())

    def size(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def media(self, dark: bool = False, medium: str = "") -> None:
        """Whether the user wants it dark, and on what it is shown (print, or as it is)."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script of the test's own says; the page's policy does not bind it."""
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """Everything that the browser has complained of since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(str(message["params"]["request"]["url"]))
        return found

    def pdf(self) -> bytes:
        """The page on paper."""
        printed = self.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
        return base64.b64decode(printed["data"])

    def close(self) -> None:
        self.driver.quit()
