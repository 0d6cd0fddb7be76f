"""The report: one file that asks nobody, whose numbers are the library's, readable without a script."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import relupath
from relupath import cli
from relupath import report as module
from relupath._asked import Question
from relupath._html import adding, number, places
from relupath.errors import UsageError
from relupath.explorer import Explorer
from relupath.images import Picture
from relupath.models import Classifier

HOSTILE = "</script><script>alert(1)</script><!--\u2028\u202e\"'&"
NAMES = (HOSTILE, "bee", "cat", "dog", "elk")
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


def to_tensor(image):
    pixels = torch.frombuffer(bytearray(image.resize((20, 16)).tobytes()), dtype=torch.uint8)
    return pixels.view(16, 20, 3).permute(2, 0, 1) / 127.5 - 1


def network(end: nn.Module | None = None) -> Classifier:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), end or nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    return Classifier("net", net.eval(), to_tensor, NAMES)


PICTURE = Picture(
    Image.effect_mandelbrot((40, 32), (-2, -1, 1, 1), 20).convert("RGB"),
    f"/home/someone/{HOSTILE.replace('/', '')}.png",
)
EXTENT = module.Extent(depth=2, width=2)


@pytest.fixture(scope="module")
def made():
    again = module.Again("relupath report a.png")
    return module.report(network(), PICTURE, (1, 0), EXTENT, again)


class Reader(HTMLParser):
    """What stands in a file: elements with their attributes, and the text of each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside:
            self.words.setdefault(self.inside[-1], []).append(data)
            if self.inside[-1] in ("td", "th"):
                self.rows[-1][-1] += data


def embedded(html: str):
    return json.loads(re.search(r'id="relupath-answers">(.*?)</script>', html, re.DOTALL)[1])


def test_the_answers_are_those_of_the_explorer_under_the_keys_that_the_page_makes(made):
    data = embedded(made.to_html())
    assert data["command"] == "relupath report a.png"
    state = data["state"]
    assert (state["target"], state["against"], state["width"]) == (1, 0, 2)
    explorer = Explorer(network(), side=20)
    assert explorer.add(Picture(PICTURE.image, PICTURE.name.rpartition("/")[2])) == state["picture"]
    kinds = set()
    for key, answer in data["answers"].items():
        question = json.loads(key)
        assert Question.of(question).key() == key
        assert json.loads(json.dumps(explorer.answer(question))) == answer
        kinds.add((question["ask"], question.get("on", "target")))
    assert kinds >= {
        (ask, on) for ask in ("node", "compare", "bias", "check") for on in ("target", "against", "contrast")
    }


def test_every_embedded_path_can_be_compared_and_what_lies_deeper_is_left_out(made):
    asked = [json.loads(key) for key in made.answers]
    paths = {(q.get("on", "target"), *q.get("path", [])) for q in asked if q["ask"] == "node"}
    compared = {(q.get("on", "target"), *q["path"]) for q in asked if q["ask"] == "compare"}
    shares = {
        (on, *path, child["key"])
        for (on, *path), answer in ((key_of(q), made.answers[json_key(q)]) for q in asked if q["ask"] == "node")
        for child in answer["children"]
        if child["kind"] in ("path", "rest")
    }
    assert shares == compared
    assert {len(path) - 1 for path in shares} == {1, 2}
    assert {len(path) - 1 for path in paths} == {0, 1, 2}, (
        "the network has two levels: leaves say that they have no parts"
    )


def key_of(question):
    return question.get("on", "target"), *question.get("path", [])


def json_key(question):
    return Question.of(question).key()


@pytest.fixture(scope="module")
def shallow():
    extent = module.Extent(depth=1, width=2)
    return module.report(network(), PICTURE, extent=extent, again=module.Again("relupath explore 'a b.png'"))


def test_a_shallow_report_leaves_out_what_is_below(shallow):
    nodes = [json.loads(key) for key in shallow.answers if json.loads(key)["ask"] == "node"]
    assert {len(q.get("path", [])) for q in nodes} == {0}
    assert "1 level of the trees" in shallow.summary


