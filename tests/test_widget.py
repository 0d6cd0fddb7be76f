"""The view in a notebook: messages in, messages out, and the module as a notebook runs it."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import relupath
from relupath import widget as module
from relupath.errors import InputError, MissingExtraError, ModelError, TargetError, UsageError
from relupath.explorer import Explorer, Names

pytest.importorskip("anywidget", reason="anywidget is not installed")
NAMES = ("<img src=x onerror=alert(1)>", "bee", "cat", "dog")
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


def frozen(batch: int = 1):
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    return relupath.freeze(net.eval(), torch.rand(batch, 3, 16, 16))


@pytest.fixture
def view():
    made = relupath.explore(frozen(), classes=NAMES, name="a<b")
    yield made
    made.close()


@pytest.fixture
def messages(view):
    """What the view sends to its page."""
    sent = []
    view.comm.publish_msg = lambda kind, data=None, **more: kind == "comm_msg" and sent.append(data["content"])
    return sent


def ask(view, content):
    """What arrives from the page."""
    view.comm.handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})


def same(frozen_, **question):
    explorer = Explorer(Names(NAMES))
    return explorer.answer({"picture": explorer.add_recorded(frozen_, "a<b"), **question})


def test_questions_are_answered_as_the_explorer_does(view, messages):
    asked = {**view.state, "ask": "node", "width": 2}
    ask(view, {"id": 7, "question": {"ask": "hello"}})
    ask(view, {"id": 8, "question": asked})
    assert [message["id"] for message in messages] == [7, 8]
    assert messages[0]["answer"]["pictures"] == [{"id": view.state["picture"], "name": "a<b"}]
    assert messages[0]["answer"]["classes"] == list(NAMES)
    assert messages[1]["answer"] == same(frozen(), **{k: v for k, v in asked.items() if k != "picture"})


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"ask": "nothing"}, "no question 'nothing': expected hello"),
        ({"ask": "open", "picture": "x"}, "this picture is not held"),
        (None, "a question is a JSON object; got NoneType"),
        ({"ask": "scene"}, "scenes are drawn for the model creatures only"),
    ],
)
def test_errors_are_one_sentence(view, messages, question, said):
    ask(view, {"id": "q", "question": question})
    (message,) = messages
    assert set(message) == {"id", "error"}
    assert message["id"] == "q"
    assert message["error"].startswith(said)
    assert "\n" not in message["error"]


def test_what_nobody_foresaw_is_told_too(view, messages, monkeypatch):
    def broken(question):
        raise ZeroDivisionError("by hand\nand more")

    monkeypatch.setattr(view.explorer, "answer", broken)
    ask(view, {"id": 1, "question": {}})
    assert messages == [{"id": 1, "error": "ZeroDivisionError: by hand"}]


@pytest.mark.parametrize("content", [None, 3, "text", [], {}, {"question": {"ask": "hello"}}])
def test_what_is_no_message_is_left_alone(view, messages, content, caplog):
    ask(view, content)
    assert messages == []
    assert caplog.records == []


def test_where_there_is_an_event_loop_it_goes_on_while_an_answer_is_computed(view, messages, monkeypatch):
    """The answers wait for something that the loop does later: were they computed in the loop, they never came."""
    later = threading.Event()
    threads = []

    def slow(question):
        threads.append(threading.current_thread())
        assert later.wait(10)
        return {"number": question["number"]}

    async def kernel():
        for number in range(3):
            ask(view, {"id": number, "question": {"number": number}})
        assert messages == []
        later.set()
        while len(messages) < 3:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(view.explorer, "answer", slow)
    asyncio.run(asyncio.wait_for(kernel(), 10))
    assert messages == [{"id": number, "answer": {"number": number}} for number in range(3)]
    assert len(set(threads)) == 1, "one after the other"
    assert threads[0] is not threading.current_thread()


def test_what_is_forgotten_ends_and_nothing_waits_for_what_takes_long(view, messages, monkeypatch):
    answer, (_, recording) = view.explorer.answer, view.explorer.shelf.take(view.state["picture"])

    def endless(question):
        while question["ask"] == "paths":
            recording.frozen.check()
        return answer(question)

    async def until(number):
        while len(messages) < number:
            await asyncio.sleep(0.01)

    async def kernel():
        ask(view, {"id": 1, "question": {"ask": "paths"}})
        ask(view, {"id": 2, "question": {"ask": "hello"}})
        await until(1)
        assert messages[0]["id"] == 2
        ask(view, {"forget": 1})
        await until(2)
        assert "nobody waits" in messages[1]["error"]

    monkeypatch.setattr(view.explorer, "answer", endless)
    asyncio.run(asyncio.wait_for(kernel(), 10))
    assert view._left == {}


def test_the_module_stands_by_itself(view):
    assert view._esm == module._web("relupath.js")
    assert view._css == module._web("relupath.css")
    assert not re.search(r"^\s*import\b|\bimport\(|https?://(?!www\.w3\.org/)", view._esm, re.MULTILINE)
    assert not re.search(r"@import|url\(", view._css)
    assert {"state", "_esm", "_css"} <= set(view.keys), "they are sent"


def test_what_is_shown_first():
    net = frozen()
    best = int(net.output.argmax())
    other = int(relupath.plausible(net)[0])
    first = relupath.explore(net, classes=NAMES).state
    assert (first["target"], first["against"], first["on"], first["partition"]) == (best, other, "target", "channels")
    assert relupath.explore(net, "dog", against=torch.tensor(1), classes=NAMES).state["target"] == 3
    assert relupath.explore(net, np.int64(2)).state["target"] == 2
    assert relupath.explore(net, relupath.logit(1), partition="locations").state["partition"] == "locations"
    difference = relupath.explore(net, relupath.contrast(3, 1)).state
    assert (difference["target"], difference["against"], difference["on"]) == (3, 1, "contrast")


def test_the_picture_lies_below_the_maps():
    shown = relupath.explore(frozen(), image=Image.new("L", (20, 10))).opened["picture"]["image"]
    assert shown["shape"] == [10, 20]
    large = relupath.explore(frozen(), image=Image.new("RGB", (4000, 3000))).opened["picture"]["image"]
    assert large["shape"] == [768, 1024]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((), {"batch": 2}, InputError, "freeze one of them"),
        ((9,), {}, TargetError, "class 9 is out of range"),
        (("wolf",), {"classes": NAMES}, TargetError, "no class is named 'wolf'"),
        ((lambda y: y,), {}, UsageError, "one class by its index or its name"),
        ((relupath.logit([1, 2]),), {}, UsageError, "one class by its index or its name"),
        ((1,), {"against": 1}, UsageError, "cannot be compared with itself"),
        ((relupath.contrast(3, 1),), {"against": 2}, UsageError, "leave out against=2"),
        ((), {"partition": "rows"}, UsageError, "no partition 'rows'"),
        ((), {"classes": ("a",)}, ModelError, "1 class names for the 4 classes"),
        ((), {"image": "photo.jpg"}, InputError, "as a PIL image"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_one_sentence_at_once(arguments, options, error, said):
    net = frozen(options.pop("batch", 1))
    with pytest.raises(error, match=re.escape(said)):
        relupath.explore(net, *arguments, **options)


def test_without_anywidget_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "MISSING", ImportError("No module named 'anywidget'"))
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'relupath[notebook]'")):
        relupath.explore(frozen())


def test_a_notebook_that_has_lost_its_kernel_still_shows_the_classes(view):
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data

    class Words(HTMLParser):
        text, tags = "", set()

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)

        def handle_data(self, data):
            self.text += data

    words = Words(convert_charrefs=True)
    words.feed(data["text/html"])
    assert "img" not in words.tags
    assert all(name in words.text for name in NAMES)
    assert "a<b: why " in words.text
    assert "run the cell again" in words.text


def test_explore_is_found_beside_the_public_names():
    assert relupath.explore is module.explore
    assert "explore" not in relupath.__all__


# --- in a browser: what anywidget gives to the module ---

MODEL = """async ([esm, state]) => {
  const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  const heard = [];
  const model = {
    get: (name) => ({ state })[name],
    on: (name, callback) => name === "msg:custom" && heard.push(callback),
    off: (name, callback) => heard.splice(heard.indexOf(callback), 1),
    send: async (content) => { const reply = await window.kernel(content); heard.forEach((one) => one(reply, [])); },
  };
  window.heard = heard;
  window.stop = await module.default.render({ model, el: document.getElementById("cell") });
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_module_shows_the_kernels_numbers(view):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked, said = [], []

    def kernel(content):
        asked.append(content["question"])
        return view._reply(content)

    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        for kind in ("console", "pageerror", "dialog"):
            page.on(kind, lambda said_: said.append(str(said_)))
        page.expose_function("kernel", kernel)
        page.set_content(f"<style>{view._css}</style><div id=cell></div>")
        page.evaluate(MODEL, [view._esm, view.state])
        share = page.locator(".column:nth-child(1) .share").first
        share.click()
        page.locator(".column:nth-child(2) .share").first.wait_for()
        page.wait_for_selector("relupath-view:not([data-busy])")
        keys = [one.get_attribute("data-key") for one in page.locator(".column:nth-child(1) .share").all()]
        values = [float(one.get_attribute("data-value")) for one in page.locator(".column:nth-child(1) .share").all()]
        assert page.locator(".alert").is_hidden()
        page.evaluate("window.stop()")
        assert page.locator("relupath-view").count() == page.evaluate("window.heard.length") == 0
        browser.close()
    tree = view.explorer.answer({**view.state, "ask": "node"})
    assert dict(zip(keys, values, strict=True)) == {child["key"]: child["value"] for child in tree["children"]}
    assert [question["ask"] for question in asked][:2] == ["hello", "open"]
    assert said == []
