"""Broken pictures are found in one pass, each with its cause and its way out, and nothing else becomes of them."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from image_folders import counts, noise, write_noise
from PIL import Image, features
from ultralytics.data.utils import check_image

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageFolderWarning, folder_reading
from yolo_slim_lessons.data.pictures import read_picture
from yolo_slim_lessons.data.stored import MappedImages


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or noise()).save(file, kind, **options)
    return file.getvalue()


JPEG, PNG = encoded("JPEG", quality=95), encoded("PNG")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713\nsize 48213\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(range(200))

# name, contents, what is said of it
FAULTS = [
    ("pointer.jpg", LFS, "a Git LFS pointer in place of the picture; fetch the pictures with 'git lfs pull'"),
    ("annex.jpg", b"/annex/objects/SHA256E-s1--2.jpg\n", "a git-annex pointer.*git annex get"),
    ("page.jpg", b"\n<!DOCTYPE html><html><body>404 Not Found", "an HTML page.*download the picture again"),
    ("denied.png", b'<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML file.*download the picture again"),
    ("logo.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing.*export it as PNG"),
    ("phone.jpg", HEIC, r"a HEIC picture, for which no reader is installed \(named \.jpg\); pip install pi-heif"),
    ("film.jpg", b"\0\0\0\x18ftypisom" + bytes(99), "a video; save pictures of it"),
    ("new.jpg", b"\xff\x0a" + bytes(range(99)), "a JPEG XL picture, which Pillow cannot read; save it as JPEG or PNG"),
    ("all.jpg", b"PK\x03\x04" + bytes(99), "an archive; unpack it"),
    ("scan.tif", b"%PDF-1.7" + bytes(99), "a PDF document; save its picture"),
    ("array.png", b"\x93NUMPY" + bytes(99), "a NumPy array; save it as PNG"),
    ("short.jpg", JPEG[:-6], r"cut short \(image file is truncated .*\); copy or download it again"),
    ("half.jpg", JPEG[: len(JPEG) // 2], "cut short.*copy or download it again"),
    ("half.png", PNG[: len(PNG) // 2], "cut short.*copy or download it again"),
    ("half.bmp", encoded("BMP")[:2000], "cut short.*copy or download it again"),
    ("half.webp", encoded("WEBP")[:300], "cut short.*copy or download it again"),
    ("wrong.png", PNG[:60] + bytes(100) + PNG[160:], "a damaged PNG.*copy or download it again"),
    ("empty.jpg", b"", "empty; copy or download it again"),
    ("zeros.jpg", bytes(3000), r"nothing but zeros.*\(3,000 bytes\); copy or download it again"),
    ("text.png", "élève, 17 Bilder".encode() * 60, "a text file .*'élève, 17 Bilder.*; put the picture in its place"),
    ("labels.png", b'{"label": 3}', "a JSON file .*; put the picture in its place"),
    ("bytes.jpg", bytes(range(1, 200)), "no kind of picture that is known; save it as JPEG or PNG"),
    ("float.tif", encoded("TIFF", Image.fromarray(np.ones((40, 40), np.float32))), "floats.*save it with 8 or 16 bits"),
]


@pytest.fixture
def folder(tmp_path):
    """Six ants and six bees in train/, two of each in val/ and test/."""
    for name, count in (("train", 6), ("val", 2), ("test", 2)):
        write_noise(tmp_path / "images" / name, "ant", count, seed=count)
        write_noise(tmp_path / "images" / name, "bee", count, seed=count)
    return tmp_path / "images"


def load(folder, **options):
    return slim.load_images(folder, 32, **options)


def break_some(folder):
    """The first picture of ants in train/, of bees in train/, and the last one of bees in test/."""
    for path, contents in (("train/ant/00.png", LFS), ("train/bee/03.png", b""), ("test/bee/01.png", PNG[:99])):
        (folder / path).write_bytes(contents)


# the cause of each


@pytest.mark.parametrize(("name", "contents", "said"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_each_fault_has_its_cause_and_its_way_out(tmp_path, name, contents, said):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture: .*{said}"):
        read_picture(tmp_path / name, 32)


def test_too_many_pixels_have_a_way_out_that_fits_a_png(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(PNG)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match=r"too many pixels \(.*1600 pixels.*\); save a smaller copy, or set PIL"):
        read_picture(tmp_path / "large.png", 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    read_picture(tmp_path / "large.png", 32)


def test_heic_is_read_once_a_reader_is_installed(tmp_path, monkeypatch):
    (tmp_path / "phone.jpg").write_bytes(HEIC)
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setitem(Image.OPEN, "HEIF", None)

    class Reader(Image.Image):
        format = "HEIF"

        def __init__(self, *_):
            super().__init__()
            self._size, self._mode, self.im = (40, 40), "RGB", Image.new("RGB", (40, 40), (200, 30, 10)).im

    def register():
        Image.register_open("HEIF", Reader, lambda start: start[8:12] == b"heic")

    module = types.ModuleType("pi_heif")
    module.register_heif_opener, module.__spec__ = register, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pi_heif", module)
    assert read_picture(tmp_path / "phone.jpg", 32)[:, 0, 0].tolist() == [200, 30, 10]
    (tmp_path / "phone.jpg").write_bytes(HEIC.replace(b"heic", b"heix"))  # which this reader does not know
    with pytest.raises(ValueError, match="a damaged HEIC; copy or download it again"):
        read_picture(tmp_path / "phone.jpg", 32)


@pytest.mark.parametrize(("can_read", "said"), [(True, "a damaged AVIF; copy"), (False, "too new .*install --upgrade")])
def test_avif_is_damaged_or_too_new(tmp_path, monkeypatch, can_read, said):
    (tmp_path / "photo.jpg").write_bytes(HEIC.replace(b"heic", b"avif"))
    monkeypatch.setattr(features, "check", lambda feature: can_read)
    with pytest.raises(ValueError, match=said):
        read_picture(tmp_path / "photo.jpg", 32)


# all at once


def test_all_are_found_in_one_pass_over_all_folders(folder):
    break_some(folder)
    with pytest.raises(ValueError, match="3 of 20 pictures in ") as error:
        load(folder)
    first, *pictures, last = str(error.value).splitlines()
    assert first.endswith("images cannot be read:")
    assert [line.split(":")[0].strip() for line in pictures] == [
        "train/ant/00.png",
        "train/bee/03.png",
        "test/bee/01.png",
    ]
    assert last == "Mend or delete them, or leave them out by load_images(…, broken='skip')."


def test_of_many_some_are_listed_and_all_are_counted(folder):
    write_noise(folder / "train", "ant", 60)
    for number in range(30):
        (folder / "train" / "ant" / f"{number:02d}.png").write_bytes(b"" if number == 20 else LFS)
    with pytest.raises(ValueError, match="30 of 74 pictures") as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert len(lines) == 13
    assert lines[10].startswith("  train/ant/09.png: a Git LFS pointer")
    assert lines[11] == "  and 20 more: 19 × a Git LFS pointer in place of the picture; 1 × empty"


@pytest.mark.parametrize("broken", ["ignore", None, True])
def test_another_word_is_refused(folder, broken):
    with pytest.raises(ValueError, match=f"broken={broken!r}: expected 'refuse' or 'skip'"):
        load(folder, broken=broken)


# left out


def test_left_out_in_memory_and_on_disk_alike(folder, tmp_path, monkeypatch):
    whole = load(folder)
    break_some(folder)
    on_disk = {"broken": "skip", "memory_limit": 0, "cache_folder": tmp_path / "cache"}
    said = "3 of 20 pictures in (.|\n)*train/bee/03.png: empty(.|\n)*left out, as broken='skip' asks for"
    with pytest.warns(ImageFolderWarning, match=said):
        memory = load(folder, broken="skip")
    with pytest.warns(ImageFolderWarning, match=said):
        written = load(folder, **on_disk)
    monkeypatch.setattr(folder_reading, "_read_pictures", None)  # from here on nothing is decoded
    with pytest.warns(ImageFolderWarning, match=said):
        again = load(folder, **on_disk)
    kept = [number for number in range(12) if number not in (0, 9)]
    for data in (memory, written, again):
        assert counts(data) == [[5, 5], [2, 2], [2, 1]]
        assert data.train.images[:].equal(whole.train.images[kept])
        assert data.train.images.shape == (10, 3, 32, 32)
        assert data.test.images[:].equal(whole.test.images[:3])
    assert isinstance(again.train.images, MappedImages)


def test_a_file_on_disk_knows_what_was_asked_for(folder, tmp_path):
    break_some(folder)
    options = {"memory_limit": 0, "cache_folder": tmp_path / "cache"}
    with pytest.warns(ImageFolderWarning, match="3 of 20"):
        load(folder, broken="skip", **options)
    with pytest.raises(ValueError, match="3 of 20 pictures"):
        load(folder, **options)
    write_noise(folder / "train", "ant", 1, seed=6)
    with pytest.warns(ImageFolderWarning, match="2 of 20"):
        assert len(load(folder, broken="skip", **options).train) == 11


def test_a_class_that_loses_all_images_is_refused(folder):
    for path in (folder / "train" / "bee").iterdir():
        path.write_bytes(LFS)
    with (
        pytest.warns(ImageFolderWarning, match="6 of 20"),
        pytest.raises(ValueError, match=r"no image of 'bee' in train/ can be read: add some"),
    ):
        load(folder, broken="skip")


def test_a_split_that_loses_all_images_is_refused(folder):
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(LFS)
    with pytest.raises(ValueError, match="4 of 20 pictures .*cannot be read(.|\n)*Mend or delete them.$"):
        load(folder, broken="skip")


@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_what_the_system_does_not_give_is_never_left_out(folder, broken, monkeypatch):
    """The next time it may give it, and the same call would give other images."""
    opened = Path.open

    def refusing(path, *arguments, **options):
        if path.name == "03.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(
        ValueError, match=r"2 of 20 (.|\n)*ant/03\.png: cannot be opened \(Permission denied\); check"
    ) as error:
        load(folder, broken=broken)
    assert "skip" not in str(error.value)


# repaired


def phone_picture(change):
    """The bytes of a JPEG that lies on its side, changed at the end by so many bytes, more or less."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded("JPEG", Image.linear_gradient("L").convert("RGB").resize((36, 44)), quality=80, exif=exif)
    return whole + bytes(change) if change > 0 else whole[: len(whole) + change]