def test_the_shares_in_the_tables_add_up_to_the_logit_as_they_are_printed(made):
    frozen = relupath.freeze(network().model, to_tensor(PICTURE.image)[None])
    logits = frozen.output[0]
    reader = Reader(made.to_html())
    for name, value in ((NAMES[1], logits[1]), (NAMES[0], logits[0])):
        start = reader.rows.index(["share", "value", "pixels", "biases"]) + 1
        assert reader.rows[start][0] == name
        deeper = itertools.takewhile(lambda row: row[0].startswith("\N{EM SPACE}"), reader.rows[start + 1 :])
        rows = [(row[0].count("\N{EM SPACE}"), *map(number_of, row[1:])) for row in (reader.rows[start], *deeper)]
        assert {row[0] for row in rows} == {0, 1, 2}
        assert float(rows[0][1]) == pytest.approx(float(value), abs=1e-3)
        totals: dict[int, Decimal] = {}
        children: dict[int, Decimal] = {}
        for depth, total, pixels, biases in rows:
            assert pixels + biases == total
            for deep in [deep for deep in children if deep > depth]:
                assert children.pop(deep) == totals[deep - 1]
            totals[depth] = total
            children[depth] = children.get(depth, Decimal()) + total
        assert all(children[deep] == totals[deep - 1] for deep in children if deep)
        del reader.rows[: start + len(rows)]


def test_the_difference_of_two_logits_is_one_number_wherever_it_stands():
    logits = relupath.freeze(network().model, to_tensor(PICTURE.image)[None]).output[0].double()
    digits = [places([*pair, pair[0] - pair[1]]) for pair in itertools.permutations(logits.tolist(), 2)]
    pairs = zip(itertools.permutations(range(len(logits)), 2), digits, strict=True)
    one, other = next(  # rounded alone the difference would be another number
        (a, b)
        for (a, b), d in pairs
        if logits[a] > logits[b] and round(logits[a].item(), d) - round(logits[b].item(), d)
        != pytest.approx(round((logits[a] - logits[b]).item(), d), abs=10 ** -(d + 1))
    )  # fmt: skip
    html = module.report(network(), PICTURE, (one, other), EXTENT, module.Again()).to_html()
    words = " ".join(re.sub("<[^>]*>", "", html.partition("<relupath-view")[0]).split())
    rows = Reader(html).rows
    said = tuple(re.search(rf"{what} (\d[\d.]*\d)", words)[1] for what in ("differ by", "The difference is"))
    table = next(row for row in rows if row[0] == "logit")
    tree = rows[max(i for i, row in enumerate(rows) if row[0] == "share") + 1]
    assert {*map(number_of, said)} == {number_of(table[3])} == {number_of(table[1]) - number_of(table[2])}
    pixels = words.partition("The difference is")[2].partition("of which the pixels add ")[2].split()[0].rstrip(":")
    assert number_of(pixels) == number_of(next(row for row in rows if row[0] == "all pixels")[3])
    assert float(tree[1]) == pytest.approx(float(said[0]), abs=0.5 * 10 ** -len(tree[1].partition(".")[2]))


def number_of(text):
    return Decimal(text.replace("\N{MINUS SIGN}", "-"))


def test_the_ninths_of_the_picture_add_up_as_they_are_printed_and_lie_where_they_say(made):
    reader = Reader(made.to_html())
    start = next(i for i, row in enumerate(reader.rows) if row[0] == "part of the picture") + 1
    rows = {row[0]: list(map(number_of, row[1:])) for row in reader.rows[start : start + 12]}
    whole = relupath.linear_model(relupath.freeze(network().model, x := to_tensor(PICTURE.image)[None]), 1)
    part = (whole.weight * x)[0].sum(0)
    assert float(rows["upper left"][0]) == pytest.approx(float(part[:6, :7].sum()), abs=1e-3)
    assert float(rows["lower right"][0]) == pytest.approx(float(part[11:, 14:].sum()), abs=1e-3)
    for column in range(3):
        ninths = sum(row[column] for name, row in rows.items() if name not in ("all pixels", "biases", "logit"))
        assert ninths == rows["all pixels"][column]
        assert rows["all pixels"][column] + rows["biases"][column] == rows["logit"][column]
    assert all(one - other == both for one, other, both in rows.values())
    start = next(i for i, row in enumerate(reader.rows) if row[0] == "below layer") + 1
    end = next(i for i, row in enumerate(reader.rows) if row[0] == "all biases")
    layers, (*_, total) = [[*map(number_of, row[1:])] for row in reader.rows[start:end]], reader.rows[start : end + 1]
    assert len(layers) > 1
    assert [sum(column) for column in zip(*layers, strict=True)] == [*map(number_of, total[1:])]


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30), st.integers(0, 6))
def test_printed_parts_add_up_and_none_is_off_by_a_unit(values, places):
    total = round(math.fsum(values), places)
    printed = [Decimal(number(value, places).replace("\N{MINUS SIGN}", "-")) for value in adding(values, total, places)]
    assert sum(printed) == Decimal(f"{total:.{places}f}")
    unit = Decimal(10) ** -places
    assert all(abs(one - Decimal(value)) < unit * Decimal("1.001") for one, value in zip(printed, values, strict=True))


