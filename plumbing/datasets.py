"""The datasets: a table of their properties; downloading and reading their official files.

    found = read_dataset("cifar10", Path("data"))       # downloads it if it is missing

A dataset is a dict: train_x, test_x (uint8, n × 3 × h × w, or a list of paths), train_y, test_y
(int64, −1 without a label), classes (their names) and, if some images serve neither training
nor testing, unused ({name of the split: number of images}). Reading raises BadInput, or OSError
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
from plumbing.images import list_images
from plumbing.run import made_folder
from plumbing.shapes import load_shapes

# --- the table --------------------------------------------------------------------------------
# The paper's datasets [Table 16]. layout: how the files are arranged. size: of the images, in
# pixels (of the shorter side, if sizes vary). crop: size of the networks' input. mean, std: the
# customary values; measured if absent. url, md5: of the archive, as published by torchvision,
# MedMNIST 3 or the dataset's authors. unpacked: the folder in the archive. train: number of
# training images, to detect an incomplete unpacking.

IMAGENET = dict(
    layout="classes", size=256, crop=224, stem="imagenet",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)
MEDMNIST = dict(layout="medmnist", size=28, crop=28, stem="small")
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
        md5="c58f30108f718f92721af3b95e74349a", unpacked="cifar-10-batches-py"),
    "cifar100": dict(
        layout="cifar", classes=100, size=32, crop=32, stem="small",
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85", unpacked="cifar-100-python"),
    "stl10": dict(
        layout="stl10", classes=10, size=96, crop=96, stem="imagenet",
        mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713),
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        md5="91f7769df0f17e558f3565bffb0c7dfb", unpacked="stl10_binary"),
    "tinyimagenet200": dict(
        layout="tiny", classes=200, size=64, crop=64, stem="small",
        mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de", unpacked="tiny-imagenet-200", train=100_000),
    "cinic10": dict(
        layout="classes", classes=10, size=32, crop=32, stem="small",
        mean=(0.4789, 0.4723, 0.4305), std=(0.2421, 0.2383, 0.2587),
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
        md5="6ee4d0c996905fe93221de577967a372", unpacked="CINIC-10", train=90_000),
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
    "folder": dict(layout="folder", size=256, crop=224),        # upper limits, see fit()
    "shapes": dict(layout="shapes", size=32, crop=32, stem="small"),
}


def read_dataset(name, root, chosen=None):
    """Reads a dataset, a key of DATASETS, from the folder root; returns the dict described above.

    chosen: names of class folders to use instead of all, or a file with one name per line.
    """
    layout = DATASETS[name]["layout"]
    if layout == "shapes":
        return load_shapes()
    if layout in ("cifar", "stl10"):
        return load_torchvision(name, root)
    if layout == "medmnist":
        return load_medmnist(name, root)
    if layout == "tiny":
        return find_tiny(name, root)
    if name == "cinic10":
        return find_cinic(name, root, chosen)
    return find_classes(name, root, DATASETS[name].get("classes"), chosen)


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
        raise BadInput(f"cannot get {name} ({error}): download {url} "
                       f"(md5 {facts['md5']}) and put {file} into {root}; "
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
    root = fetch(name, root)
    classes = class_folders(root / "train")
    train_x, train_y = find_images(root / "train", classes)
    check_whole(name, root, train_x)

    notes = root / "val" / "val_annotations.txt"        # file, class, box; tab-separated
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
    return {"classes": classes, "train_x": train_x, "train_y": train_y,
            "test_x": test_x, "test_y": torch.tensor(test_y)}


def find_cinic(name, root, chosen=None):
    """CINIC-10: train/<class>/…, test/<class>/… and valid/<class>/…, which is unused."""
    if not (root / "train").is_dir():
        root = fetch(name, root)
    found = find_classes(name, root, DATASETS[name]["classes"], chosen)
    check_whole(name, root, found["train_x"])
    return found | {"unused": {"valid": len(list_images(root / "valid"))}}


def check_whole(name, root, train_x):
    """Raises BadInput if training images are missing: unpacking was interrupted."""
    wanted = DATASETS[name]["train"]
    if len(train_x) != wanted:
        raise BadInput(f"{root} holds {len(train_x):,} training images, not {wanted:,}: "
                       "move it away, and it will be unpacked again")
