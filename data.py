"""Loads a dataset's images, as tensors or as files, and makes batches of views of them.

    python data.py cifar100     downloads it; draws images and views in figures/cifar100.png

A training set that fits stays on the device as one tensor, and a batch is an index into it. A
larger one stays a list of files, and threads decode and crop the images of each batch.
batches_of_views() hides the difference. datasets.py has the table of datasets, and finds files.
"""
import contextlib
import functools
import itertools
import os
import time
import warnings
from collections import deque
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.utils import make_grid

from augment import (AUGMENTATIONS, DRAWS, NUMBERS, Boxes, augment_with, normalise, random_boxes,
                     taken_from)
from datasets import DATASETS, random_subset, read_dataset, sizes_of
from distributed import LOCAL_WORLD_SIZE, RANK, WORLD_SIZE
from run import PROGRESS_SECONDS, BadInput, Parser, at_least, one_line_errors, show_progress

STATISTICS_IMAGES = 2048    # files sampled for mean and standard deviation
BATCHES_AHEAD = 3           # that threads decode while the device trains
EXIF_ORIENTATION = 0x0112
CROPS = 1                   # seeds the crops apart from the rest of the augmentation

# PIL's warnings about odd metadata; unreadable files are errors
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


# --- loading --------------------------------------------------------------------------------------

def load(name, data_dir="data", limit_train=None, seed=0, classes=None, resident="auto", room=None,
         image_size=None):
    """Loads a dataset as a dict:

    train_x, test_x   uint8, n × 3 × size × size, or a list of files
    train_y, test_y   int64, −1 without a label
    classes           their names; empty without labels
    size, image_size  of the images, and of the networks' input, their centre, in pixels
    stem              small or imagenet, see models.resnet
    streamed          whether train_x is a list of files
    mean, std         of the training images in [0, 1], for each channel

    name: a key of DATASETS. limit_train: use only that many training images, drawn with `seed`.
    classes: names of the class folders to use (None: all), or a file with one per line. resident:
    "yes" for tensors, which hold the images' central squares; "no" for lists, if the dataset
    consists of files; "auto" for tensors if they take up to `room` bytes (None: half of the
    memory). image_size: for "folder" (None: 224). Raises BadInput, or OSError for a bad file.
    """
    data = sizes_of(name, image_size) | read_dataset(name, Path(data_dir), classes)
    if limit_train is not None:
        keep = random_subset(len(data["train_x"]), limit_train, seed)
        data["train_x"] = pick(data["train_x"], keep)
        data["train_y"] = data["train_y"][keep]
    if len(data["train_x"]) == 0 or len(data["test_x"]) < 2:
        raise BadInput("there are no training images, or fewer than two test images")
    if (data["train_y"] < 0).all() or (data["test_y"] < 0).any():
        data["classes"] = []

    if isinstance(data["train_x"], list):
        needed = (len(data["train_x"]) + len(data["test_x"])) * 3 * data["size"] ** 2      # bytes
        room = memory_for_images(torch.device("cpu")) if room is None else room
        if resident == "yes" or (resident == "auto" and needed <= room):
            for split in ("train_x", "test_x"):
                data[split] = decode_all(data[split], data["size"], data["size"])
    data["streamed"] = isinstance(data["train_x"], list)
    customary = {key: list(DATASETS[name][key]) for key in ("mean", "std") if key in DATASETS[name]}
    return data | (customary or channel_statistics(data))


def pick(images, index):
    """images[index], for a tensor or a list."""
    return [images[i] for i in index] if isinstance(images, list) else images[index]


def channel_statistics(data):
    """Each channel's mean and std over the training images in [0, 1]; over a sample of files."""
    sample = data["train_x"]
    if isinstance(sample, list):
        sample = pixels(data, "train_x", random_subset(len(sample), STATISTICS_IMAGES, seed=0))
    # counting the 256 levels is exact and needs no copy in float
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256)
                          for channel in sample.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)        # 3 × 256
    level = (torch.arange(256) / 255).double()
    mean = share @ level
    variance = share @ level.square() - mean.square()
    std = variance.clamp_min(1e-6).sqrt()
    return {"mean": mean.tolist(), "std": std.tolist()}


def pixels(data, split, index):
    """The central squares of data[split][index]: uint8, n × 3 × image_size × image_size."""
    images = pick(data[split], index)
    side = data["image_size"]
    if isinstance(images, list):
        return decode_all(images, data["size"], side)
    start = (data["size"] - side) // 2
    return images[:, :, start:start + side, start:start + side]


def mixed_seed(*numbers):
    """Hashes several numbers, each 0 or more, into one seed."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))       # manual_seed takes 63 bits


def memory_for_images(device):
    """Bytes that resident images may take: half of a GPU's memory, or of this process's share of
    the machine's, if less. Processes on equal devices get the same result."""
    if not hasattr(os, "sysconf"):      # Windows
        return 4e9
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / LOCAL_WORLD_SIZE
    if device.type == "cuda":
        room = min(room, torch.cuda.get_device_properties(device).total_memory / 2)
    return room


