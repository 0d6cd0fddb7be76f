"""How fast the page of ``relupath explore`` is in a browser, and how much memory its server takes.

    python benchmarks/page.py PHOTO... --model torchvision/squeezenet1_0 --weights FILE --output FILE.json

The server is the command line's own, in a process of its own; a headless Chromium opens the page, and opens shares at
random from the decision down. First paint: from going to the address to the first column with its numbers, once the
server listens. A click: from the press to the column of the next layer, with its numbers. Memory: the server's resident
set after every photo has been opened and clicked through, and once more after a second round.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from tqdm import tqdm

from cost import machine

CLICKED = """
async ([depth, key]) => {
  const columns = document.querySelector('.columns'), started = performance.now();
  const from = columns.children[depth].querySelector(`button[data-key="${CSS.escape(key)}"]`);
  const stands = () => columns.children[depth + 1]?.querySelector('footer[data-value]');
  const drawn = new Promise((done) => {
    const watch = new MutationObserver(() => stands() && (watch.disconnect(), requestAnimationFrame(done)));
    watch.observe(columns, { childList: true, subtree: true, attributes: true });
  });
  from.click();
  await drawn;
  return performance.now() - started;
}
"""


@contextmanager
def served(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """The page's address, and the number of the process that serves it."""
    command = [sys.executable, "-m", "relupath", "explore", "--no-browser", "--quiet", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield re.findall(r"http://\S+", process.stdout.readline())[0], process.pid
        finally:
            process.terminate()


def resident(process: int) -> int:
    """The bytes of a process that are in memory."""
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return 1024 * int(kilobytes)


def descend(page: Page, chance: random.Random, most: int) -> list[float]:
    """Milliseconds of each click on the way from the decision down."""
    times = []
    for depth in range(most):
        rows = page.locator(f".column:nth-child({depth + 1}) .share.path").all()
        keys = [row.get_attribute("data-key") for row in rows]
        if not keys:
            break
        times.append(float(page.evaluate(CLICKED, [depth, chance.choice(keys)])))
        page.wait_for_selector("relupath-view:not([data-busy])")
        page.wait_for_timeout(50)
    return times


def opened(page: Page, address: str) -> float:
    """Milliseconds until the first column stands."""
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(".column footer[data-value]")
    seconds = time.perf_counter() - started
    page.wait_for_selector("relupath-view:not([data-busy])")
    page.wait_for_timeout(1000)
    return 1000 * seconds


def measured(page: Page, address: str, process: int, options: argparse.Namespace) -> dict[str, Any]:
    """Clicks through every photo, round by round."""
    chance = random.Random(0)
    first = opened(page, address)
    names = page.locator(".top select option").evaluate_all("options => options.map((one) => one.value)")
    times, memory = [], []
    for _ in range(options.rounds):
        for name in tqdm(names, file=sys.stderr):
            page.select_option(".top select", name)
            page.wait_for_selector("relupath-view:not([data-busy])")
            for _ in range(options.descents):
                page.locator(".crumbs button").first.click()
                page.wait_for_selector("relupath-view:not([data-busy])")
                times += descend(page, chance, options.depth)
        memory.append(resident(process))
    cuts = statistics.quantiles(times, n=20)
    return {
        "first paint, ms": first, "clicks": len(times), "median click, ms": cuts[9], "p95 click, ms": cuts[18],
        "photos": len(names), "memory after each round, bytes": memory,
    }  # fmt: skip


def main() -> None:
    """Measure the demo's first paint and the clicks on the photos, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--model", default="torchvision/squeezenet1_0@RANDOM")
    parser.add_argument("--weights")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--descents", type=int, default=2, help="how often from the decision down at each photo")
    parser.add_argument("--depth", type=int, default=6, help="clicks a descent")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with served([]) as (address, _):
            demo = opened(browser.new_page(), address)
        weights = ["--weights", options.weights] if options.weights else []
        with served([*options.photos, "--model", options.model, *weights]) as (address, process):
            alone = resident(process)
            found = measured(browser.new_page(), address, process, options)
    rows = {"demo: first paint, ms": demo, **found, "memory before, bytes": alone}
    for name, value in rows.items():
        print(f"{name:<34}{value if not isinstance(value, float) else round(value)}")
    if options.output:
        report = {"machine": machine(), "model": options.model.rpartition("/")[2], **rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
