"""Sliders answer, figures speak, source is shown, and exercises say what is wrong."""

import asyncio
import base64
import gc
import math
import re
import weakref

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.teaching import exercises, plots, widgets
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, UnreadableAnswerError, as_number, check
from yolo_slim_lessons.teaching.widgets import explore

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def slider():
    return ipywidgets.IntSlider(value=2, min=0, max=100, description="bits")


def parts(box):
    """The texts of a box's status line and answer."""
    status, answer = box.children[-2:]
    return status.value, answer.value


# sliders


def test_explore_shows_its_controls_and_a_first_answer(slider):
    prune = ipywidgets.FloatSlider(value=0.5, max=1)
    box = explore(lambda bits, rate: (f"<b>{bits}</b>", f"{bits} bits at {rate}"), bits=slider, rate=prune)
    assert box.children[:2] == (slider, prune)
    assert parts(box) == ("2 bits at 0.5", "<b>2</b>")


def test_explore_follows_its_controls(slider):
    box = explore(lambda bits: (f"<b>{bits}</b>", f"{bits} bits"), bits=slider)
    slider.value = 8
    assert parts(box) == ("8 bits", "<b>8</b>")


def test_a_figure_becomes_a_picture_with_its_sentence_as_text(slider):
    def draw(bits):
        figure, axes = plots.new_figure()
        axes.plot([0, bits])
        return figure, f'{bits} bits: "a < b"'

    open_before = plt.get_fignums()
    box = explore(draw, bits=slider)
    status, answer = parts(box)
    assert status == "2 bits: &quot;a &lt; b&quot;"
    assert 'alt="2 bits: &quot;a &lt; b&quot;"' in answer
    assert base64.b64decode(re.search(r"base64,([^\"]+)", answer)[1]).startswith(PNG)
    slider.value = 3
    assert parts(box)[1] != answer
    assert plt.get_fignums() == open_before  # no figure piles up while a slider moves


def test_an_error_is_shown_in_place_of_the_picture_and_forgotten_after(slider):
    def draw(bits):
        if bits < 2:
            raise ValueError(f"bits={bits}: expected <2> or more")
        return f"<b>{bits}</b>", "fine"

    box = explore(draw, bits=slider)
    slider.value = 1
    assert parts(box) == ("<b>ValueError</b>: bits=1: expected &lt;2&gt; or more", "")
    slider.value = 4
    assert parts(box) == ("fine", "<b>4</b>")


def test_a_quick_drag_is_answered_once_with_its_last_value(slider, monkeypatch):
    monkeypatch.setattr(widgets, "DELAY", 0.2)  # more than a busy machine needs for five assignments
    drawn = []

    def draw(bits):
        drawn.append(bits)
        return f"<b>{bits}</b>", f"{bits} bits"

    async def drag():  # in a notebook an event loop runs, as here
        box = explore(draw, bits=slider)
        for value in (10, 20, 30, 40, 50):
            slider.value = value
        while_waiting = parts(box)
        for _ in range(100):
            await asyncio.sleep(0.1)
            if len(drawn) > 1:
                break
        await asyncio.sleep(0.3)  # an answer too many would come now
        return while_waiting, parts(box)

    while_waiting, at_the_end = asyncio.run(drag())
    assert "working" in while_waiting[0]
    assert while_waiting[1] == "<b>2</b>"
    assert drawn == [2, 50]
    assert at_the_end == ("50 bits", "<b>50</b>")


class Circle:
    """An object that only the garbage collector frees, as models and figures are."""

    def __init__(self):
        self.itself = self


def test_a_model_that_is_deleted_after_a_slider_was_made_and_moved_is_freed(slider):
    model = Circle()
    freed = weakref.ref(model)
    explore(lambda bits: (f"<b>{bits}</b>", f"{bits} bits"), bits=slider)
    slider.value = 8
    del model
    gc.collect()
    assert freed() is None


def test_a_slider_frees_what_its_answer_leaves_behind_without_looking_through_all_that_is_loaded(slider):
    """To look through a lesson's models takes some tenths of a second, in the middle of a drag."""
    loaded, left_behind, set_aside = Circle(), [], []

    def draw(bits):
        left_behind.append(weakref.ref(Circle()))
        set_aside.append(not any(found is loaded for found in gc.get_objects()))
        return f"<b>{bits}</b>", f"{bits} bits"

    explore(draw, bits=slider)
    slider.value = 8
    assert set_aside == [True, True]
    assert [freed() for freed in left_behind] == [None, None]
    assert gc.get_freeze_count() == 0


