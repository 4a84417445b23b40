"""A run's checkpoint, last.pt: written atomically, and checked before it is used.

    from plumbing.checkpoint import load_checkpoint
    saved = load_checkpoint(Path("runs/demo/last.pt"))      # a dict, see train.py's checkpoint()
"""
import contextlib
import math
import zipfile
from pathlib import Path

import torch

from plumbing.cli import BadInput, without_warnings
from plumbing.distributed import WORLD_SIZE
from plumbing.run import write_whole

CHECKPOINT_FORMAT = 6       # format 5 had other names for AdaDim's α
CHECKPOINT_TYPES = {        # see train.py's checkpoint()
    "epoch": int, "step": int, "step_logs": torch.Tensor, "seconds": float, "rows": list,
    "config": dict, "facts": dict, "learner": dict, "optimizer": dict, "scaler": dict,
}


def load_checkpoint(path):
    """A checkpoint as a dict; raises BadInput if it is damaged or of another version."""
    previous = path.with_name("previous.pt")
    way_out = "restore it, or start over with --overwrite"
    if previous.exists():
        way_out = f"{previous} is the checkpoint before it: rename it to {path.name} to continue"
    try:
        check_whole_file(path)
        with without_warnings():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        version, wrong = checkpoint.get("format", 1), None
        if version == CHECKPOINT_FORMAT:
            wrong = what_is_wrong(checkpoint)
    except FileNotFoundError as error:
        raise BadInput(f"{path} cannot be read: is {path.parent} the folder of a run of "
                       "train.py?") from error
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:      # a damaged file can raise anything
        raise BadInput(f"{path} is not a whole checkpoint of train.py ({type(error).__name__}): "
                       f"{way_out}") from error
    if version != CHECKPOINT_FORMAT:
        raise BadInput(f"{path} is of another version of this program (format {version}, here "
                       f"{CHECKPOINT_FORMAT}): use that version, or start over with --overwrite")
    if wrong:
        raise BadInput(f"{path} is not a whole checkpoint of train.py ({wrong}): {way_out}")
    return checkpoint


def what_is_wrong(checkpoint):
    """Why a checkpoint's fields cannot be those of a run, in words; None if they can."""
    for field, kind in CHECKPOINT_TYPES.items():
        if not isinstance(checkpoint.get(field), kind):
            return f"its {field!r} is not a {kind.__name__}"
    epoch, rows = checkpoint["epoch"], checkpoint["rows"]
    epochs = checkpoint["config"].get("--epochs")
    if not isinstance(epochs, int) or not 0 <= epoch <= epochs:
        return f"its epoch is {epoch}, of {epochs}"
    if checkpoint["step"] < 0 or len(checkpoint["step_logs"]) != checkpoint["step"]:
        return f"its step is {checkpoint['step']}, with {len(checkpoint['step_logs'])} losses"
    logs = checkpoint["step_logs"]
    if checkpoint["step"] and not (logs.ndim == 2 and logs.is_floating_point()):
        return "its step_logs is not a matrix"
    if [row["epoch"] for row in rows if "loss" in row] != list(range(1, epoch + 1)):
        return f"its rows are not those of epochs 1 to {epoch}"
    if not all(isinstance(value, (int, float)) and math.isfinite(value)
               for row in rows for value in row.values()):
        return "a value in its rows is not a finite number"
    return None


@contextlib.contextmanager
def restoring(path):
    """Turns errors in a block into BadInput: the checkpoint's contents do not fit."""
    try:
        with without_warnings():
            yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise BadInput(f"{path} does not hold what this run needs ({reason}): restore it, or "
                       "start over with --overwrite") from error


def load_optimizer(optimizer, saved):
    """optimizer.load_state_dict(), which would accept any settings and shapes: ValueError."""
    for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for name, value in group.items():
            if name not in ("params", "lr") and other[name] != value:
                raise ValueError(f"the optimiser's {name} is {other[name]}, not {value}")
    optimizer.load_state_dict(saved)
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape not in (p.shape, ()) or not value.isfinite().all():
                raise ValueError(f"the optimiser's {name} does not fit, or is not finite")


def check_whole_file(path):
    """Raises ValueError if a file of torch.save is damaged, which torch.load does not check.

    The file is a zip with a checksum of each tensor. Those of torch before 1.6 are not checked.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")


def save_checkpoint(path, checkpoint):
    """Writes last.pt; keeps the one before as previous.pt, if the disk has hard links."""
    checkpoint = {"format": CHECKPOINT_FORMAT, **checkpoint}
    previous = path.with_name("previous.pt")
    write_whole(path, lambda file: torch.save(checkpoint, file), keep=previous)


def facts_of(data, data_dir):
    """A checkpoint's record of the images, for evaluate.py, and of threads and processes."""
    about_images = ("classes", "size", "image_size", "stem", "mean", "std", "streamed", "min_size")
    facts = {key: data.get(key) for key in about_images}
    return facts | {"data_dir": str(Path(data_dir).absolute()), "threads": torch.get_num_threads(),
                    "processes": WORLD_SIZE}
