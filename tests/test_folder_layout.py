"""Folders as people and tools write them are read as Ultralytics reads them, and nothing is left out in silence."""

import os
import shutil
import warnings

import pytest
from image_folders import counts, noise, write_noise
from PIL import Image
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import IMG_FORMATS, check_cls_dataset

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageFolderWarning
from yolo_slim_lessons.data.pictures import ULTRALYTICS_NAMES


def write_split(folder, name, ants=3, bees=2):
    write_noise(folder / name, "ant", ants, seed=len(name))
    write_noise(folder / name, "bee", bees, seed=len(name))


@pytest.fixture
def folder(tmp_path):
    """train/ with six images of ants and of bees; val/ and test/ with three and two."""
    write_split(tmp_path / "images", "train", 6, 6)
    write_split(tmp_path / "images", "val")
    write_split(tmp_path / "images", "test")
    return tmp_path / "images"


def load(folder, **options):
    return slim.load_images(folder, 32, **options)


def everything_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# names of the three folders


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("Train", "Valid", "TEST"),
    ],
)
def test_the_folders_are_known_by_the_names_that_tools_give_them(tmp_path, names, capsys):
    for name, ants in zip(names, (6, 3, 4), strict=True):
        write_split(tmp_path, name, ants)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counts(load(tmp_path)) == [[6, 2], [3, 2], [4, 2]]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second"), [("val", "valid"), ("valid", "validation"), ("train", "training"), ("test", "testing")]
)
def test_two_folders_of_the_same_meaning_are_refused(folder, first, second):
    shutil.rmtree(folder / "val")
    for name in (first, second):
        (folder / name).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="images holds ") as error:
        load(folder)
    assert f"holds {first}/ and {second}/, which both mean {first[:3]}" in str(error.value)


@pytest.mark.parametrize("name", ["val", "testing"])
def test_a_folder_that_is_none_is_refused(folder, name):
    shutil.rmtree(folder / "val")
    (folder / name).write_text("../elsewhere", encoding="utf-8")  # so git writes links on Windows
    with pytest.raises(ValueError, match=f"images.{name} is a file, not a folder"):
        load(folder)


def test_pictures_elsewhere_are_said(folder):
    write_noise(folder / "dev", "ant", 4)
    (folder / ".cache").mkdir()
    for name in ("lost.png", "readme.txt", ".cache/old.png"):
        noise().save(folder / name, "PNG")
    with pytest.warns(
        ImageFolderWarning, match=r"not read: 4 in dev/, 1 beside train/\. Names that are: .* valid/"
    ) as told:
        load(folder)
    assert [os.path.samefile(warning.filename, __file__) for warning in told] == [True]


# no train/


def test_class_folders_alone_are_split_in_memory(tmp_path, capsys):
    write_split(tmp_path, "animals", 24, 12)
    before = everything_below(tmp_path)
    data = load(tmp_path / "animals")
    assert data.class_names == ("ant", "bee")
    assert counts(data) == [[20, 10], [2, 1], [2, 1]]
    assert "animals has no train/: its 2 folders are the classes, and val and test are" in capsys.readouterr().out
    assert everything_below(tmp_path) == before
    write_split(tmp_path / "other", "train", 24, 12)
    shutil.rmtree(tmp_path / "other" / "train")
    shutil.move(tmp_path / "animals", tmp_path / "other" / "train")
    assert load(tmp_path / "other").val.images.equal(data.val.images)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.write_bytes(b"PK"), "this is a file; an archive is to be unpacked first"),
        (lambda folder: folder.mkdir(), "this one holds no folder"),
        (lambda folder: write_split(folder, "val"), "this one holds val/, but no train/"),
        (lambda folder: write_split(folder / "v2", "train"), "images.v2 holds a train/"),
        (lambda folder: [write_noise(folder, "ant", 2), (folder / "notes").mkdir()], "holds 'notes/' without images"),
    ],
)
def test_what_is_no_data_set_is_refused_with_the_cause(tmp_path, write, cause):
    write(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=f"source=.*expected .* holds train/.*; .*{cause}"):
        load(tmp_path / "images")


def test_a_class_that_is_called_train_is_explained(tmp_path):
    for name in ("bus", "train"):
        write_noise(tmp_path, name, 4)
    with pytest.raises(
        ValueError, match=r"If 'train' is a class itself, put all classes together into a folder train/"
    ):
        load(tmp_path)


# classes


@pytest.mark.parametrize("empty_folder", [False, True])
def test_a_class_that_val_lacks_is_allowed_and_named(folder, empty_folder):
    write_noise(folder / "train", "asp", 5)
    write_noise(folder / "test", "asp", 1)
    shutil.rmtree(folder / "val" / "ant")
    if empty_folder:
        (folder / "val" / "ant").mkdir()
    with pytest.warns(ImageFolderWarning, match="val has no image of 'ant', 'asp': what is measured there") as told:
        data = load(folder)
    assert len(told) == 1
    assert counts(data) == [[6, 5, 6], [0, 0, 2], [3, 1, 2]]
    assert data.class_names == ("ant", "asp", "bee")