def test_parts_that_do_not_add_up_are_printed_as_they_are():
    assert adding([1.24, 2.31], 4.0, 1) == [1.2, 2.3]


def test_the_file_is_well_formed_and_names_from_outside_are_text(made):
    html = made.to_html()
    html.encode("utf-8")
    reader = Reader(html)
    assert reader.inside == []
    scripts = [attributes for tag, attributes in reader.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "relupath-answers"}, {"type": "module"}]
    data = re.search(r'id="relupath-answers">(.*?)</script>', html, re.DOTALL)[1]
    assert "<" not in data
    assert data.isascii()
    assert f"Why {HOSTILE.partition('<')[0]}" in html
    assert reader.words["title"] == ["Why bee?"]
    assert any(HOSTILE.replace("/", "") in text for text in reader.words["p"])
    assert HOSTILE in [text for kind in ("td", "th", "b") for text in reader.words[kind]]
    assert "/home/someone" not in html


def test_a_name_that_is_no_text_does_not_spoil_the_file():
    picture = Picture(PICTURE.image, "p\udcff.png")
    html = module.report(network(), picture, extent=module.Extent(depth=1, width=1)).to_html()
    assert "p?.png" in html.encode("utf-8").decode("utf-8")


def test_nothing_outside_the_file_is_named(made):
    reader = Reader(made.to_html())
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "base", "object")
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in "".join(reader.words["style"])
    assert "@import" not in "".join(reader.words["style"])
    policy = next(a["content"] for _, a in reader.elements if a.get("http-equiv") == "content-security-policy")
    assert "default-src 'none'" in policy


def test_what_bends_is_among_the_limits(made):
    said = module.report(network(nn.GELU()), PICTURE, extent=module.Extent(depth=1, width=1)).summary
    assert "(1 gate) bend" in said
    assert "bend" not in made.summary


def test_a_layer_on_which_no_unit_is_for_both_classes_is_left_out_and_named(made):
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    torch.manual_seed(3)
    forked = Classifier("net", nn.Sequential(*parts).eval(), to_tensor, NAMES)
    assert (forked.model(to_tensor(PICTURE.image)[None]) > 0).sum() > 1, "something speaks for both classes"
    said = module.report(forked, PICTURE, extent=module.Extent(depth=1, width=2))
    assert "The trees are not split at 3:" in said.summary
    assert "not split" not in made.summary
    trees = [answer for answer in said.answers.values() if answer["ask"] == "node" and answer["node"]["kind"] == "path"]
    assert {tuple(tree["left_out"]) for tree in trees} == {("3",)}
    roots = [tree for tree in trees if tree["node"]["layer"] is None]
    assert {child["layer"] for tree in roots for child in tree["children"] if child["kind"] == "path"} == {"1"}


def test_the_error_of_the_network_is_told(made):
    frozen = relupath.freeze(network().model, to_tensor(PICTURE.image)[None])
    first = int(frozen.output[0].argmax())
    wrong = next(c for c in (1, 2) if c != first)
    said = module.report(network(), PICTURE, (wrong, first), module.Extent(depth=1, width=1)).summary
    assert f"This report is about <b>{NAMES[wrong]}</b>" in said


