"""The datasets: a table of facts, the official files and where they come from, folders of images.

    found = read_dataset("cifar10", Path("data"))       # downloads it, unless it is there

What is found is a dict: train_x, test_x (uint8, n × 3 × h × w, or a list of paths), train_y,
test_y (int64, −1 without a label), classes (their names), and, where a dataset has images that
are neither trained nor tested on, unused ({name of the split: how many}).
Raises BadInput, or OSError for files that cannot be read, with what is wrong and what to do.
"""
import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100, STL10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from plumbing.cli import BadInput
from plumbing.images import in_parallel, is_image, list_images, random_subset, read_sizes
from plumbing.shapes import load_shapes

# --- the table --------------------------------------------------------------------------------
# The paper's datasets [Table 16]. layout: how the files lie. size: of the images, in pixels (of
# the shorter side, where they differ). crop: of what networks see. mean, std: the customary
# ones; where there are none, they are measured. url, md5: of the archive, as torchvision,
# MedMNIST 3 and the datasets' own pages give them. unpacked: the folder that is in it.
# train: how many training images show that unpacking was not cut off.

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
    "folder": dict(layout="folder", size=256, crop=224),        # at most; see fit()
    "shapes": dict(layout="shapes", size=32, crop=32, stem="small"),
}
SMALLEST = 8            # pixels: smaller images are left out
FEWEST = 20             # images that a folder without classes must hold
MOST_HELD_OUT = 2048    # … of which a tenth, but no more than so many, is for the metrics


