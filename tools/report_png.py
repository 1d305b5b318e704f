"""Draw the charts of a run's report.html as PNG files, for documents.

    python tools/report_png.py runs/demo/report.html --out docs/results/charts [--only WORD …]

Each chart becomes NAME-light.png and NAME-dark.png at twice its size, named after its heading.
The browser is the distribution's chromium (apt-get install chromium); nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

CHARTS = "figure"
SCHEMES = ("light", "dark")


def main() -> int:
    """Draw them; 0 when there was at least one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="The page, as palestra report writes it.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the PNG files.")
    parser.add_argument("--only", nargs="*", default=(), help="Charts whose name has this word.")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("there is no chromium on PATH: apt-get install chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    # Chromium's own sandbox refuses to run as root; the page is ours and runs no script.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=arguments)
        drawn = [
            path
            for scheme in SCHEMES
            for path in draw(browser, options.report, options.out, scheme, options.only)
        ]
        browser.close()
    for path in drawn:
        print(path)
    return not drawn


def draw(browser: Browser, report: Path, out: Path, scheme: str, only: list[str]) -> list[Path]:
    """Draw every chart of a page in one colour scheme; the files' paths."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": 1200, "height": 900}, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(report.absolute().as_uri())
    drawn = []
    for chart in page.locator(CHARTS).all():
        heading = chart.locator("h3, figcaption").first.inner_text()
        name = re.sub(r"[^a-z0-9]+", "-", heading.splitlines()[0].lower()).strip("-")
        if only and not any(word in name for word in only):
            continue
        drawn.append(out / f"{name}-{scheme}.png")
        chart.screenshot(path=drawn[-1])
    context.close()
    return drawn


if __name__ == "__main__":
    sys.exit(main())