def test_an_answer_that_ends_in_an_error_leaves_garbage_collection_as_it_was(slider):
    explore(lambda bits: 1 / 0, bits=slider)
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


# figures


def test_show_figure_gives_a_picture_and_its_text():
    figure, axes = plots.new_figure()
    axes.plot([1, 2, 3])
    image = plots.show_figure(figure, "A line rises.")
    assert image.data.startswith(PNG)
    data, metadata = image._repr_mimebundle_()
    assert "image/png" in data
    assert metadata["image/png"]["alt"] == "A line rises."
    assert figure.number not in plt.get_fignums()


def test_a_label_outside_the_figure_is_not_cut_off():
    sizes = []
    for label in ("", "a very long label that has no room " * 8):
        figure, _ = plots.new_figure(size=(3, 2))
        figure.text(1, 0.5, label)
        data = plots.png(figure)
        sizes.append(int.from_bytes(data[16:20], "big"))  # where a PNG tells its width
    assert sizes[1] > 2 * sizes[0]


def test_new_figure_has_the_course_style_and_leaves_matplotlib_alone():
    before = dict(plt.rcParams)
    figure, axes = plots.new_figure(2, 3, size=(8, 4))
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (8, 4)
    assert not axes[0, 0].spines["top"].get_visible()
    (line,) = axes[0, 0].plot([1, 2])
    assert line.get_color() == plots.BLUE
    plt.close(figure)
    assert dict(plt.rcParams) == before


# source


def test_show_displays_source_with_its_docstring():
    shown = slim.show(slim.wilson_interval)
    assert shown.data.startswith("def wilson_interval(correct: int, images: int)")
    assert "Wilson, 1927" in shown.data
    assert "highlight" in shown._repr_html_()
    assert slim.show(Split).data.lstrip().startswith("@dataclass")


@pytest.mark.parametrize(("thing", "name"), [(len, "builtin_function_or_method"), (5, "int"), (int, "type")])
def test_what_has_no_source_is_refused(thing, name):
    with pytest.raises(TypeError, match=f"thing is a {name}: expected a function or class written in Python"):
        slim.show(thing)


# exercises


@check
def check_half(answer):
    """A check as the lessons have them."""
    if answer == 50:
        return Feedback(False, "that is the percentage: a fraction is asked for")
    return Feedback(answer + 0 == 0.5, "half of the weights are zero")


@pytest.mark.parametrize("placeholder", [None, ...])
def test_a_placeholder_is_not_tried_yet(placeholder):
    feedback = check_half(placeholder)
    assert not feedback.right
    assert "not tried yet" in repr(feedback)


def test_right_and_wrong_answers_look_different():
    assert repr(check_half(0.5)) == "✔ right: half of the weights are zero"
    assert repr(check_half(50)) == "✘ that is the percentage: a fraction is asked for"
    assert check_half(0.5).right
    assert not check_half(50).right


def test_an_answer_of_the_wrong_kind_is_feedback_and_no_traceback():
    for answer in ("half", [0.5], np.array([0.5, 0.5]), object()):
        feedback = check_half(answer)
        assert not feedback.right
        assert "could not be checked" in feedback.message
    assert "TypeError" in check_half("half").message


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([[0.5]])])
def test_numbers_of_numpy_and_pytorch_are_numbers(number):
    assert as_number(number) == 0.5


@pytest.mark.parametrize("answer", ["0.5", True, [0.5], torch.ones(2), np.array("x"), math.sqrt, object()])
def test_whatever_is_no_number_is_called_so(answer):
    with pytest.raises(UnreadableAnswerError, match="is not a number; expected one"):
        as_number(answer)


@pytest.mark.parametrize("answer", [math.inf, -math.inf, math.nan])
def test_what_comes_of_a_division_by_zero_is_told(answer):
    with pytest.raises(UnreadableAnswerError, match="look for a division by zero"):
        as_number(answer)


def test_a_function_that_was_called_instead_of_named_is_told():
    told = exercises.check_zero_smallest(0.5).message
    assert told == "expected a function itself: its name alone, without brackets behind it"


def test_a_check_keeps_its_name_and_text():
    assert check_half.__name__ == "check_half"
    assert check_half.__doc__ == "A check as the lessons have them."


@pytest.mark.parametrize("name", sorted(name for name in vars(exercises) if name.startswith("check_")))
@pytest.mark.parametrize("nonsense", [object(), [1, 2], float("nan")], ids=["object", "list", "nan"])
def test_no_answer_and_nonsense_get_feedback_and_no_traceback(name, nonsense):
    check_answer = getattr(exercises, name)
    assert "not tried" in check_answer(...).message
    assert not check_answer(nonsense).right
