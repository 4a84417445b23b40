"""Tests of datasets.py and data.py: official files, folders, decoding, crops, batches of views.

    python -m pytest -q tests/test_data.py

Each dataset is written small, in its official format, where torchvision would download it to.
"""
import hashlib
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
import datasets
from augment import DRAWS, NUMBERS, augment_with, normalise, random_resized_crop, taken_from
from run import BadInput
from tests.helpers import exit_status, generator, random_images, save_images


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def smooth_picture(height, width, seed=0):
    """3 × height × width, without detail: every way of resizing gives nearly the same."""
    small = random_images(1, 8, seed).float()
    enlarged = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return enlarged[0].clamp(0, 255).byte()


# --- official files -------------------------------------------------------------------------------

@pytest.mark.parametrize("name, labels_key", [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar(name, labels_key, tmp_path, monkeypatch):
    source = getattr(torchvision.datasets, name.upper())
    folder = tmp_path / source.base_folder
    folder.mkdir()
    x = random_images(5, 32)

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return md5(folder / file)

    entry = {"data": x.flatten(1).numpy(), labels_key: [0, 1, 2, 3, 4]}
    for which in ("train_list", "test_list"):
        files = [[file, write(file, entry)] for file, _ in getattr(source, which)]
        monkeypatch.setattr(source, which, files)
    names = {source.meta["key"]: [f"class {i}" for i in range(5)]}
    checksum = write(source.meta["filename"], names)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": checksum})

    d = data.load(name, tmp_path)
    assert torch.equal(d["train_x"][:5], x) and torch.equal(d["test_x"], x)
    assert d["train_y"].tolist() == [0, 1, 2, 3, 4] * len(source.train_list)
    assert d["stem"] == "small" and d["size"] == d["image_size"] == 32
    assert d["mean"] == list(data.DATASETS[name]["mean"]) and not d["streamed"]


def test_stl10(tmp_path, monkeypatch):
    """Its images are stored column by column, its labels from 1; most have none."""
    source = torchvision.datasets.STL10
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    splits = {"train": random_images(4, 96), "unlabeled": random_images(3, 96, seed=1),
              "test": random_images(2, 96, seed=2)}
    for file, x in splits.items():
        x.transpose(2, 3).contiguous().numpy().tofile(folder / f"{file}_X.bin")
    np.array([1, 2, 10, 2], np.uint8).tofile(folder / "train_y.bin")
    np.array([10, 1], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    for which in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(source, which)]
        monkeypatch.setattr(source, which, files)

    d = data.load("stl10", tmp_path)
    assert torch.equal(d["train_x"], torch.cat([splits["train"], splits["unlabeled"]]))
    assert torch.equal(d["test_x"], splits["test"])
    assert d["train_y"].tolist() == [0, 1, 9, 1, -1, -1, -1] and d["test_y"].tolist() == [9, 0]


def put_archive(name, archive, monkeypatch):
    """Makes this file the official one; and no other can be downloaded."""
    monkeypatch.setitem(data.DATASETS[name], "md5", md5(archive))
    nowhere = f"http://127.0.0.1:9/{archive.name}"
    monkeypatch.setitem(data.DATASETS[name], "url", nowhere)


def test_tiny_imagenet_is_unpacked_once(tmp_path, monkeypatch):
    root = tmp_path / "made" / "tiny-imagenet-200"
    x = random_images(6, 64)
    for wnid, pictures in {"n01": x[:2], "n02": x[2:4]}.items():
        save_images(root / "train" / wnid / "images", pictures, ".JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("00000.JPEG\t0\t0\t9\t9\n")
    save_images(root / "val" / "images", x[4:], ".JPEG")
    notes = "00000.JPEG\tn02\t0\t0\t62\t62\n00001.JPEG\tn01\t1\t2\t60\t60\n"
    (root / "val" / "val_annotations.txt").write_text(notes)
    archive = tmp_path / "data" / "tiny-imagenet-200.zip"
    shutil.make_archive(archive.with_suffix(""), "zip", root.parent, root.name)
    put_archive("tinyimagenet200", archive, monkeypatch)

    d = data.load("tinyimagenet200", tmp_path / "data")
    assert (d["train_x"].float() - x[:4]).abs().mean() < 3      # JPEGs; in grey levels of 255
    assert (d["test_x"].float() - x[4:]).abs().mean() < 3
    assert d["train_y"].tolist() == [0, 0, 1, 1] and d["test_y"].tolist() == [1, 0]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "tiny-imagenet-200", "tiny-imagenet-200.zip"}
    archive.unlink()
    assert torch.equal(data.load("tinyimagenet200", tmp_path / "data")["train_x"], d["train_x"])


def test_cinic10(tmp_path, monkeypatch):
    """Its archive has no top-level folder."""
    x = random_images(30, 32).view(10, 3, 3, 32, 32)        # three of each class
    for label, pictures in enumerate(x):
        save_images(tmp_path / "made" / "train" / f"class {label}", pictures[:2])
        save_images(tmp_path / "made" / "valid" / f"class {label}", pictures[:1])
        save_images(tmp_path / "made" / "test" / f"class {label}", pictures[2:])
    shutil.make_archive(tmp_path / "data" / "CINIC-10", "gztar", tmp_path / "made")
    put_archive("cinic10", tmp_path / "data" / "CINIC-10.tar.gz", monkeypatch)
    d = data.load("cinic10", tmp_path / "data")
    assert torch.equal(d["train_x"], x[:, :2].flatten(0, 1)) and torch.equal(d["test_x"], x[:, 2])
    assert d["test_y"].tolist() == list(range(10))


@pytest.mark.parametrize("name", ["blood", "organs"])       # in colours, and grey
def test_medmnist(name, tmp_path, monkeypatch):
    x = random_images(9, 28)
    y = torch.tensor([3, 1, 0, 2, 7, 7, 1, 0, 4])
    stored = x.permute(0, 2, 3, 1).numpy()
    if name == "organs":
        stored = stored[..., 0]
        x = x[:, :1].expand(-1, 3, -1, -1)
    arrays = {}
    for split, part in {"train": slice(0, 4), "val": slice(4, 6), "test": slice(6, 9)}.items():
        arrays[f"{split}_images"] = stored[part]
        arrays[f"{split}_labels"] = y[part, None].numpy().astype(np.uint8)
    archive = tmp_path / f"{name}mnist.npz"
    np.savez_compressed(archive, **arrays)
    put_archive(name, archive, monkeypatch)
    d = data.load(name, tmp_path)
    assert torch.equal(d["train_x"], x[:4]) and torch.equal(d["test_x"], x[6:])
    assert d["train_y"].tolist() == [3, 1, 0, 2] and d["test_y"].tolist() == [1, 0, 4]

    archive.write_bytes(archive.read_bytes()[:-100])        # a download that ended early
    with pytest.raises(BadInput, match=f"cannot get {name} .*put http.*npz into {tmp_path}"):
        data.load(name, tmp_path)


# --- folders of images ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    """105 class folders; an image's grey level is its class."""
    root = tmp_path_factory.mktemp("many_classes")
    for i in range(105):
        for split in ("train", "val"):
            grey = torch.full((1, 3, 30, 28), i, dtype=torch.uint8)
            save_images(root / split / f"n{i:04}", grey, ".JPEG")
    return root


def test_imagenets_hundred_classes(many_classes, tmp_path):
    names = [f"n{i:04}" for i in range(104, 4, -1)]
    chosen = tmp_path / "classes.txt"
    chosen.write_text("\n".join(f"{name} a word" for name in names))
    d = data.load("imagenet100", many_classes, classes=chosen)
    assert d["classes"] == names == data.load("imagenet100", many_classes, classes=names)["classes"]
    assert d["train_x"].shape == (100, 3, 256, 256)
    assert d["image_size"] == 224 and d["stem"] == "imagenet"
    greys = d["train_x"].float().mean((1, 2, 3))
    assert (greys - torch.arange(104, 4, -1)).abs().max() < 2
    assert data.pixels(d, "test_x", torch.tensor([3, 1])).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("name, classes, image_size, words", [
    ("imagenet100", None, None, "105 classes, imagenet100 has 100: --classes FILE"),
    ("imagenet100", ["n0001", "n9999"], None, "train has no folder n9999, which .* names"),
    ("folder", ["n0001"], None, "one class only"),
    ("shapes", ["n0001"], None, "has none"),
    ("imagenet", None, 128, "for --dataset folder, not for imagenet"),
])
def test_what_does_not_fit_a_dataset(name, classes, image_size, words, many_classes):
    with pytest.raises(BadInput, match=words):
        data.load(name, many_classes, classes=classes, image_size=image_size)


def test_a_folder_with_classes(tmp_path):
    """Images of several kinds, in subfolders too; hidden files and other files are passed over."""
    red = torch.zeros(3, 20, 20, dtype=torch.uint8)
    blue = red.clone()
    red[0] = 200
    blue[2] = 100
    save_images(tmp_path / "train" / "red" / "deeper", [red, red])
    save_images(tmp_path / "train" / "blue", [blue])
    save_images(tmp_path / "train" / "blue" / ".thumbnails", [blue])
    save_images(tmp_path / "val" / "red", [red])
    Image.new("L", (20, 20), 7).save(tmp_path / "train" / "blue" / "GREY.JPG")
    (tmp_path / "train" / "blue" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "blue" / ".hidden.png").write_text("not an image")
    Image.new("RGB", (20, 20)).save(tmp_path / "train" / "stray.png")
    sixteen_bits = np.full((20, 20), 40 * 256, np.uint16)
    Image.fromarray(sixteen_bits).save(tmp_path / "val" / "red" / "16bit.png")

    d = data.load("folder", tmp_path, image_size=20)
    assert d["classes"] == ["blue", "red"]
    assert d["train_y"].tolist() == [0, 0, 1, 1]
    assert d["test_y"].tolist() == [1, 1]
    assert torch.equal(d["train_x"][[0, 2]], torch.stack([blue, red]))
    assert torch.equal(d["test_x"][0], red)
    assert (d["test_x"][1] == 40).all()         # 16 bits scaled
    assert (d["train_x"][1].float() - 7).abs().max() < 3        # upper-case, a JPEG, and grey
    assert d["mean"][0] == pytest.approx((200 + 200 + 7) / 4 / 255, abs=2e-3)

    # other shapes: the shorter side becomes the size, the middle stays
    wide = torch.zeros(3, 30, 60, dtype=torch.uint8)
    wide[:, :, 15:45] = 250
    save_images(tmp_path / "val" / "blue", [wide])
    assert data.load("folder", tmp_path, image_size=20)["test_x"][0].float().mean() > 240

    save_images(tmp_path / "val" / "green", [wide])
    with pytest.raises(BadInput, match="green has no counterpart"):
        data.load("folder", tmp_path)


def test_a_folder_without_labels(tmp_path):
    save_images(tmp_path / "mine", random_images(50, 16))
    d = data.load("folder", tmp_path / "mine", image_size=16)
    assert d["classes"] == []
    assert len(d["train_x"]) == 45 and len(d["test_x"]) == 5
    assert (d["train_y"] == -1).all() and (d["test_y"] == -1).all()
    both = torch.cat([d["train_x"], d["test_x"]]).flatten(1)
    assert both.unique(dim=0).shape[0] == 50        # held out, not used twice

    # as cameras and computers leave them: by year, with one more beside, and thumbnails
    for name, images in {"2025/12": 20, "2026/01": 9, "": 1, "2026/@eaDir": 3}.items():
        save_images(tmp_path / "nested" / name, random_images(images, 16))
    d = data.load("folder", tmp_path / "nested", image_size=16)
    assert len(d["train_x"]) + len(d["test_x"]) == 30 and d["classes"] == []

    save_images(tmp_path / "split" / "train", random_images(30, 16))
    save_images(tmp_path / "split" / "val", random_images(3, 16, seed=1))
    d = data.load("folder", tmp_path / "split", image_size=16)
    assert len(d["train_x"]) == 30
    assert torch.equal(d["test_x"], random_images(3, 16, seed=1))


@pytest.mark.parametrize("files, words", [
    ([], "lacks the folder train"),
    (["a.png"], "holds 1 images: 20 or more"),
    (["train/a/a.png", "train/b/b.png"], "lacks the folder train, or test"),
    (["train/a/a.png", "train/b/b.png", "test/a/a.png"], "fewer than two test images"),
    (["train/a/a.png", "train/b/b.txt", "test/a/a.png"], "train/b holds no image"),
])
def test_missing_images_are_one_line(files, words, tmp_path, capsys):
    for file in files:
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "png")
    assert exit_status(data.main, "folder", "--data-dir", tmp_path / "photos") == 2
    err = capsys.readouterr().err
    assert words in err and err.startswith("data.py: ") and err.count("\n") == 1


# --- images from files ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of smooth JPEGs of several shapes, two classes: 48 to train on, 12 to test."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(200, 250), (250, 187), (150, 150)]
    for split, n in {"train": 24, "test": 6}.items():
        for label in ("a", "b"):
            for i in range(n):
                picture = smooth_picture(*shapes[i % 3], seed=n + i)
                save_images(root / split / label / f"{i:02}", [picture], ".jpg")
    return root


def test_resident_and_streamed_images_are_the_same(photos):
    assert datasets.sizes_of("folder") == {"size": 256, "image_size": 224, "stem": "imagenet"}
    assert datasets.sizes_of("folder", 64) == {"size": 64, "image_size": 64, "stem": "small"}
    resident = data.load("folder", photos, resident="yes", image_size=112)
    streamed = data.load("folder", photos, resident="no", image_size=112)
    assert resident["streamed"] is False and streamed["streamed"] is True
    assert torch.equal(resident["train_y"], streamed["train_y"])
    assert np.allclose(resident["mean"], streamed["mean"], atol=0.01)
    index = torch.tensor([5, 0, 7])
    ours = data.pixels(resident, "test_x", index)
    assert torch.equal(ours, data.pixels(streamed, "test_x", index))
    just_enough = 60 * 3 * 128 ** 2         # bytes for 48 images to train on and 12 to test
    assert data.load("folder", photos, room=just_enough, image_size=112)["streamed"] is False
    assert data.load("folder", photos, room=just_enough - 1, image_size=112)["streamed"] is True


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_an_unreadable_file_is_named(resident, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    file = tmp_path / "photos" / "train" / "b" / "05" / "00000.jpg"
    d = data.load("folder", tmp_path / "photos", resident="no", image_size=32)
    file.write_bytes(file.read_bytes()[:1000])          # its header is right
    with pytest.raises(OSError, match=f"^{file} is not a readable image \\(.*\\)$"):
        if resident == "yes":
            data.load("folder", tmp_path / "photos", image_size=32)
        else:
            list(data.batches_of_views(d, data.plan_batches(48, 24, 0, epochs=1), "vicreg"))


# --- random crops ---------------------------------------------------------------------------------

def crops_of(path, n, size, seed=0):
    """n pairs of crops of one file, 2n × 3 × size × size, float; and their random numbers."""
    numbers = torch.rand(n, 2, NUMBERS[0], generator=generator(seed))
    crops = np.concatenate([data.two_crops(path, of_image, (0.2, 1), size) for of_image in numbers])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float(), numbers


def test_a_streamed_crop_is_the_resident_one(tmp_path):
    """The same random numbers cut the same part of a square image from a file and a tensor."""
    picture = smooth_picture(256, 256)
    save_images(tmp_path, [picture])
    streamed, numbers = crops_of(tmp_path / "00000.png", 10, 64)
    whole = picture.expand(20, -1, -1, -1).float()
    resident = random_resized_crop(whole, (0.2, 1), taken_from(numbers.flatten(0, 1)), 64)
    assert ((streamed - resident).abs().mean((1, 2, 3)) < 1).all()      # grey levels of 255


def test_crops_of_a_wide_image_have_the_right_sizes(tmp_path):
    """The image's red is x and its green is y: each crop's box can be read from its colours.

    A JPEG, which is decoded at a reduced size, gives the same crops as a PNG.
    """
    axis = torch.linspace(0, 255, 400)
    red = axis.expand(300, 400)
    green = axis[:300, None].expand(300, 400) * 399 / 299
    picture = torch.stack([red, green, torch.zeros(300, 400)]).round().byte()
    save_images(tmp_path, [picture], ".jpg")
    save_images(tmp_path, [picture], ".png")
    jpeg, _ = crops_of(tmp_path / "00000.jpg", 200, 32, seed=3)
    exact, _ = crops_of(tmp_path / "00000.png", 200, 32, seed=3)
    assert (jpeg - exact).abs().mean() < 1

    width = (exact[:, 0, 16, -1] - exact[:, 0, 16, 0]) / (255 * 31 / 32) * 400
    height = (exact[:, 1, -1, 16] - exact[:, 1, 0, 16]) / (255 * 31 / 32) * 300
    assert 0.4 < (width < 0).double().mean() < 0.6      # mirrored
    assert (height > 0).all()
    area = width.abs() * height / 120_000
    ratio = width.abs() / height
    assert 0.18 < area.min() < 0.25 and 0.9 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38


@pytest.mark.parametrize("name", ["turned.jpg", "turned.tif", "turned.webp"])
def test_a_camera_held_upright(tmp_path, name):
    """An image stored on its side gives the same crops as one stored upright."""
    save_images(tmp_path, [smooth_picture(400, 300)])
    exif = Image.Exif()
    exif[data.EXIF_ORIENTATION] = 6         # turn it by 90° clockwise to see it
    lying = Image.open(tmp_path / "00000.png").transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / name, exif=exif, quality=95)
    upright, _ = crops_of(tmp_path / "00000.png", 20, 32)
    turned, _ = crops_of(tmp_path / name, 20, 32)
    assert (upright - turned).abs().mean() < 2


def test_greys_of_32_bits_are_refused_by_name(tmp_path):
    """Pillow would make them black, or white."""
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(OSError, match="float.tif.*32 bits"):
        data.decode(tmp_path / "float.tif", 16, 16)


# --- batches of views -----------------------------------------------------------------------------

@pytest.mark.parametrize("resident", ["yes", "no"])
def test_batches_are_the_augmented_images(photos, resident):
    """byol's views differ, so that they cannot be exchanged unnoticed."""
    d = data.load("folder", photos, resident=resident, image_size=32)
    order = torch.randperm(48, generator=generator(1))[:24].view(3, 8)
    planned = [data.PlannedBatch(5, step, index) for step, index in enumerate(order)]
    pairs = [pair for *_, pair in data.image_pairs(d, planned, "byol", torch.device("cpu"))]
    batches = list(data.batches_of_views(d, planned, "byol"))
    for step, (row, pair, (views, index, labels)) in enumerate(zip(order, pairs, batches)):
        draws = torch.rand(2, 8, DRAWS, generator=generator(data.mixed_seed(5, step)))
        seen = [augment_with(draws[view], pair[view], "byol", view, 32, resident == "no")
                for view in (0, 1)]
        assert torch.equal(views, normalise(torch.cat(seen), d["mean"], d["std"]))
        assert views.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(index, row)
        assert torch.equal(labels, d["train_y"][row])
    last, = data.batches_of_views(d, planned[2:], "byol")
    assert torch.equal(last[0], batches[2][0])      # as if the others had been drawn before


def test_files_are_read_ahead_until_the_batches_are_closed(photos):
    d = data.load("folder", photos, resident="no", image_size=32)
    asked = []

    def noted(plan):
        for planned in plan:
            asked.append(planned)
            yield planned

    before = set(threading.enumerate())
    batches = data.batches_of_views(d, noted(data.plan_batches(48, 24, 0, epochs=9)), "vicreg")
    next(batches)
    assert len(asked) == 1 + data.BATCHES_AHEAD
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


# --- python data.py -------------------------------------------------------------------------------

def test_first_look(photos, tmp_path, capsys, monkeypatch):
    """python data.py NAME draws 16 images of 32 pixels, three times enlarged, and their views."""
    monkeypatch.chdir(tmp_path)
    assert exit_status(data.main, "folder", "--data-dir", photos, "--image-size", 32) == 0
    printed = capsys.readouterr().out
    assert "48 training and 12 test images of 32 pixels, 2 classes" in printed
    sheet = np.asarray(Image.open("figures/folder.png"))
    assert sheet.shape == (3 * 98 + 2, 16 * 98 + 2, 3)      # a frame of two pixels around each
    d = data.load("folder", photos, image_size=32)
    chosen = torch.randperm(48, generator=generator(0))[:1]
    first = data.pixels(d, "train_x", chosen)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[2:98:3, 2:98:3], first)
    view = sheet[100:196:3, 2:98:3]
    assert view.std() > 5 and not np.array_equal(view, first)
