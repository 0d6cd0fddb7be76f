"""``relupath explore``: a line with the address, the first photo opens, a quiet end; what is wrong is one sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from relupath import cli

FACTORY = """
import numpy as np, torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    ), lambda image: torch.tensor(np.asarray(image.resize((16, 16))) / 127.5 - 1).permute(2, 0, 1)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, two photos and something that is none, as working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "labels.txt").write_text("ant\nbee\n<b>cat</b>\n")
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photo {seed}.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_a_page_is_served_until_it_is_interrupted(place):
    browser = place / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys, pathlib\npathlib.Path('opened').write_text(sys.argv[1])\n")
    browser.chmod(0o755)
    options = ["--model", "net.py:net", "--labels", "labels.txt", "--dtype", "float64", "--quiet"]
    command = [sys.executable, "-m", "relupath", "explore", "photo 1.png", "photo 2.png", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BROWSER": f"{browser} %s"},
    ) as process:
        line = process.stdout.readline()
        address = re.fullmatch(r"exploring at (http://127\.0\.0\.1:\d+/\?token=\S{32}) until Ctrl-C\n", line)[1]
        site, _, token = address.partition("/?token=")
        with httpx.Client(base_url=site, headers={"X-Relupath-Token": token}, timeout=30) as client:

            def ask(**question):
                return client.post("/api/ask", json=question).json()

            pictures = ask(ask="hello")["pictures"]
            node = ask(ask="node", picture=pictures[0]["id"], on="contrast")
            slow = ask(ask="paths", picture=pictures[1]["id"])
        assert [picture["name"] for picture in pictures] == ["photo 2.png", "photo 1.png"]  # the first opens
        assert slow["paths"]
        for _ in range(100):
            if (place / "opened").exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, "")
    assert errors == "note: running code: net.py:net is imported and called\n"
    assert (place / "opened").read_text() == address
    names = {}
    exec(node["python"], names)
    assert float(names["model"].value[0]) == node["node"]["value"]
    assert "labels='labels.txt', dtype='float64'" in node["python"]


def test_loading_ends_when_it_is_interrupted(place):
    (place / "slow.py").write_text("import time\n\n\ndef net():\n    print('begun', flush=True)\n    time.sleep(60)\n")
    command = [sys.executable, "-m", "relupath", "explore", "photo 1.png", "--model", "slow.py:net", "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": place}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.endswith("Aborted!\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["text.png"], 1, "text.png is not a picture"),
        (["no.png"], 2, "'no.png' does not exist"),
        (["photo 1.png", "--scene", "3"], 2, "--scene draws a picture and PHOTO is one"),
        (["--scene", "3", "--model", "net.py:net"], 2, "for the model creatures, not for net.py:net"),
        (["--model", "nothing"], 2, "unknown model 'nothing'"),
        (["--host", "no such host"], 2, "cannot listen on port 0 of no such host"),
        (["--port", "99999"], 2, "--port"),
        (["--target", "3"], 2, "No such option"),
    ],
)
def test_what_is_wrong_is_one_sentence(place, arguments, status, sentence):
    said = CliRunner().invoke(cli.main, ["explore", "--quiet", "--no-browser", *arguments])
    assert said.exit_code == status
    assert sentence in said.stderr
    assert said.stdout == ""
    assert "Traceback" not in said.stderr


def test_a_port_that_is_taken_is_one_sentence(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = CliRunner().invoke(cli.main, ["explore", "--quiet", "--no-browser", "--port", str(port)])
    assert said.exit_code == 2
    assert f"cannot listen on port {port} of 127.0.0.1" in said.stderr


def test_the_missing_extra_is_named(place, monkeypatch):
    monkeypatch.delitem(sys.modules, "relupath.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = CliRunner().invoke(cli.main, ["explore", "--quiet", "--no-browser"])
    assert said.exit_code == 1
    assert "pip install 'relupath[explore]'" in said.stderr
