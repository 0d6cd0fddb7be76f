"""Try the widget in real notebooks: a cell is run in a headless browser, a share opened, the console read.

pip install jupyterlab marimo ipywidgets 'relupath[notebook]' playwright
python docs/notebooks.py --pictures FOLDER
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CELL = """
import relupath
c = relupath.models.load("creatures")
frozen = relupath.freeze(c.model, c.prepare(relupath.images.scene(1_000_007).image)[None])
relupath.explore(frozen, classes=c.classes)
""".strip()
NOTEBOOK = {
    "cells": [{"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
INDENTED = CELL.replace("\n", "\n    ")
APP = f"import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    {INDENTED}\n    return\n"
HOSTS = {
    "jupyterlab": (["jupyterlab", "--allow-root", "--no-browser", "--IdentityProvider.token="], "/lab/tree/try.ipynb"),
    "marimo": (["marimo", "edit", "try.py", "--headless", "--no-token", "--skip-update-check"], "/"),
}
"""How each is started, and where the notebook is."""


@contextmanager
def started(arguments: list[str], folder: str) -> Iterator[str]:
    """The address at which a notebook server answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *arguments, f"--port={port}"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def tried(page: Page, address: str) -> list[str]:
    """What the console says of the widget while the cell is run and two shares are opened."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.locator(".cm-content").first.click(timeout=60_000)
    page.wait_for_timeout(2000)
    page.keyboard.press("Shift+Enter")
    for depth in (1, 2):
        page.locator(f".column:nth-child({depth}) .share").first.click(timeout=60_000)
        page.locator(f".column:nth-child({depth + 1}) .share").first.wait_for()
    page.wait_for_selector("relupath-view:not([data-busy])")
    page.wait_for_timeout(1000)
    return said


def main() -> None:
    """Try each host, say its version and what the console said; write a picture of each page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", nargs="+", default=[*HOSTS], choices=[*HOSTS])
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with sync_playwright() as run, tempfile.TemporaryDirectory() as folder:
        Path(folder, "try.ipynb").write_text(json.dumps(NOTEBOOK), encoding="utf-8")
        Path(folder, "try.py").write_text(APP, encoding="utf-8")
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for host in options.hosts:
            arguments, place = HOSTS[host]
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            with started(arguments, folder) as address:
                said = tried(page, address + place)
                if options.pictures:
                    page.screenshot(path=options.pictures / f"{host}.png")
            print(f"{host} {version(host)}, anywidget {version('anywidget')}: shown; console errors: {said or 'none'}")


if __name__ == "__main__":
    main()
