"""The local server: the page's own requests are answered; any other gets one sentence, and the server goes on."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

from nets import randomise
from relupath import server
from relupath._asked import _EXPECTED
from relupath.errors import MissingExtraError, RelupathError, UsageError
from relupath.explorer import Explorer
from relupath.images import FORMATS, Picture
from relupath.models import Classifier, to_tensor

TOKEN = "a secret"
SIZE = 12
HEADERS = {"X-Relupath-Token": TOKEN}
NAMES = ('<img src=x onerror="alert(1)">', "\ud800", "an elk")


def exploring(**options):
    """An explorer of a small network, and a picture in it."""
    model = randomise(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), 0
    )

    def preprocess(image):
        return to_tensor(image.resize((SIZE, SIZE))).double()

    one = Explorer(Classifier("tiny", model, preprocess, NAMES, dtype=next(model.parameters()).dtype), **options)
    return one, one.add(Picture(Image.new("RGB", (SIZE, SIZE), "teal"), "teal"))


def png(seed=0, size=(SIZE, SIZE), kind="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    for name, _ in server.FILES.values():
        (folder / name).write_text(f"this is {name}", encoding="utf-8")
    (folder / "secret.txt").write_text("not to be seen", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def explored():
    return exploring()


@pytest.fixture(scope="module")
def client(explored, web):
    app = server.application(explored[0], TOKEN, web=web)
    with TestClient(app, "http://127.0.0.1:8123", headers=HEADERS, raise_server_exceptions=False) as one:
        yield one


def refused(response, *statuses):
    """The one sentence with which a request is refused."""
    assert response.status_code in (statuses or range(400, 500)), response.text
    (sentence,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


# --- what is answered ---


def test_the_page_is_a_few_files(client):
    for path, (name, kind) in server.FILES.items():
        response = client.get(path)
        assert (response.status_code, response.text) == (200, f"this is {name}")
        assert response.headers["content-type"].startswith(kind)
        assert client.head(path).status_code == 200


def test_the_pages_files_are_all_that_ship():
    shipped = {file.name for file in server.WEB.iterdir()} - {"report.css"}
    assert shipped == {name for name, _ in server.FILES.values()}


def test_a_question_gets_the_explorers_answer(client, explored):
    one, key = explored
    for question in ({"ask": "hello"}, {"ask": "open", "picture": key}, {"ask": "node", "picture": key}):
        response = client.post("/api/ask", json=question)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json() == one.answer(question)
        assert response.content.isascii()


def test_one_thread_stays_and_others_end():
    threads, hold = server._Threads(), threading.Event()

    def held():
        assert hold.wait(5)
        return threading.current_thread()

    first = threads.submit(held)
    second = threads.submit(threading.current_thread).result(5)
    second.join(5)
    assert not second.is_alive()
    hold.set()
    stays = first.result(5)
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(5)
    for _ in range(100):
        if not threads.busy:
            break
        time.sleep(0.01)
    assert threads.submit(threading.current_thread).result(5) is stays
    assert stays is not second
    assert stays.is_alive()


def test_a_photo_is_held_under_a_name_that_can_be_read(client, explored):
    one, _ = explored
    names = {
        "cat.png": "cat.png", "../../etc/passwd": "passwd", "C:\\x\\cat.png": "cat.png", "": "photo", "/": "photo",
        "a\nb\x00\u202ec\ud7ff.png": "abc.png", "x" * 5000: "x" * 80, "<b>": "<b>", "ü 1": "ü 1",
    }  # fmt: skip
    for seed, (name, said) in enumerate(names.items()):
        response = client.post("/api/photo", params={"name": name}, content=png(seed))
        assert response.status_code == 200
        assert dict(one.shelf.names())[response.json()["picture"]] == said
    key = client.post("/api/photo", content=png(99)).json()["picture"]
    assert client.post("/api/ask", json={"ask": "open", "picture": key}).json()["picture"]["name"] == "photo"


def test_every_response_keeps_a_browser_to_the_page(client):
    for response in (client.get("/"), client.get("/no"), client.post("/api/ask"), client.get("/api/ask"),
                     client.get("/", headers={"Host": "evil"})):  # fmt: skip
        policy = dict(
            part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";")
        )
        assert policy.pop("default-src") == "'self'"
        assert set(policy.values()) == {"'none'"}
        assert set(policy) == {"object-src", "base-uri", "form-action", "frame-ancestors"}
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert not {name for name in response.headers if name.startswith("access-control")}
        api = response.request.url.path.startswith("/api")
        assert response.headers["cache-control"] == ("no-store" if api else "no-cache")


# --- who is answered ---


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8123", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]", "192.168.1.7:9"]
)
def test_the_server_goes_by_its_own_names_and_addresses(client, host):
    assert client.get("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8123", "127.0.0.1.evil.example", "localhost.evil.example", "evil@localhost", "",
     "127.0.0.1:8123:1", "127.0.0.1:", "localhost:x", "[::1", "::1", "[127.0.0.1", "127.1", "2130706433", "0x7f.1",
     "localhost evil", "локалхост"],
)  # fmt: skip
def test_another_name_is_not_answered(client, host):
    assert "name" in refused(client.get("/", headers={"Host": host.encode()}), 403)
    assert "name" in refused(client.post("/api/ask", headers={"Host": host.encode()}, json={"ask": "hello"}), 403)


def test_two_names_are_none(client):
    response = client.get("/", headers=[("Host", "127.0.0.1"), ("Host", "localhost")])
    assert "name" in refused(response, 403)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:8124", "http://localhost:8123"]
)
def test_another_pages_request_is_not_answered(client, origin):
    for response in (client.get("/", headers={"Origin": origin}),
                     client.post("/api/ask", headers={"Origin": origin}, json={"ask": "hello"})):  # fmt: skip
        assert "another page" in refused(response, 403)


def test_what_a_browser_says_of_the_site_counts_too(client):
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}.items():
        response = client.post("/api/ask", headers={"Sec-Fetch-Site": site}, json={"ask": "hello"})
        assert response.status_code == status
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize("token", ["", "a secre", "a secret ", "A SECRET", "a secret, a secret", "ä", "x" * 5000])
def test_without_the_token_nothing_is_answered(client, token):
    for path in ("/api/ask", "/api/photo", "/api/no"):
        response = client.post(path, headers={"X-Relupath-Token": token.encode("latin-1")}, json={"ask": "hello"})
        if token != "a secret ":  # which HTTP strips
            assert "token" in refused(response, 403)
    client.headers.pop("X-Relupath-Token")
    try:
        assert "token" in refused(client.post("/api/ask?token=a+secret", json={"ask": "hello"}), 403)
    finally:
        client.headers.update(HEADERS)


# --- what is refused ---


@pytest.mark.parametrize(
    "path",
    ["/no", "/secret.txt", "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/index.html",
     "//etc/passwd", "/api/../secret.txt", "/%00", "/relupath.js%00", "/web/relupath.js", "/file:///etc/passwd"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client, path):
    response = client.get(path)
    assert "secret" not in response.text.replace("the token", "")
    assert response.status_code in (403, 404, 405)
    refused(response)


def test_only_the_right_method_is_taken(client):
    for method, path in (("POST", "/"), ("DELETE", "/"), ("GET", "/api/ask"), ("PUT", "/api/photo"), ("TRACE", "/")):
        refused(client.request(method, path), 405)


BODIES = [
    b"", b"{", b"null", b"[]", b"3", b'"ask"', b"\xff\xfe", b"{}", b'{"ask":"no"}', b'{"ask":NaN}', b'{"ask":Infinity}',
    b'{"ask":1e999}', b'{"ask":"node","width":1e999}', b'{"ask":"node","width":-1e400}', b'{"ask":"\\ud800"}',
    b'{"ask":"open","picture":"\\ud800\\u0000"}', b'{"ask":"open","target":"\\udcff"}',
    b"[" * 200_000, b'{"a":' * 40_000, b'{"ask":' + b"[" * 900 + b"]" * 900 + b"}", b'{"ask":' + b"9" * 5000 + b"}",
    b'{"ask":"node","width":' + b"9" * 250_000 + b"}", b'{"ask":"' + b"a" * 250_000 + b'"}', b"\x00" * 1000,
    b'{"ask":"node","path":[' + b'"a",' * 60_000 + b'"a"]}', b'{"ask":"hello","ask":"no"}', b'{"ask":"hello"}}',
    b'{"__proto__":1,"ask":"hello"}', json.dumps({"ask": "node", "root": "[" * 1999}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body[:30]))
def test_a_body_that_is_no_question_gets_one_sentence(client, explored, body):
    body = body.replace(b'"ask":"node"', f'"ask":"node","picture":"{explored[1]}"'.encode())
    assert len(refused(client.post("/api/ask", content=body), 400, 404, 422)) < 700


def test_a_picture_that_is_gone_is_not_found(client):
    assert "open it again" in refused(client.post("/api/ask", json={"ask": "open", "picture": "no"}), 404)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["contrast", "channels", "greedy", "rest", "1:c1", "found:0", "every:2", 0, 1, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "share"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
ASKS = st.sampled_from(["hello", "open", "node", "compare", "bias", "check", "paths", "cut", "scene", "no"])


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*_EXPECTED, "no"]), VALUES, max_size=3), ASKS, st.booleans())
def test_no_question_breaks_the_server(client, explored, question, ask, whole):
    question = {"ask": ask, "picture": explored[1], **question} if whole else question
    response = client.post("/api/ask", content=json.dumps(question).encode())
    if response.status_code == 200:
        json.loads(response.content, parse_constant=lambda word: pytest.fail(word))
    else:
        refused(response, 400, 404, 422)


@settings(max_examples=40)
@given(st.binary(max_size=200), st.text(max_size=20), st.sampled_from(FORMATS), st.floats(0, 1))
def test_no_bytes_break_the_server(client, junk, name, kind, where):
    whole = png(1, kind=kind)
    at = int(where * len(whole))
    for body in (junk, whole[:at], whole[:at] + junk + whole[at + len(junk) :]):
        response = client.post("/api/photo", params={"name": name.encode(errors="replace")}, content=body)
        assert response.status_code == 200 or refused(response, 422)


def bomb(width, height):
    """A PNG that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"GIF89a", "not a picture|cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png(kind="JPEG", size=(64, 64))[:900], "cannot be read"),
        (bomb(60_000, 60_000), "pixels"),
        (bomb(6_000, 5_001), "30,000,000"),
    ],
)
def test_what_is_no_picture_gets_one_sentence(client, content, sentence):
    assert re.search(sentence, refused(client.post("/api/photo?name=x.png", content=content), 422))


