"""The datasets: a table of their properties; downloading and reading their official files.

    found = read_dataset("cifar10", Path("data"))       # downloads it if it is missing

A dataset is a dict: train_x, test_x (uint8, n × 3 × h × w, or a list of paths), train_y, test_y
(int64, −1 without a label), classes (their names) and, where they apply, unused ({name of a split
neither trained nor tested on: number of images}), left_out ({which files, and why: their number})
and held_out (whether test images were taken from the others). Reading raises BadInput, or OSError
for files that cannot be read; the message tells what to do.
"""
import contextlib
import os
import shutil

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100, STL10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from plumbing.cli import BadInput
from plumbing.folders import class_folders, find_classes, find_images
from plumbing.images import in_parallel, list_images, read_sizes
from plumbing.run import made_folder
from plumbing.shapes import load_shapes

# --- the table --------------------------------------------------------------------------------
# The paper's datasets [Table 16]. layout: how the files are arranged. size: of the images, in
# pixels (of the shorter side, if sizes vary). crop: size of the networks' input (of a folder:
# unless its images are smaller). mean, std: the
# customary values; measured if absent. url, md5: of the archive, as published by torchvision,
# MedMNIST 3 or the dataset's authors. unpacked: the folder in the archive. train, test: numbers
# of images in each class, if the dataset is also read from class folders, to detect missing ones.

IMAGENET = dict(
    layout="classes", size=256, crop=224, stem="imagenet",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)
MEDMNIST = dict(layout="medmnist", size=28, crop=28, stem="small")
TINY_LABELS = "val/val_annotations.txt"
ZENODO = "https://zenodo.org/records/10519652/files/"
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
    "liver", "lung-left", "lung-right", "pancreas", "spleen",
)
BLOOD_CELLS = (
    "basophil", "eosinophil", "erythroblast", "immature granulocyte",
    "lymphocyte", "monocyte", "neutrophil", "platelet",
)

DATASETS = {
    "cifar10": dict(
        layout="cifar", classes=10, size=32, crop=32, stem="small",
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a", unpacked="cifar-10-batches-py",
        train=5000, test=1000),
    "cifar100": dict(
        layout="cifar", classes=100, size=32, crop=32, stem="small",
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85", unpacked="cifar-100-python",
        train=500, test=100),
    "stl10": dict(
        layout="stl10", classes=10, size=96, crop=96, stem="imagenet",
        mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713),
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        md5="91f7769df0f17e558f3565bffb0c7dfb", unpacked="stl10_binary"),
    "tinyimagenet200": dict(
        layout="tiny", classes=200, size=64, crop=64, stem="small",
        mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de", unpacked="tiny-imagenet-200",
        train=500, test=50),
    "cinic10": dict(
        layout="classes", classes=10, size=32, crop=32, stem="small",
        mean=(0.4789, 0.4723, 0.4305), std=(0.2421, 0.2383, 0.2587),
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
        md5="6ee4d0c996905fe93221de577967a372", unpacked="CINIC-10",
        train=9000, test=9000),
    "blood": dict(
        MEDMNIST, classes=BLOOD_CELLS, url=ZENODO + "bloodmnist.npz?download=1",
        md5="7053d0359d879ad8a5505303e11de1dc"),
    "organs": dict(
        MEDMNIST, classes=ORGANS, url=ZENODO + "organsmnist.npz?download=1",
        md5="9ab87b696fb54e2a387ebe992d6ed5f1"),
    "organc": dict(
        MEDMNIST, classes=ORGANS, url=ZENODO + "organcmnist.npz?download=1",
        md5="b9ceb9546e10131b32923c5bbeaea2b1"),
    "organa": dict(
        MEDMNIST, classes=ORGANS, url=ZENODO + "organamnist.npz?download=1",
        md5="68e3f8846a6bd62f0c9bf841c0d9eacc"),
    "imagenet": dict(IMAGENET, classes=1000),
    "imagenet100": dict(IMAGENET, classes=100),
    "inat21": dict(IMAGENET, classes=10_000),
    "folder": dict(layout="folder", crop=224),
    "shapes": dict(layout="shapes", size=32, crop=32, stem="small"),
}


