"""Images: the datasets as uint8 tensors, and augmentation of whole batches.

    data = load("cifar100", "data")                       # a dict of facts, see load()
    views = augment(data["train_x"][:256], "vicreg")      # n × 3 × h × w, float in [0, 1]
    inputs = normalise(views, data["mean"], data["std"])

A training set sits on the device as one tensor; a batch is an index into it, and is augmented there with some forty
tensor operations, ten times as fast on one core as image by image. Every random draw comes from the generator that
the caller hands over, so an epoch can be repeated exactly. Problems with files raise ValueError (or OSError) with a
line that says what to do.
"""
import contextlib
import functools
import io
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps         # comes with torchvision

DATASETS = ("shapes", "cifar10", "cifar100", "folder")
LARGEST, SMALLEST = 224, 8      # pixels: a folder's images are reduced to the first, refused below the second

# Probabilities and strengths as in SPEC and solo-learn; jitter is brightness, contrast, saturation, hue. A pair is view
# 1's and view 2's. "vicreg" is solo-learn's stronger CIFAR scheme.
AUGMENTATIONS = {
    "vicreg": dict(scale=(0.2, 1), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0, solarise_p=(0.1, 0.1)),
    "simclr": dict(scale=(0.08, 1), jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grey_p=0.2, blur_p=0.5, solarise_p=(0, 0)),
    "byol": dict(scale=(0.08, 1), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0, solarise_p=(0, 0.2)),
}


# --- augmentation -----------------------------------------------------------------------------------------------------

def augment(x, recipe="vicreg", view=0, generator=None):
    """One random view of each image: crop, flip, colour jitter, greyscale, blur, solarise, drawn anew for each image.

    x: uint8, n × 3 × s × s, square. recipe: a key of AUGMENTATIONS. view: 0 or 1. generator: on x's device.
    Returns float32 in [0, 1], of x's shape.
    """
    a = AUGMENTATIONS[recipe]
    rand = functools.partial(torch.rand, generator=generator, device=x.device)
    chance = lambda p: rand(len(x), 1, 1, 1) < p
    x = random_resized_crop(x.float() / 255, a["scale"], rand)
    x = torch.where(chance(a["jitter_p"]), colour_jitter(x, a["jitter"], rand), x)
    x = torch.where(chance(a["grey_p"]), grey(x), x)
    if a["blur_p"] and x.shape[-1] > 64:        # smaller images have no detail to spare; CIFAR's recipes do not blur
        x = torch.where(chance(a["blur_p"]), gaussian_blur(x, 0.1 + 1.9 * rand(len(x), 1, 1, 1)), x)
    return torch.where(chance(a["solarise_p"][view]) & (x >= 0.5), 1 - x, x)


