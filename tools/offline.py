"""make offline: one zip with the course and every package that it needs, for a room without a network.

The zip serves computers with the same system, processor and Python version as the one that it was made on. It can be
large: on Linux, the usual PyTorch is built for NVIDIA's graphics cards and cannot be imported without their libraries,
used or not. pip's own settings decide where packages come from, so whoever sets PIP_EXTRA_INDEX_URL to the index of
PyTorch's CPU builds, which pip takes for the newer ones, should get a far smaller zip.

Leaves out: Python itself, and what OpenCV needs of the system (see install.sh).
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where JupyterLab brings it along
    import tomli as tomllib

from yolo_slim_lessons.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTIONS = "INSTALL-OFFLINE.md"
FAT32_LIMIT = 2**32 - 1  # bytes of one file on a stick as it is sold
TRIAL = (
    "import yolo_slim_lessons as slim\n"
    "print(slim.evaluate(slim.load_model('nano'), slim.load_images().test.take(200), progress=False))"
)


def build_wheelhouse(project: Path, wheelhouse: Path) -> Path:
    """Download or build a wheel of everything that ``project`` needs, to be installed and to be built.

    Raises:
        SystemExit: pip failed; its own message is above.
    """
    declared = _declared(project)
    needed = [*declared["build-system"]["requires"], *declared["project"]["dependencies"]]
    shutil.rmtree(wheelhouse, ignore_errors=True)  # an older release would be a second choice at installation
    wheelhouse.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(wheelhouse), *needed]
    if subprocess.run(command).returncode:
        raise SystemExit("pip could not get all packages; its message is above. This computer must be connected")
    return wheelhouse


def write_zip(project: Path, wheelhouse: Path, folder: Path) -> Path:
    """Write the last commit of ``project``, the wheels and the instructions as one zip into ``folder``.

    Raises:
        SystemExit: git failed; its own message is told.
    """
    changed = _git(project, "status", "--porcelain", "--untracked-files=no")
    if changed:
        print(f"Not committed, and so not in the zip:\n{changed}")
    top = _declared(project)["project"]["name"]

    def write(path: Path) -> None:
        _git(project, "archive", "--format=zip", f"--prefix={top}/", f"--output={path.resolve()}", "HEAD")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{top}/{INSTRUCTIONS}", instructions())
            for wheel in sorted(wheelhouse.iterdir()):  # stored as they are: a wheel is a zip already
                archive.write(wheel, f"{top}/wheelhouse/{wheel.name}")

    target = folder / f"{top}-offline-{_target()}.zip"
    write_atomically(target, write)
    return target


def _git(project: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=project, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise SystemExit(f"git cannot pack {project}, so clone the course with git. ({done.stderr.strip()})")
    return done.stdout.rstrip()


def install_commands(python: str) -> list[list[str]]:
    """What installs the course from its unpacked folder, for the system that this runs on."""
    inside = str(Path(".venv", "Scripts" if os.name == "nt" else "bin", "python"))
    return [
        [python, "-m", "venv", ".venv"],
        [inside, "-m", "pip", "install", "--no-index", "--find-links", "wheelhouse", "--editable", "."],
    ]


def instructions() -> str:
    """What stands in the zip, for whoever unpacks it."""
    version = ".".join(platform.python_version_tuple()[:2])
    make, install = install_commands(f"py -{version}" if os.name == "nt" else f"python{version}")
    start = [str(Path(install[0]).with_name("jupyter")), "lab", "notebooks"]
    return (
        f"# Without a network\n\nFor {platform.system()} on {platform.machine()} with Python {version}. Unpack the zip "
        "where the course is to stay, open a terminal in its folder, and type:\n\n"
        + "".join(f"    {' '.join(command)}\n" for command in (make, install, start))
        + "\nThe last line starts the course, each time. Begin with 00-start-here. (`make lab` is for computers with a "
        "network.)\n"
    )


def try_zip(archive: Path, code: str = TRIAL) -> str:
    """Unpack ``archive``, install it in a fresh environment with the network off, and run ``code``; returns its output.

    Raises:
        SystemExit: a step failed.
    """
    # No setting of this computer may help, and whoever asks for the network meets a door that is shut.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment |= {"NO_PROXY": "", "no_proxy": "", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    environment["YOLO_SLIM_PROGRESS"] = ""
    with tempfile.TemporaryDirectory(dir=archive.parent, ignore_cleanup_errors=True) as folder:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        [unpacked] = Path(folder).iterdir()
        environment["YOLO_CONFIG_DIR"] = folder
        *install, run = *install_commands(sys.executable), [install_commands("")[1][0], "-c", code]
        for command in (*install, run):
            command[0] = str(unpacked / command[0])  # which leaves an absolute path as it is
            done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def report(archive: Path, wheelhouse: Path) -> str:
    """How large everything is, and whether it fits on a stick."""
    sizes = {wheel.name.split("-")[0]: wheel.stat().st_size for wheel in wheelhouse.iterdir()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:6]
    lines = [
        f"{len(sizes)} wheels, {_gigabytes(sum(sizes.values()))}, the largest: "
        + ", ".join(f"{name} {_gigabytes(sizes[name])}" for name in largest),
        f"{archive}: {_gigabytes(archive.stat().st_size)}",
    ]
    if archive.stat().st_size > FAT32_LIMIT:
        lines.append("Sticks formatted as FAT32 hold no file of more than 4.3 GB: format them as exFAT")
    return "\n".join(lines)


def _declared(project: Path) -> dict:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


def _target() -> str:
    return f"py{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform().replace('-', '_')}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "offline", help="where the zip goes")
    parser.add_argument("--try", action="store_true", dest="trial", help="install the zip once, with the network off")
    options = parser.parse_args()
    wheelhouse = build_wheelhouse(ROOT, options.folder / "wheelhouse")
    archive = write_zip(ROOT, wheelhouse, options.folder)
    print(report(archive, wheelhouse), flush=True)
    if options.trial:
        print("installed in a fresh environment with the network off:", try_zip(archive).strip())


if __name__ == "__main__":
    main()
