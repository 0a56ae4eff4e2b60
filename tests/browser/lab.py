"""JupyterLab for the tests: a server on copies of the lessons, and a lesson in a browser, as learners work with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, ElementHandle, Page, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SCREEN = {"width": 1280, "height": 800}
QUIET = {  # no questions on the first start, and nothing asked of the network
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all outputs are in the page, seen or not
}
CHROMIUM_FLAGS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RUN_SECONDS = 900  # for all cells of one lesson on a busy machine
REST = 0.15  # seconds: longer than a control waits before it answers


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome; ``None`` if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """A Chromium without a screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


class Server:
    """A running JupyterLab; ``folder`` is its root, with the lessons in ``folder/notebooks``."""

    def __init__(self, folder: Path, address: str, token: str):
        self.folder, self.address, self.token = folder, address, token

    def copy(self, notebook: Path, wanted: Callable[[list[str]], list[str]] = lambda sources: sources) -> str:
        """Copy a lesson without its outputs; of its code cells those that ``wanted`` chooses. Its new path."""
        content = nbformat.read(notebook, as_version=4)
        kept = wanted([cell.source for cell in content.cells if cell.cell_type == "code"])
        content.cells = [cell for cell in content.cells if cell.cell_type != "code" or cell.source in kept]
        for cell in content.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(content, self.folder / "notebooks" / notebook.name)
        return f"notebooks/{notebook.name}"