def read_dataset(name, root, chosen=None):
    """Reads a dataset, a key of DATASETS, from the folder root; returns the dict described above.

    chosen: names of class folders to use instead of all, or a file with one name per line.
    """
    facts = DATASETS[name]
    layout = facts["layout"]
    if layout == "shapes":
        return load_shapes()
    folder = unpacked_by_others(name, root) if "test" in facts else None
    if folder is not None:
        return find_all(name, folder, chosen)
    if layout in ("cifar", "stl10"):
        return load_torchvision(name, root)
    if layout == "medmnist":
        return load_medmnist(name, root)
    if layout == "tiny":
        is_unpacked = (root / TINY_LABELS).exists()
        return find_tiny(name, root if is_unpacked else fetch(name, root))
    if name == "cinic10":
        return find_all(name, fetch(name, root), chosen)
    return find_classes(name, root, facts.get("classes"), chosen)


# --- the official files -----------------------------------------------------------------------

def fetch(name, root):
    """The path of a dataset's files in root; downloads and unpacks them if they are missing.

    Both are atomic: they write under a temporary name and rename at the end, a download after
    its md5 was checked. If several processes need the files, one fetches and the others wait.
    """
    facts = DATASETS[name]
    url = facts["url"]
    file = url.rpartition("/")[2].removesuffix("?download=1")
    archive = root / file
    unpacked = root / facts.get("unpacked", file)
    try:
        with only_process_in(root):
            if unpacked.is_dir():
                return unpacked
            if not archive.exists():
                download(url, archive, facts["md5"])
            elif not check_integrity(str(archive), facts["md5"]):
                raise BadInput(f"{archive} is damaged or another file (its md5 is not "
                               f"{facts['md5']}): move it away, and it will be downloaded")
            if unpacked != archive:
                unpack(archive, unpacked)
            return unpacked
    except BadInput:
        raise
    except Exception as error:      # torchvision raises anything from URLError to RuntimeError
        folders = ""
        if "test" in facts:
            folders = f", or its images as train/<class>/… and test/<class>/… into {root / name}"
        raise BadInput(f"cannot get {name} ({error}): download {url} "
                       f"(md5 {facts['md5']}) and put {file} into {root}{folders}; "
                       "--dataset shapes and folder need no download") from error


@contextlib.contextmanager
def only_process_in(folder):
    """Creates and locks a folder: other processes wait. Removes it again if it stays empty."""
    with made_folder(folder), contextlib.ExitStack() as at_end:
        with contextlib.suppress(ImportError, OSError):     # Windows; some network disks
            import fcntl
            lock = os.open(folder, os.O_RDONLY)
            at_end.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(url, archive, md5):
    print(f"downloading {url}", flush=True)
    part = archive.with_name(f"{archive.name}.part")
    try:
        download_url(url, str(archive.parent), part.name, md5)
        os.replace(part, archive)
    finally:
        part.unlink(missing_ok=True)


