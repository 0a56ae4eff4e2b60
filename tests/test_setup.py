"""The commands of the README, as far as they can be tried without installing everything once more."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="make and sh; Windows has its own lines in the README")


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def fake_python(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_without_venv_is_told_what_to_install(tmp_path):
    python = fake_python(tmp_path / "python", f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    outcome = make("lab", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert outcome.returncode != 0
    assert "apt-get install python3-venv" in outcome.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("body", ["exit 1", "exec no-such-python"])
def test_an_unfit_python_is_named(tmp_path, body):
    outcome = make("test", f"PYTHON={fake_python(tmp_path / 'python', body)}", f"VENV={tmp_path / 'venv'}")
    assert outcome.returncode != 0
    assert "Python 3.10 to 3.13" in outcome.stderr
    assert str(tmp_path / "python") in outcome.stderr


@pytest.mark.slow
def test_a_failed_installation_names_the_usual_reasons_and_is_tried_again(tmp_path):
    """pip fails here: its environment says that there is no index to install from."""
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    command = ["make", "lab", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'venv'}"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert outcome.returncode != 0
    assert "build-essential" in outcome.stderr
    assert not (tmp_path / "venv" / "installed-lab").exists()


def test_lab_starts_without_a_screen_and_prints_its_address(tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "venv" / "installed-lab").touch()  # the second call: nothing is installed again
    flags = "LAB_FLAGS=--no-browser --ServerApp.port=0 --ServerApp.port_retries=50"
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"HOME": str(tmp_path)}
    command = ["make", "lab", f"VENV={tmp_path / 'venv'}", flags]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as server:  # fmt: skip
        try:
            address = next(
                filter(None, (re.search(r"http://\S+00-start-here\.ipynb\?token=\w+", line) for line in server.stdout))
            )
            assert "JupyterLab" in _page(address[0].replace("localhost", "127.0.0.1"))
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _page(address: str, seconds: float = 60) -> str:
    """What ``address`` shows; the server prints it a moment before it listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as page:
                return page.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_conda_lists_no_dependency_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, inside_pip = environment["dependencies"]
    assert python.startswith("python=3.")
    assert (pip, inside_pip) == ("pip", {"pip": ["--editable ."]})


def test_everything_that_pip_needs_is_named_in_one_place_with_a_lower_bound():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.")[0]
    requirements = re.findall(r'^    "([a-z][\w-]+(?:\[\w+\])?)(.*)",$', text, re.MULTILINE)
    assert len(requirements) > 15
    assert [name for name, bound in requirements if not bound.startswith(">=")] == []
