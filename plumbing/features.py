"""Feature files: npz with r (n × p) and optionally z, labels y, split, files and views."""
import numpy as np
import torch

from data import pick
from plumbing.cli import BadInput
from plumbing.run import write_whole


def load_features(path):
    """The arrays of an npz file as a dict: r (n × p), float32; z (n × d), y (n, int64), test
    (n, bool: the rows to test on) and views (images × views × p), each None if it is absent.

    Raises BadInput if they are not numbers, not finite or do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("r", "z", "y", "split", "views")
                      if name in file}
        r = real_matrix(arrays, "r")
        z = real_matrix(arrays, "z") if "z" in arrays else None
        y = class_numbers(arrays["y"]) if "y" in arrays else None
        views = arrays.get("views")
        if views is not None:
            rows = real_matrix({"views": views.reshape(-1, views.shape[-1])}, "views")
            views = rows.view(views.shape)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:      # a damaged file can raise anything
        reason = str(error) or type(error).__name__
        raise BadInput(f"{path} is not an npz file with an array r, and optionally z and y "
                       f"({reason})") from error

    for name, x in {"z": z, "y": y, "split": arrays.get("split")}.items():
        if x is not None and len(x) != len(r):
            raise BadInput(f"{path}: {name} has {len(x)} rows, and r {len(r)}")
    if len(r) < 2 or (y is not None and len(r) < 10):
        raise BadInput(f"{path}: {len(r)} rows are too few: the metrics need 2, probes 10")
    test = None
    if "split" in arrays:
        test = torch.from_numpy(arrays["split"] == "test")
        if test.sum() < 2 or (~test).sum() < 2:
            raise BadInput(f"{path}: split must say 'test' for two or more rows, and something "
                           "else for two or more")
    if views is not None and (views.ndim != 3 or min(views.shape[:2]) < 2):
        raise BadInput(f"{path}: views must be images × views × features, with two or more images "
                       f"and views, not {tuple(views.shape)}")
    return {"r": r, "z": z, "y": y, "test": test, "views": views}


def real_matrix(arrays, name):
    """One of the arrays as a float32 tensor, n × d; BadInput unless it is finite and real."""
    if name not in arrays:
        raise BadInput(f"it lacks an array {name}")
    x = arrays[name]
    if x.dtype.kind not in "fiu" or x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise BadInput(f"{name} must be a finite matrix, not {x.dtype} {x.shape}")
    return torch.from_numpy(x.astype(np.float32))


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
    """Writes r, z (if there is one), y, split and, if streamed, the images' file names to an npz.

    features: {split: {"index": of the images, "outputs": [r] or [r, z]}}.
    """
    arrays = {"y": [], "split": [], "files": []}
    for split, found in features.items():
        for name, x in zip("rz", found["outputs"]):
            arrays.setdefault(name, []).append(x.cpu().numpy())
        arrays["y"].append(data[f"{split}_y"].cpu().numpy()[found["index"].numpy()])
        arrays["split"].append(np.full(len(found["index"]), split))
        if data["streamed"]:
            files = pick(data[f"{split}_x"], found["index"])
            arrays["files"].append(np.array([str(file) for file in files]))
    arrays = {name: np.concatenate(parts) for name, parts in arrays.items() if parts}
    write_whole(path, lambda file: np.savez(file, **arrays))