def random_resized_crop(x, scale, rand, ratio=(3 / 4, 4 / 3), flip_p=0.5):
    """A random part of each image of x (n × 3 × s × s, float), resized to s × s, flipped left-right with flip_p.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, as torchvision's RandomResizedCrop: of ten draws the
    first that fits into the image.
    """
    n, tries = len(x), 10
    area = scale[0] + (scale[1] - scale[0]) * rand(n, tries)
    aspect = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * rand(n, tries)).exp()
    w, h = (area * aspect).sqrt(), (area / aspect).sqrt()
    first = ((w <= 1) & (h <= 1)).int().argmax(1, keepdim=True)
    w, h = (side.gather(1, first).clamp(max=1).squeeze(1) for side in (w, h))      # clamp: should all ten fail
    x0, y0 = ((1 - side) * (2 * rand(n) - 1) for side in (w, h))                   # centre; the image spans −1 … 1
    w = torch.where(rand(n) < flip_p, -w, w)
    zero = torch.zeros_like(w)
    grid = F.affine_grid(torch.stack([w, zero, x0, zero, h, y0], 1).view(n, 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def grey(x):
    """Luma of x (n × 3 × h × w) as n × 1 × h × w, with PIL's weights."""
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def colour_jitter(x, strengths, rand):
    """Brightness, contrast and saturation in an order drawn for each image, then hue.

    Each factor is uniform in 1 ± its strength, the hue's shift in ± its strength (of a turn). Hue comes last because it
    commutes with the others but for clipping. x: n × 3 × h × w in [0, 1].
    """
    n = len(x)
    factors = 1 + (2 * rand(n, 3) - 1) * torch.tensor(strengths[:3], device=x.device)
    order = rand(n, 3).argsort(1)
    for op in order.unbind(1):
        factor, op = factors.gather(1, op[:, None]).view(n, 1, 1, 1), op.view(n, 1, 1, 1)
        luma = grey(x)
        # each of the three moves the image from, or towards, a base: black, its mean grey, its greys
        base = torch.where(op == 0, 0, torch.where(op == 1, luma.mean((2, 3), keepdim=True), luma))
        x = (base + factor * (x - base)).clamp(0, 1)
    return shift_hue(x, (2 * rand(n, 1, 1) - 1) * strengths[3])


def shift_hue(x, shift):
    """x (n × 3 × h × w in [0, 1]) with its HSV hue turned by shift (n × 1 × 1, in turns)."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    r, g, b = x.unbind(1)
    sixth = torch.where(value == r, g - b, torch.where(value == g, b - r, r - g)) / chroma.clamp_min(1e-8)
    sixth = sixth + torch.where(value == r, 0, torch.where(value == g, 2, 4)) + 6 * shift
    k = (sixth.unsqueeze(1) + torch.tensor([5, 3, 1], device=x.device).view(1, 3, 1, 1)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(x, sigma, radius=6):
    """x (n × c × h × w) blurred with a Gaussian of its own width for each image; sigma: n × 1 × 1 × 1, up to 2 pixels."""
    offsets = range(-radius, radius + 1)
    weights = [(-0.5 * (i / sigma) ** 2).exp() for i in offsets]
    total = sum(weights)
    for dim in (2, 3):
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        size, padded = x.shape[dim], F.pad(x, pad, mode="reflect")
        x = sum(w / total * padded.narrow(dim, i + radius, size) for w, i in zip(weights, offsets))
    return x


def normalise(x, mean, std):
    """x (n × 3 × h × w, uint8 or float in [0, 1]) minus mean, over std, channel by channel."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return (x - mean) / std


# --- datasets ---------------------------------------------------------------------------------------------------------

def load(name, data_dir="data", limit_train=None, seed=0):
    """A dataset as a dict: train_x, test_x (uint8, n × 3 × s × s), train_y, test_y (int64), classes (their names),
    image_size (s), mean, std (of the training images in [0, 1], for each channel).

    name: one of DATASETS. data_dir: where the files are, or are downloaded to. limit_train: keep only that many
    training images, drawn at random with `seed`.
    Raises ValueError, or OSError for files that can't be read, with what is wrong and what to do.
    """
    if name == "shapes":
        data = load_shapes()
    elif name == "folder":
        data = load_folder(data_dir, limit_train, seed)
    elif name in ("cifar10", "cifar100"):
        data = load_cifar(name, data_dir)
    else:
        raise ValueError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}")
    if limit_train and limit_train < len(data["train_x"]):
        keep = random_subset(len(data["train_x"]), limit_train, seed)
        data["train_x"], data["train_y"] = data["train_x"][keep], data["train_y"][keep]
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in data["train_x"].transpose(0, 1)]).double()
    p, level = counts / counts.sum(1, keepdim=True), torch.arange(256) / 255
    mean = p @ level.double()
    std = (p @ level.double().square() - mean.square()).clamp_min(1e-6).sqrt()
    return data | {"image_size": data["train_x"].shape[-1], "mean": mean.tolist(), "std": std.tolist()}


def fingerprint(data):
    """A checksum of images, labels and classes: a run is resumed on the data that it began with."""
    total = zlib.crc32("/".join(data["classes"]).encode(errors="surrogateescape"))
    for key in ("train_x", "train_y", "test_x", "test_y"):
        total = zlib.crc32(data[key].contiguous().numpy(), total)
    return total


