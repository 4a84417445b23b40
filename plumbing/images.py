"""Images from files: decoded whole into one tensor, or cropped at random, batch by batch.

    paths = list_images("my_images")
    x = decode_all(paths, size=256, crop=224)       # uint8, n × 3 × 224 × 224
    plan = [PlannedBatch(seed=0, step=0, index=torch.arange(64))]
    for views in stream_crops(paths, plan, recipe="vicreg", size=224):
        ...                                         # uint8, 2 × batch × 3 × 224 × 224

Worker processes do the decoding. What a worker cannot read it returns as a text, because that
survives the way between processes better than an exception; here it becomes an OSError that
names the file.
"""
import contextlib
import functools
import itertools
import math
import os
import shutil
import signal
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps         # comes with torchvision
from torch.utils.data import DataLoader, Dataset

from augment import AUGMENTATIONS, random_boxes
from plumbing import distributed
from plumbing.cli import SIGNALS, show_progress

BATCH = 64              # files that a worker process decodes at a time
FEW_FILES = 2000        # up to so many are decoded here: starting workers would take longer
MAX_WORKERS = 16
SHARED_MEMORY = "/dev/shm"     # where Linux keeps what processes share
EXIF_ORIENTATION = 0x0112
CROPS = 1               # sets the crops' random numbers apart from an augmentation's others


def is_image(name):
    return name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith(".")


def list_images(folder):
    """Paths of the images in a folder and below, sorted; regular files only.

    Links are followed, but not to a folder that was visited already or that this one is in: such
    a link would bring in everything beside it. Empty where there is no such folder; OSError where
    one cannot be read.
    """
    start = os.path.realpath(folder)
    waiting, visited, found = [str(folder)], set(), []
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        is_around_start = start.startswith(real.rstrip(os.sep) + os.sep)
        if real in visited or is_around_start or not os.path.exists(real):
            continue
        visited.add(real)
        for entry in os.scandir(place):
            if entry.is_dir():
                waiting.append(entry.path)
            elif is_image(entry.name) and entry.is_file():
                found.append(entry.path)
    return sorted(found)


def random_subset(n, limit, seed):
    """Sorted indices of `limit` of n things, at random; all of them where limit is None or ≥ n."""
    if limit is None or limit >= n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:limit].sort().values


def mixed_seed(*numbers):
    """A seed that follows from several numbers, 0 or more each; other numbers, another seed."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))       # manual_seed takes 63 bits


# --- the machine ------------------------------------------------------------------------------

def machine_memory():
    """In bytes; without a limit where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_for_images(device):
    """Bytes that resident images may take: half of the machine's and of the device's memory.

    With several processes, as many as the one with the least has.
    """
    room = machine_memory() / 2 / distributed.LOCAL_WORLD_SIZE
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = min(room, free / 2)
    return distributed.smallest(room, device)


