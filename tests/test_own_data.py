"""What learners really bring along: folders with litter and links, odd pictures, names in any script."""

import os
import unicodedata
import warnings

import cv2
import numpy as np
import pytest
import torch
from image_folders import counts, write_noise
from PIL import Image
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.data.pictures import read_picture

NAMES = ("Ботинок", "T恤 上衣", "mes élèves", "حقيبة")


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images each in train/."""
    for name in ("ant", "bee"):
        write_noise(tmp_path / "images" / "train", name, 6)
    return tmp_path / "images"


def link(path, target):
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:  # Windows gives this right to few
        pytest.skip(f"no links can be made here: {error}")


# few classes, few images


def test_one_class_is_not_enough(tmp_path):
    write_noise(tmp_path / "train", "ant", 8)
    with pytest.raises(ValueError, match="train has only one class folder, 'ant': expected two or more"):
        slim.load_images(tmp_path, image_size=32)


def test_two_images_cannot_be_split_and_the_class_is_named(tmp_path):
    for name in ("ant", "bee"):
        write_noise(tmp_path / "train", name, 1)
    with pytest.raises(ValueError, match=r"too few images to split val/ off it \(class 'ant' can give none of its 1\)"):
        slim.load_images(tmp_path, image_size=32)
    for name in ("ant", "bee"):
        write_noise(tmp_path / "train", name, 2)
    with pytest.raises(ValueError, match="too few images to split test/ off it .*add images, or a test/ folder"):
        slim.load_images(tmp_path, image_size=32)


def test_two_images_are_enough_where_all_parts_are_given(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        for name in ("ant", "bee"):
            write_noise(tmp_path / part, name, 1, seed)
    data = slim.load_images(tmp_path, image_size=32)
    assert counts(data) == [[1, 1], [1, 1], [1, 1]]
    model = slim.new_model("yolov8n-cls.yaml", data.class_names, image_size=32)
    trained = slim.fit(model, data, epochs=1, progress=False)
    assert 0 <= slim.evaluate(trained, data.test, progress=False).top1 <= 1


def test_a_rare_class_is_in_every_part(tmp_path):
    write_noise(tmp_path / "train", "ant", 100)
    write_noise(tmp_path / "train", "bee", 3)
    data = slim.load_images(tmp_path, image_size=32)
    assert counts(data) == [[83, 1], [9, 1], [8, 1]]  # a twelfth of 103, 9, and of 93, 8, each and one rare
    everything = torch.cat([split.images.flatten(1) for split in (data.train, data.val, data.test)])
    assert len(everything.unique(dim=0)) == 103


# litter


def test_litter_of_operating_systems_is_skipped(folder):
    expected = slim.load_images(folder, image_size=32)
    train = folder / "train"
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "README.txt", "._00.png", ".hidden.jpg", "labels.csv"):
        for place in (folder, train, train / "ant"):
            (place / litter).write_bytes(b"no picture")
    for hidden in (".ipynb_checkpoints", "__MACOSX", ".thumbnails"):
        for place in (train, train / "bee"):
            (place / hidden).mkdir()
            (place / hidden / "00-checkpoint.png").write_bytes(b"no picture")
    again = slim.load_images(folder, image_size=32)
    assert again.class_names == ("ant", "bee")
    assert again.train.images.equal(expected.train.images)


def test_subfolders_of_a_class_count(folder):
    write_noise(folder / "train" / "ant", "second camera", 5)
    assert sum(map(sum, counts(slim.load_images(folder, image_size=32)))) == 17


@pytest.mark.parametrize("name", ["photo.HEIC", "photo.gif", "photo.JPG", "photo.jfif"])
def test_what_claims_to_be_a_picture_and_is_none_is_named(folder, name):
    (folder / "train" / "bee" / name).write_bytes(b"this is no picture")
    with pytest.raises(ValueError, match=f"bee/{name}: a text file .*; put the picture in its place"):
        slim.load_images(folder, image_size=32)


def test_a_picture_outside_of_all_classes_is_named(folder):
    (folder / "train" / "bee" / "00.png").rename(folder / "train" / "lost.png")
    with pytest.raises(ValueError, match=r"lost\.png lies beside the class folders: move it into one"):
        slim.load_images(folder, image_size=32)


# links


def test_links_to_images_elsewhere_are_followed(folder, tmp_path):
    write_noise(tmp_path / "other disk", "cat", 6)
    link(folder / "train" / "cat", tmp_path / "other disk" / "cat")
    write_noise(tmp_path / "other disk", "more ants", 1)
    link(folder / "train" / "ant" / "linked.png", tmp_path / "other disk" / "more ants" / "00.png")
    data = slim.load_images(folder, image_size=32)
    assert data.class_names == ("ant", "bee", "cat")
    assert [sum(column) for column in zip(*counts(data), strict=True)] == [7, 6, 6]
    link(tmp_path / "the whole folder", folder)
    assert slim.load_images(tmp_path / "the whole folder", image_size=32).train.images.equal(data.train.images)


@pytest.mark.parametrize("place", ["train/cat", "train/ant/06.png", "train/ant/more"])
def test_a_link_that_leads_nowhere_is_named(folder, tmp_path, place):
    (tmp_path / "gone").mkdir()
    link(folder / place, tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match=f"{folder.name}.{place.replace('/', '.')} is a link that leads nowhere"):
        slim.load_images(folder, image_size=32)


def test_circles_of_links_are_named(folder):
    train = folder / "train"
    link(train / "ant" / "up", train)
    with pytest.raises(ValueError, match=r"train.ant.up is a link to a folder that it lies in, a circle"):
        slim.load_images(folder, image_size=32)
    (train / "ant" / "up").unlink()
    link(train / "ant" / "bees", train / "bee")
    assert sum(map(sum, counts(slim.load_images(folder, image_size=32)))) == 18  # no circle yet
    link(train / "bee" / "ants", train / "ant")
    with pytest.raises(ValueError, match=r"ant.bees.ants is a link .* a circle without end: delete this link"):
        slim.load_images(folder, image_size=32)


# odd pictures


def test_one_pixel_and_a_strip_become_squares(tmp_path):
    Image.new("RGB", (1, 1), (200, 30, 10)).save(tmp_path / "dot.png")
    assert read_picture(tmp_path / "dot.png", 64).flatten(1).unique(dim=1).squeeze().tolist() == [200, 30, 10]
    Image.new("RGB", (8000, 1), (200, 30, 10)).save(tmp_path / "strip.png")
    assert read_picture(tmp_path / "strip.png", 64).shape == (3, 64, 64)


def test_pictures_of_8000_pixels_a_side_take_little_memory(tmp_path, run_python):
    big = Image.radial_gradient("L").resize((8000, 8000))
    for ending in ("jpg", "png"):
        Image.merge("RGB", [big, big, big]).save(tmp_path / f"big.{ending}", compress_level=1)
    answer = run_python(
        """
