"""Datasets in folders, with or without class folders, and a size that suits their images."""
import itertools
import math
from collections import Counter
from pathlib import Path

import torch

from plumbing.cli import BadInput
from plumbing.images import (FEW_NAMED, find_unreadable, in_parallel, is_image, list_files,
                             list_images, random_subset, read_sizes)

SMALLEST = 8            # pixels: lower bound of the default for min_size
SMALL = 64              # pixels: up to this size the networks have their stem for small images
MARGIN = 256 / 224      # of a photograph around the networks' input
FEWEST = 20             # images needed in a folder without classes, to hold out a tenth
MOST_HELD_OUT = 2048    # images held out for the metrics, at most
MOST_KINDS = 5          # of files left out that are named
HELD_OUT = ("test", "val", "2021_valid")    # folders for the metrics; 2021: iNaturalist's


def find_classes(name, root, n_classes=None, chosen=None, held_out=HELD_OUT):
    """Finds images in class folders: train/<class>/…, and test/<class>/… or val/<class>/….

    name: of the dataset; "folder" may lack classes, see find_unlabelled(). n_classes: how many
    it should have; None: two or more. chosen: the classes to use, or a file that lists them.
    held_out: names of the folder for the metrics, the first that exists. Returns a dict, see
    datasets.py.
    """
    expected = (f"--dataset {name} expects images in train/<class>/…, "
                "and the same under test/ or val/, in --data-dir")
    if not root.is_dir():
        raise BadInput(f"there is no directory {root}: {expected}")
    train = first_folder(root, ("train", "2021_train"))
    held_out = first_folder(root, held_out)
    if name == "folder" and not has_classes(root, train):
        return find_unlabelled(train or root, held_out)
    if held_out is None:
        raise BadInput(f"{root} lacks a test or val directory: {expected}")
    if train is None:
        raise BadInput(f"{root} lacks a train directory: {expected}")

    classes = choose_classes(train, chosen)
    train_x, train_y, train_others = find_images(train, classes)
    test_x, test_y, test_others = find_images(held_out, classes)
    check_some(train, train_x, expected)
    check_some(held_out, test_x, expected)
    others = set(class_folders(held_out)).difference(classes)
    if chosen is None and others:
        raise BadInput(f"{held_out / min(others)} has no counterpart in {train}: "
                       "both need the same classes")
    if len(train_y.unique()) < 2:
        raise BadInput(f"{train} has images of one class only: the probe needs two or more")
    if n_classes is not None and len(classes) != n_classes:
        raise BadInput(f"{train} has {len(classes):,} classes, {name} has {n_classes:,}: "
                       "--classes FILE picks them by name, one per line")
    left_out = no_images(train_others + test_others)
    left_out["beside the class folders"] = len(loose_images(train) + loose_images(held_out))
    return {"classes": classes, "train_x": train_x, "train_y": train_y,
            "test_x": test_x, "test_y": test_y, "left_out": left_out}


def first_folder(root, names):
    for name in names:
        if (root / name).is_dir():
            return root / name
    return None


def class_folders(folder):
    folders = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(path.name for path in folders if not path.name.startswith("."))


def loose_files(folder):
    """Paths of the files directly in a folder, none hidden, as a set."""
    return {str(path) for path in folder.iterdir()
            if path.is_file() and not path.name.startswith(".")}


def loose_images(folder):
    """Paths of the images directly in a folder, sorted."""
    return sorted(path for path in loose_files(folder) if is_image(Path(path).name))


def no_images(paths):
    """{reason: count} of files that are left out: no images, or of a kind that is not read."""
    suffixes = [Path(path).suffix.lower() or "without suffix" for path in paths]
    kinds = Counter(sorted(suffixes))
    words = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(MOST_KINDS))
    more = " …" if len(kinds) > MOST_KINDS else ""
    return {f"not read by Pillow as images ({words}{more})": len(paths)}


# --- images without classes

def has_classes(root, train):
    """Whether the training images are in class folders, not directly in train/ or root.

    Stray images beside the class folders in train/ are ignored.
    """
    if not loose_images(train or root):
        return True
    return train is not None and any(list_images(train / name) for name in class_folders(train))


