"""Model and images are joined by the names of classes, and say so where their sizes differ."""

import warnings
from dataclasses import replace

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.agreement import (
    ClassOrderWarning,
    ImageSizeWarning,
    check_image_size,
    class_places,
    join_data,
    join_split,
)
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES, Split

ALPHABETICAL = tuple(sorted(FASHION_MNIST_CLASSES))


def reordered(split, names):
    """The same images and classes, with labels that follow another order of ``names``."""
    return split.relabelled(torch.tensor(class_places(split.class_names, names))[split.labels], names)


@pytest.fixture(scope="module")
def few(data):
    return data.take(200, 100)


# class names


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["ant", "bee"], ["ant", "bee"], [0, 1]),
        (["ant", "bee"], ["bee", "ant"], [1, 0]),
        (["0 T-shirt-top", "1 Bag"], ["Bag", "T-shirt/top"], [1, 0]),
        (["T-shirt/top", "Bag"], ["0 T-shirt-top", "1 Bag"], [0, 1]),
        (["Bee_hive", "ANT"], ["ant", "bee hive"], [1, 0]),
        (["C", "C++"], ["C++", "C"], [1, 0]),  # alike without their signs, and still told apart
        (["1", "0"], ["0", "1"], [1, 0]),
        (["e\u0301tui", "a"], ["a", "\u00e9tui"], [1, 0]),  # one name, stored in two ways
    ],
)
def test_classes_are_found_by_name(names, known, expected):
    assert class_places(names, known) == expected


@pytest.mark.parametrize(
    ("names", "known", "said"),
    [
        (["ant", "bee"], ["ant"], r"data has 2 classes, model has 1: they must agree \(only data has 'bee'\)"),
        (["ant"], ["ant", "bee"], r"\(only model has 'bee'\)"),
        (["ant", "wasp"], ["ant", "bee"], r"only data has 'wasp'; only model has 'bee'\)\. .*set model.names"),
        (["a", "A"], ["a", "b"], r"only model has 'b'"),
        (["1 bee", "0 ant"], ["bee", "cat"], r"only data has '1 bee', '0 ant'; only model has 'bee', 'cat'"),
        (
            [f"{n}" for n in range(1000)],
            ["ant"],
            r"data has 1000 classes, model has 1: .*'3', '4', …; only model",
        ),
    ],
)
def test_other_classes_are_refused_by_name(names, known, said):
    with pytest.raises(ValueError, match=said):
        class_places(names, known)


def test_labels_in_another_order_are_brought_into_the_models_order(nano, data):
    few = data.test.take(200)
    other = reordered(few, ALPHABETICAL)
    assert not other.labels.equal(few.labels)
    with pytest.warns(ClassOrderWarning, match="split has its classes in another order than the model"):
        joined = join_split(nano, other)
    assert joined.labels.equal(few.labels)
    assert joined.class_names == FASHION_MNIST_CLASSES
    assert joined.images is other.images


def test_an_image_without_label_stays_one(nano, data):
    other = reordered(data.test.take(20), ALPHABETICAL)
    other.labels[3] = -1
    with pytest.warns(ClassOrderWarning):
        assert join_split(nano, other).labels[3] == -1


def test_all_parts_of_the_data_are_joined(nano, few):
    other = replace(
        few,
        **{part: reordered(getattr(few, part), ALPHABETICAL) for part in ("train", "val")},
        class_names=ALPHABETICAL,
    )
    with pytest.warns(ClassOrderWarning):
        joined = join_data(nano, other)
    assert joined.class_names == FASHION_MNIST_CLASSES
    assert joined.train.labels.equal(few.train.labels)
    assert joined.val.labels.equal(few.val.labels)


def test_the_same_order_changes_nothing_and_says_nothing(nano, few):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert join_data(nano, few) is few
        assert join_split(nano, few.val) is few.val
        unnamed = Split(few.val.images, few.val.labels)
        assert join_split(nano, unnamed) is unnamed


def test_a_folder_of_this_package_fits_the_model_it_was_written_for(nano, few, tmp_path):
    written = slim.load_images(slim.write_image_folder(few, tmp_path / "images", train=100, val=50, test=50), 64)
    assert written.class_names[0] == "0 T-shirt-top"
    assert join_data(nano, written).val.labels.equal(few.val.take(50).labels.sort().values)


# image size


def test_another_size_is_said_with_both_numbers(nano):
    with pytest.warns(ImageSizeWarning, match="trained for images of 64 px, and split has 128 px: .*4 times"):
        check_image_size(nano, (128, 128))


def test_the_same_size_and_a_model_that_does_not_say_are_fine(nano):
    silent = slim.load_model("nano")
    silent.args = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_image_size(nano, (64, 64))
        check_image_size(silent, (96, 96))


def test_rectangles_are_refused(nano):
    with pytest.raises(ValueError, match=r"split has images of 64×96 px \(height×width\): expected squares"):
        check_image_size(nano, (64, 96))
