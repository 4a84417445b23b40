"""Loads a dataset's images, as tensors or as files, and makes batches of views of them.

    python data.py cifar100     downloads and checks it, prints its splits, and draws
                                figures/cifar100.png: images, and two views of each
    python data.py folder --data-dir photos --resize 256 small      copies the images at a
                                smaller size, which decodes faster: train with --data-dir small
    data = load("cifar100", "data")                         # a dict, see load()
    views = augment(data["train_x"][:256], "vicreg")        # from augment.py

A training set that fits stays on the device as one tensor, and a batch is an index into it. A
larger one stays a list of files, and worker processes decode and crop the images of each batch.
batches_of_views() hides the difference.
"""
import contextlib
import itertools
import os
import zlib
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch
from PIL import Image, ImageDraw
from torchvision.utils import make_grid

from augment import AUGMENTATIONS, DRAWS, augment, augment_with, normalise
from plumbing.cli import BadInput, Parser, one_line_errors, whole_number
from plumbing.datasets import DATASETS, read_dataset
from plumbing.distributed import RANK, WORLD_SIZE
from plumbing.folders import fit, without_unreadable
from plumbing.images import (PlannedBatch, decode_all, listing_unreadable, machine_memory,
                             mixed_seed, random_subset, stream_crops)
from plumbing.resize import check_resize, resize

STATISTICS_IMAGES = 2048        # files sampled for mean and standard deviation
HEAD = 4096                     # bytes of a file that its fingerprint covers
MOST_HEADS = 100_000            # files whose head it covers


def load(name, data_dir="data", limit_train=None, seed=0, classes=None, resident="auto",
         room=None, min_size=None, image_size=None, like=None, skip_unreadable=False):
    """Loads a dataset as a dict:

    train_x, test_x   uint8, n × 3 × size × size, or a list of files
    train_y, test_y   int64, −1 without a label
    classes           their names; empty without labels
    size              of the images, in pixels
    image_size        of the networks' input, in pixels
    stem              small or imagenet, see models.resnet
    streamed          whether train_x is a list of files
    mean, std         of the training images in [0, 1], for each channel
    unused            {split: number of images}, of splits neither trained nor tested on
    min_size          of a folder: images with a shorter side below this are left out
    left_out          {which files were left out, and why: their number}
    size_note         why a folder's images have their size, in a sentence
    held_out          whether test images were taken from the training images
    train_files, test_files     paths of the images, if each is a file

    name: a key of DATASETS. data_dir: where the files are, or are downloaded to. limit_train:
    keep only that many training images, drawn at random with `seed`. classes: names of class
    folders to use instead of all, or a file with one name per line. resident: "yes" for tensors;
    "no" for lists, if the dataset consists of files; "auto" for tensors if they take up to `room`
    bytes (None: half of the machine's memory). min_size, image_size: see folders.fit. like: a
    run's size, image_size, stem and perhaps min_size, for a folder's images instead of their own.
    skip_unreadable: leave out files that cannot be decoded; finding them decodes all files once.
    Tensors hold the central square of each image, from which views are cropped; views of files
    are cropped from the whole image.
    Raises BadInput, or OSError for unreadable files; the message says what to do.
    """
    facts = DATASETS[name]
    if classes is not None and facts["layout"] not in ("classes", "folder"):
        raise BadInput(f"--classes picks class folders, and {name} has none")

    data = read_dataset(name, Path(data_dir), classes)
    if limit_train is not None:
        keep = random_subset(len(data["train_x"]), limit_train, seed)
        data["train_x"] = pick(data["train_x"], keep)
        data["train_y"] = data["train_y"][keep]
    files = []
    if isinstance(data["train_x"], list):
        data |= without_unreadable(data) if skip_unreadable else {}
        files = data["train_x"] + data["test_x"]
    if len(data["test_x"]) < 2:
        raise BadInput("there are fewer than two test images: the metrics need two or more")
    if (data["train_y"] < 0).all() or (data["test_y"] < 0).any():
        data["classes"] = []

    with listing_unreadable(files):
        if facts["layout"] == "folder":
            data |= fit(data, facts["crop"], image_size, min_size, like)
        elif image_size is not None:
            raise BadInput(f"--image-size is for --dataset folder: {name} has {facts['crop']} "
                           "pixels")
        else:
            data |= {"size": facts["size"], "image_size": facts["crop"], "stem": facts["stem"]}
        if files:
            data |= {"train_files": data["train_x"], "test_files": data["test_x"]}
        if files and becomes_resident(data, resident, room):
            for split in ("train_x", "test_x"):
                data[split] = decode_all(data[split], data["size"], data["size"])
        data["streamed"] = isinstance(data["train_x"], list)
        if "mean" in facts:
            return data | {"mean": list(facts["mean"]), "std": list(facts["std"])}
        return data | channel_statistics(data)