def test_of_an_animation_the_first_frame_is_taken(client):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    key = client.post("/api/photo?name=a.gif", content=file.getvalue()).json()["picture"]
    (note,) = client.post("/api/ask", json={"ask": "open", "picture": key}).json()["picture"]["notes"]
    assert "frames" in note


@pytest.mark.parametrize(("path", "limit"), [("/api/ask", server.QUESTION), ("/api/photo", server.PHOTO)])
def test_a_body_that_is_too_large_is_refused_though_its_size_was_not_told(client, path, limit):
    chunks = (b" " * 2**16 for _ in range(limit // 2**16 + 1))
    assert f"{limit:,} bytes" in refused(client.post(path, content=chunks), 413)


def test_a_mistake_of_ours_is_logged_and_told_in_one_sentence(web, caplog, monkeypatch):
    one, _ = exploring()
    monkeypatch.setattr(one, "answer", lambda question: 1 // 0)
    app = server.application(one, TOKEN, web=web)
    told = TestClient(app, "http://127.0.0.1", headers=HEADERS, raise_server_exceptions=False)
    assert "terminal" in refused(told.post("/api/ask", json={"ask": "hello"}), 500)
    (record,) = caplog.records
    assert (record.levelname, record.exc_info[0]) == ("ERROR", ZeroDivisionError)


# --- a real server, on a real socket ---


@pytest.fixture(scope="module")
def live(web):
    """An explorer, and the address at which it is served."""
    one, key = exploring(pictures=4)
    ready = threading.Event()
    said = []
    thread = threading.Thread(
        target=server.serve, args=(one, lambda address: (said.append(address), ready.set())), kwargs={"web": web},
        daemon=True,
    )  # fmt: skip
    thread.start()
    assert ready.wait(10)
    site, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=([\w-]{32})", said[0]).groups()
    with httpx.Client(base_url=site, headers={"X-Relupath-Token": token}, timeout=20) as client:
        yield one, key, client, token


def raw(client, data, read=True):
    """What comes back for bytes on a socket of their own."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(data)
        return connection.recv(2**16) if read else b""


def until(true):
    """Wait, but not for ever."""
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    pytest.fail("it took too long")


def test_a_flood_with_closed_sockets_leaves_the_server_answering(live):
    one, key, client, token = live
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Relupath-Token: {token}\r\n"
    bodies = [
        b"\r\n", b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"A" * 70_000,
        head.encode() + b"Content-Length: 99\r\n\r\n{", head.encode() + b"Content-Length: -1\r\n\r\n",
        head.encode() + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", head.encode() + b"Content-Length: 9\r\n\r\n",
        head.encode() + b"Content-Length: 15\r\n\r\n" + b'{"ask":"hello"}',
        head.replace("ask", "photo").encode() + b"Content-Length: 9999999\r\n\r\n" + b"x" * 9999,
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: raw(client, bodies[number % len(bodies)], read=False), range(300)))
        codes = list(
            pool.map(lambda n: client.post("/api/ask", json={"ask": "node", "picture": "no"}).status_code, range(200))
        )
    assert set(codes) <= {404, 503}
    until(lambda: client.post("/api/ask", json={"ask": "hello"}).status_code == 200)
    assert client.post("/api/ask", json={"ask": "open", "picture": key}).json() == one.answer(
        {"ask": "open", "picture": key}
    )
    assert client.post("/api/photo", content=png(5)).status_code == 200


def test_whoever_asks_too_much_at_once_is_told_to_come_again(live, monkeypatch):
    one, key, client, _ = live
    go_on, answer = threading.Event(), one.answer

    def slow(question):
        assert question["ask"] != "paths" or go_on.wait(20)
        return answer(question)

    monkeypatch.setattr(one, "answer", slow)
    question = {"ask": "paths", "picture": key}
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(client.post, "/api/ask", json=question) for _ in range(20)]
        until(lambda: sum(a.done() for a in asked) == 8)
        turned = [a.result() for a in asked if a.done()]
        assert {(response.status_code, response.headers["retry-after"]) for response in turned} == {(503, "1")}
        assert "again" in refused(turned[0], 503)
        assert client.post("/api/ask", json={"ask": "node", "picture": key}).status_code == 200
        go_on.set()
        assert sorted(a.result().status_code for a in asked) == [200] * 12 + [503] * 8


def test_nobody_waits_for_a_question_whose_asker_is_gone(live, monkeypatch):
    one, key, client, token = live
    go_on, answer, asked = threading.Event(), one.answer, []

    def slow(question):
        asked.append(question)
        assert go_on.wait(20)
        return answer(question)

    monkeypatch.setattr(one, "answer", slow)
    question = {"ask": "paths", "picture": key}
    body = json.dumps(question)
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Relupath-Token: {token}\r\n"
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(client.post, "/api/ask", json=question) for _ in range(2)]
        until(lambda: len(asked) == 2)
        for _ in range(6):
            raw(client, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(), read=False)
        time.sleep(0.1)
        go_on.set()
        assert [one.result().status_code for one in first] == [200, 200]
    assert client.post("/api/ask", json=question).status_code == 200
    assert len(asked) == 3


def test_a_search_ends_soon_after_its_asker_is_gone(live, monkeypatch):
    one, key, client, token = live
    began, answer, ended = threading.Event(), one.answer, []
    _, recording = one.shelf.take(key)

    def endless(question):
        began.set()
        try:
            while True:
                recording.frozen.check()
        except RelupathError as error:
            ended.append(error)
            raise

    monkeypatch.setattr(one, "answer", endless)
    body = json.dumps({"ask": "paths", "picture": key})
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Relupath-Token: {token}\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert began.wait(10)
        time.sleep(0.1)
        assert ended == []
    until(lambda: ended)
    assert "nobody waits" in str(ended[0])
    monkeypatch.setattr(one, "answer", answer)
    assert client.post("/api/ask", json={"ask": "paths", "picture": key}).status_code == 200


def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(live):
    _, _, client, token = live
    head = f"POST /api/photo HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Relupath-Token: {token}\r\n"
    for size in (server.PHOTO + 1, 10**19):
        assert raw(client, f"{head}Content-Length: {size}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")


def test_slow_bodies_and_silent_connections_are_closed(live, monkeypatch):
    _, _, client, token = live
    monkeypatch.setattr(server, "SECONDS", 0.1)
    monkeypatch.setattr(server, "HASTE", 0.1)
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Relupath-Token: {token}\r\nContent-Length: 9\r\n\r\n{{"
    assert raw(client, head.encode()).startswith(b"HTTP/1.1 408")
    assert raw(client, b"GET / HT") == b""
    assert client.get("/").status_code == 200


def test_what_is_held_stays_bounded(live):
    one, _, client, _ = live
    for seed in range(6):
        key = client.post("/api/photo", content=png(seed)).json()["picture"]
        assert client.post("/api/ask", json={"ask": "node", "picture": key}).status_code == 200
    assert len(one.shelf.names()) == 4
    assert len(one.shelf._recorded) <= 4


def test_a_port_that_is_taken_is_refused_in_one_sentence(live):
    one, _, client, _ = live
    with pytest.raises(UsageError, match=r"cannot listen on port \d+ of 127.0.0.1 .*--port"):
        server.serve(one, print, port=client.base_url.port)
    with pytest.raises(UsageError, match="of no such host"):
        server.serve(one, print, host="no such host")


def test_the_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "relupath.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'relupath[explore]'")):
        __import__("relupath.server")
