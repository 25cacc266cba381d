"""`groundtune demo nano` in a process without a network, where Linux permits the test to remove it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

SOURCE = Path(__file__).parents[2] / "src"
ASK = """
import fcntl, json, os, re, signal, socket, struct, subprocess, sys
from html import unescape
from gradio_client import Client, handle_file
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
options = ["--device", "cpu", "--classes", "red circle", "--host", sys.argv[1]]
command = [sys.executable, "-m", "groundtune.cli", "demo", "nano", *options]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
    url = server.stdout.readline().strip()
    assert url, server.stderr.read()
    page, names = Client(url, verbose=False, analytics_enabled=False).predict(
        handle_file("a.png"), ["red circle, blue star"], api_name="/detect"
    )
    uploads = os.listdir("tmp")
    server.send_signal(signal.SIGTERM)
    rest, messages = server.communicate(timeout=60)
results = json.loads(unescape(re.search('data-results="([^"]*)"', page)[1]))
print(json.dumps([url, names, results, uploads, os.listdir("tmp"), server.returncode, rest, messages]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_works_without_a_network_and_leaves_no_files(tmp_path: Path, host: str) -> None:
    pytest.importorskip("gradio", reason='needs the extra: pip install "groundtune[demo]"')
    alone = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to use it, to take the network away")
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((100, 60, 180, 140), fill=(220, 20, 30))
    image.save(tmp_path / "a.png")
    (tmp_path / "tmp").mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_"))
    }
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(SOURCE)}
    command = [*alone, sys.executable, "-c", ASK, host]
    options = {"capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    url, names, results, uploads, left, code, rest, messages = json.loads(done.stdout.splitlines()[-1])
    assert re.fullmatch(r"http://(localhost|127\.0\.0\.1|0\.0\.0\.0):\d+/", url)
    assert names == ["red circle", "blue star"]
    best = results["images"][0]["detections"][0]
    assert best["class"] == "red circle" and best["box_xyxy"] == pytest.approx([100, 60, 180, 140], abs=8)
    assert any(name.startswith("groundtune-") for name in uploads)
    assert not [name for name in left if name.startswith("groundtune-")]
    assert code == 0 and rest == "" and "Ctrl-C" in messages
    assert ("Warning:" in messages) == (host == "0.0.0.0")