def pick(images, index):
    """images[index], for a tensor or a list."""
    if isinstance(images, list):
        return [images[i] for i in index]
    return images[index]


def becomes_resident(data, resident, room):
    """Whether to decode the files into one tensor, see load()."""
    count = len(data["train_x"]) + len(data["test_x"])
    needed = count * 3 * data["size"] ** 2      # bytes
    memory = machine_memory()
    if resident == "yes" and needed > 0.8 * memory:
        raise BadInput(f"{count:,} images of {data['size']} pixels take {needed / 1e9:.0f} GB "
                       f"of memory, and this machine has {memory / 1e9:.0f}: "
                       "use --resident auto, or --limit-train")
    if room is None:
        room = memory / 2
    return resident == "yes" or (resident == "auto" and needed <= room)


def channel_statistics(data):
    """Each channel's mean and std over the training images in [0, 1]; over a sample of files."""
    sample = data["train_x"]
    if isinstance(sample, list):
        sample = pixels(data, "train_x", random_subset(len(sample), STATISTICS_IMAGES, seed=0))
    # counting the 256 levels is exact and needs no copy in float
    channels = sample.transpose(0, 1)       # 3 × n × size × size
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256)
                          for channel in channels]).double()
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


def fingerprint(data):
    """A checksum of classes, labels and images, so that a run is resumed on the same data.

    For image files it covers names, sizes and the first 4 KiB of each, or of 100,000 random ones
    if there are more. It misses a change further back in a file that keeps its size.
    """
    total = zlib.crc32("/".join(data["classes"]).encode(errors="surrogateescape"))
    for key in ("train_x", "train_y", "test_x", "test_y"):
        content = data[key]
        if isinstance(content, list):
            for path in content:
                entry = f"{os.path.basename(path)} {os.path.getsize(path)}\n"
                total = zlib.crc32(entry.encode(errors="surrogateescape"), total)
            for path in pick(content, random_subset(len(content), MOST_HEADS, seed=0)):
                with open(path, "rb") as file:
                    total = zlib.crc32(file.read(HEAD), total)
        else:
            total = zlib.crc32(content.contiguous().numpy(), total)
    return total


# --- batches ----------------------------------------------------------------------------------

def to_device(data, device):
    """Moves the training labels and, unless they are streamed, the training images."""
    data["train_y"] = data["train_y"].to(device)
    if not data["streamed"]:
        data["train_x"] = data["train_x"].to(device)        # n × 3 × size × size, uint8


def plan_batches(n_images, batch_size, seed, epochs, first_epoch=1, first_step=0):
    """Yields this process's PlannedBatch of each step, to the end of the last epoch.

    All processes draw the same order of an epoch's images, and each takes its part of every
    batch; an incomplete last batch is dropped. Seed, epoch, process and step determine all random
    numbers of a step, so a run can be resumed at any step. first_epoch counts from 1, first_step
    from 0.
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

    data: from load(), moved by to_device(). plan: an iterable, see plan_batches(). recipe: a key
    of AUGMENTATIONS. view_of: augment_with, perhaps compiled. Closing this generator ends its
    worker processes, if there are any.
    """
    device = data["train_y"].device
    generator = torch.Generator(device)
    streamed = data["streamed"]
    mean = torch.tensor(data["mean"]).to(device)
    std = torch.tensor(data["std"]).to(device)
    with contextlib.closing(image_pairs(data, plan, recipe, device)) as pairs:
        for planned, index, images in pairs:
            generator.manual_seed(mixed_seed(planned.seed, planned.step))
            # drawn here, so that view_of is deterministic
            draws = torch.rand(2, len(index), DRAWS, generator=generator, device=device)
            settings = data["image_size"], streamed
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
    if data["streamed"]:
        plan, ahead = itertools.tee(plan)       # workers read the plan ahead of us
        crops = stream_crops(data["train_x"], ahead, recipe, data["image_size"],
                             pin=device.type == "cuda")
        with contextlib.closing(crops):
            for planned, pair in zip(plan, crops):
                index = planned.index.to(device, non_blocking=True)
                yield planned, index, pair.to(device, non_blocking=True)
    else:
        for planned in plan:
            index = planned.index.to(device, non_blocking=True)
            yield planned, index, data["train_x"][index].expand(2, -1, -1, -1, -1)


# --- a first look -----------------------------------------------------------------------------