# --- decoding files -------------------------------------------------------------------------------

def decode_all(paths, size, crop):
    """The central squares of files' images: uint8, n × 3 × crop × crop; see decode()."""
    images = torch.empty(len(paths), 3, crop, crop, dtype=torch.uint8)
    read = functools.partial(decode, size=size, crop=crop)
    shown_at = time.monotonic()
    with ThreadPool(worker_count()) as pool:        # PIL decodes and resizes without Python's lock
        for i, image in enumerate(pool.imap(read, paths)):
            images[i] = torch.tensor(image).permute(2, 0, 1)
            if time.monotonic() - shown_at > PROGRESS_SECONDS:
                show_progress(f"decoding images: {i:,} of {len(paths):,}")
                shown_at = time.monotonic()
    show_progress("")
    return images


def worker_count():
    """One thread per core, divided among torchrun's processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, max(1, cores // LOCAL_WORLD_SIZE))


def decode(path, size, crop):
    """Resizes a file's shorter side to `size`; returns its central crop × crop × 3, uint8."""
    with opened(path) as image:
        # a JPEG decodes faster at a reduced size; twice the final size shows no loss
        image.draft("RGB", (2 * size, 2 * size))
        image = to_rgb(image)
    ratio = size / min(image.size)
    width, height = (max(size, round(length * ratio)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left = (width - crop) // 2
    top = (height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@contextlib.contextmanager
def opened(path):
    """Image.open(path); an error on opening or in the block becomes an OSError with the path."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:      # PIL raises many kinds
        reason = str(error) or type(error).__name__
        raise OSError(f"{path} is not a readable image ({reason})") from error


def to_rgb(image):
    """Converts a PIL image to upright RGB; scales 16-bit greys, which PIL would clip."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        greys = np.asarray(image)
        if image.mode == "F" or greys.max() > 65535:
            raise ValueError("greys of 32 bits: store them with 8 or 16")
        image = Image.fromarray((greys // 256).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


# --- random crops of files ------------------------------------------------------------------------

class PlannedBatch(NamedTuple):
    """The images of one training step. Seed and step determine all its random numbers."""
    seed: int
    step: int               # of its epoch, from 0
    index: torch.Tensor     # n, int64, on the CPU: indices into the training set


def start_cropping(pool, planned, paths, scale, size):
    """Starts two_crops for the images of a planned batch, in a pool of threads.

    scale: of augment.random_boxes. Returns an AsyncResult: get() waits for the list of crops.
    """
    generator = torch.Generator().manual_seed(mixed_seed(planned.seed, planned.step, CROPS))
    numbers = torch.rand(len(planned.index), 2, NUMBERS[0], generator=generator)
    tasks = [(paths[i], of_image, scale, size) for i, of_image in zip(planned.index, numbers)]
    return pool.starmap_async(two_crops, tasks)


def two_crops(path, numbers, scale, size):
    """Two random crops of a file's image, which is decoded once: uint8, 2 × size × size × 3.

    They are cropped and mirrored; augment_with(…, cropped=True) does the rest. numbers: 2 × k.
    """
    with opened(path) as image:
        if image.format != "JPEG":
            image = to_rgb(image)       # Pillow turns a TIFF's size by itself, others' not
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION, 1) > 4:    # stored turned by 90°
            width, height = height, width
        drawn = random_boxes(2, scale, taken_from(numbers), shape=height / width)
        boxes = [Boxes(*map(float, values)) for values in zip(*drawn)]      # as plain numbers

        # a JPEG decodes faster at 1/2, 1/4 or 1/8 of its size: use the smallest one at which no
        # crop needs enlarging
        shortest = min(min(box.width * width, box.height * height) for box in boxes)
        reduction = size / shortest
        image.draft("RGB", tuple(round(length * reduction) for length in image.size))
        image = to_rgb(image)
    return np.stack([cut(image, box, size) for box in boxes])


def cut(image, box, size):
    """Crops a PIL image to the box, resizes and perhaps mirrors it: uint8, size × size × 3."""
    left = (1 + box.centre_x - box.width) / 2 * image.width
    top = (1 + box.centre_y - box.height) / 2 * image.height
    right = min(image.width, left + box.width * image.width)
    bottom = min(image.height, top + box.height * image.height)
    part = (max(0, left), max(0, top), right, bottom)
    crop = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part))
    return crop[:, ::-1] if box.flip else crop


# --- batches of views -----------------------------------------------------------------------------

def to_device(data, device):
    """Moves the training labels and, unless they are streamed, the training images."""
    data["train_y"] = data["train_y"].to(device)
    if not data["streamed"]:
        data["train_x"] = data["train_x"].to(device)        # n × 3 × size × size, uint8


def plan_batches(n_images, batch_size, seed, epochs, first_epoch=1, first_step=0):
    """Yields this process's PlannedBatch of each step, to the end of the last epoch.

    All processes draw the same order of an epoch's images, and each takes its part of every
    batch; an incomplete last batch is dropped. Seed, epoch, process and step determine all random
    numbers of a step, so a run can be resumed at any step.
    """
    steps = n_images // batch_size
    generator = torch.Generator()
    for epoch in range(first_epoch, epochs + 1):
        generator.manual_seed(mixed_seed(seed, epoch))
        order = torch.randperm(n_images, generator=generator)[:steps * batch_size]
        order = order.view(steps, WORLD_SIZE, -1)[:, RANK]      # steps × this process's images
        own_seed = mixed_seed(seed, epoch, RANK)
        for step in range(first_step, steps):
            yield PlannedBatch(own_seed, step, order[step])
        first_step = 0


def batches_of_views(data, plan, recipe, layout=torch.channels_last, view_of=augment_with):
    """Yields, for each PlannedBatch, (views, index, labels), from tensors or from files.

    views: float32, 2·batch × 3 × image_size × image_size, normalised, in the memory format
    `layout`; the images' first views above their second. index: batch, int64. labels:
    train_y[index]. All three are on the device of data["train_y"].

    data: from load(), moved by to_device(). view_of: augment_with, perhaps compiled. Raises
    OSError for an unreadable file.
    """
    device = data["train_y"].device
    generator = torch.Generator(device)
    mean = torch.tensor(data["mean"]).to(device)
    std = torch.tensor(data["std"]).to(device)
    settings = data["image_size"], data["streamed"]
    for planned, index, images in image_pairs(data, plan, recipe, device):
        generator.manual_seed(mixed_seed(planned.seed, planned.step))
        # drawn here, so that view_of is deterministic
        draws = torch.rand(2, len(index), DRAWS, generator=generator, device=device)
        if device.type == "cpu":        # one view at a time fits better into its cache
            views = torch.cat([view_of(draws[view], images[view], recipe, view, *settings)
                               for view in (0, 1)])
        else:                           # the same bit for bit, in half as many launches
            views = view_of(draws.flatten(0, 1), images.flatten(0, 1), recipe, None, *settings)
        views = normalise(views, mean, std).contiguous(memory_format=layout)
        yield views, index, data["train_y"][index]


def image_pairs(data, plan, recipe, device):
    """Yields (planned batch, its index on the device, its images twice, one for each view).

    The images are uint8, 2 × batch × 3 × s × s: whole from a tensor, random crops from files.
    """
    if not data["streamed"]:
        for planned in plan:
            index = planned.index.to(device, non_blocking=True)
            yield planned, index, data["train_x"][index].expand(2, -1, -1, -1, -1)
        return

    scale = AUGMENTATIONS[recipe]["scale"]
    with ThreadPool(worker_count()) as pool:
        started = ((planned, start_cropping(pool, planned, data["train_x"], scale,
                                            data["image_size"])) for planned in plan)
        waiting = deque(itertools.islice(started, BATCHES_AHEAD))
        while waiting:
            planned, crops = waiting.popleft()
            pairs = torch.from_numpy(np.stack(crops.get(), 1)).permute(0, 1, 4, 2, 3)
            waiting.extend(itertools.islice(started, 1))
            if device.type == "cuda":
                pairs = pairs.pin_memory()
            index = planned.index.to(device, non_blocking=True)
            yield planned, index, pairs.to(device, non_blocking=True)


# --- a first look ---------------------------------------------------------------------------------

def contact_sheet(data, recipe, columns=16):
    """A PIL image: a row of random training images, two rows of their views; enlarged if small."""
    shuffled = torch.randperm(len(data["train_x"]), generator=torch.Generator().manual_seed(0))
    index = shuffled[:columns]
    views, _, _ = next(batches_of_views(data, [PlannedBatch(0, 0, index)], recipe))
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    views = ((views * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    images = torch.cat([pixels(data, "train_x", index), views])
    factor = max(1, 96 // data["image_size"])
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid = make_grid(images, nrow=len(index))       # 3 × h × w
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def parse_args(argv):
    parser = Parser("data.py", "Downloads a dataset, prints its splits, draws images and views.")
    add = parser.add_argument
    add("name", choices=DATASETS)
    add("--data-dir", default="./data", metavar="DIR", help="folder of the images, and downloads")
    add("--classes", type=Path, metavar="FILE", help="class folders to use, one per line")
    add("--image-size", type=at_least(8), help="of a folder's images, in pixels (default: 224)")
    add("--augment", default="vicreg", choices=AUGMENTATIONS, help="augmentation scheme")
    return parser.parse_args(argv)


def main(argv=None):
    with one_line_errors("data.py"):
        args = parse_args(argv)
        data = load(args.name, args.data_dir, classes=args.classes, image_size=args.image_size)
        mean, std = (" ".join(f"{value:.4f}" for value in data[key]) for key in ("mean", "std"))
        print(f"{args.name}: {len(data['train_x']):,} training and {len(data['test_x']):,} test "
              f"images of {data['size']} pixels, {len(data['classes'])} classes, mean {mean}, "
              f"std {std}")
        out = Path("figures") / f"{args.name}.png"
        out.parent.mkdir(exist_ok=True)
        contact_sheet(data, args.augment).save(out)
        print(f"images with two views under each: {out}")


if __name__ == "__main__":
    main()
