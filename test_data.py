"""Tests of data.py: every dataset from small files in its official format, right and damaged, downloaded from a server of the test's own.

    python -m pytest -q test_data.py
"""
import functools
import hashlib
import http.server
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
import train
from augment import augment
from test_train import HERE, TINY, generator, run, save_images


def noise(n, size, seed=0):
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator(seed))


def save_jpegs(folder, images, suffix=".JPEG"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{folder.parent.name}_{i}{suffix}", format="JPEG", quality=100, subsampling=0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


# --- the official files -------------------------------------------------------------------------------------------------
# Each function writes a small set in its official format below root and returns the folder or file, the images and labels that must
# be read from it (train and test), and the number of training images.

def make_cifar(name, root, monkeypatch):
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    key, folder = "labels" if name == "cifar10" else "fine_labels", root / source.base_folder
    folder.mkdir()

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5(folder / file)]

    x, y = noise(5, 32), [0, 1, 2, 3, 4]
    entry = {"data": x.flatten(1).numpy(), key: y}
    lists = {which: [write(file, entry) for file, _ in getattr(source, which)] for which in ("train_list", "test_list")}
    for which, files in lists.items():
        monkeypatch.setattr(source, which, files)
    file, checksum = write(source.meta["filename"], {source.meta["key"]: [f"class {i}" for i in range(5)]})
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": checksum})
    return folder, (x, y * len(lists["train_list"])), (x, y)


def make_stl10(name, root, monkeypatch):
    source, folder = torchvision.datasets.STL10, root / "stl10_binary"
    folder.mkdir()
    train, rest, test = noise(4, 96), noise(3, 96, 1), noise(2, 96, 2)
    for file, x in (("train_X.bin", train), ("unlabeled_X.bin", rest), ("test_X.bin", test)):
        x.transpose(2, 3).contiguous().numpy().tofile(folder / file)       # column by column
    for file, y in (("train_y.bin", [1, 2, 10, 2]), ("test_y.bin", [10, 1])):       # from 1
        np.array(y, np.uint8).tofile(folder / file)
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(source, which, [[file, md5(folder / file)] for file, _ in getattr(source, which)])
    return folder, (torch.cat([train, rest]), [0, 1, 9, 1, -1, -1, -1]), (test, [9, 0])


def make_tiny(name, root, monkeypatch):
    folder, x = root / "tiny-imagenet-200", noise(6, 64)
    for i, wnid in enumerate(("n01", "n02")):
        save_jpegs(folder / "train" / wnid / "images", x[2 * i:2 * i + 2])
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t9\t9\n")
    save_jpegs(folder / "val" / "images", x[4:])
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t1\t2\t60\t60\n")
    save_jpegs(folder / "test" / "images", x[:1])       # unlabelled, and of no use here
    monkeypatch.setitem(data.DATASETS["tinyimagenet200"], "train", 4)
    return folder, (x[:4], [0, 0, 1, 1]), (x[4:], [1, 0])


def make_cinic(name, root, monkeypatch):
    folder, x = root / "CINIC-10", noise(40, 32)
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for i, split in enumerate(("train", "train", "valid", "test")):
        for j, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[10 * i + j].permute(1, 2, 0).numpy()).save(folder / split / name / f"cifar10-{split}-{i}.png")
    (folder / "README.md").write_text("CINIC-10")
    monkeypatch.setitem(data.DATASETS["cinic10"], "train", 20)
    return folder, (x[[10 * i + j for j in range(10) for i in (0, 1)]], [j for j in range(10) for _ in (0, 1)]), (x[30:], list(range(10)))


def make_medmnist(name, root, monkeypatch):
    x, y = noise(9, 28), torch.tensor([3, 1, 0, 2, 7, 7, 1, 0, 4])
    images = x.permute(0, 2, 3, 1).numpy()
    if name != "blood":     # grey
        images, x = images[..., 0], x[:, :1].expand(-1, 3, -1, -1)
    arrays = {}
    for split, part in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(6, 9))):
        arrays |= {f"{split}_images": images[part], f"{split}_labels": y[part, None].numpy().astype(np.uint8)}
    path = root / data.DATASETS[name]["file"]
    np.savez_compressed(path, **arrays)
    return path, (x[:4], y[:4].tolist()), (x[6:], y[6:].tolist())