import pathlib, sys
from yolo_slim_lessons.data.pictures import read_picture
status = pathlib.Path("/proc/self/status")
if not status.exists():
    print("not Linux"), sys.exit()
def kilobytes(what):
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(what))
for path in sys.argv[1:]:
    before = kilobytes("VmRSS")
    image = read_picture(pathlib.Path(path), 64)
    looks_right = image[0, 32, 32].item() < 30 and image[0, 0, 0].item() > 200
    print(looks_right, (kilobytes("VmHWM") - before) // 1000)
""",
        tmp_path / "big.jpg",
        tmp_path / "big.png",
    )
    if "not Linux" in answer:
        pytest.skip("the peak memory of a process is read from Linux's /proc")
    (*jpeg, jpeg_megabytes), (*png, png_megabytes) = (line.split() for line in answer.strip().splitlines())
    assert jpeg == png == ["True"]
    assert int(jpeg_megabytes) < 60  # unpacked in full, its pixels are 192 MB
    assert int(png_megabytes) < 350  # which has no such short cut


def test_a_large_jpeg_looks_like_the_one_unpacked_in_full(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        expected = classify_transforms(64)(image) * 255
    difference = (read_picture(tmp_path / "large.jpg", 64) - expected).abs()
    assert difference.mean() < 1
    assert difference.max() < 8


def test_a_picture_that_is_a_bomb_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be .*too many pixels .*160000.*save a smaller"):
        read_picture(tmp_path / "bomb.png", 64)


def ramp(height=64, width=64):
    """Values that rise from 0 to 65,535, row by row."""
    return np.linspace(0, 65_535, height * width).reshape(height, width).astype(np.uint16)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, ending, channels):
    values = ramp() if channels == 1 else np.stack([ramp(), ramp()[::-1], ramp().T], 2)
    assert cv2.imwrite(str(tmp_path / f"deep.{ending}"), values[..., ::-1] if channels == 3 else values)
    expected = np.broadcast_to((values >> 8).reshape(64, 64, channels), (64, 64, 3))
    pixels = read_picture(tmp_path / f"deep.{ending}", 64).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_32_bit_and_float_pictures_are_refused_with_a_reason(tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.int32).reshape(64, 64) * 100).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="reach from 0 to 409500; save it with 8 or 16 bits"):
        read_picture(tmp_path / "deep.tif", 64)
    Image.fromarray(np.ones((64, 64), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="holds floats, whose range nobody knows"):
        read_picture(tmp_path / "float.tif", 64)


def test_cmyk_becomes_the_same_colours(tmp_path):
    rising, constant = Image.linear_gradient("L").resize((64, 64)), Image.new("L", (64, 64), 90)
    image = Image.merge("RGB", [rising, constant, rising.rotate(90)])
    image.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    with Image.open(tmp_path / "print.jpg") as stored:
        assert stored.mode == "CMYK"
    difference = read_picture(tmp_path / "print.jpg", 64).permute(1, 2, 0).numpy().astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_picture_is_upright_however_it_was_held(tmp_path, orientation):
    corners = np.zeros((64, 64), np.uint8)
    corners[:16, :16], corners[:16, -16:] = 250, 120  # bright top left, grey top right: no two turns look alike
    upright = Image.fromarray(corners)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # stored a quarter to the left, to be turned to the right
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGB").resize((640, 640)).save(tmp_path / "phone.jpg", quality=95, exif=exif)  # unpacked at a half
    pixels = read_picture(tmp_path / "phone.jpg", 64)[0].float()
    assert pixels[2:14, 2:14].mean() > 240
    assert 110 < pixels[2:14, -14:-2].mean() < 130
    assert pixels[-14:].mean() < 5


def test_nothing_warns_about_ordinary_pictures(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"):
            ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
            Image.new(mode, (50, 70)).save(tmp_path / f"image.{ending}")
            assert read_picture(tmp_path / f"image.{ending}", 32).shape == (3, 32, 32)


# names


def test_names_in_any_script_survive_training_files_and_folders(tmp_path):
    for name in NAMES:
        write_noise(tmp_path / "меня зовут 数据" / "train", name, 4)
    data = slim.load_images(tmp_path / "меня зовут 数据", image_size=32)
    assert data.class_names == tuple(sorted(NAMES))
    model = slim.new_model("yolov8n-cls.yaml", data.class_names, image_size=32)
    expected = dict(enumerate(sorted(NAMES)))

    path = slim.save_model(model, tmp_path / "мой класс 模型.pt")
    assert slim.load_model(path).names == expected
    [result] = YOLO(path).predict(np.zeros((32, 32, 3), np.uint8), verbose=False, project=str(tmp_path / "runs"))
    assert result.names == expected
    packed = slim.save_packed(slim.quantize_integer(model, 4), tmp_path / "мой класс 模型.slim")
    assert slim.load_packed(packed).names == expected

    again = slim.load_images(slim.write_image_folder(data, tmp_path / "ещё раз"), image_size=32)
    assert again.class_names == data.class_names
    assert again.train.images.equal(data.train.images)


def test_names_that_no_folder_may_have_stay_inside_and_apart(tmp_path):
    split = Split(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 32, 32), torch.arange(5))
    names = ("..", "", ".hidden", "a\tb", "ends. ")
    slim.write_image_folder(ImageData(split, split, split, names, 32), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = slim.load_images(tmp_path / "out", image_size=32)
    assert len(again.class_names) == 5
    assert again.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_names_that_only_look_alike_are_explained(tmp_path):
    for part, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("ant", unicodedata.normalize(form, "élève")):
            write_noise(tmp_path / part, name, 4)
    if sorted(os.listdir(tmp_path / "train")) == sorted(os.listdir(tmp_path / "val")):
        pytest.skip("this system stores both names alike")
    with pytest.raises(ValueError, match="names that look alike are stored in two ways"):
        slim.load_images(tmp_path, image_size=32)


@pytest.mark.parametrize("source", [None, 5, ["train"]])
def test_a_source_is_a_name_or_a_path(source):
    with pytest.raises(TypeError, match="source=.*: expected 'fashion-mnist' or the path of a folder"):
        slim.load_images(source)
