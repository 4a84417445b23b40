"""data.py --resize: copies a folder of images at a smaller size, for faster decoding."""
import argparse
import contextlib
import functools
import os
import shutil
from pathlib import Path

from PIL import Image

from plumbing.cli import BadInput, make_output_folder, whole_number
from plumbing.datasets import DATASETS
from plumbing.images import in_parallel, list_images, to_rgb, with_shorter_side


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


def resize(folder, out, size):
    """Copies the folder's images to `out`, their shorter sides reduced to `size` pixels.

    Images that are no larger are copied unchanged. Larger ones become upright RGB: JPEGs, of
    quality 95, stay JPEGs, and all others become PNGs. Existing copies are kept, so an interrupted
    call can be continued; a file in `out` records the size, and another size is refused.
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
    count = sum(len(part) for part in in_parallel(work, paths, "resizing images"))
    print(f"{count:,} images are in {out}: train with --data-dir {out}")


def resize_some(paths, folder, out, size):
    """Copies some images, in a worker; returns the paths of the copies, or an error text."""
    copies = []
    for path in paths:
        copy = os.path.join(out, os.path.relpath(path, folder))
        copies.append(copy)
        if os.path.exists(copy) or os.path.exists(reduced(copy)):
            continue
        try:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            save_smaller(path, copy, size)
        except Exception as error:
            return f"{path} could not be copied: {str(error) or type(error).__name__}"
    return copies


def is_jpeg(path):
    return path.lower().endswith((".jpg", ".jpeg"))


def reduced(copy):
    """The path of a copy that is reduced: its suffix tells the format."""
    return copy if is_jpeg(copy) or copy.lower().endswith(".png") else f"{copy}.png"


def save_smaller(path, copy, size):
    """Copies one image file, its shorter side reduced to `size` pixels if larger; atomic."""
    unfinished = os.path.join(os.path.dirname(copy), f"unfinished-{os.getpid()}")
    try:
        with Image.open(path) as image:
            if min(image.size) <= size:
                shutil.copyfile(path, unfinished)
            else:
                image.draft("RGB", (2 * size, 2 * size))
                image = with_shorter_side(to_rgb(image), size, Image.Resampling.BICUBIC)
                image.save(unfinished, "JPEG" if is_jpeg(path) else "PNG", quality=95)
                copy = reduced(copy)
        os.replace(unfinished, copy)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
