"""Tests of the datasets: official files, downloads, folders of images.

    python -m pytest -q tests/test_datasets.py

Each dataset is written small, in its official format, and downloaded from a local server.
"""
import functools
import hashlib
import http.server
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
from plumbing import datasets, images
from plumbing.cli import BadInput
from tests.helpers import random_images, save_images


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cut_off(path, n):
    """Removes a file's last n bytes."""
    path.write_bytes(path.read_bytes()[:-n])


# --- the official files -----------------------------------------------------------------------
# Each function writes a small dataset in its official format below root.

class Made(NamedTuple):
    path: Path                  # the folder or file that was written
    train_x: torch.Tensor       # the expected images, or the first of them
    train_y: list               # all expected labels
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
    x = random_images(5, 32)
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
    labelled = random_images(4, 96)
    rest = random_images(3, 96, seed=1)
    test = random_images(2, 96, seed=2)
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


def few_per_class(name, monkeypatch):
    """Makes it a dataset with two training images and one test image in each class."""
    monkeypatch.setitem(datasets.DATASETS[name], "train", 2)
    monkeypatch.setitem(datasets.DATASETS[name], "test", 1)


def make_tiny(name, root, monkeypatch):
    folder = root / "tiny-imagenet-200"
    x = random_images(6, 64)
    for wnid, pictures in {"n01": x[:2], "n02": x[2:4]}.items():
        save_images(folder / "train" / wnid / "images", pictures, ".JPEG")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("00000.JPEG\t0\t0\t9\t9\n")
    save_images(folder / "val" / "images", x[4:], ".JPEG")
    notes = "00000.JPEG\tn02\t0\t0\t62\t62\n00001.JPEG\tn01\t1\t2\t60\t60\n"
    (folder / "val" / "val_annotations.txt").write_text(notes)
    save_images(folder / "test" / "images", x[:1], ".JPEG")     # unlabelled, and not used
    few_per_class("tinyimagenet200", monkeypatch)
    vital = "train/n01/images/00000.JPEG"
    return Made(folder, x[:4], [0, 0, 1, 1], x[4:], [1, 0], vital)


def make_cinic(name, root, monkeypatch):
    folder = root / "CINIC-10"
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    x = random_images(40, 32).view(10, 4, 3, 32, 32)        # four of each class
    for label, pictures in zip(classes, x):
        save_images(folder / "train" / label, pictures[:2])
        save_images(folder / "valid" / label, pictures[2:3])
        save_images(folder / "test" / label, pictures[3:])
    (folder / "README.md").write_text("CINIC-10")
    few_per_class("cinic10", monkeypatch)
    train_y = [label for label in range(10) for _ in range(2)]
    return Made(folder, x[:, :2].flatten(0, 1), train_y, x[:, 3], list(range(10)),
                vital="train/airplane/00000.png")


def make_medmnist(name, root, monkeypatch):
    x = random_images(9, 28)
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
    "organs": make_medmnist,
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def pack(name, made, archive):
    """Packs a folder or file as its official archive."""
    if made.is_file():
        shutil.copy(made, archive)
        return
    kind, suffix = ("zip", ".zip") if archive.suffix == ".zip" else ("gztar", ".tar.gz")
    root = made if name == "cinic10" else made.parent       # CINIC-10's has no folder of its own
    shutil.make_archive(str(archive).removesuffix(suffix), kind, root, os.path.relpath(made, root))