MAKERS = {"cifar10": make_cifar, "cifar100": make_cifar, "stl10": make_stl10, "tinyimagenet200": make_tiny, "cinic10": make_cinic,
          "blood": make_medmnist, "organs": make_medmnist, "organc": make_medmnist, "organa": make_medmnist}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder whose files are served, and its address."""
    (tmp_path / "served").mkdir()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "served"))
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield tmp_path / "served", f"http://127.0.0.1:{http_server.server_port}/"
    http_server.shutdown()


def publish(name, made, server, monkeypatch):
    """Packs what was made as its archive is packed, serves it, and sets the table's address and md5 to it."""
    served, address = server
    facts = data.DATASETS[name]
    archive = served / (facts.get("file") or facts["url"].rpartition("/")[2])
    if "file" in facts:
        shutil.copy(made, archive)
    elif archive.suffix == ".zip":
        shutil.make_archive(str(archive.with_suffix("")), "zip", made.parent, made.name)
    else:
        with tarfile.open(archive, "w:gz") as file:
            for path in sorted(made.iterdir()) if name == "cinic10" else [made]:       # CINIC-10's has no folder of its own
                file.add(path, path.relative_to(made if name == "cinic10" else made.parent))
    monkeypatch.setitem(facts, "url", address if "file" in facts else address + archive.name)
    monkeypatch.setitem(facts, "md5", md5(archive))
    return archive


@pytest.mark.parametrize("name", MAKERS)
def test_official_files(name, tmp_path, server, monkeypatch, capsys):
    (tmp_path / "made").mkdir()
    made, (train_x, train_y), (test_x, test_y) = MAKERS[name](name, tmp_path / "made", monkeypatch)
    archive, facts, mine = publish(name, made, server, monkeypatch), data.DATASETS[name], tmp_path / "mine" / "data"

    # a download that ends early is not used, and nothing stays of it
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"cannot get {name} .*{facts['md5']}.*put {archive.name} into {mine}"):
        data.load(name, mine)
    assert not mine.exists()
    archive.write_bytes(whole)

    d = data.load(name, mine)
    lossy = 3 if name == "tinyimagenet200" else 0
    for key, x in (("train_x", train_x), ("test_x", test_x)):
        assert d[key].dtype == torch.uint8 and d[key].shape[1:] == (3, facts["size"], facts["size"])
        assert (d[key][:len(x)].float() - x.float()).abs().mean() <= lossy
    assert d["train_y"].tolist() == train_y and d["test_y"].tolist() == test_y and d["stem"] == facts["stem"]
    assert len(d["mean"]) == len(d["std"]) == 3 and d["image_size"] == facts["crop"]
    assert sorted(path.name for path in mine.iterdir()) == sorted({archive.name, facts.get("unpacked", archive.name)})

    # from here on without a network
    monkeypatch.setattr(data, "download_url", lambda *args: pytest.fail("downloaded again"))
    assert torch.equal(data.load(name, mine)["train_x"], d["train_x"])
    if "unpacked" in facts:     # an archive that the user put there; then one that is damaged
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        shutil.copy(archive, theirs)
        assert torch.equal(data.load(name, theirs)["test_x"], d["test_x"])
        shutil.rmtree(theirs / facts["unpacked"])
        (theirs / archive.name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=f"{theirs / archive.name} is damaged or another file"):
            data.load(name, theirs)
        assert (theirs / archive.name).read_bytes() == whole[:-1] and len(list(theirs.iterdir())) == 1
        file = sorted(path for path in mine.rglob("*") if path.suffix.lower() in (".jpeg", ".png", ".bin") or "batch" in path.name or path.name == "train"
                      if path.is_file() and "val" not in path.parts and "test" not in path.name)[0]
        file.unlink() if file.suffix in (".JPEG", ".png") else file.write_bytes(file.read_bytes()[:-1])
        words = "move it away"
    else:
        (mine / archive.name).write_bytes(whole[:-1])
        words = f"{mine / archive.name} is damaged or another file"
    with pytest.raises(ValueError, match=words):
        data.load(name, mine)


