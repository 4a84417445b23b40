"""Images: each dataset of the paper, one's own folders, and drawn shapes, as tensors or, where they are too many, as files.

    python data.py cifar100           downloads and checks it, prints its splits, draws figures/cifar100.png: images and two views of each
    data = load("cifar100", "data")                       # a dict of facts, see load()
    views = augment(data["train_x"][:256], "vicreg")      # from augment.py

A training set that fits sits on the device as one tensor, and a batch is an index into it. One that does not stays a list
of files, and worker processes decode and crop what is needed. Problems with files raise ValueError (or OSError) with a line
that says what to do; python data.py prints that line, with exit status 2.
"""
import argparse
import contextlib
import functools
import math
import os
import shutil
import signal
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps         # comes with torchvision
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from augment import AUGMENTATIONS, augment, random_boxes
from shapes import load_shapes

# The paper's datasets [Table 16]. size: of the images, in pixels (of the shorter side, where they differ); crop: of what networks
# see. Mean and std are the customary ones; where there are none, they are measured. unpacked: what shows that an archive was
# unpacked, train: its training images. Sources and md5 as torchvision, MedMNIST 3 and the sets' own pages give them.
IMAGENET = dict(layout="classes", size=256, crop=224, stem="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MEDMNIST = dict(layout="medmnist", size=28, crop=28, stem="small", url="https://zenodo.org/records/10519652/files/")
ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right", "pancreas", "spleen")
DATASETS = {
    "cifar10": dict(
        layout="cifar", classes=10, size=32, crop=32, stem="small", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a", unpacked="cifar-10-batches-py"),
    "cifar100": dict(
        layout="cifar", classes=100, size=32, crop=32, stem="small", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85", unpacked="cifar-100-python"),
    "stl10": dict(
        layout="stl10", classes=10, size=96, crop=96, stem="imagenet", mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713),
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", md5="91f7769df0f17e558f3565bffb0c7dfb", unpacked="stl10_binary"),
    "tinyimagenet200": dict(
        layout="tiny", classes=200, size=64, crop=64, stem="small", mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip", md5="90528d7ca1a48142e341f4ef8d21d0de", unpacked="tiny-imagenet-200", train=100_000),
    "cinic10": dict(
        layout="classes", classes=10, size=32, crop=32, stem="small", mean=(0.4789, 0.4723, 0.4305), std=(0.2421, 0.2383, 0.2587),
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz", md5="6ee4d0c996905fe93221de577967a372", unpacked="CINIC-10",
        train=90_000),
    "blood": dict(MEDMNIST, file="bloodmnist.npz", md5="7053d0359d879ad8a5505303e11de1dc", classes=(
        "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil", "platelet")),
    "organs": dict(MEDMNIST, file="organsmnist.npz", md5="9ab87b696fb54e2a387ebe992d6ed5f1", classes=ORGANS),
    "organc": dict(MEDMNIST, file="organcmnist.npz", md5="b9ceb9546e10131b32923c5bbeaea2b1", classes=ORGANS),
    "organa": dict(MEDMNIST, file="organamnist.npz", md5="68e3f8846a6bd62f0c9bf841c0d9eacc", classes=ORGANS),
    "imagenet": dict(IMAGENET, classes=1000),
    "imagenet100": dict(IMAGENET, classes=100),
    "inat21": dict(IMAGENET, classes=10_000),
    "folder": dict(layout="folder", size=256, crop=224),        # at most; see fit()
    "shapes": dict(layout="shapes", size=32, crop=32, stem="small"),
}
SMALLEST = 8        # pixels: smaller images are refused


def load(name, data_dir="data", limit_train=None, seed=0, classes=None, resident="auto", room=None):
    """A dataset as a dict: train_x, test_x (uint8, n × 3 × size × size, or a list of files), train_y, test_y (int64, −1 without a
    label), classes (their names; none at all where nothing is labelled), size (of the images), image_size (of what networks see),
    stem (small or imagenet), mean, std (of the training images in [0, 1], for each channel), unused (how many images are in a
    split that is neither trained nor tested on).

    name: a key of DATASETS. data_dir: where the files are, or are downloaded to. limit_train: keep only that many
    training images, drawn at random with `seed`. classes: names of class folders to be used in place of all, or a file of them, one a
    line. resident: yes for tensors, no for lists where the dataset is files, auto for tensors where they take no more than `room`
    bytes (None: half of the machine's memory). Tensors hold the central square of each image, so that crops are of that; of files
    they are of the whole.
    Raises ValueError, or OSError for files that can't be read, with what is wrong and what to do.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}")
    facts, root = DATASETS[name], Path(data_dir)
    layout = facts["layout"]
    if classes is not None and layout not in ("classes", "folder"):
        raise ValueError(f"--classes picks class folders, and {name} has none")
    if layout == "shapes":
        data = load_shapes()
    elif layout in ("cifar", "stl10"):
        data = load_torchvision(name, root)
    elif layout == "medmnist":
        data = load_medmnist(name, root)
    else:
        data = find_tiny(name, root) if layout == "tiny" else find_classes(name, root, classes)
    if limit_train and limit_train < len(data["train_x"]):
        keep = random_subset(len(data["train_x"]), limit_train, seed)
        data["train_x"] = [data["train_x"][i] for i in keep] if isinstance(data["train_x"], list) else data["train_x"][keep]
        data["train_y"] = data["train_y"][keep]
    if not (data["train_y"] >= 0).any() or (data["test_y"] < 0).any():
        data["classes"] = []
    data |= {key: facts[key] for key in ("size", "stem") if key in facts} | {"image_size": facts["crop"]}
    if isinstance(data["train_x"], list):
        if layout == "folder":
            data |= fit(data["train_x"] + data["test_x"])
        images = len(data["train_x"]) + len(data["test_x"])
        needed, memory = images * 3 * data["size"] ** 2, machine_memory()
        if resident == "yes" and needed > 0.8 * memory:
            raise ValueError(f"{images:,} images of {data['size']} pixels take {needed / 1e9:.0f} GB of memory, and this machine has "
                             f"{memory / 1e9:.0f}: leave --resident to itself, or use --limit-train")
        if resident == "yes" or resident == "auto" and needed <= (memory / 2 if room is None else room):
            for key in ("train_x", "test_x"):
                data[key] = decode_all(data[key], data["size"], data["size"])
    if "mean" in facts:
        return data | {"mean": list(facts["mean"]), "std": list(facts["std"])}
    sample = data["train_x"]
    if isinstance(sample, list):
        sample = pixels(data, "train_x", random_subset(len(sample), 2048, seed=0))
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in sample.transpose(0, 1)]).double()
    p, level = counts / counts.sum(1, keepdim=True), torch.arange(256) / 255
    mean = p @ level.double()
    std = (p @ level.double().square() - mean.square()).clamp_min(1e-6).sqrt()
    return data | {"mean": mean.tolist(), "std": std.tolist()}


def pixels(data, split, index):
    """The images data[split][index] as networks see them untrained on: uint8, n × 3 × image_size × image_size, the central square."""
    x, side = data[split], data["image_size"]
    if isinstance(x, list):
        return decode_all([x[i] for i in index], data["size"], side)
    at = (data["size"] - side) // 2
    return x[index][:, :, at:at + side, at:at + side]


def fingerprint(data):
    """A checksum of images (of their names, where they are files), labels and classes: a run is resumed on the data that it began with."""
    total = zlib.crc32("/".join(data["classes"]).encode(errors="surrogateescape"))
    for key in ("train_x", "train_y", "test_x", "test_y"):
        if isinstance(data[key], list):
            total = zlib.crc32("\n".join(map(os.path.basename, data[key])).encode(errors="surrogateescape"), total)
        else:
            total = zlib.crc32(data[key].contiguous().numpy(), total)
    return total


def random_subset(n, limit, seed):
    """Sorted indices of `limit` of n things, at random; all of them where limit is None or not below n."""
    if limit is None or limit >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def machine_memory():
    """In bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


# --- the official files -----------------------------------------------------------------------------------------------

def fetch(name, root):
    """The path of a dataset's files in root, downloaded and unpacked unless they are there; whole, or not at all.

    A download goes to a name of its own, and takes its place when its md5 is right; so does what is unpacked from it. Of several
    processes that want the same, one fetches and the others wait.
    """
    facts = DATASETS[name]
    file = facts.get("file") or facts["url"].rpartition("/")[2]
    url = facts["url"] + facts["file"] + "?download=1" if "file" in facts else facts["url"]
    archive, unpacked = root / file, root / facts["unpacked"] if "unpacked" in facts else None
    if unpacked and unpacked.is_dir():
        return unpacked
    new, part, lock = [path for path in (root, *root.parents) if not path.exists()], root / f"{facts.get('unpacked')}.part", None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ImportError, OSError):     # not on Windows, nor on every network disk
            import fcntl
            lock = os.open(root, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if unpacked and unpacked.is_dir():
            return unpacked
        if not archive.exists():
            print(f"downloading {url}", flush=True)
            download_url(url, str(root), f"{file}.part", facts["md5"])
            os.replace(root / f"{file}.part", archive)
        elif not check_integrity(str(archive), facts["md5"]):
            raise ValueError(f"{archive} is damaged or another file (its md5 is not {facts['md5']}): move it away, and it will be downloaded")
        if unpacked:
            print(f"unpacking {archive}", flush=True)
            shutil.rmtree(part, ignore_errors=True)
            extract_archive(str(archive), str(part))
            os.replace(part / unpacked.name if (part / unpacked.name).is_dir() else part, unpacked)
        return unpacked or archive
    except ValueError:
        raise
    except Exception as error:      # torchvision raises anything from URLError to RuntimeError
        raise ValueError(f"cannot get {name} ({' '.join(str(error).split())}): download {url} (md5 {facts['md5']}) "
                         f"and put {file} into {root}; --dataset shapes and folder need no download") from error
    finally:
        with contextlib.suppress(OSError):
            (root / f"{file}.part").unlink(missing_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            for path in new:        # directories made for nothing
                path.rmdir()


def load_torchvision(name, root):
    """CIFAR-10, CIFAR-100 and STL-10, read by torchvision, which checks each file's md5."""
    folder = fetch(name, root)
    source, splits = {"cifar10": (torchvision.datasets.CIFAR10, (True, False)), "cifar100": (torchvision.datasets.CIFAR100, (True, False)),
                      "stl10": (torchvision.datasets.STL10, ("train+unlabeled", "test"))}[name]
    try:
        train, test = (source(root, split) for split in splits)
    except Exception as error:
        raise ValueError(f"{folder} is damaged or not whole: move it away, and it will be unpacked again") from error
    data = {"classes": train.classes}
    for split, there in (("train", train), ("test", test)):
        x = torch.from_numpy(there.data)
        data[f"{split}_x"] = x if name == "stl10" else x.permute(0, 3, 1, 2).contiguous()
        data[f"{split}_y"] = torch.as_tensor(there.labels if name == "stl10" else there.targets).long()
    return data


def load_medmnist(name, root):
    """A set of MedMNIST v2: train and test of its npz file; grey images get three equal channels. val is left unused."""
    path, data = fetch(name, root), {"classes": list(DATASETS[name]["classes"])}
    if not check_integrity(str(path), DATASETS[name]["md5"]):
        raise ValueError(f"{path} is damaged or another file (its md5 is not {DATASETS[name]['md5']}): move it away, and it will be downloaded")
    try:
        with np.load(path, allow_pickle=False) as file:
            for split in ("train", "test"):
                x, y = (torch.from_numpy(file[f"{split}_{what}"]) for what in ("images", "labels"))
                x = x.unsqueeze(1).expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
                data[f"{split}_x"], data[f"{split}_y"] = x.contiguous(), y.flatten().long()     # labels are n × 1
            return data | {"unused": {"val": len(file["val_labels"])}}
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a file of MedMNIST v2 ({' '.join(str(error).split())})") from error


def find_tiny(name, root):
    """Tiny ImageNet: train/<class>/images/…, and val/images/… whose classes stand in val_annotations.txt."""
    root = fetch(name, root)
    classes = sorted(d.name for d in (root / "train").iterdir() if d.is_dir())
    train_x, train_y = find_images(root / "train", classes)
    check_whole(name, root, train_x)
    notes, labels = root / "val" / "val_annotations.txt", {c: i for i, c in enumerate(classes)}
    try:
        rows = [line.split("\t")[:2] for line in notes.read_text().splitlines()]
        test_x, test_y = [str(root / "val" / "images" / file) for file, _ in rows], [labels[c] for _, c in rows]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{notes} is missing, damaged or of other classes than train ({type(error).__name__})") from error
    return {"classes": classes, "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": torch.tensor(test_y)}


def check_whole(name, root, train_x):
    """Unpacking that was cut off leaves fewer images."""
    wanted = DATASETS[name].get("train", len(train_x))
    if len(train_x) != wanted:
        raise ValueError(f"{root} holds {len(train_x):,} training images, not {wanted:,}: move it away, and it will be unpacked again")


# --- folders ----------------------------------------------------------------------------------------------------------

def find_classes(name, root, chosen=None):
    """Images in class folders: train/<class>/… and test/<class>/… (or val/; CINIC-10's valid/ is left unused), as paths and labels.

    A folder without classes is all right for --dataset folder: images straight in train/ (and test/, or val/) or in root;
    where none are held out for the metrics, a tenth at random is, 2,048 at most.
    chosen: the classes to use, or a file that names them.
    """
    facts, unused = DATASETS[name], {}
    if "url" in facts and not (root / "train").is_dir():
        root = fetch(name, root)
    layout = f"--dataset {name} expects train/<class>/*.png|jpg|jpeg, and the same under test/ or val/, in --data-dir"
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}: {layout}")
    train = next((root / split for split in ("train", "2021_train") if (root / split).is_dir()), root)
    held_out = next((root / split for split in ("test", "val", "2021_valid") if (root / split).is_dir()), None)
    there = sorted(d.name for d in train.iterdir() if d.is_dir() and not d.name.startswith("."))
    flat = [str(path) for path in sorted(train.iterdir()) if is_image(path.name)] if name == "folder" else []
    if flat and (train == root or not any(list_images(train / label) for label in there)):
        test = list_images(held_out) if held_out else []
        if not test:
            if len(flat) < 20:
                raise ValueError(f"{train} holds {len(flat)} images: too few, 20 or more are needed")
            mine = set(random_subset(len(flat), min(2048, max(2, len(flat) // 10)), seed=0).tolist())
            test, flat = [flat[i] for i in sorted(mine)], [path for i, path in enumerate(flat) if i not in mine]
        unlabelled = lambda paths: torch.full((len(paths),), -1)
        return {"classes": [], "train_x": flat, "train_y": unlabelled(flat), "test_x": test, "test_y": unlabelled(test)}
    if held_out is None or train == root:
        raise ValueError(f"{root} lacks {'a train' if held_out else 'a test or val'} directory: {layout}")
    classes = there if chosen is None else chosen if isinstance(chosen, list) else read_classes(chosen, there)
    if missing := sorted(set(classes) - set(there)):
        raise ValueError(f"{train} has no folder {missing[0]}, which {chosen} names")
    (train_x, train_y), (test_x, test_y) = find_images(train, classes), find_images(held_out, classes)
    for split, found in ((train, train_x), (held_out, test_x)):
        if not found:
            raise ValueError(f"{split} holds no images{' in folders of classes' if any(map(is_image, os.listdir(split))) else ''}: {layout}")
    strange = sorted(d.name for d in held_out.iterdir() if d.is_dir() and d.name[0] != "." and d.name not in classes) if chosen is None else []
    if strange:
        raise ValueError(f"{held_out / strange[0]} has no counterpart in {train}: both need the same classes")
    if len(train_y.unique()) < 2:
        raise ValueError(f"{train} has images of one class only: the probe needs two or more")
    if "classes" in facts and len(classes) != facts["classes"]:
        raise ValueError(f"{train} has {len(classes):,} classes, {name} has {facts['classes']:,}: --classes FILE picks them by name, one a line")
    if "url" in facts:
        check_whole(name, root, train_x)
        unused = {"valid": len(list_images(root / "valid"))}
    return {"classes": classes, "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y, "unused": unused}


def read_classes(path, there):
    """The class names in a file, one a line: all of it, or its first word; each once."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        lines = []
    if not lines:
        raise ValueError(f"{path} names no classes: it should hold the names of class folders, one a line")
    return list(dict.fromkeys(line if line in there else line.split()[0] for line in lines))


def find_images(folder, classes):
    """Paths and labels of the images in folder/<class>/…"""
    found = [(path, label) for label, name in enumerate(classes) for path in list_images(folder / name)]
    return [path for path, _ in found], torch.tensor([label for _, label in found], dtype=torch.long)


def is_image(name):
    return name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith(".")


def list_images(folder):
    """Paths of the images in a folder and below, links followed, sorted; none where there is no such folder."""
    def refuse(error):
        if not isinstance(error, FileNotFoundError):
            raise error
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder, followlinks=True, onerror=refuse)
                  for name in names if is_image(name))


def fit(paths):
    """The size, crop and stem that suit a folder's images.

    The size is the shortest side found, 256 pixels at most; the networks see up to 224 of them.
    """
    sizes = torch.cat([torch.tensor(s) for s in in_parallel(read_sizes, paths, "reading image sizes")])
    short, most = sizes.amin(1), DATASETS["folder"]["size"]
    smallest, largest = paths[int(short.argmin())], paths[int(short.argmax())]
    side = min(int(short.min()), most)
    if side < SMALLEST:
        raise ValueError(f"{smallest} is only {side} pixels high or wide: images need {SMALLEST} or more")
    if min(int(short.max()), most) > 4 * side:
        raise ValueError(f"image sizes differ too much, from {smallest} ({int(short.min())} pixels) to {largest} "
                         f"({int(short.max())}): leave out or enlarge the small ones, to a factor of 4 at most")
    return {"size": side, "image_size": min(side, DATASETS["folder"]["crop"]), "stem": "small" if side <= 64 else "imagenet"}


def decode_all(paths, size, crop):
    """The files as one tensor: uint8, n × 3 × crop × crop."""
    out, at = torch.empty(len(paths), 3, crop, crop, dtype=torch.uint8), 0
    for part in in_parallel(functools.partial(decode, size=size, crop=crop), paths, "decoding images"):
        out[at:at + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
        at += len(part)
    return out


def worker_count():
    """Of worker processes: one a core, shared by the training processes that torchrun started here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))), 16)


def in_parallel(function, paths, title):
    """Yields function(some of the paths), in order, computed in worker processes; shows its progress.

    A function returns a sequence, or a text that says which file is broken, which is raised as OSError.
    """
    # torch's DataLoader with a list as the dataset: collate_fn is where its workers do the work
    done = 0
    for part in torch.utils.data.DataLoader(paths, batch_size=64, num_workers=worker_count() if len(paths) > 2000 else 0, collate_fn=function):
        if isinstance(part, str):
            raise OSError(part)
        done += len(part)
        live(f"{title}: {done:,} of {len(paths):,}")
        yield part
    live("")


def stream_crops(paths, batches, seed, recipe, size, pin=False):
    """Yields, for each batch of indices into paths, both views' random crops: uint8, 2 × n × 3 × size × size.

    Worker processes decode each file once, and crop and mirror it twice, a few batches ahead; what they draw follows from the
    seed and the batch's place alone. The rest of an augmentation is augment(…, cropped=True).
    """
    work = functools.partial(crop_batch, paths=paths, scale=AUGMENTATIONS[recipe]["scale"], size=size)
    tasks = [((seed, i), batch) for i, batch in enumerate(batches)]
    for views in torch.utils.data.DataLoader(tasks, batch_size=None, num_workers=worker_count(), prefetch_factor=3, collate_fn=work, pin_memory=pin,
                                             worker_init_fn=leave_signals):
        if isinstance(views, str):
            raise OSError(views)
        yield views


def leave_signals(worker):
    """Ctrl-C reaches the workers too: it is for the main process to end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def crop_batch(task, paths, scale, size):
    """What a worker of stream_crops does for one batch."""
    seed, batch = task
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
    rand = functools.partial(torch.rand, generator=torch.Generator().manual_seed(state))
    out = np.empty((2, len(batch), size, size, 3), np.uint8)
    for i, path in enumerate(paths[j] for j in batch.tolist()):
        try:
            with Image.open(path) as image:
                stored = full = image.size
                if image.getexif().get(0x0112, 1) > 4:      # a camera held upright
                    full = full[::-1]
                boxes = [[float(v) for v in values] for values in zip(*random_boxes(2, scale, rand, shape=full[1] / full[0]))]
                # a JPEG decodes at 1/2, 1/4 or 1/8 of its size in less time: to no less than both crops need
                need = size / min(min(w * full[0], h * full[1]) for w, h, *_ in boxes)
                image.draft("RGB", tuple(max(1, round(length * need)) for length in stored))
                image = to_rgb(image)
        except Exception as error:
            return broken(path, error)
        for view, (w, h, x0, y0, flip) in enumerate(boxes):
            left, top = (1 + x0 - w) / 2 * image.width, (1 + y0 - h) / 2 * image.height
            box = (max(0, left), max(0, top), min(image.width, left + w * image.width), min(image.height, top + h * image.height))
            crop = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
            out[view, i] = crop[:, ::-1] if flip else crop
    return torch.from_numpy(out).permute(0, 1, 4, 2, 3)


def read_sizes(paths):
    """(width, height) of each file, from its header."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except Exception as error:      # PIL raises many kinds
            return broken(path, error)
    return sizes


def decode(paths, size, crop):
    """The files as one uint8 array n × crop × crop × 3: shorter side resized to `size`, then the central square."""
    out = np.empty((len(paths), crop, crop, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image.draft("RGB", (2 * size, 2 * size))        # twice what is needed: hardly to be told from all of it
                image = to_rgb(image)
        except Exception as error:
            return broken(path, error)
        ratio = size / min(image.size)
        w, h = (max(size, round(length * ratio)) for length in image.size)
        if image.size != (w, h):
            image = image.resize((w, h), Image.Resampling.BILINEAR)
        left, top = (w - crop) // 2, (h - crop) // 2
        out[i] = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return out


def to_rgb(image):
    """A PIL image the right way up, as RGB; 16-bit greys scaled, which PIL would clip, and transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def broken(path, error):
    return f"{path} is not a readable image ({' '.join(str(error).split()) or type(error).__name__}): mend or remove it"


def live(text):
    """Rewrites the terminal's last line; where stdout is not a terminal, nothing."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


# --- a first look -----------------------------------------------------------------------------------------------------

def contact_sheet(data, recipe, columns=16):
    """Random training images, and under each two views of it, as one image (uint8, 3 × h × w); small ones enlarged."""
    index = torch.randperm(len(data["train_x"]), generator=torch.Generator().manual_seed(0))[:2 * columns]
    generator, size = torch.Generator().manual_seed(0), data["image_size"]
    rows = [pixels(data, "train_x", index)]
    if isinstance(data["train_x"], list):
        crops = next(stream_crops(data["train_x"], [index], 0, recipe, size))
        rows += [augment(crops[view], recipe, view, generator, cropped=True) for view in (0, 1)]
    else:
        rows += [augment(data["train_x"][index], recipe, view, generator, size) for view in (0, 1)]
    rows = [(row * 255).round().to(torch.uint8) if row.is_floating_point() else row for row in rows]
    images, factor = torch.cat([row[part] for part in torch.arange(len(index)).split(columns) for row in rows]), max(1, 96 // size)
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return torchvision.utils.make_grid(images, nrow=min(columns, len(index)))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="data.py", description="Downloads and checks a dataset, prints its splits, and draws images with two views of each.")
    parser.error = lambda message: sys.exit(print(f"data.py: {message}", file=sys.stderr) or 2)
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="where the files are, or are downloaded to (default: %(default)s)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the class folders to use, one a line")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="vicreg", help="of the views (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the contact sheet (default: figures/NAME.png)")
    args = parser.parse_args(argv)
    out = args.out or Path("figures") / f"{args.name}.png"
    if out.suffix.lower() != ".png" or out.is_dir():
        parser.error(f"--out must be a PNG file, not {out}")
    try:
        data = load(args.name, args.data_dir, classes=args.classes)
        print(f"{args.name}: {len(data['classes'])} classes, images of {data['size']} pixels, networks see {data['image_size']}, stem {data['stem']}, "
              f"mean {' '.join(f'{v:.4f}' for v in data['mean'])}, std {' '.join(f'{v:.4f}' for v in data['std'])}")
        for split in ("train", "test"):
            y, names = data[f"{split}_y"], data["classes"]
            counts = torch.bincount(y[y >= 0], minlength=len(names))
            few, many = (int(counts.argmin()), int(counts.argmax())) if names else (0, 0)
            print(f"{split:5}  {len(y):,} images" + (f", {int((y < 0).sum()):,} of them without a label" if (y < 0).any() else "")
                  + (f"; {counts[few]:,} ({names[few]}) to {counts[many]:,} ({names[many]}) in a class" if names and counts[few] < counts[many] else
                     f"; {counts[few]:,} in each class" if names else ""))
        for split, count in data.get("unused", {}).items():
            print(f"{split:5}  {count:,} images, which are left unused")
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(data, args.augment).permute(1, 2, 0).numpy()).save(out)
        print(f"images, and two views under each: {out}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        live("")
        print(f"data.py: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
