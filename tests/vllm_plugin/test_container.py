# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`Dockerfile` and `compose.yaml`, as far as they can be tried without a container."""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import typer
import yaml
from servers import free_port

from valley_cli.app import app


ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


@pytest.fixture(scope="module")
def service():
    text = (ROOT / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+(:-(.*?)|:\?.*?)\}", r"\2", text))["services"]["valley"]


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name}\s+(.*)", DOCKERFILE, re.MULTILINE)


def arguments(command: list[str]) -> dict:
    (entrypoint,) = instructions("ENTRYPOINT")
    program, name, *words = [*json.loads(entrypoint), *command]
    assert program == "valley"
    return typer.main.get_command(app).commands[name].make_context(name, words).params


def test_it_runs_a_command_that_parses(service):
    found = arguments(service["command"])
    assert found["engine"] == "vllm" and found["host"] == "0.0.0.0"
    assert found["vllm_args"] == "--max-model-len 4096"
    (command,) = instructions("CMD")
    assert arguments(json.loads(command))["checkpoint"] == found["checkpoint"]


def test_it_may_do_little(service):
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (user,) = instructions("USER")
    assert service["user"] == user and "0" not in user.split(":")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    checkpoint, cache = (volume.split(":")[1:] for volume in service["volumes"])
    assert checkpoint == ["/checkpoint", "ro"] and cache == instructions("VOLUME")
    # What is written somewhere by name is written where the file system is not read-only.
    (variables,) = instructions("ENV")
    folders = [value for value in re.findall(r"=(\S+)", variables) if value.startswith("/")]
    assert len(folders) == 4 and all(folder.startswith("/cache/") for folder in folders)


def test_the_health_check_tells_a_server_from_none(service):
    (port,) = instructions("EXPOSE")
    assert str(arguments(service["command"])["port"]) == port == service["ports"][0].split(":")[2]
    (check,) = re.findall(r"^HEALTHCHECK .*? CMD (.*)", DOCKERFILE, re.MULTILINE)
    program, option, code = json.loads(check)
    assert (program, option) == ("python3", "-c") and f":{port}/health'" in code

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == self.server.right else 503)
            self.end_headers()

        def log_message(self, *args):
            pass

    def healthy(at: int) -> bool:
        words = [sys.executable, "-c", code.replace(f":{port}/", f":{at}/")]
        return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        server.right = "/health"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        assert healthy(server.server_port)
        server.right = "/other"  # up, but not well
        assert not healthy(server.server_port)
        server.shutdown()
    assert not healthy(free_port())


@pytest.mark.slow
def test_what_is_copied_into_it_is_enough_for_the_wheel(tmp_path):
    """The stage `wheel`, with the build backend of this environment; the wheel has the command and its recipes."""
    for needed in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(needed, reason=f"{needed}, which builds the package, is not installed")
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    (tmp_path / "source").mkdir()
    for line in instructions("COPY"):
        *names, target = line.split()
        for name in names:
            assert name.partition("/")[0] in admitted, f"{name} is in .dockerignore"
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, tmp_path / "source" / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, tmp_path / "source" / target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", tmp_path / "wheels", "."], cwd=tmp_path / "source", check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"valley_cli/app.py", "transformers_valley/vllm_plugin/model.py"} <= set(names)
    assert any(name.startswith("valley_cli/recipes/") for name in names)