def random_subset(n, limit, seed):
    """Sorted indices of `limit` of n things, at random; all of them where limit is None or not below n."""
    if limit is None or limit >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def load_cifar(name, data_dir):
    """CIFAR-10 or CIFAR-100 through torchvision, downloaded into data_dir unless it is there, checked by md5."""
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    new = [path for path in (Path(data_dir), *Path(data_dir).parents) if not path.exists()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train, test = (source(data_dir, train=train, download=True) for train in (True, False))
    except Exception as error:      # torchvision raises anything from URLError to RuntimeError
        with contextlib.suppress(OSError):
            for path in new:        # directories made for nothing
                path.rmdir()
        raise ValueError(f"cannot get {name} ({' '.join(str(error).split())}): download {source.url} (md5 {source.tgz_md5}) "
                         f"and put {source.filename} into {data_dir}; --dataset shapes and folder need no download") from error
    pixels = lambda split: torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return {"train_x": pixels(train), "train_y": torch.tensor(train.targets),
            "test_x": pixels(test), "test_y": torch.tensor(test.targets), "classes": train.classes}


def load_folder(data_dir, limit_train=None, seed=0):
    """One's own images: train/<class>/… and test/<class>/… (or val/), png, jpg or jpeg, decoded once, in parallel.

    Square images of one size, up to 224 pixels, stay as they are; all others are resized so that the shorter side is the
    smallest one found (224 at most) and cropped to their central square.
    """
    root = Path(data_dir)
    layout = "--dataset folder expects train/<class>/*.png|jpg|jpeg, and the same under test/ or val/, in --data-dir"
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}: {layout}")
    held_out = next((root / split for split in ("test", "val") if (root / split).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        raise ValueError(f"{root} lacks {'a train' if held_out else 'a test or val'} directory: {layout}")
    classes = sorted(d.name for d in (root / "train").iterdir() if d.is_dir() and not d.name.startswith("."))
    files, labels = {}, {}
    for split in (root / "train", held_out):
        found = [(path, label) for label, name in enumerate(classes) for path in list_images(split / name)]
        if not found:
            raise ValueError(f"{split} holds no images: {layout}")
        files[split], labels[split] = [path for path, _ in found], torch.tensor([label for _, label in found])
        strange = sorted(d.name for d in split.iterdir() if d.is_dir() and d.name[0] != "." and d.name not in classes)
        if strange:
            raise ValueError(f"{split / strange[0]} has no counterpart in {root / 'train'}: both need the same classes")
    if len(labels[root / "train"].unique()) < 2:
        raise ValueError(f"{root / 'train'} has images of one class only: the probe needs two or more")

    keep = random_subset(len(files[root / "train"]), limit_train, seed)
    files[root / "train"] = [files[root / "train"][i] for i in keep]
    labels[root / "train"] = labels[root / "train"][keep]
    paths = files[root / "train"] + files[held_out]
    sizes = torch.cat([torch.tensor(s) for s in in_parallel(read_sizes, paths, "reading image sizes")])
    short = sizes.amin(1)
    smallest, largest = paths[int(short.argmin())], paths[int(short.argmax())]
    side = min(int(short.min()), LARGEST)
    if side < SMALLEST:
        raise ValueError(f"{smallest} is only {side} pixels high or wide: images need {SMALLEST} or more")
    if min(int(short.max()), LARGEST) > 4 * side:
        raise ValueError(f"image sizes differ too much, from {smallest} ({int(short.min())} pixels) to {largest} "
                         f"({int(short.max())}): leave out or enlarge the small ones, to a factor of 4 at most")
    gigabytes = len(paths) * 3 * side ** 2 / 1e9
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else math.inf
    if gigabytes > 0.8 * memory:
        raise ValueError(f"{len(paths):,} images of {side} pixels take {gigabytes:.0f} GB of memory, and this machine has "
                         f"{memory:.0f}: use smaller images, or --limit-train")
    pixels, at = torch.empty(len(paths), 3, side, side, dtype=torch.uint8), 0
    for part in in_parallel(functools.partial(decode, side=side), paths, "decoding images"):
        pixels[at:at + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
        at += len(part)
    n = len(keep)
    return {"train_x": pixels[:n], "train_y": labels[root / "train"],
            "test_x": pixels[n:], "test_y": labels[held_out], "classes": classes}


def list_images(folder):
    """Paths of the images in a folder and below, links followed, sorted; none where there is no such folder."""
    def refuse(error):
        if not isinstance(error, FileNotFoundError):
            raise error
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder, followlinks=True, onerror=refuse)
                  for name in names if name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith("."))


def in_parallel(function, paths, title):
    """Yields function(some of the paths), in order, computed in worker processes; shows its progress.

    A function returns a sequence, or a text that says which file is broken, which is raised as ValueError.
    """
    # torch's DataLoader with a list as the dataset: collate_fn is where its workers do the work
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 16) if len(paths) > 2000 else 0
    done = 0
    for part in torch.utils.data.DataLoader(paths, batch_size=64, num_workers=workers, collate_fn=function):
        if isinstance(part, str):
            raise ValueError(part)
        done += len(part)
        live(f"{title}: {done:,} of {len(paths):,}")
        yield part
    live("")