def find_unlabelled(train, held_out):
    """Finds images directly in the folder train and, if there is one, in held_out.

    Without test images, a random tenth, at most 2,048, is held out for the metrics.
    """
    train_x = loose_images(train)
    test_x = list_images(held_out) if held_out else []
    inside = train == getattr(held_out, "parent", None)
    deeper = len(list_images(train)) - len(train_x) - len(test_x if inside else [])
    left_out = no_images(loose_files(train) - set(train_x)) | {"in subfolders": deeper}
    is_held_out = not test_x
    if is_held_out:
        n = len(train_x)
        if n < FEWEST:
            raise BadInput(f"{train} holds {n} images: too few, {FEWEST} or more are needed")
        count = min(MOST_HELD_OUT, max(2, n // 10))
        chosen = set(random_subset(n, count, seed=0).tolist())
        test_x = [path for i, path in enumerate(train_x) if i in chosen]
        train_x = [path for i, path in enumerate(train_x) if i not in chosen]
    return {"classes": [], "train_x": train_x, "train_y": torch.full((len(train_x),), -1),
            "test_x": test_x, "test_y": torch.full((len(test_x),), -1),
            "left_out": left_out, "held_out": is_held_out}


# --- class folders

def choose_classes(train, chosen):
    """The classes to use: all class folders in train, or the chosen ones."""
    there = class_folders(train)
    if chosen is None:
        return there
    classes = chosen if isinstance(chosen, list) else read_classes(chosen, there)
    missing = sorted(set(classes) - set(there))
    if missing:
        raise BadInput(f"{train} has no folder {missing[0]}, which {chosen} names")
    return classes


def read_classes(path, there):
    """Class names from a file: each line is a name, or begins with one. Drops duplicates."""
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
    """Paths and labels (int64) of the images in folder/<class>/…, and paths of other files."""
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        files = list_files(folder / name)
        of_this_class = [path for path in files if is_image(Path(path).name)]
        paths += of_this_class
        labels += [label] * len(of_this_class)
        others += set(files).difference(of_this_class)
    return paths, torch.tensor(labels, dtype=torch.long), others


def check_some(folder, paths, expected):
    """Raises BadInput if there are no images; tells if some lie beside the class folders."""
    if paths:
        return
    where = " in folders of classes" if loose_images(folder) else ""
    raise BadInput(f"{folder} holds no images{where}: {expected}")


# --- files that are left out

def kept(data, in_train, in_test):
    """The images of a dataset for which two boolean tensors are true, with their labels."""
    return {
        "train_x": list(itertools.compress(data["train_x"], in_train)),
        "train_y": data["train_y"][in_train],
        "test_x": list(itertools.compress(data["test_x"], in_test)),
        "test_y": data["test_y"][in_test],
    }


def without_unreadable(data):
    """Leaves out the files that cannot be decoded, which decodes all of them once.

    data: train_x and test_x, lists of files, with train_y, test_y and perhaps left_out. Returns a
    dict: these five. Raises BadInput if there is nothing left to train on.
    """
    unreadable = find_unreadable(data["train_x"] + data["test_x"])
    in_train = torch.tensor([path not in unreadable for path in data["train_x"]])
    in_test = torch.tensor([path not in unreadable for path in data["test_x"]])
    if not in_train.any():
        raise BadInput(f"none of the {len(in_train):,} training images can be read")
    named = ", ".join(list(unreadable)[:FEW_NAMED]) + " …" * (len(unreadable) > FEW_NAMED)
    left_out = data.get("left_out", {}) | {f"unreadable ({named})": len(unreadable)}
    return kept(data, in_train, in_test) | {"left_out": left_out}


# --- sizes

def choose_sizes(shorter, usual, image_size=None, like=None):
    """The size of a folder's images, in pixels, with its reason.

    shorter: the training images' shorter sides, n. usual: of photographs for the networks.
    image_size: the size that the user wants, or None. like: of a run, see data.load(), or None.
    Returns a dict: size, of an image's shorter side; image_size, of the networks' input, its
    centre; stem; size_note, a sentence. Photographs are a seventh larger than the input, as is
    usual; small images are not, because their subjects reach the rim.
    """
    low, median, high = int(shorter.min()), int(shorter.median()), int(shorter.max())
    sides = f"shorter sides {low:,}"
    if low < high:
        sides += f" to {high:,}, median {median:,}"
    if like is not None:
        chosen = {key: like[key] for key in ("size", "image_size", "stem")}
        note = f"images of {like['image_size']} pixels, as in the run ({sides})"
        return chosen | {"size_note": note}
    if image_size is not None:
        reason = "as --image-size says"
    elif median < usual:
        reason = "the median of their shorter sides; --image-size N changes it"
    else:
        reason = "usual for photographs; --image-size N changes it"
    image_size = image_size or min(usual, median)
    margin = MARGIN if image_size > SMALL else 1
    return {
        "size": max(image_size, min(median, round(margin * image_size))),
        "image_size": image_size,
        "stem": "small" if image_size <= SMALL else "imagenet",
        "size_note": f"images of {image_size} pixels, {reason} ({sides})",
    }


def fit(data, usual, image_size=None, min_size=None, like=None):
    """Chooses a size for a folder's images, and leaves out those that are too small for it.

    data: train_x and test_x, lists of files, with train_y, test_y and left_out. usual,
    image_size, like: see choose_sizes(). min_size: images with a shorter side of fewer pixels are
    left out; None: a quarter of image_size, or of the median if that is less.
    Returns a dict: these five, what choose_sizes() returns, and min_size.
    Raises BadInput if too few images are left.
    """
    paths = data["train_x"] + data["test_x"]
    parts = in_parallel(read_sizes, paths, "reading image sizes")
    shorter = torch.cat([torch.tensor(part) for part in parts]).amin(1)      # n
    to_train_on = shorter[:len(data["train_x"])]
    chosen = choose_sizes(to_train_on, usual, image_size, like)
    if min_size is None and like is not None:
        min_size = like.get("min_size")
    if min_size is None:
        quarter = math.ceil(min(chosen["image_size"], int(to_train_on.median())) / 4)
        min_size = max(SMALLEST, quarter)
    large_enough = shorter >= min_size
    in_train, in_test = large_enough.split([len(data["train_x"]), len(data["test_x"])])
    if not in_train.any() or in_test.sum() < 2:
        raise BadInput(f"too few images have {min_size} pixels in height and width (--min-size): "
                       f"{int(in_train.sum())} to train on, {int(in_test.sum())} to test; "
                       f"the smallest is {paths[int(shorter.argmin())]}")
    n_train, n_test = int((~in_train).sum()), int((~in_test).sum())
    too_small = (f"of less than {min_size} pixels (--min-size; {n_train:,} to train on, "
                 f"{n_test:,} to test)")
    left_out = data["left_out"] | {too_small: n_train + n_test}
    return (kept(data, in_train, in_test) | chosen
            | {"min_size": min_size, "left_out": left_out})
