"""The page in a real browser: it shows the library's numbers, says what goes wrong, and asks nobody else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from queue import Queue

import pytest
import torch
from torch import nn

import relupath
from nets import example, randomise
from relupath import channels, contrast, decompose, freeze, logit, server
from relupath.explorer import Explorer, Names

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

NAMES = [
    '<img src=x onerror="alert(1)">',
    "</script><b>Lumirix</b>",
    "Lunola",
    "Lunorix",
    "Wide" * 40,
    "Somirix",
    "Sonola",
    "A & B",
]
"""Names of classes, some of them hostile, one long."""
SEED = 1_000_007


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page's address, served by the command line."""
    labels = tmp_path_factory.mktemp("page") / "labels.txt"
    labels.write_text("\n".join(NAMES), encoding="utf-8")
    command = [sys.executable, "-m", "relupath", "explore", "--no-browser", "--quiet", "--labels", str(labels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"http://\S+", line)[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page; in the end nothing was said on the console, and nothing was asked of another server."""
    said, asked, contexts, refusals, sites = [], [], [], [], []

    def opened(width=1280, scheme="light", more="", at=address, **options):
        sites.append(at.split("?")[0])
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at + more)
        page.wait_for_selector(".column .share")
        idle(page)
        return page

    opened.refusals = refusals
    yield opened
    for context in contexts:
        context.close()
    assert [text for text in said if not (refusals and "status of 4" in text)] == []
    own = tuple(begin + site for site in sites for begin in ("", "blob:"))
    assert [url for url in asked if not url.startswith(own)] == []


@pytest.fixture(scope="module")
def frozen():
    classifier = relupath.models.load("creatures")
    return freeze(classifier.model, classifier.prepare(relupath.images.scene(SEED).image)[None])


def idle(page):
    """Wait until what was asked for is shown."""
    page.wait_for_timeout(30)
    page.wait_for_selector("relupath-view:not([data-busy])")


def holding(page, ask):
    """The questions of one kind, none of which is answered."""
    held = []
    page.route(
        "**/api/ask",
        lambda route: held.append(route) if f'"ask":"{ask}"' in route.request.post_data else route.continue_(),
    )
    return held


def column(page, number):
    """Keys and values in a column, and the sum below."""
    place = page.locator(f".column:nth-child({number})")
    rows = place.locator(".share")
    rows.first.wait_for()
    shares = {row.get_attribute("data-key"): float(row.get_attribute("data-value")) for row in rows.all()}
    printed = [number_in(text) for text in place.locator(".share .number").all_inner_texts()]
    return shares, printed, number_in(place.locator("footer .number").inner_text()), place


def numbers_in(text):
    return [float(one.replace("\N{MINUS SIGN}", "-")) for one in re.findall(r"\N{MINUS SIGN}?\d[\d.]*", text)]


def number_in(text):
    return numbers_in(text)[0]


def test_three_levels_show_the_numbers_of_the_library_and_add_up(visit, frozen):
    page = visit()
    node = decompose(frozen, partition=channels, width=6)
    for depth in range(1, 4):
        shares, printed, total, place = column(page, depth)
        expected = {str(c.path.steps[0]) if c.kind == "path" else c.kind: c.value for c in node.children}
        assert shares.keys() == expected.keys()
        assert all(abs(shares[key] - value) <= 1e-5 * abs(node.value) for key, value in expected.items())
        digits = len(place.locator("footer .number").inner_text().partition(".")[2])
        assert round(sum(printed), digits) == total == round(node.value, digits)
        assert all(abs(one - value) < 10**-digits for one, value in zip(printed, shares.values(), strict=True))
        for value, parts in zip(printed, place.locator(".share .parts").all_inner_texts(), strict=True):
            assert "bias" not in parts or round(sum(numbers_in(parts)), digits) == value
        assert abs(sum(shares.values()) - node.value) <= 1e-4 * sum(map(abs, shares.values()))
        place.locator(".share").nth(1).click()
        idle(page)
        node = node.children[1]
        value = float(page.locator(".strip .map.target").get_attribute("data-value"))
        assert value == pytest.approx(node.value, rel=1e-4)
        if depth == 3:
            other = relupath.linear_model(frozen, logit(6), node.path).value.item()
            assert float(page.locator(".strip .map.against").get_attribute("data-value")) == pytest.approx(
                other, rel=1e-4
            )
            difference = float(page.locator(".strip .map.contrast").get_attribute("data-value"))
            assert difference == pytest.approx(node.value - other, rel=1e-3)
        figures = page.locator(".strip .map").all()
        one, other, contrasted = (
            [number_in(figure.locator(".number").inner_text()), *numbers_in(figure.locator(".parts").inner_text())]
            for figure in figures
        )
        assert [a - b for a, b in zip(one, other, strict=True)] == pytest.approx(contrasted, abs=1e-9)
        assert all(weights + bias == pytest.approx(value, abs=1e-9) for value, weights, bias in (one, other))
    assert page.locator(".crumbs li").count() == 4
    page.locator(".checked", has_text="two independent routes").wait_for()
    allowed = "(allowed: 1 \N{MULTIPLICATION SIGN} 10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT FOUR})."
    assert page.locator(".checked").inner_text().endswith(allowed)


def test_a_cut_the_other_class_and_a_reload(visit, frozen):
    page = visit()
    page.locator(".column:nth-child(1) .share").first.click()
    idle(page)
    page.get_by_role("button", name="Cut unit").click()
    page.locator(".after table").wait_for()
    path = relupath.decompose(frozen, partition=channels).children[0].path
    after = relupath.ablate(frozen, path).output[0].softmax(0)
    cells = page.locator(".after tbody tr", has_text="A & B").locator("td").all_inner_texts()
    assert cells[3].startswith("> 99.9" if after[7] > 0.9995 else f"{100 * after[7]:.1f}")
    logits = frozen.output[0, 7].item(), relupath.ablate(frozen, path).output[0, 7].item()
    assert [number_in(cells[0]), number_in(cells[2])] == pytest.approx(logits, abs=0.01)
    page.get_by_role("button", name="Pin").click()
    idle(page)
    link, crumbs = page.url, page.locator(".crumbs").inner_text()
    page.reload()
    page.locator(".after table").wait_for()
    idle(page)
    assert (page.url, page.locator(".crumbs").inner_text(), page.locator(".tray li").count()) == (link, crumbs, 1)
    page.locator(".strip .map.contrast").click()
    idle(page)
    shares, *_ = column(page, 1)
    assert sum(shares.values()) == pytest.approx(contrast(7, 6)(frozen.output).item(), rel=1e-4)
    page.go_back()
    idle(page)
    assert page.url == link
    page.get_by_role("button", name=f"why {NAMES[0]}").or_(page.get_by_role("button", name="why Lunorix")).first.click()
    idle(page)
    assert page.locator(".strip .map.target .name").inner_text() in (NAMES[0], "Lunorix")


def test_each_node_is_asked_for_once_and_of_the_right_classes(visit):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(json.loads(request.post_data)) if request.post_data else None)
    page.locator(".column .share").first.click()
    idle(page)
    page.locator(".classes .role").nth(4).click()  # why another class
    idle(page)
    first, second = [question for question in asked if question["ask"] == "node"]
    (opened,) = [question for question in asked if question["ask"] == "open"]
    assert (len(first["path"]), second.get("path", [])) == (1, [])
    assert second["target"] == opened["target"] != first["target"]
    visit.refusals.append("a node that fails")
    page.route("**/api/ask", lambda route: route.fulfill(status=400, json={"error": "no answer"}))
    asked.clear()
    page.locator(".column .share").first.click()
    page.get_by_text("Try again").wait_for()
    assert [question["ask"] for question in asked].count("node") == 1


def test_the_keyboard_stays_where_a_person_has_gone_meanwhile(visit):
    page = visit()
    held = holding(page, "compare")
    page.locator(".column .share").first.focus()
    page.keyboard.press("ArrowRight")
    page.locator(".column:nth-child(2) .share").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("features")
    page.wait_for_timeout(100)
    for route in held:
        route.continue_()
    idle(page)
    page.keyboard.type(".14:c13")
    assert page.get_by_label("layer:unit").or_(page.get_by_placeholder("layer:unit")).input_value() == "features.14:c13"


def test_the_contrast_is_one_number_wherever_it_stands(visit):
    page = visit()
    page.locator(".strip .map.contrast").click()
    idle(page)
    figure = page.locator(".strip .map.contrast .number").inner_text()
    one, other = (page.locator(f".strip .map.{role} .number").inner_text() for role in ("target", "against"))
    _, printed, total, place = column(page, 1)
    assert number_in(place.locator("header p").inner_text()) == total == number_in(figure)
    assert round(number_in(one) - number_in(other), 2) == number_in(figure) == round(sum(printed), 2)


@pytest.mark.parametrize("width", [1280, 400])
def test_arrow_keys_keep_the_row_in_sight(visit, width):
    page = visit(width)
    page.locator(".column .share").first.focus()
    for key in ["ArrowRight"] * 4 + ["ArrowLeft"] * 3:
        page.keyboard.press(key)
        idle(page)
        page.wait_for_function(
            """() => { const row = document.activeElement.getBoundingClientRect();
               const inside = document.querySelector(".columns").getBoundingClientRect();
               return row.left >= inside.left - 1 && row.right <= inside.right + 1; }""",
            timeout=3000,
        )


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_jumps_on_the_way_down(visit, width):
    page = visit(width)
    where = """() => [".strip", ".trail", ".columns"].map(
        (place) => document.querySelector(place).getBoundingClientRect().y + scrollY)"""
    before = page.evaluate(where)
    for depth in range(1, 4):
        page.locator(f".column:nth-child({depth}) .share").first.click()
        idle(page)
        assert page.evaluate(where) == pytest.approx(before, abs=1)


@pytest.mark.parametrize("width", [1280, 700, 400])
def test_the_menu_is_whole_and_closes(visit, width):
    page = visit(width)
    menu, card = page.locator(".menu"), page.locator(".menu > div")
    page.get_by_text("Share", exact=True).click()
    box = card.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert menu.evaluate("m => [...m.querySelectorAll('button')].every((b) => b.scrollWidth <= b.clientWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Escape")
    assert menu.get_attribute("open") is None
    page.get_by_text("Share", exact=True).click()
    page.locator(".crumbs").click()
    assert menu.get_attribute("open") is None


def test_what_a_link_says_wrongly_is_as_usual(visit):
    page = visit(more="#colours=constructor&width=9999&on=nothing&clip=x")
    assert page.get_by_label("width").input_value() == "64"
    assert page.locator(".strip .map.target").get_attribute("aria-pressed") == "true"
    assert page.locator(".strip canvas").first.evaluate("c => c.width") > 1


def test_keys_jumps_and_settings(visit, frozen):
    page = visit()
    idle(page)
    page.locator(".column .share").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.locator(".column:nth-child(2) .share").first.wait_for()
    idle(page)
    assert (
        page.locator(".column:nth-child(1) [aria-expanded=true]").get_attribute("data-key") == [*column(page, 1)[0]][1]
    )
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.key") == [*column(page, 1)[0]][1]
    page.keyboard.press("/")
    page.keyboard.type("features.14:c13")
    page.keyboard.press("Enter")
    page.locator(".crumbs", has_text="features.14:c13").wait_for()
    idle(page)
    unit = relupath.Path.of([("features.14", (13, None, None))])
    value = relupath.linear_model(frozen, logit(7), unit).value.item()
    assert float(page.locator(".strip .map.target").get_attribute("data-value")) == pytest.approx(value, rel=1e-4)
    page.get_by_label("width").fill("3")
    page.get_by_label("width").press("Enter")
    page.get_by_label("unit", exact=True).select_option("locations")
    idle(page)
    shares, *_ = column(page, 1)
    assert len([key for key in shares if re.search(r"\[y\d+,x\d+\]", key)]) == 3
    before = page.locator(".strip canvas").first.evaluate("c => c.toDataURL()")
    page.get_by_text("Colours", exact=True).click()
    page.get_by_label("colours", exact=True).select_option("PuOr")
    page.wait_for_timeout(200)
    assert page.locator(".strip canvas").first.evaluate("c => c.toDataURL()") != before


def test_a_search_and_what_can_be_saved(visit, tmp_path):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_text("Search for paths").click()
    page.get_by_label("search", exact=True).select_option("mass")
    page.get_by_role("button", name="Find paths").click()
    page.locator(".found .tray button").nth(1).click()
    idle(page)
    saved = {}
    for kind in ("PNG", "SVG", "JSON"):
        page.get_by_text("Share", exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {kind}").click()
        saved[kind] = tmp_path / kind
        download.value.save_as(saved[kind])
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG")
    assert saved["SVG"].read_text(encoding="utf-8").count("<image") == 3
    numbers = json.loads(saved["JSON"].read_text(encoding="utf-8"))
    assert {node["format"] for node in numbers["nodes"]} == {"relupath.view/1"}
    page.get_by_text("Share", exact=True).click()
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Python copied").wait_for()
    lines = {}
    exec(
        page.evaluate("navigator.clipboard.readText()").replace(
            re.search(r", labels='[^']*'", page.evaluate("navigator.clipboard.readText()"))[0], ""
        ),
        lines,
    )
    assert lines["model"].value.item() == pytest.approx(numbers["nodes"][0]["node"]["value"], rel=1e-5)
    assert isinstance(lines["model"].weight, torch.Tensor)


def test_a_found_path_is_of_the_search_and_the_class_it_was_found_for(visit):
    page = visit()
    page.get_by_text("Search for paths").click()
    find, tiles = page.get_by_role("button", name="Find paths"), page.locator(".found .tray button")
    find.click()
    tiles.first.wait_for()
    page.get_by_label("search", exact=True).select_option("mass")
    promised = number_in(tiles.nth(1).locator(".number").inner_text())
    tiles.nth(1).click()
    idle(page)
    assert float(page.locator(".strip .map.target").get_attribute("data-value")) == pytest.approx(promised, rel=1e-3)
    assert "greedy, path 2" in page.locator(".crumbs").inner_text()
    page.reload()
    tiles.first.wait_for()
    idle(page)
    assert number_in(tiles.nth(1).locator(".number").inner_text()) == promised
    page.locator(".strip .map.against").click()
    idle(page)
    assert tiles.count() == 0  # what was found was of the other class
    page.evaluate("document.querySelector('relupath-view').findPaths()")
    page.locator(".column .share").first.click()
    tiles.first.wait_for()  # a click meanwhile does not lose the search


def test_printed_numbers_add_up_and_names_are_cut_at_dots(visit):
    page = visit()
    adding = "([values, total, scale]) => import('/relupath.js').then((m) => m.adding(values, total, scale))"
    cases = [
        ([1 / 3, 1 / 3, 1 / 3], 1.0, 2, [0.34, 0.33, 0.33]),
        ([0.125, -0.374, 1.249], 1.0, 1, [0.1, -0.4, 1.3]),
        ([0.0, 2.004, -0.004], 2.0, 2, [0.0, 2.0, 0.0]),
        ([0.0, 0.0], 0.03, 2, [0.02, 0.01]),  # what does not add up is still near its total
    ]
    for values, total, digits, printed in cases:
        found = page.evaluate(adding, [values, total, {"factor": 1, "digits": digits}])
        assert found == pytest.approx(printed, abs=1e-9)
    short = "key => import('/relupath.js').then((m) => m.short(key))"
    names = {
        "features.12.expand3x3_activation[c192]": "\N{HORIZONTAL ELLIPSIS}expand3x3_activation[c192]",
        "layer4.2.bn1.relu[y1,x2]": "layer4.2.bn1.relu[y1,x2]",
        "model.layer4.2.bn1.relu[y1,x2]": "\N{HORIZONTAL ELLIPSIS}layer4.2.bn1.relu[y1,x2]",
        "stage.0.left_branch[c1][... 9 more] | stage.0.right_branch[c2]": (
            "\N{HORIZONTAL ELLIPSIS}0.left_branch[c1][... 9 more] | \N{HORIZONTAL ELLIPSIS}0.right_branch[c2]"
        ),
        "rest": "rest",
    }
    assert {key: page.evaluate(short, key) for key in names} == names
    page.locator(".column .share").first.click()
    idle(page)
    whole = page.locator(".column .share").first.get_attribute("data-key")
    assert page.locator(".crumbs button").last.get_attribute("title") == whole


def test_a_search_that_takes_long_says_so_and_can_be_cancelled(visit):
    page = visit()
    held = holding(page, "paths")
    page.get_by_text("Search for paths").click()
    page.get_by_label("search", exact=True).select_option("exact")
    find = page.get_by_role("button", name="Find paths")
    find.click()
    page.locator(".found", has_text="can take minutes").wait_for()
    page.locator(".searching .number", has_text="1 s").wait_for()
    page.locator(".column .share").nth(1).click()
    idle(page)
    assert page.locator(".column:nth-child(2) .share").count() > 1  # the rest of the page goes on
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Cancel").click()
    page.locator(".found", has_text="Cancelled").wait_for()
    find.click()
    with page.expect_event("requestfailed"):  # another class: nobody waits for the first one's paths
        page.locator(".strip .map.against").click()
    idle(page)
    assert page.locator(".found").inner_text() == ""
    page.unroute_all()
    page.get_by_label("search", exact=True).select_option("greedy")
    find.click()
    page.locator(".found .tray button").first.wait_for()
    assert len(held) == 2


def test_settings_survive_a_reload_and_the_way_back(visit):
    page = visit()
    page.get_by_text("Colours", exact=True).click()
    chosen = {"colours": "PuOr", "sign": "for", "grain": "8", "page": "dark"}
    for name, value in chosen.items():
        page.get_by_label(name, exact=True).select_option(value)
    page.get_by_label("clip").fill("95")
    page.reload()
    page.wait_for_selector(".column .share")
    assert {name: page.get_by_label(name, exact=True).input_value() for name in (*chosen, "clip")} == {
        **chosen,
        "clip": "95",
    }
    page.evaluate("location.hash += '&partition=heads:3&clip=x&grain=0.0001'")  # a link by hand
    page.locator(".column .share .unit", has_text="x2 and 1 more").wait_for()  # told from the other heads
    idle(page)
    assert page.get_by_label("heads", exact=True).input_value() == "3"
    page.go_back()
    idle(page)
    page.get_by_label("width").fill("2")
    page.get_by_label("width").press("Enter")
    page.get_by_label("unit", exact=True).select_option("locations")
    idle(page)
    page.go_back()
    idle(page)
    assert page.get_by_label("unit", exact=True).input_value() == "channels"
    page.go_back()
    idle(page)
    assert (page.get_by_label("width").input_value(), page.locator(".column .share").count()) == ("6", 8)


def test_open_panels_are_in_the_link(visit):
    page = visit()
    panels = page.locator("details.panel:not([hidden])")

    def opened():
        return panels.evaluate_all("all => all.map((one) => one.open)")

    assert (opened(), "open=" in page.url) == ([True, False, False, False], False)
    for name in ("Units", "Colours", "Where the bias enters"):
        page.get_by_text(name, exact=True).click()
    page.locator(".layers li").first.wait_for()
    assert (opened(), "open=colours.bias" in page.url) == ([False, True, False, True], True)
    page.reload()
    page.locator(".layers li").first.wait_for()
    assert opened() == [False, True, False, True]
    page.locator(".column .share").first.click()
    idle(page)
    for name in ("Colours", "Where the bias enters"):
        page.get_by_text(name, exact=True).click()
    page.wait_for_url("**&open=")
    page.reload()
    page.wait_for_selector(".column .share")
    assert opened() == [False] * 4
    page.go_back()
    idle(page)
    page.locator(".layers li").first.wait_for()
    assert opened() == [False, True, False, True]


def test_the_keyboard_alone_is_enough(visit):
    page = visit()
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog[open]").wait_for(state="detached")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    label = page.locator(".classes .role").nth(7).get_attribute("aria-label")
    page.locator(".classes .role").nth(7).focus()
    page.keyboard.press("Enter")
    idle(page)
    assert page.evaluate("document.activeElement.ariaLabel") == label
    page.locator(".column .share").nth(1).focus()
    page.keyboard.press("3")
    idle(page)
    assert page.evaluate("document.activeElement.className").startswith("share")


def test_answers_in_any_order_or_none_at_all(visit):
    page = visit()
    rows, held = page.locator(".column:nth-child(1) .share"), []
    page.route("**/api/ask", lambda route: held.append(route))
    for row in range(3):
        rows.nth(row).click()
        page.wait_for_timeout(60)
    for route in reversed(held[:]):
        route.continue_()
    page.unroute("**/api/ask")
    idle(page)
    value = float(rows.nth(2).get_attribute("data-value"))
    assert float(page.locator(".column:nth-child(2) footer").get_attribute("data-value")) == pytest.approx(value)
    assert float(page.locator(".strip .map.target").get_attribute("data-value")) == pytest.approx(value)
    page.route("**/api/ask", lambda route: route.fulfill(status=404, json={"error": "gone"}))
    visit.refusals.append("no answer")
    rows.nth(4).click()
    idle(page)
    assert page.locator(".strip .map.against .number").inner_text() == "\N{EN DASH}"  # no number of another unit
    assert page.locator(".column:nth-child(2)").inner_text().startswith("gone")
    page.evaluate("document.querySelector('relupath-view').answers.clear()")
    page.get_by_role("button", name="why not Sonola").click()
    idle(page)
    assert page.locator(".view").get_attribute("data-old") is not None
    page.reload()
    page.locator(".alert", has_text="gone").wait_for()


def test_a_link_to_a_picture_that_is_gone_leads_to_others(visit):
    page = visit()
    visit.refusals.append("no such picture")
    page.evaluate("location.hash = '#picture=none'; location.reload()")
    page.locator(".alert", has_text="not held any longer").wait_for()
    assert page.locator(".empty").is_visible()
    page.locator(".top select").select_option(index=0)
    page.locator(".column .share").first.wait_for()


def test_hundreds_of_clicks_leave_little_behind(visit):
    page = visit()
    for row in (0, 0, 1, 1, 2, 2, 3, 3):
        page.locator(".column .share").nth(row).click()
        idle(page)
    assert page.evaluate("document.querySelector('relupath-view').groups.size") <= 4


SHAPES = {"one channel": (1, 28, 28), "tiny": (3, 8, 8), "wide": (3, 12, 60), "tall": (3, 60, 20), "tokens": (9, 5)}


def test_inputs_of_any_shape_are_shown_whole(visit):
    one, said = Explorer(Names()), Queue()
    for name, shape in SHAPES.items():
        first = nn.Linear(5, 4) if name == "tokens" else nn.Conv2d(shape[0], 4, 3, padding=1)
        model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        model(torch.zeros(1, *shape))
        one.add_recorded(freeze(randomise(model, 1).float(), example(shape, 2, 1, torch.float32)), name)
    threading.Thread(target=server.serve, args=(one, said.put), daemon=True).start()
    page = visit(at=said.get(timeout=10))
    for name, shape in SHAPES.items():
        page.select_option(".top select", label=name)
        idle(page)
        rows, columns = shape[-2:] if len(shape) == 3 else (1, shape[0])
        for canvas in page.locator(".strip canvas, .share:not(.bias) .thumb, .photo canvas:visible").all():
            width, height, fit = canvas.evaluate("c => [c.width, c.height, getComputedStyle(c).objectFit]")
            assert (width / height, fit) == (pytest.approx(columns / rows, rel=0.1), "contain")
        box = page.locator(".strip canvas").first.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(min(4, max(0.8, columns / rows)), rel=0.02)
        shares, printed, total, _ = column(page, 1)
        assert len(shares) > 1
        assert sum(printed) == pytest.approx(total, abs=1e-9)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.get_by_label("unit", exact=True).select_option("axis:N")
    assert page.get_by_label("axis", exact=True).input_value() == "3"
    page.get_by_label("axis", exact=True).fill("2")
    page.get_by_label("axis", exact=True).press("Enter")
    idle(page)
    shares, *_, place = column(page, 1)
    assert {f"1[:,{number}]" for number in range(4)} <= shares.keys()
    assert "5 shares of 9 \N{MULTIPLICATION SIGN} 4" in place.locator("footer").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_anybody_can_use_it(visit, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(width, scheme, bypass_csp=True)
    page.locator(".column:nth-child(1) .share").first.click()
    idle(page)
    page.get_by_role("button", name="Cut unit").click()
    page.get_by_role("button", name="Pin").click()
    page.get_by_text("Where the bias enters").click()
    page.locator(".layers li").first.wait_for()
    idle(page)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_another_photo_chosen_dropped_pasted_or_none(visit, tmp_path):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    chosen, dropped = tmp_path / "a<b>.png", tmp_path / "dropped.png"
    relupath.images.noise(64).image.save(chosen)
    relupath.images.scene(3).image.save(dropped)
    names, current = page.locator(".top select option"), page.locator(".top select option:checked")
    page.locator("input[type=file]").set_input_files(chosen)
    names.locator("text='a<b>.png'").wait_for(state="attached")
    idle(page)
    drag(page, dropped, "dragEnter", "dragOver")
    page.wait_for_selector("relupath-view[data-drop]")
    drag(page, dropped, "drop")
    names.locator("text=dropped.png").wait_for(state="attached")
    page.wait_for_selector("relupath-view:not([data-drop]):not([data-busy])")
    page.evaluate(
        """() => new Promise((done) => document.querySelector('.photo canvas').toBlob(async (blob) =>
           done(await navigator.clipboard.write([new ClipboardItem({ [blob.type]: blob })]))))"""
    )
    page.keyboard.press("Control+V")
    names.locator("text=image.png").wait_for(state="attached")
    idle(page)
    best = page.locator(".classes .chosen .name").inner_text()
    page.select_option(".top select", label="dropped.png")
    idle(page)
    assert page.locator(".classes .chosen .name").inner_text() == best  # the same picture came by both ways
    assert names.all_inner_texts()[:3] == ["image.png", "dropped.png", "a<b>.png"]  # in the order of opening
    visit.refusals.append("a browser logs a refused request by itself")
    page.evaluate("document.querySelector('relupath-view').upload(new File([], 'nothing.png'))")
    page.locator(".alert", has_text="empty").wait_for()
    assert current.inner_text() == "dropped.png"


def drag(page, file, *events):
    """Drag a file over the page as a hand does, with the browser's own events."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for event in events:
        session.send("Input.dispatchDragEvent", {"type": event, "x": 300, "y": 780, "data": data})