def core_count():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):        # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count():
    """Worker processes: one per core, shared by the training processes that torchrun started."""
    share = max(1, core_count() // distributed.LOCAL_WORLD_SIZE)
    return min(share, MAX_WORKERS)


@contextlib.contextmanager
def signals_blocked():
    """Processes that are started in this block never see Ctrl-C and the like.

    Terminals and schedulers send them to a whole group of processes; but it is the main process
    that ends its workers. Should it be killed, they notice within seconds, and end.
    """
    if not hasattr(signal, "pthread_sigmask"):      # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- whole files ------------------------------------------------------------------------------

def decode_all(paths, size, crop):
    """The files as one tensor, see decode(): uint8, n × 3 × crop × crop."""
    images = torch.empty(len(paths), 3, crop, crop, dtype=torch.uint8)
    done = 0
    work = functools.partial(decode, size=size, crop=crop)
    for part in in_parallel(work, paths, "decoding images"):
        images[done:done + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
        done += len(part)
    return images


def in_parallel(function, paths, title):
    """Yields function(some of the paths), in order, from worker processes; shows its progress.

    A function returns a sequence, or a text that says which file is broken: raised as OSError.
    """
    workers = worker_count() if len(paths) > FEW_FILES else 0
    # DataLoader's workers call collate_fn with some items of the dataset, which here is a list
    loader = DataLoader(paths, batch_size=BATCH, num_workers=workers, collate_fn=function)
    done = 0
    with signals_blocked():
        parts = iter(loader)        # starts the workers
    for part in parts:
        if isinstance(part, str):
            raise OSError(part)
        done += len(part)
        show_progress(f"{title}: {done:,} of {len(paths):,}")
        yield part
    show_progress("")


def read_sizes(paths):
    """[width, height] of each file, from its header; or broken()'s text."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except Exception as error:      # PIL raises many kinds
            return broken(path, error)
    return sizes


def decode(paths, size, crop):
    """The central squares of the files, their shorter sides resized to `size` before.

    Returns an array, uint8, n × crop × crop × 3; or broken()'s text.
    """
    images = np.empty((len(paths), crop, crop, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                # a JPEG's decoder can halve sizes; of twice the size, nobody sees that it did
                image.draft("RGB", (2 * size, 2 * size))
                image = to_rgb(image)
        except Exception as error:
            return broken(path, error)
        images[i] = central_square(image, size, crop)
    return images


def central_square(image, size, crop):
    """Of a PIL image: its shorter side resized to `size`, then crop × crop from the middle."""
    image = with_shorter_side(image, size, Image.Resampling.BILINEAR)
    left = (image.width - crop) // 2
    top = (image.height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def with_shorter_side(image, size, resampling):
    """A PIL image, its shorter side resized to `size` pixels."""
    ratio = size / min(image.size)
    width, height = (max(size, round(length * ratio)) for length in image.size)
    if image.size == (width, height):
        return image
    return image.resize((width, height), resampling)


def to_rgb(image):
    """A PIL image the right way up, as RGB: 16-bit greys scaled, transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):      # PIL would clip what is above 255
        grey = (np.asarray(image) / 256).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def broken(path, error):
    """What a worker returns in place of images."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} is not a readable image ({reason}): mend or remove it"


# --- random crops of files --------------------------------------------------------------------

class PlannedBatch(NamedTuple):
    """Which images a step will see. Seed and step together fix all that is drawn for it."""
    seed: int
    step: int               # of its epoch, from 0
    index: torch.Tensor     # n, int64, on the CPU: places in the training set


class Box(NamedTuple):
    """One of augment.Boxes, as plain numbers: a part of an image that spans −1 … 1."""
    width: float            # as a share of the image's
    height: float
    centre_x: float
    centre_y: float
    flip: float             # 1 to mirror it, else 0


def stream_crops(paths, plan, recipe, size, pin=False):
    """Yields, for each PlannedBatch of the plan, both views' random crops of its paths.

    Each is uint8, 2 × n × 3 × size × size. Worker processes, a few batches ahead, decode each
    file once, and crop and mirror it twice; the rest of an augmentation is
    augment(…, cropped=True). plan: an iterable, which is read as far ahead as the workers are;
    with a whole run's, they are busy between epochs too. recipe: a key of AUGMENTATIONS. pin:
    whether into pinned memory, for faster copies to a GPU.
    Raises OSError for a file that cannot be read. The workers end with the generator.
    """
    plan = iter(plan)
    first = next(plan, None)
    if first is None:
        return
    workers, ahead = workers_and_batches_ahead(2 * len(first.index) * 3 * size ** 2)
    scale = AUGMENTATIONS[recipe]["scale"]
    loader = DataLoader(
        Crops(paths, scale, size),
        sampler=map(plain, itertools.chain([first], plan)),     # what Crops is asked for
        batch_size=None,                            # each is a batch already
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=pin,
    )
    with signals_blocked():
        crops = iter(loader)        # starts the workers
    for views in crops:
        if isinstance(views, str):
            raise OSError(views)
        yield views


def workers_and_batches_ahead(batch_bytes):
    """How many worker processes, and how many finished batches of so many bytes for each.

    Together they take an eighth of the machine's memory at most, and half of what is free where
    processes share memory: containers often have little there.
    """
    room = machine_memory() / 8
    if os.path.isdir(SHARED_MEMORY):
        room = min(room, shutil.disk_usage(SHARED_MEMORY).free / 2)
    fitting = int(room / distributed.LOCAL_WORLD_SIZE / batch_bytes)
    workers = max(1, min(worker_count(), fitting // 2))
    return workers, max(1, min(3, fitting // workers))


class Crops(Dataset):
    """crops[plain(planned batch)]: the crops, or broken()'s text; DataLoader's workers ask."""

    def __init__(self, paths, scale, size):
        self.paths = paths
        self.scale = scale
        self.size = size

    def __getitem__(self, numbers):
        return crop_batch(numbers, self.paths, self.scale, self.size)


def plain(planned):
    """A PlannedBatch as numbers: of a tensor that is a part of a larger one, processes would be
    sent all of it, through shared memory."""
    return planned.seed, planned.step, planned.index.tolist()


def crop_batch(numbers, paths, scale, size):
    """What a worker of stream_crops does for one batch: the crops; or broken()'s text.

    numbers: a PlannedBatch's, see plain().
    """
    seed, step, files = numbers
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, CROPS))
    rand = functools.partial(torch.rand, generator=generator)

    crops = np.empty((2, len(files), size, size, 3), np.uint8)
    for i, file in enumerate(files):
        path = paths[file]
        try:
            image, boxes = open_for_crops(path, scale, size, rand)
        except Exception as error:
            return broken(path, error)
        for view, box in enumerate(boxes):
            crops[view, i] = cut(image, box, size)
    return torch.from_numpy(crops).permute(0, 1, 4, 2, 3)       # 2 × n × 3 × size × size


def open_for_crops(path, scale, size, rand):
    """The file as an RGB image, no larger than two crops need it, and the boxes of both."""
    with Image.open(path) as image:
        stored_width, stored_height = image.size
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION, 1) > 4:    # the camera was held upright
            width, height = stored_height, stored_width
        drawn = random_boxes(2, scale, rand, shape=height / width)
        boxes = [Box(*map(float, numbers)) for numbers in zip(*drawn)]

        # a JPEG decodes at 1/2, 1/4 or 1/8 of its size in less time: as long as no crop would
        # have to be enlarged for it
        shortest = min(min(box.width * width, box.height * height) for box in boxes)
        reduction = size / shortest
        needed_width = max(1, round(stored_width * reduction))
        needed_height = max(1, round(stored_height * reduction))
        image.draft("RGB", (needed_width, needed_height))
        return to_rgb(image), boxes


def cut(image, box, size):
    """The part of a PIL image in the box, resized: uint8, size × size × 3."""
    left = (1 + box.centre_x - box.width) / 2 * image.width
    top = (1 + box.centre_y - box.height) / 2 * image.height
    right = min(image.width, left + box.width * image.width)
    bottom = min(image.height, top + box.height * image.height)
    part = (max(0, left), max(0, top), right, bottom)
    crop = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part))
    return crop[:, ::-1] if box.flip else crop