class Official(NamedTuple):
    """A dataset whose archive is on the local server."""
    made: Made
    facts: dict         # from the table, with the server's URL
    archive: Path


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """A function of a dataset's name that makes it Official."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def publish_one(name):
        (tmp_path / "made").mkdir()
        made = MAKERS[name](name, tmp_path / "made", monkeypatch)
        facts = datasets.DATASETS[name]
        file = facts["url"].rpartition("/")[2]
        archive = folder / file.partition("?")[0]
        pack(name, made.path, archive)
        monkeypatch.setitem(facts, "url", f"http://127.0.0.1:{server.server_port}/{file}")
        monkeypatch.setitem(facts, "md5", md5(archive))
        return Official(made, facts, archive)

    yield publish_one
    server.shutdown()


def refuse_downloads(monkeypatch):
    monkeypatch.setattr(datasets, "download_url", lambda *args: pytest.fail("downloaded"))


@pytest.mark.parametrize("name", MAKERS)
def test_official_files_are_downloaded_and_read(name, publish, tmp_path, monkeypatch):
    """Once, also after an attempt that was killed; and damage to the unpacked files is noticed."""
    official = publish(name)
    made, facts, archive = official.made, official.facts, official.archive.name
    root = tmp_path / "data"
    root.mkdir()
    (root / f"{archive}.part").write_bytes(b"from a process that was killed")
    d = data.load(name, root)
    lossy = 3 if name == "tinyimagenet200" else 0       # JPEGs; in grey levels of 255
    for key, x in {"train_x": made.train_x, "test_x": made.test_x}.items():
        assert d[key].dtype == torch.uint8
        assert d[key].shape[1:] == (3, facts["size"], facts["size"])
        assert (d[key][:len(x)].float() - x.float()).abs().mean() <= lossy
    assert d["train_y"].tolist() == made.train_y
    assert d["test_y"].tolist() == made.test_y
    assert d["stem"] == facts["stem"]
    assert d["image_size"] == facts["crop"]
    assert len(d["mean"]) == len(d["std"]) == 3
    assert {path.name for path in root.iterdir()} == {archive, facts.get("unpacked", archive)}

    refuse_downloads(monkeypatch)
    assert torch.equal(data.load(name, root)["train_x"], d["train_x"])
    if made.vital:
        file = root / facts["unpacked"] / made.vital
        if facts["layout"] in ("cifar", "stl10"):
            cut_off(file, 1)
        else:
            file.unlink()
        with pytest.raises(BadInput, match="move it away, and it will be unpacked again"):
            data.load(name, root)


def test_the_table_agrees_with_torchvision():
    theirs = torchvision.datasets
    sources = {"cifar10": theirs.CIFAR10, "cifar100": theirs.CIFAR100, "stl10": theirs.STL10}
    for name, source in sources.items():
        facts = datasets.DATASETS[name]
        ours = facts["url"], facts["md5"], facts["unpacked"]
        assert ours == (source.url, source.tgz_md5, source.base_folder)


@pytest.mark.parametrize("name", ["cifar10", "blood"])      # an archive and a bare file
def test_a_download_that_ends_early_leaves_nothing(name, publish, tmp_path):
    official = publish(name)
    root = tmp_path / "mine" / "data"
    cut_off(official.archive, 100)
    words = f"cannot get {name} .*{official.facts['md5']}.*put {official.archive.name} into {root}"
    if name == "cifar10":
        words += ", or its images as train/<class>/… and test/<class>/… into "
    with pytest.raises(BadInput, match=words):
        data.load(name, root)
    assert not root.parent.exists()


@pytest.mark.parametrize("name", ["cinic10", "blood"])
def test_an_archive_that_the_user_put_there(name, publish, tmp_path, monkeypatch):
    official = publish(name)
    refuse_downloads(monkeypatch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    archive = theirs / official.archive.name
    shutil.copy(official.archive, archive)
    assert data.load(name, theirs)["test_y"].tolist() == official.made.test_y

    # a damaged one is refused, and left alone
    if "unpacked" in official.facts:
        shutil.rmtree(theirs / official.facts["unpacked"])
    cut_off(archive, 1)
    damaged = archive.read_bytes()
    with pytest.raises(BadInput, match=f"{archive} is damaged or another file"):
        data.load(name, theirs)
    assert archive.read_bytes() == damaged
    assert list(theirs.iterdir()) == [archive]


@pytest.mark.parametrize("name, held_out, place", [
    ("cifar10", "test", "cifar10"), ("cifar100", "test", "."), ("tinyimagenet200", "val", "."),
    ("cinic10", "test", "cinic10"),
])
def test_class_folders_of_others_need_no_download(name, held_out, place, tmp_path, monkeypatch):
    """With the official mean and std; but not if an image is missing, or of another size."""
    few_per_class(name, monkeypatch)
    refuse_downloads(monkeypatch)
    facts = datasets.DATASETS[name]
    classes = [f"class {i:03}" for i in range(facts["classes"])]
    x = random_images(3 * len(classes), facts["size"]).unflatten(0, (len(classes), 3))
    for label, pictures in zip(classes, x):
        save_images(tmp_path / place / "train" / label, pictures[:2])
        save_images(tmp_path / place / held_out / label, pictures[2:])
    if name == "tinyimagenet200":       # its official test images have no labels
        save_images(tmp_path / "test" / "images", x[0])
    d = data.load(name, tmp_path)
    assert torch.equal(d["train_x"], x[:, :2].flatten(0, 1)) and torch.equal(d["test_x"], x[:, 2])
    assert d["classes"] == classes and d["test_y"].tolist() == list(range(len(classes)))
    assert d["mean"] == list(facts["mean"]) and d["stem"] == "small"

    first = tmp_path / place / "train" / "class 000" / "00000.png"
    Image.new("RGB", (16, 16)).save(first)
    with pytest.raises(BadInput, match="has 16 × 16 pixels.*--dataset folder"):
        data.load(name, tmp_path)
    first.unlink()
    with pytest.raises(BadInput, match=f"1 train images of class 000, and {name} has 2"):
        data.load(name, tmp_path)
    for split in ("train", held_out):
        shutil.rmtree(tmp_path / place / split / "class 001")
    with pytest.raises(BadInput, match=f"has {len(classes) - 1} classes, and {name} has"):
        data.load(name, tmp_path)


def test_wrong_content_is_named(tmp_path, monkeypatch):
    """A pickled array, which could run code; annotations of other classes or missing files."""
    path = tmp_path / "bloodmnist.npz"
    pickled = np.array([{}, {}], dtype=object)
    np.savez(path, train_images=np.zeros((2, 28, 28, 3), np.uint8), train_labels=pickled)
    monkeypatch.setitem(datasets.DATASETS["blood"], "md5", md5(path))
    with pytest.raises(BadInput, match="bloodmnist.npz is not a file of MedMNIST v2"):
        data.load("blood", tmp_path)

    folder = make_tiny("tinyimagenet200", tmp_path, monkeypatch).path
    notes = folder / "val" / "val_annotations.txt"
    notes.write_text(notes.read_text().replace("n02", "n99"))
    words = "val_annotations.txt is missing, damaged or of other classes"
    with pytest.raises(BadInput, match=words):
        data.load("tinyimagenet200", tmp_path)
    notes.write_text("00000.JPEG\tn01\n00009.JPEG\tn02\n")
    with pytest.raises(OSError, match="00009.JPEG is not a readable image"):
        data.load("tinyimagenet200", tmp_path)


# --- class folders ----------------------------------------------------------------------------

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
    assert d["classes"] == names
    assert d["train_x"].shape == (100, 3, 256, 256)
    assert d["image_size"] == 224 and d["stem"] == "imagenet"
    greys = d["train_x"].float().mean((1, 2, 3))
    assert (greys - torch.arange(104, 4, -1)).abs().max() < 2
    assert data.pixels(d, "test_x", torch.tensor([3, 1])).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("name, classes, words", [
    ("imagenet100", None, "105 classes, imagenet100 has 100: --classes FILE"),
    ("imagenet100", ["n0001", "n9999"], "train has no folder n9999, which .* names"),
    ("shapes", ["n0001"], "has none"),
])
def test_classes_that_do_not_fit(name, classes, words, many_classes):
    with pytest.raises(BadInput, match=words):
        data.load(name, many_classes, classes=classes)


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
    Image.new("RGB", (20, 20)).save(tmp_path / "train" / "stray.png")
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
    assert data.notes(d)[0] == ("left out: 1 not read by Pillow as images (1 .txt), "
                                "1 beside the class folders")

    # other sizes: the shorter side becomes the smallest, the middle stays
    wide = torch.zeros(3, 30, 60, dtype=torch.uint8)
    wide[:, :, 15:45] = 250
    save_images(tmp_path / "val" / "blue", [wide])
    d = data.load("folder", tmp_path)
    assert d["test_x"].shape[1:] == (3, 20, 20)
    assert d["test_x"][0].float().mean() > 240


def test_a_folder_without_labels(tmp_path):
    save_images(tmp_path / "mine", random_images(50, 16))
    d = data.load("folder", tmp_path / "mine")
    assert d["classes"] == []
    assert len(d["train_x"]) == 45 and len(d["test_x"]) == 5
    assert (d["train_y"] == -1).all() and (d["test_y"] == -1).all()
    both = torch.cat([d["train_x"], d["test_x"]]).flatten(1)
    assert both.unique(dim=0).shape[0] == 50        # held out, not used twice
    assert "held out for the metrics: 5 of the images" in data.notes(d)[0]
    chosen = Path(d["test_files"][0])
    chosen.write_bytes(b"no image")
    d = data.load("folder", tmp_path / "mine", skip_unreadable=True)
    assert "held out for the metrics: 4 of the images" in data.notes(d)[1]
    chosen.unlink()

    save_images(tmp_path / "split" / "train", random_images(30, 16))
    save_images(tmp_path / "split" / "val", random_images(3, 16, seed=1))
    d = data.load("folder", tmp_path / "split")
    assert len(d["train_x"]) == 30
    assert torch.equal(d["test_x"], random_images(3, 16, seed=1))

    save_images(tmp_path / "few", random_images(5, 16))
    with pytest.raises(BadInput, match="too few"):
        data.load("folder", tmp_path / "few")


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".bmp", ".gif", ".ppm", ".jpe"])
def test_whatever_pillow_reads_is_an_image(suffix, tmp_path):
    picture = torch.full((3, 16, 16), 90, dtype=torch.uint8)
    save_images(tmp_path / "mine", 30 * [picture], suffix)
    (tmp_path / "mine" / "film.mpg").write_bytes(b"Pillow knows its suffix, and does not read it")
    save_images(tmp_path / "mine" / "deeper", 2 * [picture])
    d = data.load("folder", tmp_path / "mine")
    assert len(d["train_x"]) + len(d["test_x"]) == 30
    assert (d["train_x"].float() - 90).abs().max() < 3
    assert data.notes(d)[0] == ("left out: 1 not read by Pillow as images (1 .mpg), "
                                "2 in subfolders")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_links_and_pipes_among_images(tmp_path):
    """Links to other folders are followed, once each; links back up and pipes are not."""
    for name, n in {"train/a": 30, "elsewhere": 3}.items():
        save_images(tmp_path / name, random_images(n, 8))
    a = tmp_path / "train" / "a"
    (a / "up").symlink_to(tmp_path)
    (a / "itself").symlink_to(a)
    (a / "more").symlink_to(tmp_path / "elsewhere")
    (a / "again").symlink_to(tmp_path / "elsewhere")
    (a / "gone").symlink_to(tmp_path / "nowhere")
    (a / "loop.png").symlink_to("loop.png")
    os.mkfifo(a / "pipe.png")
    found = images.list_images(a)
    assert len(found) == 33 and found == sorted(found)
    assert sum("elsewhere" in os.path.realpath(path) for path in found) == 3
    d = data.load("folder", a)
    assert len(d["train_x"]) + len(d["test_x"]) == 30
    assert images.list_images(tmp_path / "nowhere") == []
