"""What bench.py times by itself, without a step: images beside PIL, and losses as inputs grow.

    from tools.bench_pieces import growth, seconds, streaming
    seconds({"a": f, "b": g}, device, repeats=15)       # medians, the functions taking turns
    streaming(stored=375)                               # JPEGs per second, in worker processes
    growth(device)                                      # losses: times, bytes kept

Here too is how everything is timed.
"""
import contextlib
import statistics
import tempfile
import time
from functools import partial

import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from augment import AUGMENTATIONS, augment, normalise
from data import plan_batches
from plumbing.images import stream_crops, workers_and_batches_ahead
from losses import adadim, info_nce, matrix_mutual_information, vicreg

CPU = torch.device("cpu")
STORED = (375, 256)          # shorter sides of JPEGs that are streamed: ImageNet's, and resized
NORMALISATION = {"mean": [0.5] * 3, "std": [0.25] * 3}
LOSSES = {                  # of r (2n × p) and z (2n × d), both views stacked
    "info_nce": lambda r, z: info_nce(*z.chunk(2)),
    "vicreg": lambda r, z: vicreg(*z.chunk(2)),
    "mi": matrix_mutual_information,
    "adadim": lambda r, z: adadim(*r.chunk(2), *z.chunk(2), 0.4)[0],
}


# --- timing -----------------------------------------------------------------------------------

def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(functions, device, repeats, block=1):
    """Median time of one call of each function of a dict, in seconds: {name: time}.

    The functions take turns, `block` calls at a time, after two turns to warm up.
    """
    times = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            finish(device)
            start = time.perf_counter()
            for _ in range(block):
                function()
            finish(device)
            if turn >= 2:
                times[name].append((time.perf_counter() - start) / block)
    return {name: statistics.median(values) for name, values in times.items()}


def calls_at_a_time(device):
    """How many calls are timed together: a GPU's are too short to wait for each."""
    return 10 if device.type == "cuda" else 1


def value_and_gradient(loss, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    loss(*leaves).backward()


# --- images, beside PIL --------------------------------------------------------------------------

def augmentation_on_one_core(image_size, n=256):
    """Views per second of augment() and of torchvision's PIL transforms, in one thread."""
    recipe = AUGMENTATIONS["vicreg"]
    images = torch.randint(256, (n, 3, image_size, image_size), dtype=torch.uint8)
    pictures = [to_pil_image(image) for image in images]
    generator = torch.Generator()
    by_pil = transforms.Compose([
        transforms.RandomResizedCrop(image_size, recipe["scale"]),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(*recipe["jitter"])], recipe["jitter_p"][0]),
        transforms.RandomGrayscale(recipe["grey_p"][0]),
        transforms.RandomSolarize(128, recipe["solarise_p"][0]),
        transforms.ToTensor(),
        transforms.Normalize(**NORMALISATION),
    ])
    functions = {
        "ours": lambda: normalise(augment(images, "vicreg", 0, generator), **NORMALISATION),
        "pil": lambda: torch.stack([by_pil(picture) for picture in pictures]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = seconds(functions, CPU, 7)
    finally:
        torch.set_num_threads(threads)
    return {"augment_views_per_s": n / times["ours"], "pil_views_per_s": n / times["pil"],
            "augment_over_pil": times["pil"] / times["ours"]}


def streaming(stored, crop=224, batch_size=64, batches=24):
    """Images per second, two crops of each, of stream_crops on JPEGs whose shorter side has
    `stored` pixels, and of PIL on one core. batches: that each worker reads while time counts."""
    crop_and_flip = transforms.Compose([
        transforms.RandomResizedCrop(crop, AUGMENTATIONS["vicreg"]["scale"]),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ])
    smooth, = interpolate(torch.rand(1, 3, 40, 40), (stored, stored * 4 // 3), mode="bicubic")
    noisy = smooth + 0.03 * torch.randn_like(smooth)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/photo.jpg"            # one file, but decoded anew each time
        to_pil_image(noisy.clamp(0, 1)).save(path, quality=90)

        plan = plan_batches(batch_size, batch_size, seed=0, epochs=1_000_000)
        workers, _ = workers_and_batches_ahead(2 * batch_size * 3 * crop ** 2)
        with contextlib.closing(stream_crops([path] * batch_size, plan, "vicreg", crop)) as crops:
            for _ in range(4 * workers):            # all have started, none is ahead
                next(crops)
            start = time.perf_counter()
            for _ in range(batches * workers):
                next(crops)
            ours = (time.perf_counter() - start) / (batches * workers * batch_size)

        def pil():
            for _ in range(batch_size):
                with Image.open(path) as image:
                    image = image.convert("RGB")
                    crop_and_flip(image)
                    crop_and_flip(image)

        by_pil = seconds({"pil": pil}, CPU, 3)["pil"] / batch_size
    return {"images_per_s": 1 / ours, "workers": workers,
            "pil_images_per_s_one_core": 1 / by_pil}


# --- losses, as batch and width grow ------------------------------------------------------------

def growth(device, batches=(256, 256, 256, 1024, 4096), widths=(512, 2048, 8192, 2048, 2048)):
    """Each loss's time of value and gradient, and bytes kept in between: a row for each size."""
    rows = []
    for batch, width in zip(batches, widths):
        r = torch.rand(2 * batch, 512, device=device)
        z = torch.randn(2 * batch, width, device=device)
        row = {"batch": batch, "width": width}
        for name, loss in LOSSES.items():
            function = partial(value_and_gradient, loss, r, z)
            row[f"{name}_bytes"] = bytes_kept(loss, r, z)
            row[f"{name}_ms"] = 1e3 * seconds({name: function}, device, 1)[name]
        rows.append(row)
    return rows


def bytes_kept(loss, *inputs):
    """Bytes that autograd keeps of a loss's value for its gradient."""
    kept = {}

    def keep(x):
        storage = x.untyped_storage()           # which several tensors may share
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss(*(x.detach().requires_grad_() for x in inputs))
    return sum(kept.values())


def show_pieces(f):
    """Prints the figures."""
    print(f"\naugmentation, one core  {f.augment_views_per_s:,.0f} views/s; "
          f"PIL {f.pil_views_per_s:,.0f}: {f.augment_over_pil:.1f} times as many")
    for stored, speed in f.streamed.items():
        name = f"JPEGs of {stored} pixels"
        print(f"{name:24}{speed['images_per_s']:,.0f} images/s, two crops each, with "
              f"{speed['workers']} workers; PIL, one core: "
              f"{speed['pil_images_per_s_one_core']:,.0f}")
    print("\nlosses: ms with gradient / MB kept for it")
    print("  batch  width" + "".join(f"{name:>18}" for name in LOSSES))
    for row in f.losses:
        cells = [f"{row[f'{name}_ms']:10.1f} /{row[f'{name}_bytes'] / 1e6:6.0f}" for name in LOSSES]
        print(f"{row['batch']:7}{row['width']:7}" + "".join(cells))
