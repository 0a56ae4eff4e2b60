"""Every slider and drop-down of every lesson, moved in a real JupyterLab in a real browser, by mouse and by keyboard.

Before, the cells are run that the sliders need. The slow tests run all cells, as a learner does, and take pictures of
the screen, which come to lie in ``screenshots/``, to be looked at.
"""

import itertools
import os
import re
import time
from pathlib import Path

import pytest
from lab import NOTEBOOKS, Lesson, find_chromium, running_browser, running_lab
from needed_cells import sliders_and_their_needs

SCREENSHOTS = Path(__file__).with_name("screenshots")
TIME = re.compile(r"\d+% time|\d+\.\d ms")  # measured anew for each answer, so it and its picture differ each time
PATIENCE = 10  # seconds from a change to its answer on a busy machine; benchmarks/sliders.py measures on one that rests

if not find_chromium() and not os.environ.get("CI"):
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab") / "course") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


def whole(sources):
    return sources


NEEDED = [pytest.param((path, sliders_and_their_needs), id=path.stem) for path in NOTEBOOKS]
WHOLE = [pytest.param((path, whole), id=f"{path.stem}, all cells", marks=pytest.mark.slow) for path in NOTEBOOKS]


@pytest.fixture(scope="module", params=[*NEEDED, *WHOLE])
def lesson(request, server, browser):
    path, wanted = request.param
    lesson = Lesson(browser, server, server.copy(path, wanted))
    lesson.name = path.stem
    lesson.run_all()
    yield lesson
    lesson.close()


def assert_shows_what_is_computed(box):
    box.settle()
    (sentence, picture), (sentence_now, picture_now) = box.shown(), box.computed()
    assert TIME.sub("TIME", sentence) == TIME.sub("TIME", sentence_now), box.values()
    assert "<img" in picture or "<svg" in picture
    assert picture == picture_now or TIME.search(sentence), box.values()


def test_every_control_works_by_keyboard_and_by_mouse(lesson):
    assert lesson.errors() == []
    assert lesson.boxes()
    for box in lesson.boxes():
        assert_shows_what_is_computed(box)
        for control in box.controls():
            seen = {box.shown()}
            for move in control.moves():
                move()
                assert_shows_what_is_computed(box)
                assert (box.seconds() or 0) < PATIENCE, control.label
                seen.add(box.shown())
            one_choice = control.is_at_end(+1) and control.is_at_end(-1)  # threads, on a machine with one
            assert len(seen) > 1 or one_choice, f"{control.label}: whatever one chooses, it shows the same"
    assert lesson.errors() == lesson.complaints == []


def test_a_quick_drag_ends_with_its_last_value_and_leaves_no_backlog(lesson):
    for box in lesson.boxes():
        for slider in [control for control in box.controls() if control.handle][:1]:
            slider.press("Home")
            box.settle()
            slider.drag(*(step / 20 for step in range(21)))
            let_go = time.time()
            assert_shows_what_is_computed(box)
            at_the_end = slider.value
            slider.press("End")
            box.settle()
            assert slider.value == at_the_end, slider.label
            assert box.drawn_since(let_go) <= 3, slider.label  # one under way, the last value's, and that of "End"


def test_no_label_is_cut_off_and_no_picture_is_too_wide(lesson):
    for zoom in (1, 1.5):
        lesson.set_zoom(zoom)
        for box in lesson.boxes():
            box.element.scroll_into_view_if_needed()
            assert box.cut_off() == []
    assert lesson.errors() == []


@pytest.mark.slow
def test_every_slider_can_be_looked_at_in_both_themes(lesson):
    SCREENSHOTS.mkdir(exist_ok=True)
    for zoom in (1, 1.5):
        lesson.set_zoom(zoom)
        for box, theme in itertools.product(lesson.boxes(), ("JupyterLab Light", "JupyterLab Dark")):
            lesson.set_theme(theme)
            box.element.scroll_into_view_if_needed()
            name = f"{lesson.name}-{box.number}-{theme.split()[1].lower()}-{zoom:.0%}.png"
            lesson.page.screenshot(path=SCREENSHOTS / name)
            assert box.cut_off() == []
    assert lesson.errors() == []


def test_after_a_restart_a_cell_says_what_is_missing_and_run_all_above_brings_it(server, browser):
    # A page of its own, for another lesson may still be open in the shared one.
    lesson = Lesson(browser, server, server.copy(NOTEBOOKS[0], sliders_and_their_needs), own_page=True)
    lesson.run_all()
    lesson.restart()
    lesson.page.wait_for_function("() => lesson.ready()")
    lesson.run_cell(-1)
    lesson.page.wait_for_function("() => lesson.errors().length")
    assert lesson.errors()[0].startswith("NameError: name 'part' is not defined"), lesson.errors()
    lesson.command("notebook:run-all-above")
    lesson.page.wait_for_function("""() => lesson.ask("'draw' in globals()")""")  # made by the last cell above
    lesson.run_cell(-1)
    lesson.page.wait_for_function("() => lesson.boxes().length && lesson.status(0) && !lesson.errors().length")
    lesson.page.context.close()