def test_maps_are_as_fine_as_fits():
    sides = [module._side((227, 227), maps, 0) for maps in (1, 60, 200, 600, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 227
    assert sides[-1] == 29  # 8 x 8 pixels; 9 x 9 would be 26
    assert module._side((20, 16), 100_000, 0) == 20
    for maps in (60, 200, 600):
        side = module._side((227, 227), maps, 0)
        assert maps * side**2 * module.BYTES <= module.SIZE


def test_a_report_without_a_level_is_refused():
    with pytest.raises(UsageError, match="at least one level"):
        module.report(network(), PICTURE, extent=module.Extent(depth=0))


# --- the command line ---


def run(*arguments):
    return CliRunner().invoke(cli.main, ["report", *map(str, arguments)])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.image.save("photo.png")
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    torch.manual_seed(0)\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)\n"
        "    return nn.Sequential(*layers), pre\n"
        "def pre(image):\n    import numpy\n"
        "    return torch.tensor(numpy.asarray(image.resize((12, 12))) / 255.0, dtype=torch.float32).permute(2, 0, 1)\n"
    )
    return tmp_path


def test_the_command_writes_the_file_and_all_numbers(place):
    Path("labels").mkdir()
    Path("labels/names.txt").write_text("ant\nbee\ncat\n")
    model = ["--model", "net.py:make", "--labels", "labels/names.txt"]
    done = run("photo.png", *model, "--depth", 1, "--width", 2, "--json", "numbers.json", "--target", "bee", "--quiet")
    assert done.exit_code == 0, done.output
    assert re.search(r"wrote photo\.report\.html \(0\.\d MB\)", done.output)
    data, numbers = embedded(Path("photo.report.html").read_text("utf-8")), json.loads(Path("numbers.json").read_text())
    assert numbers == data
    assert numbers["format"] == module.FORMAT
    assert numbers["state"]["target"] == 1
    said = "relupath report photo.png --depth=2 --model=net.py:make --labels=names.txt --width=2 --target=bee"
    assert numbers["command"] == said
    node = next(answer for answer in data["answers"].values() if answer["ask"] == "node")
    assert "relupath.models.load('net.py:make', labels='names.txt')" in node["python"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("photo.png", "-o", "report.pdf"), 2, "report.pdf must end in .html"),
        (("photo.png", "-o", "no/report.html"), 2, "the folder no is not there"),
        (("--model", "net.py:make"), 2, "give a PHOTO for net.py:make"),
        (("photo.png", "--model", "net.py:make", "--target", "9"), 2, "class 9 is out of range"),
        (("photo.png", "--model", "net.py:make", "--layers", "nothing"), 2, "no hidden layer 'nothing'"),
        (("photo.png", "--model", "net.py:make", "--partition", "rows"), 2, "no partition 'rows'"),
        (("net.py", "--model", "net.py:make"), 1, "net.py"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_file(place, arguments, status, said):
    before = sorted(place.iterdir())
    done = run(*arguments, "--quiet")
    assert done.exit_code == status
    assert said in done.output
    assert len(done.output.strip().splitlines()[-1:]) == 1
    assert [path for path in sorted(place.iterdir()) if path.name != "__pycache__"] == before


def test_the_photo_is_not_overwritten(place):
    Path("photo.png").rename("photo.html")
    done = run("photo.html", "-o", "photo.html", "--model", "net.py:make")
    assert done.exit_code == 2
    assert "would overwrite the photo" in done.output


# --- in a browser ---


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_file_opens_from_disk_offline_and_shows_what_it_holds(shallow, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = tmp_path / "report.html"
    file.write_text(shallow.to_html(), encoding="utf-8")
    said, asked = [], []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        for kind in ("console", "pageerror", "dialog"):
            page.on(kind, lambda said_: said.append(str(said_)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.locator(".strip .against").click()
        share = page.locator(".column:nth-child(1) .share").first
        share.click()
        page.locator(".deeper code").wait_for()
        page.wait_for_selector("relupath-view:not([data-busy])")
        assert page.locator(".deeper code").inner_text() == shallow.command
        page.get_by_role("button", name="Pin").click()
        page.locator(".alert", has_text="Not in this file").wait_for()
        assert page.locator(".tray li").count() == 0
        assert "pins=" not in page.url
        page.locator(".checked", has_text="add up").wait_for()
        page.locator("details.panel summary", has_text="Where the bias enters").click()
        page.locator(".biases .layers li").first.wait_for()
        key = share.get_attribute("data-key")
        values = [float(one.get_attribute("data-value")) for one in page.locator(".strip .map").all()]
        browser.close()
    question = {**shallow.state, "ask": "compare", "on": "against", "path": [key]}
    assert values == [row["value"] for row in shallow.answers[json_key(question)]["rows"]]
    assert said == []
    assert asked == [file.as_uri()]
