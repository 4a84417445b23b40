"""Tests of data.py, datasets.py and images.py.

    python -m pytest -q tests/test_data.py

Every dataset is read from small files in its official format, right and damaged, downloaded
from a server of the test's own.
"""
import functools
import hashlib
import http.server
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
import evaluate
import train
from augment import DRAWS, augment_with, normalise, random_resized_crop
from plumbing import datasets, images
from plumbing.cli import BadInput
from plumbing.run import load_checkpoint, read_log
from tests.helpers import ROOT, TINY, run, start, wait_for_epoch, equal, generator, save_images

NARROW = ("--width", 8, "--precision", "fp32")


def noise(n, size, seed=0):
    shape = (n, 3, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(seed))


def smooth_picture(small, height, width):
    """A small image (3 × h × w) enlarged: 3 × height × width."""
    enlarged = torch.nn.functional.interpolate(small[None].float(), (height, width), mode="bicubic")
    return enlarged[0].clamp(0, 255).byte()


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def save_jpegs(folder, pictures, suffix=".JPEG"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        path = folder / f"{folder.parent.name}_{i}{suffix}"
        to_pil(picture).save(path, format="JPEG", quality=100, subsampling=0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cut_off(path, n=1):
    """Removes a file's last n bytes."""
    path.write_bytes(path.read_bytes()[:-n])


# --- the official files -----------------------------------------------------------------------
# Each function writes a small set in its official format below root.

class Made(NamedTuple):
    path: Path                  # the folder or file that was written
    train_x: torch.Tensor       # what must be read from it, at its beginning
    train_y: list               # … and all labels
    test_x: torch.Tensor
    test_y: list
    vital: str = ""             # a file of training images in path


def make_cifar(name, root, monkeypatch):
    if name == "cifar10":
        source, labels_key = torchvision.datasets.CIFAR10, "labels"
    else:
        source, labels_key = torchvision.datasets.CIFAR100, "fine_labels"
    folder = root / source.base_folder
    folder.mkdir()
    x = noise(5, 32)
    y = [0, 1, 2, 3, 4]

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return md5(folder / file)

    for which in ("train_list", "test_list"):
        entry = {"data": x.flatten(1).numpy(), labels_key: y}
        files = [[file, write(file, entry)] for file, _ in getattr(source, which)]
        monkeypatch.setattr(source, which, files)
    names = {source.meta["key"]: [f"class {i}" for i in range(5)]}
    checksum = write(source.meta["filename"], names)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": checksum})
    return Made(folder, x, y * len(source.train_list), x, y, vital=source.train_list[0][0])


def make_stl10(name, root, monkeypatch):
    source = torchvision.datasets.STL10
    folder = root / "stl10_binary"
    folder.mkdir()
    labelled = noise(4, 96)
    rest = noise(3, 96, seed=1)
    test = noise(2, 96, seed=2)
    for file, x in {"train": labelled, "unlabeled": rest, "test": test}.items():
        column_by_column = x.transpose(2, 3).contiguous()
        column_by_column.numpy().tofile(folder / f"{file}_X.bin")
    np.array([1, 2, 10, 2], np.uint8).tofile(folder / "train_y.bin")        # from 1
    np.array([10, 1], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    for which in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(source, which)]
        monkeypatch.setattr(source, which, files)
    train_x = torch.cat([labelled, rest])
    return Made(folder, train_x, [0, 1, 9, 1, -1, -1, -1], test, [9, 0], vital="train_X.bin")


def make_tiny(name, root, monkeypatch):
    folder = root / "tiny-imagenet-200"
    x = noise(6, 64)
    for wnid, pictures in {"n01": x[:2], "n02": x[2:4]}.items():
        save_jpegs(folder / "train" / wnid / "images", pictures)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t9\t9\n")
    save_jpegs(folder / "val" / "images", x[4:])
    notes = "val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t1\t2\t60\t60\n"
    (folder / "val" / "val_annotations.txt").write_text(notes)
    save_jpegs(folder / "test" / "images", x[:1])       # unlabelled, and of no use here
    monkeypatch.setitem(datasets.DATASETS["tinyimagenet200"], "train", 4)
    vital = "train/n01/images/n01_0.JPEG"
    return Made(folder, x[:4], [0, 0, 1, 1], x[4:], [1, 0], vital)


def make_cinic(name, root, monkeypatch):
    folder = root / "CINIC-10"
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    x = noise(40, 32).view(4, 10, 3, 32, 32)        # one of each class, four times
    for i, split in enumerate(("train", "train", "valid", "test")):
        for j, label in enumerate(classes):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            to_pil(x[i, j]).save(place / f"cifar10-{split}-{i}.png")
    (folder / "README.md").write_text("CINIC-10")
    monkeypatch.setitem(datasets.DATASETS["cinic10"], "train", 20)
    train_x = x[:2].transpose(0, 1).flatten(0, 1)       # class by class
    train_y = [label for label in range(10) for _ in range(2)]
    vital = "train/airplane/cifar10-train-0.png"
    return Made(folder, train_x, train_y, x[3], list(range(10)), vital)


def make_medmnist(name, root, monkeypatch):
    x = noise(9, 28)
    y = torch.tensor([3, 1, 0, 2, 7, 7, 1, 0, 4])
    stored = x.permute(0, 2, 3, 1).numpy()
    if name != "blood":     # grey
        stored = stored[..., 0]
        x = x[:, :1].expand(-1, 3, -1, -1)
    arrays = {}
    for split, part in {"train": slice(0, 4), "val": slice(4, 6), "test": slice(6, 9)}.items():
        arrays[f"{split}_images"] = stored[part]
        arrays[f"{split}_labels"] = y[part, None].numpy().astype(np.uint8)
    path = root / f"{name}mnist.npz"
    np.savez_compressed(path, **arrays)
    return Made(path, x[:4], y[:4].tolist(), x[6:], y[6:].tolist())


MAKERS = {
    "cifar10": make_cifar, "cifar100": make_cifar, "stl10": make_stl10,
    "tinyimagenet200": make_tiny, "cinic10": make_cinic, "blood": make_medmnist,
    "organs": make_medmnist, "organc": make_medmnist, "organa": make_medmnist,
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Server(NamedTuple):
    folder: Path        # whose files are served
    address: str


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield Server(folder, f"http://127.0.0.1:{http_server.server_port}/")
    http_server.shutdown()


def pack(name, made, archive):
    """Writes what was made as its official archive."""
    if made.is_file():
        shutil.copy(made, archive)
    elif archive.suffix == ".zip":
        shutil.make_archive(str(archive.with_suffix("")), "zip", made.parent, made.name)
    else:
        with tarfile.open(archive, "w:gz") as file:
            if name == "cinic10":       # its archive has no folder of its own
                for path in sorted(made.iterdir()):
                    file.add(path, path.name)
            else:
                file.add(made, made.name)


class Official(NamedTuple):
    """A dataset that the table of datasets has on the test's server."""
    name: str
    made: Made
    facts: dict
    archive: Path       # as it is served


def publish(name, root, server, monkeypatch):
    (root / "made").mkdir()
    made = MAKERS[name](name, root / "made", monkeypatch)
    facts = datasets.DATASETS[name]
    file, *query = facts["url"].rpartition("/")[2].partition("?")
    archive = server.folder / file
    pack(name, made.path, archive)
    monkeypatch.setitem(facts, "url", server.address + file + "".join(query))
    monkeypatch.setitem(facts, "md5", md5(archive))
    return Official(name, made, facts, archive)


@pytest.fixture(params=MAKERS)
def official(request, tmp_path, server, monkeypatch):
    return publish(request.param, tmp_path, server, monkeypatch)


def refuse_downloads(monkeypatch):
    monkeypatch.setattr(datasets, "download_url", lambda *args: pytest.fail("downloaded"))


def test_official_files_are_downloaded_and_read(official, tmp_path, monkeypatch):
    root = tmp_path / "mine" / "data"
    d = data.load(official.name, root)
    facts, made = official.facts, official.made
    lossy = 3 if official.name == "tinyimagenet200" else 0      # JPEGs; in levels of 255
    for key, x in {"train_x": made.train_x, "test_x": made.test_x}.items():
        assert d[key].dtype == torch.uint8
        assert d[key].shape[1:] == (3, facts["size"], facts["size"])
        assert (d[key][:len(x)].float() - x.float()).abs().mean() <= lossy
    assert d["train_y"].tolist() == made.train_y
    assert d["test_y"].tolist() == made.test_y
    assert d["stem"] == facts["stem"]
    assert d["image_size"] == facts["crop"]
    assert len(d["mean"]) == len(d["std"]) == 3
    left = {official.archive.name, facts.get("unpacked", official.archive.name)}
    assert {path.name for path in root.iterdir()} == left

    refuse_downloads(monkeypatch)
    assert torch.equal(data.load(official.name, root)["train_x"], d["train_x"])


def test_a_download_that_ends_early_leaves_nothing(official, tmp_path):
    root = tmp_path / "mine" / "data"
    cut_off(official.archive, 100)
    words = (f"cannot get {official.name} .*{official.facts['md5']}.*"
             f"put {official.archive.name} into {root}")
    with pytest.raises(BadInput, match=words):
        data.load(official.name, root)
    assert not root.parent.exists()


def test_an_archive_that_the_user_put_there(official, tmp_path, monkeypatch):
    refuse_downloads(monkeypatch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    archive = theirs / official.archive.name
    shutil.copy(official.archive, archive)
    assert data.load(official.name, theirs)["test_y"].tolist() == official.made.test_y

    # a damaged one is refused, and left alone
    if "unpacked" in official.facts:
        shutil.rmtree(theirs / official.facts["unpacked"])
    cut_off(archive)
    damaged = archive.read_bytes()
    with pytest.raises(BadInput, match=f"{archive} is damaged or another file"):
        data.load(official.name, theirs)
    assert archive.read_bytes() == damaged
    assert list(theirs.iterdir()) == [archive]


@pytest.mark.parametrize("name", [name for name in MAKERS if MAKERS[name] != make_medmnist])
def test_damaged_files_are_found_after_unpacking(name, tmp_path, server, monkeypatch):
    official = publish(name, tmp_path, server, monkeypatch)
    data.load(name, tmp_path / "mine")
    file = tmp_path / "mine" / official.facts["unpacked"] / official.made.vital
    if file.suffix in (".JPEG", ".png"):
        file.unlink()
    else:
        cut_off(file)
    with pytest.raises(BadInput, match="move it away, and it will be unpacked again"):
        data.load(name, tmp_path / "mine")


def test_an_interrupted_download_is_repeated(tmp_path, server, monkeypatch):
    archive = publish("blood", tmp_path, server, monkeypatch).archive
    root = tmp_path / "data"
    honest = datasets.download_url

    def interrupted(url, root, filename, md5):
        honest(url, root, filename, md5)
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("blood", root)
    assert not root.exists()
    monkeypatch.setattr(datasets, "download_url", honest)
    root.mkdir()
    (root / f"{archive.name}.part").write_bytes(b"of a process that was killed")
    assert len(data.load("blood", root)["train_x"]) == 4
    assert [path.name for path in root.iterdir()] == [archive.name]


def test_a_file_of_another_kind_is_named(tmp_path, monkeypatch):
    path = tmp_path / "bloodmnist.npz"
    needs_pickle = np.array([{}, {}], dtype=object)
    np.savez(path, train_images=np.zeros((2, 28, 28, 3), np.uint8), train_labels=needs_pickle)
    monkeypatch.setitem(datasets.DATASETS["blood"], "md5", md5(path))
    with pytest.raises(BadInput, match="bloodmnist.npz is not a file of MedMNIST v2"):
        data.load("blood", tmp_path)


def test_wrong_annotations_are_named(tmp_path, monkeypatch):
    folder = make_tiny("tinyimagenet200", tmp_path, monkeypatch).path
    notes = folder / "val" / "val_annotations.txt"
    notes.write_text(notes.read_text().replace("n02", "n99"))
    words = "val_annotations.txt is missing, damaged or of other classes"
    with pytest.raises(BadInput, match=words):
        data.load("tinyimagenet200", tmp_path)
    notes.write_text("val_0.JPEG\tn01\nval_9.JPEG\tn02\n")
    with pytest.raises(OSError, match="val_9.JPEG is not a readable image"):
        data.load("tinyimagenet200", tmp_path)


# --- class folders ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def many_classes(tmp_path_factory):
    """105 class folders; an image's grey says its class."""
    root = tmp_path_factory.mktemp("many_classes")
    for i in range(105):
        for split in ("train", "val"):
            grey = torch.full((1, 3, 300, 280), i, dtype=torch.uint8)
            save_jpegs(root / split / f"n{i:04}", grey)
    return root


def test_imagenets_hundred_classes(many_classes, tmp_path):
    names = [f"n{i:04}" for i in range(104, 4, -1)]
    chosen = tmp_path / "classes.txt"
    chosen.write_text("\n".join(f"{name} a word" for name in names))
    d = data.load("imagenet100", many_classes, classes=chosen)
    assert d["classes"] == names
    assert d["train_x"].shape == (100, 3, 256, 256)
    assert d["image_size"] == 224 and d["stem"] == "imagenet"
    greys = d["train_x"].float().mean((1, 2, 3))
    assert (greys - torch.arange(104, 4, -1)).abs().max() < 2
    assert data.pixels(d, "test_x", torch.tensor([3, 1])).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("name, words", [
    ("imagenet100", "105 classes, imagenet100 has 100: --classes FILE"),
    ("imagenet", "105 classes, imagenet has 1,000"),
])
def test_too_many_or_too_few_classes(many_classes, name, words):
    with pytest.raises(BadInput, match=words):
        data.load(name, many_classes)


def test_classes_that_are_not_there(many_classes, tmp_path):
    chosen = tmp_path / "classes.txt"
    chosen.write_text("n0001\nn9999\n")
    with pytest.raises(BadInput, match="train has no folder n9999, which .*classes.txt names"):
        data.load("imagenet100", many_classes, classes=chosen)
    with pytest.raises(BadInput, match="has none"):
        data.load("shapes", classes=chosen)


def test_inaturalist_as_torchvision_unpacks_it(many_classes, tmp_path, monkeypatch):
    (tmp_path / "2021_train").symlink_to(many_classes / "train")
    (tmp_path / "2021_valid").symlink_to(many_classes / "val")
    monkeypatch.setitem(datasets.DATASETS["inat21"], "classes", 105)
    d = data.load("inat21", tmp_path, resident="no")
    assert len(d["train_x"]) == len(d["test_x"]) == 105


def test_folder(tmp_path):
    red = torch.zeros(3, 20, 20, dtype=torch.uint8)
    blue = red.clone()
    red[0] = 200
    blue[2] = 100
    save_images(tmp_path / "train" / "red", [red, red])
    save_images(tmp_path / "train" / "blue", [blue])
    save_images(tmp_path / "val" / "red", [red])
    Image.new("L", (20, 20), 7).save(tmp_path / "train" / "blue" / "GREY.JPG")
    (tmp_path / "train" / "blue" / "notes.txt").write_text("not an image")
    sixteen_bits = np.full((20, 20), 40 * 256, np.uint16)
    Image.fromarray(sixteen_bits).save(tmp_path / "val" / "red" / "16bit.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(tmp_path / "val" / "red" / "clear.png")

    d = data.load("folder", tmp_path)
    assert d["classes"] == ["blue", "red"]
    assert d["train_y"].tolist() == [0, 0, 1, 1]
    assert d["test_y"].tolist() == [1, 1, 1]
    assert torch.equal(d["train_x"][[0, 2]], torch.stack([blue, red]))
    assert torch.equal(d["test_x"][0], red)
    assert (d["test_x"][1] == 40).all()         # 16 bits scaled
    assert (d["test_x"][2] == 255).all()        # transparency on white
    assert (d["train_x"][1].float() - 7).abs().max() < 3        # upper-case, a JPEG, and grey
    assert d["mean"][0] == pytest.approx((200 + 200 + 7) / 4 / 255, abs=2e-3)
    assert d["image_size"] == 20

    # other sizes: the shorter side becomes the smallest, the middle stays
    wide = torch.zeros(3, 30, 60, dtype=torch.uint8)
    wide[:, :, 15:45] = 250
    save_images(tmp_path / "val" / "blue", [wide])
    d = data.load("folder", tmp_path)
    assert d["test_x"].shape[1:] == (3, 20, 20)
    assert d["test_x"][0].float().mean() > 240


def test_a_folder_without_labels(tmp_path):
    save_images(tmp_path / "mine", noise(50, 16))
    d = data.load("folder", tmp_path / "mine")
    assert d["classes"] == []
    assert len(d["train_x"]) == 45 and len(d["test_x"]) == 5
    assert (d["train_y"] == -1).all() and (d["test_y"] == -1).all()
    both = torch.cat([d["train_x"], d["test_x"]]).flatten(1)
    assert both.unique(dim=0).shape[0] == 50        # held out, not used twice

    save_images(tmp_path / "split" / "train", noise(30, 16))
    save_images(tmp_path / "split" / "val", noise(3, 16, seed=1))
    d = data.load("folder", tmp_path / "split")
    assert len(d["train_x"]) == 30
    assert torch.equal(d["test_x"], noise(3, 16, seed=1))

    save_images(tmp_path / "few", noise(5, 16))
    with pytest.raises(BadInput, match="too few"):
        data.load("folder", tmp_path / "few")


# --- files that are read as they are needed ---------------------------------------------------

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of smooth JPEGs of several shapes, two classes."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(400, 500), (500, 375), (300, 300)]
    for split, n in {"train": 24, "test": 6}.items():
        for label in ("a", "b"):
            for i, small in enumerate(noise(n, 6, seed=len(label) + n)):
                picture = smooth_picture(small, *shapes[i % 3])
                save_jpegs(root / split / label, [picture], f"{i}.jpg")
    return root


def test_both_ways_see_the_same_images(photos):
    """Resident or streamed: the same labels, evaluation images and normalisation."""
    resident = data.load("folder", photos, resident="yes")
    streamed = data.load("folder", photos, resident="no")
    assert isinstance(streamed["train_x"], list)
    assert resident["train_x"].shape == (48, 3, 256, 256)
    assert torch.equal(resident["train_y"], streamed["train_y"])
    assert resident["image_size"] == streamed["image_size"] == 224
    assert resident["stem"] == streamed["stem"] == "imagenet"
    assert np.allclose(resident["mean"], streamed["mean"], atol=0.01)
    index = torch.tensor([5, 0, 7])
    ours = data.pixels(resident, "test_x", index)
    assert torch.equal(ours, data.pixels(streamed, "test_x", index))


def test_images_are_resident_where_there_is_room(photos):
    assert data.load("folder", photos, room=1e9)["train_x"].dtype == torch.uint8
    assert isinstance(data.load("folder", photos, room=1e6)["train_x"], list)


def plan(seed, steps, batch, order=None):
    """The images 0, 1, 2, … or those of an order, in batches."""
    order = torch.arange(steps * batch) if order is None else order
    return [images.PlannedBatch(seed, step, index)
            for step, index in enumerate(order.view(steps, batch))]


def test_streamed_crops_follow_from_the_seed(photos):
    paths = data.load("folder", photos, resident="no")["train_x"]
    views = list(images.stream_crops(paths, plan(7, 3, 16), "vicreg", 64))
    assert len(views) == 3
    assert views[0].shape == (2, 16, 3, 64, 64) and views[0].dtype == torch.uint8
    assert not torch.equal(views[0][0], views[0][1])
    again = list(images.stream_crops(paths, plan(7, 3, 16), "vicreg", 64))
    assert torch.equal(torch.stack(views), torch.stack(again))
    other = next(images.stream_crops(paths, plan(8, 3, 16), "vicreg", 64))
    assert not torch.equal(views[0], other)


def test_streamed_crops_are_like_resident_ones(photos):
    paths = data.load("folder", photos, resident="no")["train_x"]
    views = images.stream_crops(paths, plan(7, 3, 16), "vicreg", 64)
    streamed = torch.cat(list(views), 1).flatten(0, 1).float() / 255
    x = data.load("folder", photos, resident="yes")["train_x"].float() / 255
    rand = functools.partial(torch.rand, generator=generator())
    resident = torch.cat([random_resized_crop(x, (0.2, 1), rand, 64) for _ in range(2)])
    for moment in (torch.mean, torch.std):
        assert abs(moment(streamed) - moment(resident)) < 0.02


def crops_of(path, n, size, seed=0):
    """n pairs of crops of one file: 2n × 3 × size × size, float."""
    planned = images.PlannedBatch(seed, 0, torch.zeros(n, dtype=torch.long))
    crops = images.crop_batch(images.plain(planned), [str(path)], (0.2, 1), size)
    return crops.float().flatten(0, 1)


def test_streamed_crops_are_where_they_should_be(tmp_path):
    """Of an image whose red is x and whose green is y: each crop's box can be read from it."""
    axis = torch.linspace(0, 255, 800)
    red = axis.expand(600, 800)
    green = axis[:600, None].expand(600, 800) * 799 / 599
    picture = torch.stack([red, green, torch.zeros(600, 800)]).round().byte()
    save_jpegs(tmp_path / "x", [picture], ".jpg")
    to_pil(picture).save(tmp_path / "x.png")
    jpeg = crops_of(images.list_images(tmp_path / "x")[0], 200, 64, seed=3)
    exact = crops_of(tmp_path / "x.png", 200, 64, seed=3)       # without reduced decoding
    assert (jpeg - exact).abs().mean() < 1      # grey levels of 255

    width = (jpeg[:, 0, 32, -1] - jpeg[:, 0, 32, 0]) / 252 * 800
    height = (jpeg[:, 1, -1, 32] - jpeg[:, 1, 0, 32]) / 252 * 600
    assert 0.4 < (width < 0).double().mean() < 0.6      # mirrored
    assert (height > 0).all()
    area = width.abs() * height / 480_000
    ratio = width.abs() / height
    assert 0.18 < area.min() < 0.25 and 0.9 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38


def test_a_camera_held_upright(tmp_path):
    """A JPEG stored on its side, with the tag that says so, gives the same crops as upright."""
    picture = to_pil(smooth_picture(noise(1, 8)[0], 400, 300))
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6        # turn it by 90° clockwise to see it
    on_its_side = picture.transpose(Image.Transpose.ROTATE_90)
    on_its_side.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = crops_of(tmp_path / "upright.png", 20, 32)
    turned = crops_of(tmp_path / "turned.jpg", 20, 32)
    assert (upright - turned).abs().mean() < 2


def test_smaller_copies(tmp_path, capsys):
    """Large ones are resized, upright; small ones stay byte for byte; what is there is kept."""
    folder, out = tmp_path / "photos", tmp_path / "small"
    picture = to_pil(smooth_picture(noise(1, 8)[0], 120, 90))           # 90 × 120 pixels
    (folder / "train" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6        # turn it by 90° clockwise to see it
    on_its_side = picture.transpose(Image.Transpose.ROTATE_90)
    on_its_side.save(folder / "train" / "a" / "turned.jpg", exif=exif, quality=95)
    picture.save(folder / "train" / "a" / "large.png")
    picture.resize((20, 25)).save(folder / "tiny.jpg")

    data.main(["folder", "--data-dir", str(folder), "--resize", "45", str(out)])
    assert "3 images are in" in capsys.readouterr().out
    assert (out / "tiny.jpg").read_bytes() == (folder / "tiny.jpg").read_bytes()
    expected = np.asarray(picture.resize((45, 60), Image.Resampling.BICUBIC), float)
    for name in ("turned.jpg", "large.png"):
        with Image.open(out / "train" / "a" / name) as copy:
            assert copy.size == (45, 60) and copy.getexif().get(0x0112) is None
            assert abs(np.asarray(copy, float) - expected).mean() < 6     # on its side: 60

    (out / "tiny.jpg").write_bytes(b"mine")
    (out / "train" / "a" / "large.png").unlink()
    data.main(["folder", "--data-dir", str(folder), "--resize", "45", str(out)])
    assert (out / "tiny.jpg").read_bytes() == b"mine"
    assert (out / "train" / "a" / "large.png").exists()
    assert not list(out.rglob("unfinished*"))

    with pytest.raises(SystemExit):         # what is there would stay
        data.main(["folder", "--data-dir", str(folder), "--resize", "30", str(out)])
    assert "another size" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    ("cifar10 --resize 16 OUT", "copies image files"),
    ("folder --data-dir IN --resize 16 IN/small", "outside"),
    ("folder --data-dir IN --resize 0 OUT", "whole number from 1"),
    ("folder --data-dir IN --resize 16 OUT", "bad.jpg could not be copied"),
    ("folder --data-dir IN/none --resize 16 OUT", "no images"),
    ("folder --data-dir IN/small --resize 16 IN", "outside"),
    ("folder --data-dir IN --resize 16 IN/bad.jpg", "outside"),
    ("folder --data-dir IN --resize 16 OUT --classes x", "leave out --classes"),
    ("folder --data-dir LOOP --resize 16 OUT", "no images"),
])
def test_copies_that_cannot_be_made(tmp_path, capsys, words, said):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("in", "out", "loop"):
        words = words.replace(name.upper(), str(tmp_path / name))
    with pytest.raises(SystemExit) as ended:
        data.main(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# --- batches of views -------------------------------------------------------------------------

def both_views_by_hand(pair, draws, recipe, d, cropped):
    """What batches_of_views should yield for a batch's images, 2 × n × 3 × s × s."""
    size = d["image_size"]
    first = augment_with(draws[0], pair[0], recipe, 0, size, cropped)
    second = augment_with(draws[1], pair[1], recipe, 1, size, cropped)
    return normalise(torch.cat([first, second]), d["mean"], d["std"])


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_batches_are_what_augment_makes_of_the_images(photos, resident):
    """byol's views differ, so that they cannot be exchanged unnoticed."""
    d = data.load("folder", photos, resident=resident)
    d["image_size"] = 32
    order = torch.randperm(48, generator=generator(1))[:24].view(3, 8)
    planned = plan(5, 3, 8, order)
    if resident == "yes":
        pairs = [d["train_x"][index].expand(2, -1, -1, -1, -1) for index in order]
    else:
        pairs = list(images.stream_crops(d["train_x"], planned, "byol", 32))
    batches = list(data.batches_of_views(d, planned, "byol"))
    assert len(batches) == 3
    for step, (row, pair, (views, index, labels)) in enumerate(zip(order, pairs, batches)):
        draws = torch.rand(2, 8, DRAWS, generator=generator(images.mixed_seed(5, step)))
        assert torch.equal(views, both_views_by_hand(pair, draws, "byol", d, resident == "no"))
        assert views.shape == (16, 3, 32, 32) and views.dtype == torch.float32
        assert views.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(index, row)
        assert torch.equal(labels, d["train_y"][row])
    last, = data.batches_of_views(d, planned[2:], "byol")
    assert torch.equal(last[0], batches[2][0])      # as if the others had been drawn before


def test_batches_of_tensors_and_of_files_go_through_the_same_images(photos):
    planned = list(data.plan_batches(48, 12, seed=1, epochs=1))
    seen = {}
    for resident in ("yes", "no"):
        d = data.load("folder", photos, resident=resident)
        batches = list(data.batches_of_views(d, planned, "vicreg"))
        seen[resident] = {
            "index": torch.stack([index for _, index, _ in batches]),
            "labels": torch.stack([labels for _, _, labels in batches]),
        }
    assert torch.equal(seen["yes"]["index"], seen["no"]["index"])
    assert torch.equal(seen["yes"]["labels"], seen["no"]["labels"])


def test_the_layout_and_the_function_of_the_views_can_be_chosen():
    d = {"train_x": noise(8, 16), "train_y": torch.arange(8), "image_size": 16,
         "streamed": False, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    calls = []

    def plain(draws, x, recipe, view, size, cropped):
        calls.append(view)
        return x.float() / 255

    batches = data.batches_of_views(d, plan(0, 1, 8), "vicreg", torch.contiguous_format, plain)
    views, _, _ = next(batches)
    assert calls == [0, 1]
    assert views.is_contiguous()
    expected = normalise(d["train_x"], d["mean"], d["std"])
    assert torch.equal(views, torch.cat([expected, expected]))


def test_workers_end_with_the_batches(photos):
    d = data.load("folder", photos, resident="no")
    batches = data.batches_of_views(d, plan(0, 12, 4), "vicreg")
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_a_plan_goes_on_at_any_step():
    """Each epoch sees every image once, in its own order; the rest of a plan is as if whole."""
    whole = list(data.plan_batches(50, 8, seed=3, epochs=3))
    assert [planned.step for planned in whole] == 3 * [0, 1, 2, 3, 4, 5]
    epochs = [torch.cat([planned.index for planned in whole[start:start + 6]])
              for start in (0, 6, 12)]
    for order in epochs:
        assert len(order.unique()) == 48
    assert not torch.equal(epochs[0], epochs[1])
    assert len({planned.seed for planned in whole}) == 3

    rest = list(data.plan_batches(50, 8, seed=3, epochs=3, first_epoch=2, first_step=4))
    assert len(rest) == 8
    for expected, planned in zip(whole[10:], rest):
        assert planned[:2] == expected[:2] and torch.equal(planned.index, expected.index)


def test_an_unexpected_exception_ends_a_streamed_run(small_photos, tmp_path):
    """With its processes: they do not hear the signal with which Python would end them."""
    script = tmp_path / "broken.py"
    script.write_text("import sys, train\n"
                      "def evaluate(*arguments):\n    raise RuntimeError('a mistake')\n"
                      "train.probe.evaluate = evaluate\ntrain.main(sys.argv[1:])\n")
    command = [sys.executable, script, *STREAMED, "--data-dir", small_photos, "--batch-size", "12",
               "--epochs", "3", "--eval-every", "1", "--out", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([str(word) for word in command], env=environment, capture_output=True,
                           text=True, timeout=120)
    assert ended.returncode == 1 and "a mistake" in ended.stderr


def test_workers_are_sent_numbers_alone(photos, monkeypatch):
    """Of an order's rows, shared memory would hold the whole order."""
    planned = list(data.plan_batches(48, 24, seed=0, epochs=1))[1]
    sent = images.plain(planned)
    assert sent == (planned.seed, 1, planned.index.tolist())
    d = data.load("folder", photos, resident="no")
    crops = images.Crops(d["train_x"], (0.2, 1), 32)[sent]
    assert torch.equal(crops, next(images.stream_crops(d["train_x"], [planned], "vicreg", 32)))
    assert list(images.stream_crops(d["train_x"], [], "vicreg", 32)) == []


def test_workers_go_on_between_epochs(photos, monkeypatch):
    """The same processes read the second epoch, and begin before it is asked for."""
    monkeypatch.setattr(images, "worker_count", lambda: 1)
    d = data.load("folder", photos, resident="no")
    asked = []

    def noted(plan):
        for planned in plan:
            asked.append(planned)
            yield planned

    batches = data.batches_of_views(d, noted(data.plan_batches(48, 24, 0, epochs=2)), "vicreg")
    next(batches)
    workers = [process.pid for process in multiprocessing.active_children()]
    next(batches)
    assert len(asked) > 2               # the first epoch is over, and nobody asked for the next
    next(batches)
    assert [process.pid for process in multiprocessing.active_children()] == workers
    batches.close()


@pytest.mark.parametrize("batch_bytes, memory, wanted", [
    (77e6, 64e9, (16, 3)),              # 256 images of 224 pixels: 48 batches, 3.7 GB of 8
    (77e6, 8e9, (6, 2)),                # 1 GB has room for 12
    (77e6, 1e9, (1, 1)),
    (2e9, 8e9, (1, 1)),
])
def test_batches_ahead_fit_into_memory(monkeypatch, batch_bytes, memory, wanted):
    monkeypatch.setattr(images, "machine_memory", lambda: memory)
    monkeypatch.setattr(images, "worker_count", lambda: 16)
    monkeypatch.setattr(images, "SHARED_MEMORY", "/no/such/place")
    assert images.workers_and_batches_ahead(batch_bytes) == wanted


# --- training on them -------------------------------------------------------------------------

STREAMED = [*TINY, *NARROW, "--dataset", "folder", "--resident", "no"]


@pytest.fixture
def small_photos(tmp_path):
    for split in ("train", "test"):
        for seed, label in enumerate("ab"):
            save_jpegs(tmp_path / "small" / split / label, noise(20, 80, seed), ".jpg")
    return tmp_path / "small"


def test_a_streamed_run_resumes_exactly(small_photos, tmp_path):
    flags = [*STREAMED, "--data-dir", small_photos, "--batch-size", 12, "--limit-train", 36,
             "--epochs", 2]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:      # stopped in the second epoch
        honest = train.learning_rate

        def interrupted(step, *rest):
            if step == 4:
                raise KeyboardInterrupt
            return honest(step, *rest)

        patch.setattr(train, "learning_rate", interrupted)
        assert run(*flags, "--out", tmp_path / "cut") == 130
    # auto would keep so few images resident; but a run goes on as it began
    assert run(*flags, "--resident", "auto", "--out", tmp_path / "cut", "--resume") == 0
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")["learner"]
    cut = load_checkpoint(tmp_path / "cut" / "last.pt")["learner"]
    assert equal(whole, cut)


def test_without_labels_probe_and_accuracies_are_left_out(tmp_path, capsys):
    save_images(tmp_path / "mine", noise(300, 8))
    flags = [*TINY, *NARROW, "--dataset", "folder", "--data-dir", tmp_path / "mine"]
    assert run(*flags, "--baseline", "--out", tmp_path / "free") == 0
    log = read_log(tmp_path / "free" / "log.csv")
    assert np.isnan(log["probe_top1"][-1]) and np.isnan(log["probe_loss"][0])
    assert log["mi"][-1] > 0 and log["erank_z"][-1] > 1
    assert "no labels" in capsys.readouterr().out


def test_a_broken_file_ends_a_streamed_run_with_one_line(small_photos, tmp_path, capsys):
    file = next((small_photos / "train").rglob("*.jpg"))
    cut_off(file, 2000)         # its header is right
    flags = [*STREAMED, "--data-dir", small_photos, "--batch-size", 12]
    assert run(*flags, "--out", tmp_path / "torn") == 2
    err = capsys.readouterr().err
    assert f"{file} is not a readable image" in err and err.count("\n") == 1


def test_a_streamed_run_stops_when_its_whole_group_is_told_to(photos, tmp_path):
    """As schedulers do: the workers go on until the step is done. One line is all that is said."""
    flags = [*STREAMED, "--data-dir", photos, "--batch-size", 8, "--epochs", 500,
             "--eval-every", 500, "--out", tmp_path / "run"]
    process = start(*flags, start_new_session=True)
    wait_for_epoch(tmp_path / "run" / "log.csv", 1, process)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.startswith("train.py: stopped; go on with: ") and err.count("\n") == 1


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_images_that_changed_are_noticed(resident, small_photos):
    """Test images too; of streamed ones by their sizes and times."""
    def checksum():
        return data.fingerprint(data.load("folder", small_photos, resident=resident))

    before = checksum()
    assert checksum() == before
    for split in ("train", "test"):
        file = next((small_photos / split).rglob("*.jpg"))
        with Image.open(file) as image:
            other = image.rotate(180)
        other.save(file)
        os.utime(file, (1e9, 1e9))
        after = checksum()
        assert after != before
        before = after


# --- strange folders --------------------------------------------------------------------------

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_links_and_pipes_among_images(tmp_path):
    """A link to a folder around brings in nothing, one to elsewhere its images, and each once."""
    for name in ("train/a", "train/b", "elsewhere"):
        save_images(tmp_path / name, noise(3, 8))
    a = tmp_path / "train" / "a"
    (a / "up").symlink_to(tmp_path)
    (a / "itself").symlink_to(a)
    (a / "more").symlink_to(tmp_path / "elsewhere")
    (a / "again").symlink_to(tmp_path / "elsewhere")
    (a / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(a / "pipe.png")
    found = images.list_images(a)
    assert len(found) == 6 and found == sorted(found)
    assert sum("elsewhere" in os.path.realpath(path) for path in found) == 3
    assert images.list_images(tmp_path / "nowhere") == []


# --- images of mixed sizes --------------------------------------------------------------------

def folder_of_sizes(root):
    """Ten images of 40, four of 300 and three of 9 pixels in train/; and three of 40 in test/."""
    for split, sizes in (("train", [40] * 10 + [300] * 4 + [9] * 3), ("test", [40] * 3)):
        for i, size in enumerate(sizes):
            save_images(root / split / "ab"[i % 2] / str(i), noise(1, size, seed=i))
    return root


@pytest.mark.parametrize("min_size, size, left_out", [(None, 40, 3), (9, 9, 0), (41, None, None)])
def test_small_images_are_left_out(min_size, size, left_out, tmp_path):
    """By default those of less than a quarter of the median, which one large image cannot move."""
    folder = folder_of_sizes(tmp_path)
    if size is None:
        with pytest.raises(BadInput, match="4 to train on, 0 to test"):
            data.load("folder", folder, min_size=min_size)
        return
    found = data.load("folder", folder, min_size=min_size)
    assert found["size"] == size and found["left_out"] == left_out
    assert len(found["train_x"]) == len(found["train_y"]) == 17 - left_out
    assert found["train_y"].bincount().sum() == 17 - left_out and len(found["test_x"]) == 3
    assert found["min_size"] == (min_size or 10)


def test_a_folder_of_mixed_sizes_is_trained_on_and_measured(tmp_path, capsys):
    folder = folder_of_sizes(tmp_path)
    flags = [*TINY, *NARROW, "--data-dir", folder, "--batch-size", 4, "--out", tmp_path / "run"]
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "14 training images of 40 pixels" in out and "left out: 3 images of less than 10" in out
    assert "note: there are 3 test images" in out
    evaluate.main([str(tmp_path / "run"), "--device", "cpu"])
    assert re.search(r"labelled_train_images +14\n", capsys.readouterr().out)


# --- a first look -----------------------------------------------------------------------------

def test_first_look(photos, tmp_path, capsys):
    """python data.py NAME: what it prints, and a contact sheet of images and their views."""
    data.main(["folder", "--data-dir", str(photos), "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "2 classes" in out
    assert "train  48 images; 24 in each class" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 6 * 224 and sheet.std() > 20


def test_first_look_at_bad_data(photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        data.main(["cinic10", "--data-dir", str(photos), "--out", str(tmp_path / "no.png")])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("data.py: ") and err.count("\n") == 1
    assert not (tmp_path / "no.png").exists()
