"""The images of each dataset: official files, which are downloaded, class folders, drawn shapes.

data.py makes tensors and batches of them.
"""
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torchvision.datasets import CIFAR10, CIFAR100, STL10
from torchvision.datasets.utils import download_and_extract_archive, download_url

from distributed import LOCAL_RANK
from run import BadInput

# --- the table ------------------------------------------------------------------------------------
# The paper's datasets [Table 16]. size: of the images, in pixels (of the shorter side, if sizes
# vary). image_size: of the networks' input, their centre, if smaller. mean, std: the customary
# values; measured if absent. classes: their names, or how many there should be. url, md5: of the
# file, as published by MedMNIST 3 or the dataset's authors.

IMAGENET = dict(size=256, image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ZENODO = "https://zenodo.org/records/10519652/files/"
ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
          "liver", "lung-left", "lung-right", "pancreas", "spleen")
BLOOD_CELLS = ("basophil", "eosinophil", "erythroblast", "immature granulocyte",
               "lymphocyte", "monocyte", "neutrophil", "platelet")

DATASETS = {
    "cifar10": dict(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "cifar100": dict(size=32, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "stl10": dict(size=96, mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713)),
    "tinyimagenet200": dict(
        size=64, mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de"),
    "cinic10": dict(
        size=32, mean=(0.4789, 0.4723, 0.4305), std=(0.2421, 0.2383, 0.2587), classes=10,
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
        md5="6ee4d0c996905fe93221de577967a372"),
    "blood": dict(size=28, classes=BLOOD_CELLS, url=ZENODO + "bloodmnist.npz?download=1",
                  md5="7053d0359d879ad8a5505303e11de1dc"),
    "organs": dict(size=28, classes=ORGANS, url=ZENODO + "organsmnist.npz?download=1",
                   md5="9ab87b696fb54e2a387ebe992d6ed5f1"),
    "organc": dict(size=28, classes=ORGANS, url=ZENODO + "organcmnist.npz?download=1",
                   md5="b9ceb9546e10131b32923c5bbeaea2b1"),
    "organa": dict(size=28, classes=ORGANS, url=ZENODO + "organamnist.npz?download=1",
                   md5="68e3f8846a6bd62f0c9bf841c0d9eacc"),
    "imagenet": dict(IMAGENET, classes=1000),
    "imagenet100": dict(IMAGENET, classes=100),
    "inat21": dict(IMAGENET, classes=10_000),
    "folder": {},
    "shapes": dict(size=32),
}
WITH_CLASS_FOLDERS = ("imagenet", "imagenet100", "inat21", "cinic10", "folder")

FEWEST = 20                 # images needed in a folder without classes
MOST_HELD_OUT = 2048        # images held out of it for the metrics
HIDDEN = (".", "@eaDir", "__MACOSX")        # the beginnings of names that systems add
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def sizes_of(name, image_size=None):
    """size, image_size and stem. Photographs are a seventh larger than the networks' input, as is
    usual; small images are not, because their subjects reach the rim."""
    if name == "folder":
        image_size = image_size or 224
        size = image_size if image_size <= 64 else round(image_size * 256 / 224)
    else:
        if image_size is not None:
            raise BadInput(f"--image-size is for --dataset folder, not for {name}")
        size = DATASETS[name]["size"]
        image_size = DATASETS[name].get("image_size", size)
    stem = "small" if image_size <= 64 else "imagenet"
    return {"size": size, "image_size": image_size, "stem": stem}


def read_dataset(name, root, chosen):
    """train_x, train_y, test_x, test_y, classes: see data.load(). chosen: its classes."""
    if name == "cinic10":
        root = fetch(name, root, unpack)
    if name in WITH_CLASS_FOLDERS:
        return find_classes(name, root, chosen)
    if chosen is not None:
        raise BadInput(f"--classes picks class folders, and {name} has none")
    if name == "shapes":
        return load_shapes()
    if name == "tinyimagenet200":
        return find_tiny(fetch(name, root, unpack))
    return fetch(name, root, load_medmnist if "url" in DATASETS[name] else load_torchvision)


# --- official files -------------------------------------------------------------------------------

def fetch(name, root, get):
    """get(name, root), first by one process of each machine: the others need not download."""
    if dist.is_initialized() and LOCAL_RANK > 0:
        dist.barrier()
    try:
        result = get(name, root)
    except Exception as error:      # torchvision raises anything from URLError to RuntimeError
        url = DATASETS[name].get("url", "its archive")
        raise BadInput(f"cannot get {name} ({error}): put {url} into {root} yourself; --dataset "
                       "shapes and folder need no download") from error
    if dist.is_initialized() and LOCAL_RANK == 0:
        dist.barrier()
    return result


def load_torchvision(name, root):
    """CIFAR-10, CIFAR-100 and STL-10; torchvision downloads them, and checks each file's md5."""
    if name == "stl10":
        train = STL10(root, "train+unlabeled", download=True)
        test = STL10(root, "test")
    else:
        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        train = source(root, train=True, download=True)
        test = source(root, train=False)
    data = {"classes": train.classes}
    for split, images in {"train": train, "test": test}.items():
        x = torch.from_numpy(images.data)
        data[f"{split}_x"] = x if name == "stl10" else x.permute(0, 3, 1, 2).contiguous()
        labels = images.labels if name == "stl10" else images.targets
        data[f"{split}_y"] = torch.as_tensor(labels).long()
    return data


def unpack(name, root):
    """The folder that comes out of a dataset's archive."""
    facts = DATASETS[name]
    folder = root / {"tinyimagenet200": "tiny-imagenet-200", "cinic10": "CINIC-10"}[name]
    if not folder.is_dir():
        part = root / f"{folder.name}.part"     # renamed when it is complete
        download_and_extract_archive(facts["url"], root, part, md5=facts["md5"])
        inner = part / folder.name              # CINIC-10's archive has no top-level folder
        os.replace(inner if inner.is_dir() else part, folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load_medmnist(name, root):
    """A dataset of MedMNIST v2, one npz file; grey images get three equal channels."""
    facts = DATASETS[name]
    path = root / f"{name}mnist.npz"
    download_url(facts["url"], root, path.name, facts["md5"])
    data = {"classes": list(facts["classes"])}
    with np.load(path) as file:
        for split in ("train", "test"):
            x = torch.from_numpy(file[f"{split}_images"])       # n × 28 × 28, or × 3
            x = x.unsqueeze(1).expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
            data[f"{split}_x"] = x.contiguous()
            data[f"{split}_y"] = torch.from_numpy(file[f"{split}_labels"]).flatten().long()
    return data


def find_tiny(root):
    """Tiny ImageNet: train/<class>/images/…, and val/images/… with their labels in a file."""
    classes = class_folders(root / "train")
    train_x, train_y = find_images(root / "train", classes)
    test_x, test_y = [], []
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        file, label = line.split("\t")[:2]      # the rest is a box
        test_x.append(str(root / "val" / "images" / file))
        test_y.append(classes.index(label))
    return {"classes": classes, "train_x": train_x, "train_y": train_y,
            "test_x": test_x, "test_y": torch.tensor(test_y)}


# --- folders of images ----------------------------------------------------------------------------

def find_classes(name, root, chosen):
    """Images in train/<class>/…, and test/<class>/… or val/<class>/…"""
    train = first_folder(root, ("train", "2021_train"))                 # 2021: iNaturalist's
    held_out = first_folder(root, ("test", "val", "2021_valid"))
    there = class_folders(train) if train else []
    if name == "folder" and not there and root.is_dir():
        return find_unlabelled(train or root, held_out)
    if not train or not held_out:
        raise BadInput(f"{root} lacks the folder train, or test: --dataset {name} is images in "
                       "train/<class>/… and test/<class>/…, or val/<class>/…, in --data-dir")

    classes = there if chosen is None else choose_classes(chosen, there, train)
    unknown = set(class_folders(held_out)).difference(there)
    if unknown and chosen is None:
        raise BadInput(f"{held_out / min(unknown)} has no counterpart in {train}")
    wanted = DATASETS[name].get("classes", len(classes))
    if len(classes) != wanted:
        raise BadInput(f"{train} has {len(classes):,} classes, {name} has {wanted:,}: --classes "
                       "FILE picks them by name, one per line")
    if len(classes) < 2:
        raise BadInput(f"{train} has one class only: the probe needs two or more")
    train_x, train_y = find_images(train, classes)
    empty = set(range(len(classes))).difference(train_y.tolist())
    if empty:
        raise BadInput(f"{train / classes[min(empty)]} holds no image")
    test_x, test_y = find_images(held_out, classes)
    return {"classes": classes, "train_x": train_x, "train_y": train_y,
            "test_x": test_x, "test_y": test_y}


def find_unlabelled(train, held_out):
    """Images anywhere in the folder train and, if there is one, in held_out."""
    test_x = list_images(held_out) if held_out else []
    train_x = sorted(set(list_images(train)).difference(test_x))
    n = len(train_x)
    if n < FEWEST:
        raise BadInput(f"{train} holds {n} images: {FEWEST} or more are needed, or class folders "
                       "train/<class>/… and test/<class>/…")
    if not test_x:
        count = min(MOST_HELD_OUT, max(2, n // 10))
        chosen = set(random_subset(n, count, seed=0).tolist())
        test_x = [path for i, path in enumerate(train_x) if i in chosen]
        train_x = [path for i, path in enumerate(train_x) if i not in chosen]
    return {"classes": [], "train_x": train_x, "train_y": torch.full((len(train_x),), -1),
            "test_x": test_x, "test_y": torch.full((len(test_x),), -1)}


def choose_classes(chosen, there, train):
    """The chosen classes: a list, or a file each of whose lines is a name or begins with one."""
    classes = chosen
    if not isinstance(chosen, list):
        lines = Path(chosen).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        classes = [name if name in there else name.split()[0] for name in names]
    missing = [name for name in classes if name not in there]
    if missing:
        raise BadInput(f"{train} has no folder {missing[0]}, which {chosen} names")
    return classes


def random_subset(n, limit, seed):
    """`limit` random indices below n, sorted; all n of them if limit ≥ n."""
    if limit >= n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:limit].sort().values


def first_folder(root, names):
    return next((root / name for name in names if (root / name).is_dir()), None)


def class_folders(folder):
    return sorted(path.name for path in folder.iterdir()
                  if path.is_dir() and not path.name.startswith(HIDDEN))


def find_images(folder, classes):
    """Paths of the images in folder/<class>/…, and their labels (int64)."""
    paths, labels = [], []
    for label, name in enumerate(classes):
        of_this_class = list_images(folder / name)
        paths += of_this_class
        labels += [label] * len(of_this_class)
    return paths, torch.tensor(labels, dtype=torch.long)


def is_image(name):
    return name.lower().endswith(SUFFIXES) and not name.startswith(HIDDEN)


def list_images(folder):
    """Paths of the images in a folder and its subfolders, sorted; none hidden."""
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        paths += [os.path.join(place, name) for name in files if is_image(name)]
    return sorted(paths)


# --- drawn shapes ---------------------------------------------------------------------------------

SHAPES = ("disc", "ring", "square", "triangle", "star",
          "cross", "bar", "crescent", "corner", "dots")


def load_shapes(n_train=10_000, n_test=2_048, seed=0):
    """A dataset without files, see read_dataset() and draw_shapes()."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = draw_shapes(n_train + n_test, generator)
    return {"classes": list(SHAPES), "train_x": images[:n_train], "train_y": labels[:n_train],
            "test_x": images[n_train:], "test_y": labels[n_train:]}


def draw_shapes(n, generator, size=32):
    """n images (n × 3 × size × size, uint8) and their labels (n, int64, indices of SHAPES).

    Place, size, rotation, colours, background and noise are random, and the shape is as often
    darker than its background as lighter: no pixel's value says much about the class.
    """
    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def uniform(low, high):
        return low + (high - low) * rand(n, 1, 1)

    def tint(strength):
        return strength * (rand(n, 3, 1, 1) - 0.5)

    labels = torch.randint(len(SHAPES), (n,), generator=generator)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1        # the pixels' centres, in −1 … 1
    pixel_y, pixel_x = torch.meshgrid(axis, axis, indexing="ij")

    # the shape's own coordinates u, v (n × size × size): moved, scaled, turned
    radius = uniform(0.4, 0.75)
    angle = uniform(0, 2 * math.pi)
    x = (pixel_x - uniform(-0.35, 0.35)) / radius
    y = (pixel_y - uniform(-0.35, 0.35)) / radius
    u = angle.cos() * x + angle.sin() * y
    v = angle.cos() * y - angle.sin() * x

    # how much of each pixel the shape covers, with one pixel of smooth edge
    outside = torch.empty(n, size, size)
    for label, name in enumerate(SHAPES):
        chosen = labels == label
        outside[chosen] = distance(name, u[chosen], v[chosen])
    cover = (0.5 - outside * radius * size / 2).clamp(0, 1)[:, None]        # n × 1 × size × size

    # the background is brighter on one side, the shape lighter or darker than it
    brightness = rand(n, 1, 1, 1)
    turn = uniform(0, 2 * math.pi)
    slope = 0.1 * (turn.cos() * pixel_x + turn.sin() * pixel_y)[:, None]
    contrast = (0.3 + 0.3 * rand(n, 1, 1, 1)) * torch.where(brightness > 0.5, -1, 1)
    background = brightness + tint(0.2) + slope
    foreground = brightness + contrast + tint(0.5)

    images = torch.lerp(background, foreground, cover)
    images = images + 0.05 * torch.randn(n, 3, size, size, generator=generator)
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images, labels


def distance(name, u, v):
    """How far the points (u, v) lie outside the named shape of radius 1; negative inside.

    Exact only near the outline, where it counts. u, v and the result: tensors of equal shape.
    Raises ValueError on a name that is not in SHAPES.
    """
    r = torch.hypot(u, v)
    if name == "disc":
        return r - 0.9
    if name == "ring":
        return (r - 0.75).abs() - 0.18
    if name == "square":
        return box(u, v, 0.75, 0.75)
    if name == "triangle":
        return torch.maximum(v, (-v + 3 ** 0.5 * u.abs()) / 2) - 0.55
    if name == "star":
        return star(u, v)
    if name == "cross":
        return torch.minimum(box(u, v, 0.95, 0.25), box(u, v, 0.25, 0.95))
    if name == "bar":
        return box(u, v, 1, 0.25)
    if name == "crescent":
        return torch.maximum(r - 0.95, 0.75 - torch.hypot(u - 0.45, v))
    if name == "corner":
        return torch.minimum(box(u + 0.55, v, 0.22, 0.8), box(u, v - 0.58, 0.77, 0.22))
    if name == "dots":
        return torch.minimum(torch.hypot(u - 0.6, v), torch.hypot(u + 0.6, v)) - 0.38
    raise ValueError(f"unknown shape {name!r}")


def box(u, v, width, height):
    """Distance from a rectangle around the origin; width and height are half its sides."""
    return torch.maximum(u.abs() - width, v.abs() - height)


def star(u, v):
    """Distance from a star of five points, each with its tip at radius 1."""
    # fold the plane onto one half of one point, whose edge is a straight line
    fifth = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(v, u), fifth) - fifth / 2
    from_tip = fifth / 2 - angle.abs()
    edge = math.atan2(0.42 * math.sin(fifth / 2), 1 - 0.42 * math.cos(fifth / 2))
    return torch.hypot(u, v) * (from_tip + edge).sin() - math.sin(edge)