def test_a_class_that_only_val_has_is_refused_and_each_way_out_works(folder):
    write_noise(folder / "val", "cow", 2)
    with pytest.raises(
        ValueError, match=r"val has images of 'cow', and train/ has no such class: add .* \('ant', 'bee'\)"
    ):
        load(folder)
    write_noise(folder / "train", "cow", 1)
    with pytest.warns(ImageFolderWarning, match="test has no image of 'cow'"):
        load(folder)
    shutil.rmtree(folder / "train" / "cow")
    shutil.rmtree(folder / "val" / "cow")
    load(folder)


def test_an_empty_class_of_train_is_refused_and_the_way_out_works(folder):
    for split in ("train", "val"):
        write_noise(folder / split, "cow", 0 if split == "train" else 2)
    with pytest.raises(
        ValueError, match="train has no image of 'cow': add some .*, or delete .* in val/ and test/ as well"
    ):
        load(folder)
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "cow")
    assert load(folder).class_names == ("ant", "bee")


def test_a_val_without_images_is_refused(folder):
    for path in (folder / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="val has no image: add some, or delete the folder, and some of train/ are"):
        load(folder)


# what is skipped


def test_files_that_are_no_pictures_are_counted(folder, capsys):
    for number, name in enumerate(("a.txt", "b.TXT", "c.json", "LICENSE", ".photo.jpg")):
        (folder / ("train", "val")[number % 2] / "ant" / name).write_text("no picture", encoding="utf-8")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._00.png"):
        (folder / "train" / "bee" / name).write_text("of the system", encoding="utf-8")
    assert len(load(folder).train) == 12
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("Skipped in ")
    assert line.endswith(
        "images, as their names are not those of images: 2 .txt, 1 .json, 1 hidden .jpg, 1 without an ending."
    )


# as Ultralytics


def test_the_list_of_kinds_is_that_of_ultralytics():
    assert set(ULTRALYTICS_NAMES) == IMG_FORMATS


def litter(split):
    """Pictures and other files as they lie about in folders; what Ultralytics leaves out of them is returned."""
    ant = split / "ant"
    (ant / "more" / "and more").mkdir(parents=True)
    noise(1).save(ant / "more" / "and more" / "deep.bmp")
    noise(2).save(ant / "UPPER.JPG", "JPEG")
    noise(3).save(ant / "photo.webp", lossless=True)
    noise(4).save(ant / "photo.jp2")
    noise(5).save(ant / "photo.tif")
    noise(6).save(ant / "tail.jpg")
    with (ant / "tail.jpg").open("ab") as file:
        file.write(bytes(20))
    (ant / "pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    (ant / "labels.txt").write_text("0 0.5 0.5 1 1", encoding="utf-8")
    (ant / ".DS_Store").write_bytes(b"litter")
    only_here = ("film.gif", "photo.jfif", "photo.ppm", "small.png", "animation.jpg")
    noise(7).convert("P").save(ant / "film.gif")
    noise(8).save(ant / "photo.jfif", "JPEG")
    noise(9).save(ant / "photo.ppm")
    Image.new("RGB", (40, 9)).save(ant / "small.png")
    noise(10).save(ant / "animation.jpg", "GIF")
    return only_here


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_same_pictures_are_read_as_by_ultralytics(folder, name, capsys):
    (folder / "val").rename(folder / name)
    only_here = litter(folder / name)
    before = everything_below(folder)
    with pytest.warns(ImageFolderWarning, match=r"1 of 34 pictures in (.|\n)*pointer\.jpg: a Git LFS pointer"):
        ours = load(folder, broken="skip")
    said = capsys.readouterr().out
    assert everything_below(folder) == before
    assert "Read here, though Ultralytics leaves them out: 1 .gif, 1 .jfif, 1 .ppm, 1 GIF under another" in said

    described = check_cls_dataset(folder)
    dataset = ClassificationDataset(described["val"], get_cfg(), names=described["names"])
    theirs = [label for _, label, *_ in dataset.samples]
    assert ours.val.labels.bincount().tolist() == [theirs.count(0) + len(only_here), theirs.count(1)]

    if name == "valid":  # once is enough
        model = slim.new_model("yolov8n-cls.yaml", ours.class_names, 32)
        seen = []
        yolo = YOLO(slim.save_model(model, folder.parent / "model.pt"))
        yolo.add_callback("on_val_end", lambda validator: seen.append(sum(map(len, validator.targets))))
        yolo.val(data=str(folder), imgsz=32, workers=0, plots=False, verbose=False, project=str(folder.parent / "runs"))
        assert seen == [len(ours.val) - len(only_here)]
