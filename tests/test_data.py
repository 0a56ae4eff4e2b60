"""Images come in complete, unchanged and in the right part; whatever cannot is refused by name."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2
from ultralytics.data.augment import classify_transforms

import yolo_slim_lessons as slim
from yolo_slim_lessons import data as data_module
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.data.pictures import read_picture
from yolo_slim_lessons.files import DATA_DIR

FASHION_MNIST = DATA_DIR / "fashion-mnist"


def idx_images(name):
    """The pixels of an IDX file, read by hand: 16 bytes of header, then 28×28 bytes an image."""
    return np.frombuffer((FASHION_MNIST / name).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)


def idx_labels(name):
    return np.frombuffer((FASHION_MNIST / name).read_bytes(), np.uint8, offset=8)


def signatures(images):
    """One checksum an image, of its first channel."""
    return [hashlib.md5(image[0].contiguous().numpy()).digest() for image in images]


def write_classes(folder, counts, seed=0, size=(40, 40)):
    """Noise images as folder/class/NN.png; noise, so that no two are alike."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder with train/ only: 3 classes of 24, 36 and 12 images."""
    write_classes(tmp_path / "images" / "train", {"ant": 24, "bee": 36, "cat": 12})
    return tmp_path / "images"


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A copy of the course's data folder that a test may damage."""
    copy = tmp_path / "data"
    shutil.copytree(FASHION_MNIST, copy / "fashion-mnist")
    monkeypatch.setattr(data_module, "DATA_DIR", copy)
    return copy / "fashion-mnist"


# Fashion-MNIST


def test_train_and_val_are_all_60000_training_images_each_once(data):
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    raw = torch.from_numpy(idx_images("train-images-idx3-ubyte").copy())[:, None]
    expected = Counter(signatures(torch.cat([v2.functional.resize(p, [64, 64]) for p in raw.split(2000)])))
    # As multisets: an image both in train and val would be there once too often, and another one missing.
    assert Counter(signatures(data.train.images) + signatures(data.val.images)) == expected