def read_sizes(paths):
    """(width, height) of each file, from its header."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except Exception as error:      # PIL raises many kinds
            return broken(path, error)
    return sizes


def decode(paths, side):
    """The files as one uint8 array n × side × side × 3: shorter side resized to `side`, then the central square."""
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image = to_rgb(image)
        except Exception as error:
            return broken(path, error)
        if image.size != (side, side):
            ratio = side / min(image.size)
            w, h = (max(side, round(length * ratio)) for length in image.size)
            left, top = (w - side) // 2, (h - side) // 2
            image = image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
        pixels[i] = np.asarray(image)
    return pixels


def to_rgb(image):
    """A PIL image the right way up, as RGB; 16-bit greys scaled, which PIL would clip, and transparency laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def broken(path, error):
    return f"{path} is not a readable image ({' '.join(str(error).split()) or type(error).__name__}): mend or remove it"


def live(text):
    """Rewrites the terminal's last line; where stdout is not a terminal, nothing."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


# --- shapes: images that need no file ---------------------------------------------------------------------------------

SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "bar", "crescent", "corner", "dots")


def load_shapes(n_train=10_000, n_test=2_048, seed=0):
    """Ten drawn shapes on 32 × 32 pixels. The class is what is drawn; all else about an image is drawn at random."""
    x, y = draw_shapes(n_train + n_test, torch.Generator().manual_seed(seed))
    return {"train_x": x[:n_train], "train_y": y[:n_train], "test_x": x[n_train:], "test_y": y[n_train:], "classes": list(SHAPES)}


def draw_shapes(n, generator, size=32):
    """n images (uint8, n × 3 × size × size) and their classes (int64, indices of SHAPES).

    Place, size, rotation, colours, background and noise are random, and the shape is as often darker than its background
    as lighter: no pixel's value says much about the class.
    """
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    uniform = lambda low, high: low + (high - low) * rand(n, 1, 1)
    y = torch.randint(len(SHAPES), (n,), generator=generator)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    py, px = torch.meshgrid(axis, axis, indexing="ij")

    # the shape's own coordinates u, v: moved, turned, scaled
    radius, angle = uniform(0.4, 0.75), uniform(0, 2 * math.pi)
    dx, dy = (px - uniform(-0.35, 0.35)) / radius, (py - uniform(-0.35, 0.35)) / radius
    u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
    outside = torch.empty(n, size, size)
    for label, name in enumerate(SHAPES):
        outside[y == label] = distance(name, u[y == label], v[y == label])
    cover = (0.5 - outside * radius * size / 2).clamp(0, 1)[:, None]      # one pixel of smooth edge

    # the background is brighter on one side, the shape's colour lighter or darker than it
    tint = lambda strength: strength * (rand(n, 3, 1, 1) - 0.5)
    brightness, turn = rand(n, 1, 1, 1), uniform(0, 2 * math.pi)
    slope = 0.1 * (turn.cos() * px + turn.sin() * py)[:, None]
    contrast = (0.3 + 0.3 * rand(n, 1, 1, 1)) * torch.where(brightness > 0.5, -1, 1)
    image = torch.lerp(brightness + tint(0.2) + slope, brightness + contrast + tint(0.5), cover)
    image = image + 0.05 * torch.randn(n, 3, size, size, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), y


def distance(name, u, v):
    """How far (u, v) lies outside the named shape of radius 1; negative inside. Near the outline it is a distance."""
    r = torch.hypot(u, v)
    box = lambda a, b, width, height: torch.maximum((u - a).abs() - width, (v - b).abs() - height)
    if name == "disc":
        return r - 0.9
    if name == "ring":
        return (r - 0.75).abs() - 0.18
    if name == "square":
        return box(0, 0, 0.75, 0.75)
    if name == "triangle":
        return torch.maximum(v, (-v + 3 ** 0.5 * u.abs()) / 2) - 0.55
    if name == "star":      # fold the plane onto one half of one of the five points, whose edge is a straight line
        turn = 2 * math.pi / 5
        a = torch.remainder(torch.atan2(v, u), turn) - turn / 2
        a = turn / 2 - a.abs()
        edge = math.atan2(0.42 * math.sin(turn / 2), 1 - 0.42 * math.cos(turn / 2))
        return r * (a + edge).sin() - math.sin(edge)
    if name == "cross":
        return torch.minimum(box(0, 0, 0.95, 0.25), box(0, 0, 0.25, 0.95))
    if name == "bar":
        return box(0, 0, 1, 0.25)
    if name == "crescent":
        return torch.maximum(r - 0.95, 0.75 - torch.hypot(u - 0.45, v))
    if name == "corner":
        return torch.minimum(box(-0.55, 0, 0.22, 0.8), box(0, 0.58, 0.77, 0.22))
    if name == "dots":
        return torch.minimum(torch.hypot(u - 0.6, v), torch.hypot(u + 0.6, v)) - 0.38
    raise ValueError(f"unknown shape {name!r}")
