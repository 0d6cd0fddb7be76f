"""Take the README's picture of the page of ``relupath explore``, which has to be running.

relupath explore --no-browser
python docs/screenshot.py ADDRESS
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from relupath import files

SIZE = {"width": 1360, "height": 1010}
ROWS = (1, 0)
"""Which share is opened in each column."""


def main() -> None:
    """Open a few shares and write the page as a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images" / "explore.png")
    options = parser.parse_args()
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(options.address)
        for number, row in enumerate(ROWS, start=1):
            page.locator(f".column:nth-child({number}) .share").nth(row).click()
            page.locator(f".column:nth-child({number + 1}) .share").first.wait_for()
            page.wait_for_selector("relupath-view:not([data-busy])")
        page.wait_for_timeout(1000)
        taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    with files.replacing(options.output) as draft:
        taken.save(draft, optimize=True)
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