@pytest.mark.parametrize("change", [30, 1, -1, -2, -3, -6, -20])
def test_what_ultralytics_repairs_is_read_as_after_its_repair_and_what_it_refuses_is_broken(folder, change, capsys):
    path = folder / "train" / "bee" / "phone.jpg"
    path.write_bytes(phone_picture(change))
    try:
        data = load(folder)
    except ValueError as error:
        data, said = None, str(error)
    assert path.read_bytes() == phone_picture(change)
    if data is None:
        assert "train/bee/phone.jpg: cut short" in said
        assert change < 0
        with pytest.raises(OSError, match="truncated"):
            check_image(str(path))
    else:
        assert "without the marker of their end ('train/bee/phone.jpg')" in capsys.readouterr().out
        assert "restored and saved" in check_image(str(path))[0]
        assert path.read_bytes() != phone_picture(change)
        assert data.train.images[12].equal(read_picture(path, 32))


def test_a_repair_is_said_again_for_images_on_disk(folder, tmp_path, capsys):
    (folder / "train" / "bee" / "phone.jpg").write_bytes(phone_picture(30))
    loaded = [load(folder, memory_limit=0, cache_folder=tmp_path / "cache") for _ in range(2)]
    assert capsys.readouterr().out.count("Repaired in memory, as Ultralytics does it on the disk: 1 JPEG") == 2
    assert loaded[0].train.images[12].equal(loaded[1].train.images[12])


# whatever happens


def sentence_or_pixels(path):
    try:
        return read_picture(path, 32)
    except ValueError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"])
def test_any_damage_ends_in_a_picture_or_in_a_sentence(tmp_path, kind):
    random = np.random.default_rng(0)
    whole = encoded(kind, noise(1, (24, 24)))
    for number in range(30):
        contents = bytearray(whole)
        for place in random.integers(0, len(contents), 1 + number % 4):
            contents[place] = random.integers(256)
        if number % 3 == 0:
            contents = contents[: random.integers(len(contents))]
        (tmp_path / "x.png").write_bytes(contents)
        result = sentence_or_pixels(tmp_path / "x.png")
        if isinstance(result, str):
            assert "x.png cannot be read as a picture: " in result
        else:
            assert result.shape == (3, 32, 32)
