"""data.py --resize: copies a folder of images at a smaller size, for faster decoding."""
import argparse
import contextlib
import functools
import itertools
import os
import shutil
from pathlib import Path

from PIL import Image

from plumbing.cli import BadInput, make_output_folder, whole_number
from plumbing.datasets import DATASETS
from plumbing.images import (all_broken, in_parallel, list_images, reason_of, to_rgb,
                             with_shorter_side)


def check_resize(parser, name, folder, classes, pixels, out):
    """--resize's two values as a number and a path; calls parser.error() if they are wrong."""
    try:
        size = whole_number(1)(pixels)
    except argparse.ArgumentTypeError as error:
        parser.error(f"--resize: PIXELS {error}")
    if DATASETS[name]["layout"] not in ("classes", "folder"):
        parser.error(f"--resize copies image files, and {name} has none")
    if classes:
        parser.error("--resize copies all images: leave out --classes")
    if not out or is_inside(out, folder) or is_inside(folder, out):
        parser.error(f"--resize: {out!r} must be a folder outside of {folder}, the one to copy")
    return size, Path(out)


def is_inside(path, folder):
    """Whether a path is the folder, or below it, once links are resolved."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.join(path, "").startswith(os.path.join(folder, ""))


def resize(folder, out, size, skip_unreadable=False):
    """Copies the folder's images to `out`, their shorter sides reduced to `size` pixels.

    Images that are no larger are copied unchanged. Larger ones become upright RGB: JPEGs, of
    quality 95, stay JPEGs, and all others become PNGs. Existing copies are kept, so an interrupted
    call can be continued; a file in `out` records the size, and another size is refused.
    Raises OSError for unreadable files, unless they are to be skipped, when all others are copied.
    """
    paths = [path for path in list_images(folder) if not is_inside(path, out)]
    if not paths:
        raise BadInput(f"--resize: there are no images in {folder} (--data-dir)")
    make_output_folder(out)
    note = out / "shorter-sides.txt"
    if note.exists() and note.read_text() != f"{size}\n":
        raise BadInput(f"--resize: {out} holds copies of another size, see {note}: choose another "
                       "folder")
    note.write_text(f"{size}\n")
    work = functools.partial(resize_some, folder=folder, out=out, size=size)
    parts = in_parallel(work, paths, "resizing images")
    reasons = itertools.chain.from_iterable(parts)
    unreadable = {path: reason for path, reason in zip(paths, reasons) if reason}
    if unreadable and not skip_unreadable:
        raise OSError(all_broken(unreadable, len(paths)))
    left_out = f"; left out: {len(unreadable):,} unreadable" if unreadable else ""
    print(f"{len(paths) - len(unreadable):,} images are in {out}: train with --data-dir {out}"
          f"{left_out}")


def resize_some(paths, folder, out, size):
    """Copies some images, in a worker.

    Returns for each why it cannot be read, or "" if it can; or an error text if it cannot write.
    """
    reasons = []
    for path in paths:
        copy = os.path.join(out, os.path.relpath(path, folder))
        reason = ""
        if not os.path.exists(copy) and not os.path.exists(reduced(copy)):
            try:
                reason = copy_smaller(path, copy, size)
            except Exception as error:
                return f"{path} could not be copied: {reason_of(error)}"
        reasons.append(reason)
    return reasons


def is_jpeg(path):
    return path.lower().endswith((".jpg", ".jpeg"))


def reduced(copy):
    """The path of a copy that is reduced: its suffix tells the format."""
    return copy if is_jpeg(copy) or copy.lower().endswith(".png") else f"{copy}.png"


def copy_smaller(path, copy, size):
    """Copies one image file, its shorter side reduced to `size` pixels if larger; atomic.

    Returns why it cannot be read, or "" if it can.
    """
    try:
        image = read_smaller(path, size)
    except Exception as error:      # PIL raises many kinds
        return reason_of(error)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    unfinished = os.path.join(os.path.dirname(copy), f"unfinished-{os.getpid()}")
    try:
        if image is None:
            shutil.copyfile(path, unfinished)
        else:
            image.save(unfinished, "JPEG" if is_jpeg(path) else "PNG", quality=95)
            copy = reduced(copy)
        os.replace(unfinished, copy)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
    return ""


def read_smaller(path, size):
    """An image in upright RGB, its shorter side reduced to `size` pixels; None if no larger."""
    with Image.open(path) as image:
        if min(image.size) <= size:
            return None
        image.draft("RGB", (2 * size, 2 * size))
        return with_shorter_side(to_rgb(image), size, Image.Resampling.BICUBIC)