def test_test_images_are_those_of_the_idx_file_in_its_order(data):
    assert data.test.labels.tolist() == idx_labels("t10k-labels-idx1-ubyte").tolist()
    for index in (0, 1, 4_321, 9_999):
        raw = Image.fromarray(idx_images("t10k-images-idx3-ubyte")[index])
        expected = np.asarray(raw.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(data.test.images[index, 0].numpy() - expected).max() <= 1  # two libraries may round apart


def test_every_class_has_its_share(data):
    assert data.train.labels.bincount().tolist() == [5_500] * 10
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert data.test.labels.bincount().tolist() == [1_000] * 10
    assert len(data.class_names) == 10
    assert data.class_names[9] == "Ankle boot"


def test_images_stay_bytes_and_share_the_grey_channel(data):
    for split in (data.train, data.val, data.test, data.train[:7], data.test[data.test.labels == 3], data.val.take(50)):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape[1:] == (3, 64, 64)
        assert split.images.stride(1) == 0
    assert data.train.images.untyped_storage().nbytes() == 55_000 * 64 * 64


def test_batches_are_floats_from_0_to_1_in_order(data):
    batches = list(data.test[:300].batches(128))
    assert [len(labels) for _, labels in batches] == [128, 128, 44]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert (images * 255).round().to(torch.uint8).equal(data.test.images[:300])
    assert torch.cat([labels for _, labels in batches]).equal(data.test.labels[:300])


def test_loading_is_quick_and_modest(run_python):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak memory of a process is read from Linux's /proc")
    # Not getrusage: its peak is inherited from the process that started this one.
    answer = run_python(
        """
import json, re, time
from pathlib import Path
import yolo_slim_lessons as slim
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
slim.load_images  # PyTorch is imported now, when the first public name is used
before, start = kilobytes("VmRSS"), time.process_time()  # of this process: others may be busy
images = slim.load_images("fashion-mnist", image_size=64)
seconds = time.process_time() - start
added = 1024 * (kilobytes("VmHWM") - before)
print(json.dumps({"seconds": seconds, "added": added, "images": len(images.train)}))
"""
    )
    measured = json.loads(answer.splitlines()[-1])
    assert measured["images"] == 55_000
    assert measured["added"] < 1e9, f"{measured['added'] / 1e6:.0f} MB"
    assert measured["seconds"] < 10, f"{measured['seconds']:.1f} s"  # 1 to 3 s


# taking a part


def test_take_keeps_proportions_repeats_itself_and_nests(data):
    assert data.test.take(200).labels.bincount().tolist() == [20] * 10
    small, large = data.val.take(100), data.val.take(330)
    assert small.images.equal(data.val.take(100).images)
    assert set(signatures(small.images)) <= set(signatures(large.images))
    assert len(large) == 330
    assert large.labels.bincount().tolist() == [33] * 10


def test_take_is_proportional_where_classes_differ_in_size(folder):
    train = slim.load_images(folder, image_size=32).train
    sizes = train.labels.bincount()
    part = train.take(len(train) // 2)
    assert (part.labels.bincount() - sizes / 2).abs().max() <= 1


def test_take_of_data_leaves_test_alone(data):
    part = data.take(train=100, val=50)
    assert (len(part.train), len(part.val), len(part.test)) == (100, 50, 10_000)
    assert len(data.take(train=100).val) == 5_000


@pytest.mark.parametrize("n", [0, -1, 10_001, 2.5])
def test_take_refuses_what_it_cannot_give(data, n):
    with pytest.raises(ValueError, match=rf"n={n}: expected 1 to 10000"):
        data.test.take(n)


def test_one_number_is_no_split(data):
    with pytest.raises(TypeError, match="slice, a mask or an index tensor"):
        data.test[7]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_batch_size_is_a_positive_integer(data, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: expected a positive integer"):
        next(data.test.batches(batch_size))


# val and test split off by seed


def test_val_then_test_are_split_off_stratified_and_disjoint(folder):
    data = slim.load_images(folder, image_size=32, seed=5)
    parts = [signatures(split.images) for split in (data.train, data.val, data.test)]
    assert sorted(map(len, parts)) == [6, 6, 60]  # a twelfth of 72, then a twelfth of 66 (5.5), rounded
    assert len(set().union(*parts)) == 72
    assert data.val.labels.bincount().tolist() == [2, 3, 1]
    # The reference draws val from all images; were test drawn first, val would be another.
    labels = [0] * 24 + [1] * 36 + [2] * 12
    _, expected = train_test_split(np.arange(72), test_size=6, stratify=labels, random_state=5)
    everything = [path for name in ("ant", "bee", "cat") for path in sorted((folder / "train" / name).iterdir())]
    reference = [read_picture(everything[index], 32) for index in sorted(expected)]
    assert data.val.images.equal(torch.stack(reference))


def test_the_seed_decides_which_images_are_val(folder):
    first, again, other = (slim.load_images(folder, image_size=32, seed=seed) for seed in (0, 0, 1))
    assert first.val.images.equal(again.val.images)
    assert first.train.images.equal(again.train.images)
    assert set(signatures(first.val.images)) != set(signatures(other.val.images))


def test_a_small_folder_still_gives_every_part_every_class(tmp_path):
    write_classes(tmp_path / "train", {"a": 4, "b": 4, "c": 4})
    data = slim.load_images(tmp_path, image_size=32)
    assert [split.labels.bincount().tolist() for split in (data.train, data.val, data.test)] == [
        [2] * 3,
        [1] * 3,
        [1] * 3,
    ]


@pytest.mark.parametrize("given", [("val",), ("test",), ("val", "test")])
def test_given_folders_are_taken_as_they_are(folder, given):
    for seed, name in enumerate(given, start=1):
        write_classes(folder / name, {"ant": 2, "bee": 3, "cat": 1}, seed)
    data = slim.load_images(folder, image_size=32)
    for name in given:
        assert getattr(data, name).labels.bincount().tolist() == [2, 3, 1]
    assert len(data.train) + len(data.val) + len(data.test) == 72 + 6 * len(given)
    assert data.class_names == ("ant", "bee", "cat")


# image folders: formats and shapes


def picture(width=96, height=64):
    """A colour gradient: red grows to the right, green downwards, blue is 60 everywhere."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], 2).astype(np.uint8))


def read_back(image, path, **options):
    image.save(path, **options)
    return read_picture(path, 64)


@pytest.mark.parametrize("ending", ["png", "bmp", "webp", "tif", "ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    pixels = read_back(picture(), tmp_path / f"image.{ending}", **options)
    expected = np.asarray(picture())[:, 16:80]  # the centre; the shorter edge has the right length already
    assert (pixels.permute(1, 2, 0).numpy() == expected).all()


def test_jpeg_is_close(tmp_path):
    pixels = read_back(picture(), tmp_path / "image.jpg", quality=95)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(picture())[:, 16:80]).mean() < 2


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (200, 80), (30, 45), (1, 1)])
def test_other_shapes_are_resized_and_cut_as_ultralytics_does(tmp_path, width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)  # shows every filter's trace
    pixels = read_back(Image.fromarray(noise), tmp_path / "image.png")
    expected = classify_transforms(64)(Image.fromarray(noise))
    assert pixels.shape == (3, 64, 64)
    assert torch.equal(pixels, (expected * 255).round().to(torch.uint8))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path, recwarn):
    grey = read_back(picture().convert("L"), tmp_path / "grey.png")
    assert grey[0].equal(grey[1])
    assert grey[0].equal(grey[2])
    assert (grey[0].numpy() == np.asarray(picture().convert("L"))[:, 16:80]).all()

    rgba = picture()
    rgba.putalpha(128)
    assert read_back(rgba, tmp_path / "rgba.png").equal(read_back(picture(), tmp_path / "rgb.png"))

    flag = Image.new("P", (64, 64), 1)
    flag.putpalette([255, 255, 255, 200, 30, 10])
    red = read_back(flag, tmp_path / "palette.png", transparency=bytes([0, 255]))
    assert red.flatten(1).unique(dim=1).squeeze().tolist() == [200, 30, 10]
    assert not recwarn.list


def test_16_bit_grey_keeps_its_range(tmp_path):
    values = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in ("image.png", "image.tif"):
        pixels = read_back(Image.fromarray(values), tmp_path / name)
        assert (pixels[1].numpy() == values >> 8).all()


def test_a_phone_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by a quarter clockwise"
    stored = picture(64, 64).rotate(90)
    assert read_back(stored, tmp_path / "image.png", exif=exif).equal(
        read_back(picture(64, 64), tmp_path / "as-is.png")
    )


# writing folders


def test_written_folder_comes_back_pixel_for_pixel(data, tmp_path):
    path = slim.write_image_folder(data, tmp_path / "out", train=60, val=40, test=50)
    again = slim.load_images(path, image_size=64)
    for name, count in (("train", 60), ("val", 40), ("test", 50)):
        written, read = getattr(data, name).take(count), getattr(again, name)
        order = written.labels.argsort(stable=True)  # a folder is read class by class
        assert read.labels.equal(written.labels[order])
        assert read.images.equal(written.images[order])
    assert sorted(folder.name for folder in (path / "val").iterdir()) == list(again.class_names)
    assert again.class_names[0] == "0 T-shirt-top"


def test_names_in_order_are_folder_names_and_others_get_a_number(tmp_path):
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    split = Split(pixels, torch.tensor([0, 1]))
    for number, (names, expected) in enumerate(
        {
            ("ant", "bee"): ["ant", "bee"],
            ("bee", "ant"): ["0 bee", "1 ant"],
            ("a/b", "a:b"): ["0 a-b", "1 a-b"],
            ("Ant", "ant"): ["0 Ant", "1 ant"],
        }.items()
    ):
        path = slim.write_image_folder(ImageData(split, split, split, names, 32), tmp_path / str(number))
        assert sorted(folder.name for folder in (path / "train").iterdir()) == expected


def test_a_folder_in_use_is_left_alone(data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not empty: choose a new folder"):
        slim.write_image_folder(data, tmp_path, train=10, val=10, test=10)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_too_many_images_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(ValueError, match="val=9999: expected 1 to 5000"):
        slim.write_image_folder(data, tmp_path / "out", train=10, val=9999, test=10)
    assert not (tmp_path / "out").exists()


# bad input


@pytest.mark.parametrize("image_size", [0, 33, -32, True, 64.0, "64", None])
def test_image_size_is_a_multiple_of_32(image_size):
    with pytest.raises(ValueError, match=f"image_size={image_size!r}: expected a multiple of 32"):
        slim.load_images("fashion-mnist", image_size=image_size)


@pytest.mark.parametrize("source", ["fashion_mnist", "no/such/folder", ""])
def test_a_wrong_name_says_what_is_allowed(source):
    with pytest.raises(FileNotFoundError, match="expected 'fashion-mnist' or a folder that holds train/") as error:
        slim.load_images(source)
    assert str(Path(source)) in str(error.value)


IDX_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize("name", IDX_FILES)
def test_missing_data_is_named_with_the_way_out(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing.*git checkout -- data/fashion-mnist/{name}"):
        slim.load_images("fashion-mnist", image_size=32)


@pytest.mark.parametrize("name", IDX_FILES)
def test_truncated_data_is_named_with_the_way_out(damaged, name):
    file = damaged / name
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=rf"{name} is damaged.*5,000 bytes.*git checkout -- data/fashion-mnist/{name}"):
        slim.load_images("fashion-mnist", image_size=32)


def test_one_altered_pixel_is_noticed(damaged):
    file = damaged / "t10k-images-idx3-ubyte"
    contents = bytearray(file.read_bytes())
    contents[123_456] ^= 1
    file.write_bytes(contents)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is damaged or altered.*git checkout"):
        slim.load_images("fashion-mnist", image_size=32)


def test_a_package_without_its_data_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "DATA_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install -e .*git checkout -- data/fashion-mnist"):
        slim.load_images("fashion-mnist")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train has no class folder: expected two or more"):
        slim.load_images(tmp_path)
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "notes.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(ValueError, match="train has no image of 'ant', 'bee'"):
        slim.load_images(tmp_path)


def test_an_empty_class_is_named(folder):
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="train has no image of 'dog'"):
        slim.load_images(folder)


def test_other_classes_in_val_are_named(folder):
    write_classes(folder / "val", {"ant": 1, "bee": 1, "cow": 1})
    with pytest.raises(
        ValueError, match=r"val has images of 'cow', and train/ has no such class.*\('ant', 'bee', 'cat'\)"
    ):
        slim.load_images(folder)


@pytest.mark.parametrize(
    ("contents", "cause"),
    [("none", "empty;"), ("text", "a text file"), ("half", "cut short"), ("no width", "a damaged PNG")],
)
def test_a_broken_image_is_named(folder, contents, cause):
    broken = folder / "train" / "bee" / "07.png"
    whole = broken.read_bytes()
    width = slice(16, 20)  # where a PNG tells its width
    broken.write_bytes(
        {
            "none": b"",
            "text": b"this is no picture",
            "half": whole[: len(whole) // 2],
            "no width": whole[: width.start] + bytes(4) + whole[width.stop :],
        }[contents]
    )
    with pytest.raises(ValueError, match=rf"1 of 72 pictures in .* cannot be read:\n  train/bee/07\.png: {cause}"):
        slim.load_images(folder, image_size=32)


def test_too_few_images_to_split_say_so(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 5})
    with pytest.raises(ValueError, match="too few images to split val/ off it.*add images, or a val/ folder"):
        slim.load_images(tmp_path, image_size=32)


# what a split is made of

FEW = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (FEW.numpy(), TypeError, r"images is a ndarray: expected a tensor, such as torch.from_numpy\(array\)"),
        (list(FEW), TypeError, "images is a list: expected a uint8 tensor N×3×H×W"),
        (FEW / 255, TypeError, r"images has numbers of torch.float32: .*\(255 \* images\).round\(\)"),
        (FEW[0], ValueError, r"images has shape \(3, 32, 32\): .*images\[None\] is a batch of one image"),
        (FEW.permute(0, 2, 3, 1), ValueError, r"channels last: .*use images.permute\(0, 3, 1, 2\)"),
        (FEW[:, :2], ValueError, r"images has shape \(4, 2, 32, 32\): expected N×3×H×W"),
    ],
)
def test_a_split_takes_batches_of_bytes_only(images, error, said):
    with pytest.raises(error, match=said):
        Split(images, torch.arange(4))


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        ([0, 1, 0, 1], TypeError, r"labels=\[0, 1, 0, 1\]: expected an int64 tensor"),
        (torch.zeros(4), TypeError, "expected an int64 tensor"),
        (torch.zeros(4, 1, dtype=torch.int64), TypeError, "expected an int64 tensor"),
        (torch.arange(3), ValueError, "labels has 3 numbers for 4 images"),
    ],
)
def test_a_split_takes_one_label_an_image(labels, error, said):
    with pytest.raises(error, match=said):
        Split(FEW, labels)