@contextlib.contextmanager
def running_lab(folder: Path) -> Iterator[Server]:
    """JupyterLab on a free port, with settings of its own, until the block ends."""
    (folder / "notebooks").mkdir(parents=True)
    for name in ("data", "benchmarks", "yolo_slim_lessons"):  # what lessons open by its path
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    for plugin, settings in QUIET.items():
        file = folder / "settings" / Path(*plugin.split(":")).with_suffix(".jupyterlab-settings")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings), encoding="utf-8")
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "YOLO_SLIM_PROGRESS": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
    }
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
    ]
    if hasattr(os, "getuid") and os.getuid() == 0:
        options.append("--allow-root")
    with open(folder / "server.log", "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield Server(folder, *_address_and_token(process, folder))
    finally:
        process.terminate()  # ends its kernels too
        process.wait(timeout=60)


def _address_and_token(process: subprocess.Popen, folder: Path, seconds: float = 120) -> tuple[str, str]:
    """What the server writes down as soon as it listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for file in (folder / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(json.JSONDecodeError):  # being written just now
                about = json.loads(file.read_text(encoding="utf-8"))
                return about["url"], about["token"]
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'server.log').read_text(encoding='utf-8')}")


def _load_jupyterlab(browser: Browser, server: Server) -> Page:
    page = browser.new_context(viewport=SCREEN, reduced_motion="reduce").new_page()
    page.set_default_timeout(60_000)
    page.add_init_script(path=HERE / "page_side.js")
    page.goto(f"{server.address}lab/workspaces/tests?token={server.token}&reset")
    page.wait_for_function("() => window.lesson?.loaded()")
    page.evaluate("() => jupyterapp.restored")
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    return page


class Lesson:
    """A notebook as the only one in its JupyterLab, its kernel, and what the browser complained of (``complaints``)."""

    def __init__(self, browser: Browser, server: Server, path: str, *, own_page: bool = False):
        # To load JupyterLab takes seconds: the page of a lesson that was closed in peace serves the next one, too.
        open_pages = [page for context in browser.contexts for page in context.pages if not own_page]
        self.page: Page = open_pages[0] if open_pages else _load_jupyterlab(browser, server)
        self.complaints: list[str] = []
        self.page.on("pageerror", self._note_error)
        self.page.on("console", self._note_message)
        self.set_zoom(1)
        self.page.evaluate("path => { jupyterapp.commands.execute('docmanager:open', { path }); }", path)
        self.page.wait_for_function("() => lesson.ready()")
        self.ask("watch()")

    def _note_error(self, error) -> None:
        self.complaints.append(str(error))

    def _note_message(self, message) -> None:
        # JupyterLab asks for files that are not there on a first start (a workspace, a checkpoint).
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def close(self) -> None:
        """Shut the kernel down and close the notebook, and all of JupyterLab if something went wrong."""
        went_well = not self.complaints and not self.errors()
        self.page.remove_listener("pageerror", self._note_error)
        self.page.remove_listener("console", self._note_message)
        self.page.evaluate("() => lesson.panel().sessionContext.shutdown()")
        if went_well:
            self.page.evaluate("() => lesson.panel().dispose()")
        else:
            self.page.context.close()

    def set_theme(self, theme: str) -> None:
        """``"JupyterLab Light"`` or ``"JupyterLab Dark"``."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        self.page.wait_for_function("() => !document.querySelector('#jupyterlab-splash')")

    def set_zoom(self, zoom: float) -> None:
        """As the browser's zoom does, make all larger: there is room for less."""
        self.page.set_viewport_size({side: round(pixels / zoom) for side, pixels in SCREEN.items()})

    def ask(self, call: str):
        """What ``kernel_side.<call>`` returns in the lesson's kernel."""
        return self.page.evaluate("call => lesson.ask(call)", f"__import__('kernel_side').{call}")

    def command(self, name: str) -> None:
        """Start a command of JupyterLab's, such as ``notebook:run-all-cells``, without waiting for its end."""
        self.page.evaluate("name => { jupyterapp.commands.execute(name); }", name)

    def restart(self) -> None:
        """A new kernel, as after a crash; all names of the lesson are gone."""
        self.page.evaluate("() => lesson.kernel().restart()")

    def run_cell(self, number: int) -> None:
        """Select a code cell, from 0 on (negative: from the end), and run it, without waiting for its end."""
        self.page.evaluate("number => lesson.select(number)", number)
        self.command("notebook:run-cell")

    def run_all(self) -> None:
        """What the menu's *Run All Cells* does, until the kernel rests; a cell that fails ends it at once."""
        self.command("notebook:run-all-cells")
        ended = "() => lesson.haveRun() || lesson.errors().length"
        self.page.wait_for_function(ended, timeout=1000 * RUN_SECONDS, polling=200)
        assert self.errors() == []

    def errors(self) -> list[str]:
        """Outputs in error, of cells that do not announce one, and the text of dialogs."""
        return self.page.evaluate("() => lesson.errors()")

    def boxes(self) -> list[Box]:
        """What ``explore`` has made, from the top."""
        return [Box(self, number) for number in range(self.page.evaluate("() => lesson.boxes().length"))]


class Box:
    """Controls and their answer, as ``explore`` shows them."""

    def __init__(self, lesson: Lesson, number: int):
        self.lesson, self.page, self.number = lesson, lesson.page, number
        self.element = self.page.locator(".jp-OutputArea .widget-vbox").nth(number)
        self.element.scroll_into_view_if_needed()
        self.page.evaluate("box => lesson.watch(box)", number)

    def controls(self) -> list[Control]:
        """Its sliders and drop-downs, from the top."""
        rows = self.element.locator(".widget-slider, .widget-dropdown").element_handles()
        return [Control(self, place, row) for place, row in enumerate(rows)]

    def settle(self) -> None:
        """Wait until nothing moves any more: neither the controls' values in the kernel, nor the answer."""
        deadline = time.monotonic() + 60
        before = None
        while time.monotonic() < deadline:
            now = self.lesson.ask(f"values({self.number})"), self.shown()
            if now == before and not now[1][0].startswith("working"):
                return
            before = now
            self.page.wait_for_timeout(1000 * REST)
        raise TimeoutError(f"no rest within a minute: {before[1][0]!r}")

    def values(self) -> list[str]:
        """The controls' values in the kernel, as Python writes them."""
        return self.lesson.ask(f"values({self.number})")

    def shown(self) -> tuple[str, str]:
        """(sentence, picture), as the page shows them."""
        return tuple(self.page.evaluate("box => [lesson.status(box), lesson.answer(box)]", self.number))

    def computed(self) -> tuple[str, str]:
        """(sentence, picture), computed by the package for the controls' values, as a page shows them."""
        sentence, picture = self.lesson.ask(f"answer({self.number})")
        return " ".join(sentence.split()), self.page.evaluate("html => lesson.asInPage(html)", picture)

    def drawn_since(self, moment: float) -> int:
        """How many pictures were finished after ``moment`` (seconds since 1970)."""
        return self.lesson.ask(f"drawn_since({self.number}, {moment})")

    def wait_for_answer(self) -> float:
        """Wait for the answer to the last touch; the seconds that it took. The touch must have changed a value."""
        self.page.wait_for_function(
            "box => lesson.seconds(box) && !lesson.status(box).startsWith('working')", arg=self.number, polling=20
        )
        return self.seconds()

    def seconds(self) -> float | None:
        """From the last touch of a control to the answer that is now there; ``None`` if that touch changed nothing."""
        return self.page.evaluate("box => lesson.seconds(box)", self.number)

    def cut_off(self) -> list[str]:
        """Labels that are cut off, and pictures wider than their place."""
        return self.page.evaluate("box => lesson.cutOff(box)", self.number)


class Control:
    """A slider or a drop-down."""

    def __init__(self, box: Box, place: int, row: ElementHandle):
        self.box, self.place, self.page = box, place, box.page
        self.label = row.query_selector(".widget-label").inner_text()
        self.list = row.query_selector("select")
        self.handle, self.track = row.query_selector(".noUi-handle"), row.query_selector(".noUi-target")

    @property
    def value(self) -> str:
        return self.box.values()[self.place]

    def press(self, *keys: str) -> None:
        """Go there by keyboard, and press."""
        (self.list or self.handle).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def go_to_start(self) -> None:
        """To the left end, or the first entry."""
        self.choose(0) if self.list else self.press("Home")

    def is_at_end(self, direction: int) -> bool:
        """Is there no further step up (+1) or down (-1)?"""
        if self.list:
            place, last = self.list.evaluate("list => [list.selectedIndex, list.length - 1]")
            return place == (last if direction > 0 else 0)
        end = "max" if direction > 0 else "min"
        return float(self.handle.get_attribute("aria-valuenow")) == float(self.handle.get_attribute(f"aria-value{end}"))

    def step(self, direction: int) -> None:
        """One step up (+1) or down (-1)."""
        if self.list:
            self.choose(self.list.evaluate("list => list.selectedIndex") + direction)
        else:
            self.press("ArrowRight" if direction > 0 else "ArrowLeft")

    def moves(self) -> list[Callable[[], None]]:
        """Ways to change it, by keyboard and by mouse; some may lead to where it is already."""
        if self.list:
            last = len(self.list.query_selector_all("option")) - 1
            return [
                lambda: self.choose(last),
                lambda: self.press("Space", "ArrowUp", "Enter"),
                lambda: self.choose(0),
            ]
        return [
            lambda: self.press("Home"),
            lambda: self.press("ArrowRight"),
            lambda: self.drag(0.7),
            lambda: self.press("End"),
        ]

    def choose(self, number: int) -> None:
        """Take an entry of the drop-down, from 0 on."""
        self.list.select_option(index=number)

    def drag(self, *places: float) -> None:
        """Take the slider with the mouse and pull it to places between 0 (left end) and 1, one after the other."""
        self.handle.scroll_into_view_if_needed()
        grip, track = self.handle.bounding_box(), self.track.bounding_box()
        middle = grip["y"] + grip["height"] / 2
        self.page.mouse.move(grip["x"] + grip["width"] / 2, middle)
        self.page.mouse.down()
        for place in places:
            self.page.mouse.move(track["x"] + place * track["width"], middle)
        self.page.mouse.up()
