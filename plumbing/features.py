"""Feature files: npz with r (n × p) and optionally z, labels y, split, files and views."""
import numpy as np
import torch

from data import pick
from plumbing.cli import BadInput
from plumbing.run import write_whole


def load_features(path):
    """The arrays of an npz file as a dict: r (n × p), float32; z (n × d), y (n, int64), test
    (n, bool: the rows to test on) and views (images × views × p), each None if it is absent.

    Raises BadInput if they are not numbers, not finite in float32, or do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("r", "z", "y", "split", "views")
                      if name in file}
        if "r" not in arrays:
            raise BadInput("it lacks an array r")
        r = real_array("r", arrays["r"], "samples × features")
        z = real_array("z", arrays["z"], "samples × features") if "z" in arrays else None
        y = class_numbers(arrays["y"]) if "y" in arrays else None
        views = None
        if "views" in arrays:
            views = real_array("views", arrays["views"], "images × views × features")
        split = arrays.get("split")
        if split is not None and (split.dtype.kind != "U" or split.ndim != 1):
            raise BadInput(f"split must be a word per row, not {split.dtype} {split.shape}")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:      # a damaged file can raise anything
        reason = str(error) or type(error).__name__
        raise BadInput(f"{path} is not an npz file with an array r, and optionally z and y "
                       f"({reason})") from error

    for name, x in {"z": z, "y": y, "split": split}.items():
        if x is not None and len(x) != len(r):
            raise BadInput(f"{path}: {name} has {len(x)} rows, and r {len(r)}")
    if len(r) < 2 or (y is not None and len(r) < 10):
        raise BadInput(f"{path}: {len(r)} rows are too few: the metrics need 2, probes 10")
    test = None
    if split is not None:
        test = torch.from_numpy(split == "test")
        if test.sum() < 2 or (~test).sum() < 2:
            raise BadInput(f"{path}: split must say 'test' for two or more rows, and something "
                           "else for two or more")
    if views is not None and min(views.shape[:2]) < 2:
        raise BadInput(f"{path}: views must have two or more images and views, not "
                       f"{tuple(views.shape)}")
    return {"r": r, "z": z, "y": y, "test": test, "views": views}


def real_array(name, x, axes):
    """x as a float32 tensor; BadInput unless it has these axes, and its values are finite."""
    if x.dtype.kind not in "fiu" or x.ndim != axes.count("×") + 1 or x.size == 0:
        raise BadInput(f"{name} must hold numbers, {axes}, not {x.dtype} {x.shape}")
    with np.errstate(over="ignore"):
        values = torch.from_numpy(x.astype(np.float32))
    if not values.isfinite().all():
        raise BadInput(f"{name} has values that are not finite, or too large for float32")
    return values


def class_numbers(labels):
    """Labels, whole numbers or words, as class numbers from 0; −1 (unlabelled) stays −1."""
    labels = labels.reshape(len(labels), -1)
    if labels.dtype.kind not in "iuU" or labels.shape[1] != 1:
        raise BadInput(f"y must be a whole number or a word per row, not {labels.dtype} "
                       f"{labels.shape}")
    names, numbers = np.unique(labels[:, 0], return_inverse=True)
    smallest = names[0] if labels.dtype.kind == "i" else 0
    if smallest < -1:
        raise BadInput("y has negative labels other than −1, which stands for none")
    if smallest == -1:
        numbers = numbers - 1
    return torch.from_numpy(numbers.reshape(-1).astype(np.int64))


def save_features(path, data, features):
    """Writes r, z (if there is one), y, split and, if each is a file, the images' paths to an npz.

    features: {split: {"index": of the images, "outputs": [r] or [r, z]}}.
    """
    arrays = {"y": [], "split": [], "files": []}
    for split, found in features.items():
        for name, x in zip("rz", found["outputs"]):
            arrays.setdefault(name, []).append(x.cpu().numpy())
        arrays["y"].append(data[f"{split}_y"].cpu().numpy()[found["index"].numpy()])
        arrays["split"].append(np.full(len(found["index"]), split))
        if f"{split}_files" in data:
            files = pick(data[f"{split}_files"], found["index"])
            arrays["files"].append(np.array([str(file) for file in files]))
    arrays = {name: np.concatenate(parts) for name, parts in arrays.items() if parts}
    write_whole(path, lambda file: np.savez(file, **arrays))