def test_an_interrupted_download_is_repeated(tmp_path, server, monkeypatch):
    (tmp_path / "made").mkdir()
    made, *_ = make_medmnist("blood", tmp_path / "made", monkeypatch)
    archive = publish("blood", made, server, monkeypatch)
    honest = data.download_url

    def interrupted(url, root, filename, md5):
        honest(url, root, filename, md5)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("blood", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(data, "download_url", honest)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{archive.name}.part").write_bytes(b"of a process that was killed")
    assert len(data.load("blood", tmp_path / "data")["train_x"]) == 4
    assert [path.name for path in (tmp_path / "data").iterdir()] == [archive.name]


def test_wrong_contents_are_named(tmp_path, monkeypatch):
    """Files whose md5 is right, or which have none, but which do not hold what they should."""
    path = tmp_path / "bloodmnist.npz"
    np.savez(path, train_images=np.zeros((2, 28, 28, 3), np.uint8), train_labels=np.array([{}, {}], dtype=object))      # needs pickle
    monkeypatch.setitem(data.DATASETS["blood"], "md5", md5(path))
    with pytest.raises(ValueError, match="bloodmnist.npz is not a file of MedMNIST v2"):
        data.load("blood", tmp_path)
    folder, *_ = make_tiny("tinyimagenet200", tmp_path, monkeypatch)
    notes = folder / "val" / "val_annotations.txt"
    notes.write_text(notes.read_text().replace("n02", "n99"))
    with pytest.raises(ValueError, match="val_annotations.txt is missing, damaged or of other classes"):
        data.load("tinyimagenet200", tmp_path)
    notes.write_text("val_0.JPEG\tn01\nval_9.JPEG\tn02\n")
    with pytest.raises(OSError, match="val_9.JPEG is not a readable image"):
        data.load("tinyimagenet200", tmp_path)


def test_imagenet_and_its_hundred_classes(tmp_path, monkeypatch):
    for i in range(105):
        for split in ("train", "val"):
            save_jpegs(tmp_path / split / f"n{i:04}", torch.full((1, 3, 300, 280), i, dtype=torch.uint8))
    names = [f"n{i:04}" for i in range(104, 4, -1)]
    (tmp_path / "classes.txt").write_text("\n".join(f"{name} a word" for name in names))
    d = data.load("imagenet100", tmp_path, classes=tmp_path / "classes.txt")
    assert d["classes"] == names and d["train_x"].shape == (100, 3, 256, 256) and d["image_size"] == 224 and d["stem"] == "imagenet"
    assert (d["train_x"].float().mean((1, 2, 3)) - torch.arange(104, 4, -1)).abs().max() < 2
    assert data.pixels(d, "test_x", torch.tensor([3, 1])).shape == (2, 3, 224, 224)
    for name, words in (("imagenet100", "105 classes, imagenet100 has 100: --classes FILE"), ("imagenet", "105 classes, imagenet has 1,000")):
        with pytest.raises(ValueError, match=words):
            data.load(name, tmp_path)
    (tmp_path / "classes.txt").write_text("n0001\nn9999\n")
    with pytest.raises(ValueError, match="train has no folder n9999, which .*classes.txt names"):
        data.load("imagenet100", tmp_path, classes=tmp_path / "classes.txt")
    with pytest.raises(ValueError, match="has none"):
        data.load("shapes", classes=tmp_path / "classes.txt")
    # iNaturalist, as torchvision's INaturalist unpacks it
    (tmp_path / "train").rename(tmp_path / "2021_train")
    (tmp_path / "val").rename(tmp_path / "2021_valid")
    monkeypatch.setitem(data.DATASETS["inat21"], "classes", 105)
    assert len(data.load("inat21", tmp_path, resident="no")["test_x"]) == 105


def test_folder(tmp_path):
    red, blue = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.zeros(3, 20, 20, dtype=torch.uint8)
    red[0], blue[2] = 200, 100
    save_images(tmp_path / "train" / "red", [red, red])
    save_images(tmp_path / "train" / "blue", [blue])
    save_images(tmp_path / "val" / "red", [red])
    Image.new("L", (20, 20), 7).save(tmp_path / "train" / "blue" / "GREY.JPG")
    (tmp_path / "train" / "blue" / "notes.txt").write_text("not an image")
    Image.fromarray(np.full((20, 20), 40 * 256, np.uint16)).save(tmp_path / "val" / "red" / "16bit.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(tmp_path / "val" / "red" / "clear.png")
    d = data.load("folder", tmp_path)
    assert d["classes"] == ["blue", "red"] and d["train_y"].tolist() == [0, 0, 1, 1] and d["test_y"].tolist() == [1, 1, 1]
    assert torch.equal(d["train_x"][[0, 2]], torch.stack([blue, red])) and torch.equal(d["test_x"][0], red)
    assert (d["test_x"][1] == 40).all() and (d["test_x"][2] == 255).all()       # 16 bits scaled, transparency on white
    assert (d["train_x"][1].float() - 7).abs().max() < 3        # upper-case, a JPEG, and grey
    assert d["mean"][0] == pytest.approx((200 + 200 + 7) / 4 / 255, abs=2e-3) and d["image_size"] == 20
    # other sizes: the shorter side becomes the smallest, the middle stays
    wide = torch.zeros(3, 30, 60, dtype=torch.uint8)
    wide[:, :, 15:45] = 250
    save_images(tmp_path / "val" / "blue", [wide])
    d = data.load("folder", tmp_path)
    assert d["test_x"].shape[1:] == (3, 20, 20) and d["test_x"][0].float().mean() > 240


def test_a_folder_without_labels(tmp_path):
    save_images(tmp_path / "mine", noise(50, 16))
    d = data.load("folder", tmp_path / "mine")
    assert d["classes"] == [] and len(d["train_x"]) == 45 and len(d["test_x"]) == 5 and (d["train_y"] == -1).all() and (d["test_y"] == -1).all()
    both = torch.cat([d["train_x"], d["test_x"]]).flatten(1)
    assert both.unique(dim=0).shape[0] == 50        # held out, not used twice
    save_images(tmp_path / "split" / "train", noise(30, 16))
    save_images(tmp_path / "split" / "val", noise(3, 16, 1))
    d = data.load("folder", tmp_path / "split")
    assert len(d["train_x"]) == 30 and torch.equal(d["test_x"], noise(3, 16, 1))
    save_images(tmp_path / "few", noise(5, 16))
    with pytest.raises(ValueError, match="too few"):
        data.load("folder", tmp_path / "few")


# --- files that are read as they are needed -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of smooth JPEGs of several shapes, two classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, n in (("train", 24), ("test", 6)):
        for label in ("a", "b"):
            for i, small in enumerate(noise(n, 6, seed=len(label) + n)):
                h, w = ((400, 500), (500, 375), (300, 300))[i % 3]
                image = torch.nn.functional.interpolate(small[None].float(), (h, w), mode="bicubic").clamp(0, 255).byte()
                save_jpegs(root / split / label, image, f"{i}.jpg")
    return root


def test_both_ways_see_the_same_images(photos):
    """Resident or streamed: the same labels, evaluation images and normalisation, and crops that are alike."""
    here, there = (data.load("folder", photos, resident=how) for how in ("yes", "no"))
    assert isinstance(there["train_x"], list) and here["train_x"].shape == (48, 3, 256, 256)
    assert torch.equal(here["train_y"], there["train_y"]) and here["image_size"] == there["image_size"] == 224
    index = torch.tensor([5, 0, 7])
    assert torch.equal(data.pixels(here, "test_x", index), data.pixels(there, "test_x", index))
    assert np.allclose(here["mean"], there["mean"], atol=0.01) and here["stem"] == there["stem"] == "imagenet"
    assert data.load("folder", photos, room=1e9)["train_x"].dtype == torch.uint8 and isinstance(data.load("folder", photos, room=1e6)["train_x"], list)

    batches = torch.arange(48).view(3, 16)
    views = list(data.stream_crops(there["train_x"], batches, 7, "vicreg", 64))
    assert len(views) == 3 and views[0].shape == (2, 16, 3, 64, 64) and views[0].dtype == torch.uint8
    again = list(data.stream_crops(there["train_x"], batches, 7, "vicreg", 64))
    assert all(torch.equal(a, b) for a, b in zip(views, again)) and not torch.equal(views[0][0], views[0][1])
    other = next(data.stream_crops(there["train_x"], batches, 8, "vicreg", 64))
    assert not torch.equal(views[0], other)
    streamed = torch.cat(views, 1).flatten(0, 1).float() / 255
    resident = torch.cat([augment_crop_only(here["train_x"], seed, 64) for seed in (0, 1)])
    for moment in (torch.mean, torch.std):
        assert abs(moment(streamed) - moment(resident)) < 0.02


def augment_crop_only(x, seed, size):
    from augment import random_resized_crop
    return random_resized_crop(x.float() / 255, (0.2, 1), functools.partial(torch.rand, generator=generator(seed)), size)


def test_streamed_crops_are_where_they_should_be(tmp_path, monkeypatch):
    """Of an image whose red is x and whose green is y: each crop's box, with JPEG's reduced decoding and without."""
    axis = torch.linspace(0, 255, 800)
    image = torch.stack([axis.expand(600, 800), axis[:600, None].expand(600, 800) * 799 / 599, torch.zeros(600, 800)]).round().byte()
    save_jpegs(tmp_path / "x", [image], ".jpg")
    paths = data.list_images(tmp_path)
    jpeg = data.crop_batch(((3, 0), torch.zeros(200, dtype=torch.long)), paths, (0.2, 1), 64).float()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    exact = data.crop_batch(((3, 0), torch.zeros(200, dtype=torch.long)), [str(tmp_path / "x.png")], (0.2, 1), 64).float()
    assert (jpeg - exact).abs().mean() < 1      # grey levels of 255
    width, height = (jpeg[..., 0, 32, -1] - jpeg[..., 0, 32, 0]) / 252 * 800, (jpeg[..., 1, -1, 32] - jpeg[..., 1, 0, 32]) / 252 * 600
    assert 0.4 < (width < 0).double().mean() < 0.6 and (height > 0).all()
    area, ratio = width.abs() * height / 480_000, width.abs() / height
    assert 0.18 < area.min() < 0.25 and 0.9 < area.max() < 1.02 and 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38


def test_training_on_streamed_and_unlabelled_images(tmp_path, capsys):
    """A streamed run stops and resumes as exactly as a resident one; without labels, probe and accuracies are left out."""
    for split in ("train", "test"):
        for label, seed in (("a", 0), ("b", 1)):
            save_jpegs(tmp_path / "small" / split / label, noise(20, 80, seed), ".jpg")
    flags = [*TINY, "--dataset", "folder", "--data-dir", tmp_path / "small", "--resident", "no", "--batch-size", 12, "--limit-train", 36, "--precision", "fp32",
             "--epochs", 2]
    assert run(*flags, "--out", tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:      # stopped in the second epoch
        patch.setattr(train, "rate_at", lambda at, *rest, f=train.rate_at: (_ for _ in ()).throw(KeyboardInterrupt) if at == 4 else f(at, *rest))
        assert run(*flags, "--out", tmp_path / "cut") == 130
    assert run(*flags, "--resident", "auto", "--out", tmp_path / "cut", "--resume") == 0        # as it began
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(a["nets"][key], b["nets"][key]) for key in a["nets"])
    save_images(tmp_path / "mine", noise(300, 8))
    assert run(*TINY, "--dataset", "folder", "--data-dir", tmp_path / "mine", "--baseline", "--out", tmp_path / "free") == 0
    log = train.read_log(tmp_path / "free" / "log.csv")
    assert log["probe_top1"][-1] != log["probe_top1"][-1] and log["probe_loss"][0] != log["probe_loss"][0] and log["mi"][-1] > 0 and log["erank_z"][-1] > 1
    assert "no labels" in capsys.readouterr().out
    file = next((tmp_path / "small" / "train").rglob("*.jpg"))       # its header is right
    file.write_bytes(file.read_bytes()[:-2000])
    assert run(*flags, "--limit-train", 40, "--out", tmp_path / "torn") == 2
    err = capsys.readouterr().err
    assert f"{file} is not a readable image" in err and err.count("\n") == 1


def test_a_streamed_run_stops_when_it_is_told_to(photos, tmp_path):
    """Ctrl-C goes to the workers too; SIGTERM to the run alone. Neither is lost, and one line is all that is said."""
    flags = [*TINY, "--dataset", "folder", "--data-dir", photos, "--resident", "no", "--batch-size", 8, "--epochs", 500, "--eval-every", 500]
    for name, status, send in (("a", 130, lambda pid: os.killpg(pid, signal.SIGINT)), ("b", 143, lambda pid: os.kill(pid, signal.SIGTERM))):
        process = subprocess.Popen([sys.executable, HERE / "train.py", *map(str, flags), "--out", tmp_path / name], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline, log = time.time() + 120, tmp_path / name / "log.csv"
        while time.time() < deadline and process.poll() is None and not (log.exists() and log.read_text().count("\n") > 1):
            time.sleep(0.01)
        time.sleep(0.1)
        send(process.pid)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status and err.startswith("train.py: stopped; go on with: ") and err.count("\n") == 1, err


def test_a_camera_held_upright(tmp_path):
    """A JPEG that is stored on its side, with the EXIF tag that says so, gives the crops of the same picture stored upright."""
    picture = Image.fromarray(torch.nn.functional.interpolate(noise(1, 8).float(), (400, 300), mode="bicubic").clamp(0, 255).byte()[0].permute(1, 2, 0).numpy())
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6        # turn it by 90° clockwise to see it
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright, turned = (data.crop_batch(((0, 0), torch.zeros(20, dtype=torch.long)), [str(tmp_path / name)], (0.2, 1), 32).float()
                       for name in ("upright.png", "turned.jpg"))
    assert (upright - turned).abs().mean() < 2


def test_first_look(photos, tmp_path, capsys):
    """python data.py NAME: what it prints, and a contact sheet of one row of images and two of their views."""
    data.main(["folder", "--data-dir", str(photos), "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "2 classes" in out and "train  48 images; 24 in each class" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 6 * 224 and sheet.std() > 20
    with pytest.raises(SystemExit) as stop:
        data.main(["cinic10", "--data-dir", str(photos), "--out", str(tmp_path / "no.png")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("data.py: ") and err.count("\n") == 1 and not (tmp_path / "no.png").exists()