def read_dataset(name, root, chosen=None):
    """What is found of a key of DATASETS in the folder root, as the module's docstring says.

    chosen: names of class folders to use in place of all, or a file of them, one per line.
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
    return find_classes(name, root, chosen)


# --- the official files -----------------------------------------------------------------------

def fetch(name, root):
    """The path of a dataset's files in root, downloaded and unpacked unless they are there.

    They are there whole, or not at all: a download goes to a name of its own, and takes its
    place when its md5 is right; so does what is unpacked from it. Of several processes that
    want the same, one fetches and the others wait.
    """
    facts = DATASETS[name]
    url = facts["url"]
    file = url.rpartition("/")[2].removesuffix("?download=1")
    archive = root / file
    unpacked = root / facts.get("unpacked", file)
    if unpacked.is_dir():
        return unpacked

    try:
        with only_process_in(root):
            if unpacked.is_dir():       # by the process that was waited for
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
        raise BadInput(f"cannot get {name} ({in_one_line(error)}): download {url} "
                       f"(md5 {facts['md5']}) and put {file} into {root}; "
                       "--dataset shapes and folder need no download") from error


@contextlib.contextmanager
def only_process_in(folder):
    """Makes a folder and keeps other processes waiting; removes it again if it stays empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ImportError, OSError):     # Windows; some network disks
            import fcntl
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


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
    shutil.rmtree(part, ignore_errors=True)     # of a process that was killed
    try:
        extract_archive(str(archive), str(part))
        content = part / folder.name
        if not content.is_dir():        # CINIC-10's archive has no folder of its own
            content = part
        os.replace(content, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def in_one_line(error):
    return " ".join(str(error).split())


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
        raise BadInput(f"{folder} is damaged or not whole: move it away, "
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
    """A set of MedMNIST v2, an npz file; grey images get three equal channels. val is unused."""
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
        raise BadInput(f"{path} is not a file of MedMNIST v2 ({in_one_line(error)})") from error
    return found


def find_tiny(name, root):
    """Tiny ImageNet: train/<class>/images/…, and val/images/…, labelled in a file beside it."""
    root = fetch(name, root)
    classes = class_folders(root / "train")
    train_x, train_y = find_images(root / "train", classes)
    check_whole(name, root, train_x)

    notes = root / "val" / "val_annotations.txt"        # file, class, and a box, tab-separated
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


def check_whole(name, root, train_x):
    """Unpacking that was cut off leaves fewer images."""
    wanted = DATASETS[name]["train"]
    if len(train_x) != wanted:
        raise BadInput(f"{root} holds {len(train_x):,} training images, not {wanted:,}: "
                       "move it away, and it will be unpacked again")


# --- folders ----------------------------------------------------------------------------------

class Splits(NamedTuple):
    """Where the images of a dataset lie."""
    root: Path
    train: Path             # root itself, where it holds no folder of that name
    held_out: Path | None   # for the metrics


def find_classes(name, root, chosen=None):
    """Images in class folders: train/<class>/… and test/<class>/…, or val/.

    A folder without classes is all right for --dataset folder, see find_unlabelled().
    chosen: the classes to use, or a file that names them.
    """
    facts = DATASETS[name]
    if "url" in facts and not (root / "train").is_dir():
        root = fetch(name, root)
    expected = (f"--dataset {name} expects train/<class>/*.png|jpg|jpeg, "
                "and the same under test/ or val/, in --data-dir")
    splits = find_splits(root, expected)
    if name == "folder" and not has_classes(splits):
        return find_unlabelled(splits)
    if splits.held_out is None:
        raise BadInput(f"{root} lacks a test or val directory: {expected}")
    if splits.train == root:
        raise BadInput(f"{root} lacks a train directory: {expected}")

    classes = choose_classes(splits.train, chosen)
    train_x, train_y = find_images(splits.train, classes)
    test_x, test_y = find_images(splits.held_out, classes)
    check_some(splits.train, train_x, expected)
    check_some(splits.held_out, test_x, expected)
    if chosen is None:
        check_no_others(splits, classes)
    check_class_count(name, splits.train, train_y, classes)
    found = {"classes": classes, "train_x": train_x, "train_y": train_y,
             "test_x": test_x, "test_y": test_y, "unused": {}}
    if "url" in facts:      # CINIC-10
        check_whole(name, root, train_x)
        found["unused"]["valid"] = len(list_images(root / "valid"))
    return found


def find_splits(root, expected):
    if not root.is_dir():
        raise BadInput(f"there is no directory {root}: {expected}")
    train = first_folder(root, ("train", "2021_train"))     # 2021: iNaturalist's
    held_out = first_folder(root, ("test", "val", "2021_valid"))
    return Splits(root, train or root, held_out)


def first_folder(root, names):
    """The first of these folders that there is, or None."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    return None


def class_folders(folder):
    folders = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(path.name for path in folders if not path.name.startswith("."))


def loose_images(folder):
    """Paths of the images straight in a folder."""
    return [str(path) for path in sorted(folder.iterdir()) if is_image(path.name)]


# --- one's own images without classes

def has_classes(splits):
    """Whether the training images are in class folders, rather than straight in train/ or root.

    Stray images beside class folders don't count.
    """
    if not loose_images(splits.train):
        return True
    if splits.train == splits.root:
        return False
    return any(list_images(splits.train / label) for label in class_folders(splits.train))


def find_unlabelled(splits):
    """Images straight in train/ (and test/, or val/) or in root.

    Where none are held out for the metrics, a tenth at random is, 2,048 at most.
    """
    train_x = loose_images(splits.train)
    test_x = list_images(splits.held_out) if splits.held_out else []
    if not test_x:
        n = len(train_x)
        if n < FEWEST:
            raise BadInput(f"{splits.train} holds {n} images: "
                           f"too few, {FEWEST} or more are needed")
        count = min(MOST_HELD_OUT, max(2, n // 10))
        held_out = set(random_subset(n, count, seed=0).tolist())
        test_x = [path for i, path in enumerate(train_x) if i in held_out]
        train_x = [path for i, path in enumerate(train_x) if i not in held_out]
    return {"classes": [], "train_x": train_x, "train_y": torch.full((len(train_x),), -1),
            "test_x": test_x, "test_y": torch.full((len(test_x),), -1)}


# --- class folders

def choose_classes(train, chosen):
    """The classes to use: those of the folder train, or the chosen ones of them."""
    there = class_folders(train)
    if chosen is None:
        return there
    classes = chosen if isinstance(chosen, list) else read_classes(chosen, there)
    missing = sorted(set(classes) - set(there))
    if missing:
        raise BadInput(f"{train} has no folder {missing[0]}, which {chosen} names")
    return classes


def read_classes(path, there):
    """The class names in a file, one per line: all of it, or its first word; each once."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""
    names = []
    for line in map(str.strip, text.splitlines()):
        if line:
            names.append(line if line in there else line.split()[0])
    if not names:
        raise BadInput(f"{path} names no classes: it should hold the names of class folders, "
                       "one per line")
    return list(dict.fromkeys(names))


def find_images(folder, classes):
    """Paths and labels (int64) of the images in folder/<class>/…"""
    paths, labels = [], []
    for label, name in enumerate(classes):
        of_this_class = list_images(folder / name)
        paths += of_this_class
        labels += [label] * len(of_this_class)
    return paths, torch.tensor(labels, dtype=torch.long)


def check_some(folder, paths, expected):
    """There are images; if not, says whether they lie beside the class folders."""
    if paths:
        return
    where = " in folders of classes" if any(map(is_image, os.listdir(folder))) else ""
    raise BadInput(f"{folder} holds no images{where}: {expected}")


def check_no_others(splits, classes):
    """Every class that is tested on is trained on."""
    for name in class_folders(splits.held_out):
        if name not in classes:
            raise BadInput(f"{splits.held_out / name} has no counterpart in {splits.train}: "
                           "both need the same classes")


def check_class_count(name, train, labels, classes):
    """As many classes as the probe needs, and as the dataset has."""
    if len(labels.unique()) < 2:
        raise BadInput(f"{train} has images of one class only: the probe needs two or more")
    wanted = DATASETS[name].get("classes", len(classes))
    if len(classes) != wanted:
        raise BadInput(f"{train} has {len(classes):,} classes, {name} has {wanted:,}: "
                       "--classes FILE picks them by name, one per line")


# --- sizes

def fit(data, largest_size, largest_crop, min_size=None):
    """Leaves out a folder's small images, and finds what suits the others.

    data: train_x and test_x, lists of files, with train_y and test_y. min_size: the shortest side
    that an image must have, in pixels; None: a quarter of their median, which is what is usual
    for such a folder. The size that all are brought to is the shortest side then left,
    largest_size at most; the networks see up to largest_crop of them.
    Returns a dict: the same four, size, image_size, stem, min_size and left_out, how many images.
    Raises BadInput where too few are left.
    """
    paths = data["train_x"] + data["test_x"]
    parts = in_parallel(read_sizes, paths, "reading image sizes")
    shorter = torch.cat([torch.tensor(part) for part in parts]).amin(1)      # n
    shorter = shorter.clamp_max(largest_size)
    if min_size is None:
        min_size = max(SMALLEST, math.ceil(int(shorter.median()) / 4))
    large_enough = shorter >= min_size
    in_train, in_test = large_enough.split([len(data["train_x"]), len(data["test_x"])])
    if not in_train.any() or in_test.sum() < 2:
        raise BadInput(f"too few images have {min_size} pixels in height and width (--min-size): "
                       f"{int(in_train.sum())} to train on, {int(in_test.sum())} to test; "
                       f"the smallest is {paths[int(shorter.argmin())]}")
    size = int(shorter[large_enough].min())
    kept = {}
    for split, chosen in (("train", in_train), ("test", in_test)):
        files = data[f"{split}_x"]
        kept[f"{split}_x"] = [files[i] for i in chosen.nonzero().flatten()]
        kept[f"{split}_y"] = data[f"{split}_y"][chosen]
    return kept | {
        "size": size,
        "image_size": min(size, largest_crop),
        "stem": "small" if size <= 64 else "imagenet",
        "min_size": min_size,
        "left_out": int((~large_enough).sum()),
    }
