"""`distill dashboard`: the address it prints, the port it takes, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2
import pytest
from dashboard_kit import record

from distillation.cli import main
from distillation.dashboard import serve
from distillation.errors import ConfigError

COMMAND = [sys.executable, "-m", "distillation.cli", "dashboard", "--port", "0"]


@contextmanager
def running(*arguments: str, **environment: str):
    """The command and the address that it prints; it is interrupted and must end well."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def taken_port():
    """A port of the loopback that someone listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_it_answers_at_the_printed_address_until_it_is_interrupted(tmp_path):
    uuid = record(tmp_path)
    with running("--runs", str(tmp_path)) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        found = httpx2.get(f"{address}api/runs").json()
        assert [run["uuid"] for run in found["runs"]] == [uuid]
        rebound = httpx2.get(f"{address}api/runs", headers={"Host": "evil.example"})
        assert rebound.status_code == 421


def test_bound_elsewhere_it_needs_the_token_that_it_prints(tmp_path):
    with running("--runs", str(tmp_path), "--host", "0.0.0.0") as address:
        found = re.search(r":(\d+)/\?token=([\w-]{40,})$", address)
        assert found, address
        port, token = found.groups()
        here = f"http://127.0.0.1:{port}"
        assert httpx2.get(f"{here}/api/runs").status_code == 401
        assert httpx2.get(f"{here}/api/runs?token={token}").status_code == 200
        assert httpx2.get(f"{here}/?token={token}").headers["set-cookie"]


def test_tokens_are_new_each_time():
    doors = [serve.open_door("0.0.0.0", 0) for _ in range(2)]
    for door in doors:
        door.socket.close()
    assert doors[0].token != doors[1].token


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_on_the_loopback_there_is_no_token(host):
    door = serve.open_door(host, 0)
    port = door.socket.getsockname()[1]
    door.socket.close()
    assert door.token is None
    assert door.url == f"http://{host}:{port}/"
    assert host in door.hosts


def test_a_port_in_use_is_an_error_that_names_a_free_one(tmp_path, capsys):
    with taken_port() as port, pytest.raises(SystemExit) as exit:
        main(["dashboard", "--port", str(port), "--runs", str(tmp_path)])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    found = re.search(rf"port {port} is taken; (\d+) is free: --port \1", message)
    assert found, message
    assert int(found[1]) > port


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70, "\ud800"])
def test_a_host_that_is_not_this_machine_is_an_error(host):
    with pytest.raises(ConfigError, match=r"--host|cannot answer at"):
        serve.open_door(host, 0)


def test_a_root_without_runs_is_said_and_served(tmp_path):
    with running("--runs", str(tmp_path / "nothing")) as address:
        assert httpx2.get(f"{address}api/runs").json()["runs"] == []


def test_a_file_in_the_place_of_the_root_is_an_error(tmp_path, capsys):
    (tmp_path / "runs.txt").touch()
    with pytest.raises(SystemExit) as exit:
        main(["dashboard", "--port", "0", "--runs", str(tmp_path / "runs.txt")])
    assert exit.value.code == 2
    assert "runs.txt: a file, where a folder" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_opens_the_browser_on_request(tmp_path, host):
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part\nmv {opened}.part {opened}\n')
    browser.chmod(0o700)
    with running("--runs", str(tmp_path), "--host", host, "--open", BROWSER=f"{browser} %s") as url:
        for _ in range(100):
            if opened.exists():
                break
            time.sleep(0.1)
    address = opened.read_text().strip()
    assert address.startswith("http://127.0.0.1:")
    assert address.rpartition("/")[2] == url.rpartition("/")[2]


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "jinja2", "plotly"])
def test_a_missing_package_is_named_with_its_cure(tmp_path, package):
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from distillation.cli import main\n"
        f"main(['dashboard', '--port', '0', '--runs', {str(tmp_path)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"distill dashboard needs {package}" in done.stderr
    assert "pip install 'distillation[dashboard]'" in done.stderr


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["dashboard", "--help"])
    assert "Example: distill dashboard --port 8090" in capsys.readouterr().out


def test_neither_torch_nor_plotlys_python_is_imported():
    program = (
        "import sys, tempfile\n"
        "from distillation.dashboard import create_app\n"
        "create_app(tempfile.gettempdir())\n"
        "print(*(name for name in ('torch', 'plotly') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