def unpack(archive, folder):
    print(f"unpacking {archive}", flush=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)     # left by a process that was killed
    try:
        extract_archive(str(archive), str(part))
        content = part / folder.name
        if not content.is_dir():        # CINIC-10's archive has no top-level folder
            content = part
        os.replace(content, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load_torchvision(name, root):
    """CIFAR-10, CIFAR-100 and STL-10, read by torchvision, which checks each file's md5."""
    folder = fetch(name, root)
    try:
        if name == "stl10":
            splits = {"train": STL10(root, "train+unlabeled"), "test": STL10(root, "test")}
        else:
            source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
            splits = {"train": source(root, train=True), "test": source(root, train=False)}
    except Exception as error:
        raise BadInput(f"{folder} is damaged or incomplete: move it away, "
                       "and it will be unpacked again") from error

    found = {"classes": splits["train"].classes}
    for split, images in splits.items():
        x = torch.from_numpy(images.data)
        if name == "stl10":
            labels = images.labels
        else:
            x = x.permute(0, 3, 1, 2).contiguous()
            labels = images.targets
        found[f"{split}_x"] = x         # n × 3 × size × size
        found[f"{split}_y"] = torch.as_tensor(labels).long()
    return found


def load_medmnist(name, root):
    """A dataset of MedMNIST v2, one npz file; grey images get three equal channels."""
    path = fetch(name, root)
    found = {"classes": list(DATASETS[name]["classes"])}
    try:
        with np.load(path, allow_pickle=False) as file:
            for split in ("train", "test"):
                x = torch.from_numpy(file[f"{split}_images"])       # n × 28 × 28, or × 3
                labels = torch.from_numpy(file[f"{split}_labels"])  # n × 1
                if x.ndim == 3:
                    x = x.unsqueeze(1).expand(-1, 3, -1, -1)
                else:
                    x = x.permute(0, 3, 1, 2)
                found[f"{split}_x"] = x.contiguous()
                found[f"{split}_y"] = labels.flatten().long()
            found["unused"] = {"val": len(file["val_labels"])}
    except (KeyError, ValueError, OSError) as error:
        raise BadInput(f"{path} is not a file of MedMNIST v2 ({error})") from error
    return found


def find_tiny(name, root):
    """Tiny ImageNet: train/<class>/images/…, and val/images/… with their labels in a file."""
    classes = class_folders(root / "train")
    train_x, train_y, _ = find_images(root / "train", classes)

    notes = root / TINY_LABELS          # file, class, box; tab-separated
    labels = {label: i for i, label in enumerate(classes)}
    test_x, test_y = [], []
    try:
        for line in notes.read_text().splitlines():
            file, label = line.split("\t")[:2]
            test_x.append(str(root / "val" / "images" / file))
            test_y.append(labels[label])
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(f"{notes} is missing, damaged or of other classes than train "
                       f"({type(error).__name__})") from error
    found = {"classes": classes, "train_x": train_x, "train_y": train_y,
             "test_x": test_x, "test_y": torch.tensor(test_y)}
    check_whole(name, root, found, "move it away, and it will be unpacked again")
    return found


# --- the same images in class folders ---------------------------------------------------------

def unpacked_by_others(name, root):
    """The folder of a dataset's images in class folders, in root or root/name; None without one.

    The official files come first: a run that began with them goes on with them.
    """
    facts = DATASETS[name]
    official = root / facts["unpacked"], root / facts["url"].rpartition("/")[2]
    if any(path.exists() for path in official):
        return None
    for folder in (root / name, root):
        is_official = (folder / TINY_LABELS).exists()       # see find_tiny()
        if (folder / "train").is_dir() and not is_official:
            return folder
    return None


def find_all(name, root, chosen=None):
    """All images in train/<class>/… and test/<class>/… (for Tiny ImageNet, val/<class>/…).

    CINIC-10's valid/<class>/… is not used. Raises BadInput if images are missing, or the first
    one is of another size.
    """
    facts = DATASETS[name]
    held_out = ("val", "test") if name == "tinyimagenet200" else ("test", "val")
    found = find_classes(name, root, chosen=chosen, held_out=held_out)
    way_out = "complete it, or give another --data-dir to download the official files"
    if root.name == facts["unpacked"]:
        way_out = "move it away, and it will be unpacked again"
    if len(found["classes"]) != facts["classes"]:
        raise BadInput(f"{root} has {len(found['classes']):,} classes, and {name} has "
                       f"{facts['classes']}: {way_out}")
    check_whole(name, root, found, way_out)

    sizes, = in_parallel(read_sizes, found["train_x"][:1], "reading an image's size")
    width, height = sizes[0]
    if (width, height) != (facts["size"], facts["size"]):
        raise BadInput(f"{found['train_x'][0]} has {width} × {height} pixels, and {name} has "
                       f"{facts['size']}: use --dataset folder for images of other sizes")
    if name == "cinic10":
        found["unused"] = {"valid": len(list_images(root / "valid"))}
    return found


def check_whole(name, root, found, way_out):
    """Raises BadInput unless each class has as many images as in the official files."""
    for split in ("train", "test"):
        wanted = DATASETS[name][split]
        counts = torch.bincount(found[f"{split}_y"], minlength=len(found["classes"]))
        wrong = (counts != wanted).nonzero().flatten()
        if len(wrong):
            label = wrong[0]
            raise BadInput(f"{root} holds {counts[label]:,} {split} images of "
                           f"{found['classes'][label]}, and {name} has {wanted:,}: {way_out}")