def contact_sheet(data, recipe, columns=16):
    """Draws random training images with two views under each, enlarged if small.

    Returns a PIL image with the rows' names on its left.
    """
    shuffled = torch.randperm(len(data["train_x"]), generator=torch.Generator().manual_seed(0))
    index = shuffled[:2 * columns]
    size = data["image_size"]
    plan = [PlannedBatch(seed=0, step=0, index=index)]
    _, _, pair = next(image_pairs(data, plan, recipe, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    kinds = [pixels(data, "train_x", index)]        # images, first views, second views
    for view in (0, 1):
        seen = augment(pair[view], recipe, view, generator, size, cropped=data["streamed"])
        kinds.append((seen * 255).round().to(torch.uint8))

    rows = [kind[part] for part in torch.arange(len(index)).split(columns) for kind in kinds]
    factor = max(1, 96 // size)
    images = torch.cat(rows).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid = make_grid(images, nrow=min(columns, len(index)))     # 3 × h × w

    margin = 64     # pixels, for the rows' names
    height, width = grid.shape[1:]
    picture = Image.new("RGB", (margin + width, height), "white")
    picture.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (margin, 0))
    draw = ImageDraw.Draw(picture)
    for row in range(len(rows)):
        middle = int((row + 0.5) * height / len(rows))
        draw.text((8, middle), ("image", "view 1", "view 2")[row % 3], "black", anchor="lm")
    return picture


def describe(name, data):
    """Prints the properties of a dataset and of its splits."""
    mean = " ".join(f"{value:.4f}" for value in data["mean"])
    std = " ".join(f"{value:.4f}" for value in data["std"])
    print(f"{name}: {len(data['classes'])} classes, images of {data['size']} pixels, networks "
          f"see {data['image_size']}, stem {data['stem']}, mean {mean}, std {std}")
    for split in ("train", "test"):
        print(f"{split:5}  {describe_labels(data[f'{split}_y'], data['classes'])}")
    for note in notes(data):
        print(note)
    for split, count in data.get("unused", {}).items():
        print(f"{split:5}  {count:,} images, not used")


def notes(data):
    """What load() decided about a folder's images, in sentences."""
    left_out = [f"{count:,} {why}" for why, count in data.get("left_out", {}).items() if count]
    sentences = [f"left out: {', '.join(left_out)}"] if left_out else []
    if data.get("held_out"):
        sentences.append(f"held out for the metrics: {len(data['test_x']):,} of the images, at "
                         "random, because there is no folder test or val")
    return sentences + ([data["size_note"]] if "size_note" in data else [])


def describe_labels(labels, classes):
    """The numbers of images, in total and per class, in words."""
    text = f"{len(labels):,} images"
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        text += f", {unlabelled:,} of them without a label"
    if not classes:
        return text
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes))
    few = int(counts.argmin())
    many = int(counts.argmax())
    if counts[few] == counts[many]:
        return f"{text}; {counts[few]:,} in each class"
    return (f"{text}; {counts[few]:,} ({classes[few]}) to {counts[many]:,} ({classes[many]}) "
            "in a class")


def parse_args(argv):
    parser = Parser("data.py", "Downloads and checks a dataset, prints its splits, and draws "
                               "images with two views of each.")
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("--data-dir", default="./data", metavar="DIR",
                        help="folder of the dataset's files, and of downloads")
    parser.add_argument("--classes", type=Path, metavar="FILE",
                        help="a file that lists the class folders to use, one per line")
    parser.add_argument("--min-size", type=whole_number(1), metavar="N",
                        help="leave out a folder's images whose shorter side has fewer than N "
                        "pixels (default: a quarter of the size of the networks' input)")
    parser.add_argument("--image-size", type=whole_number(8, 4096), metavar="N",
                        help="size of the networks' input, for a folder's images (default: 224, "
                        "or the median of their shorter sides if that is less)")
    parser.add_argument("--skip-unreadable", action="store_true",
                        help="leave out image files that cannot be decoded")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="vicreg",
                        help="augmentation scheme of the views")
    parser.add_argument("--out", type=Path, metavar="PNG",
                        help="the contact sheet (default: figures/NAME.png)")
    parser.add_argument("--resize", nargs=2, metavar=("PIXELS", "DIR"),
                        help="only copy the images to DIR, with shorter sides of PIXELS; "
                        "continues an interrupted copy")
    args = parser.parse_args(argv)
    if args.resize:
        args.resize = check_resize(parser, args.name, args.data_dir, args.classes, *args.resize)
    args.out = args.out or Path("figures") / f"{args.name}.png"
    if args.out.suffix.lower() != ".png" or args.out.is_dir():
        raise BadInput(f"--out must be a PNG file, not {args.out}")
    return args


def main(argv=None):
    with one_line_errors("data.py"):
        args = parse_args(argv)
        if args.resize:
            size, out = args.resize
            resize(args.data_dir, out, size, args.skip_unreadable)
            return
        data = load(args.name, args.data_dir, classes=args.classes, min_size=args.min_size,
                    image_size=args.image_size, skip_unreadable=args.skip_unreadable)
        describe(args.name, data)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(data, args.augment).save(args.out)
        print(f"images with two views under each: {args.out}")


if __name__ == "__main__":
    main()
