"""Images from files: decoded whole into one tensor, or cropped at random, batch by batch.

    paths = list_images("my_images")
    x = decode_all(paths, size=256, crop=224)       # uint8, n × 3 × 224 × 224
    plan = [PlannedBatch(seed=0, step=0, index=torch.arange(64))]
    for views in stream_crops(paths, plan, recipe="vicreg", size=224):
        ...                                         # uint8, 2 × batch × 3 × 224 × 224

Worker processes do the decoding. For an unreadable file they return an error text, which passes
between processes more reliably than an exception; the main process raises it as an OSError.
"""
import contextlib
import ctypes
import functools
import itertools
import math
import os
import shutil
import signal
import time
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps         # comes with torchvision
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from augment import AUGMENTATIONS, Boxes, random_boxes
from plumbing import distributed
from plumbing.cli import SIGNALS, BadInput, show_progress

# PIL's warnings about odd files; unreadable ones are errors
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

BATCH = 64              # files that a worker process decodes at a time
FEW_FILES = 2000        # up to this many are decoded without workers, whose start takes longer
MAX_WORKERS = 16
SHARED_MEMORY = "/dev/shm"     # on Linux
EXIF_ORIENTATION = 0x0112
FEWEST_OPEN_FILES = 256     # that workers may need: each batch on its way to us is one
PATIENCE = 600          # seconds without a batch after which a run ends
DIE_WITH_PARENT = 1     # Linux's PR_SET_PDEATHSIG
FEW_NAMED = 3           # unreadable files that are named; all are counted
CROPS = 1               # seeds the crops apart from the rest of the augmentation
# recognised by Pillow, but not decoded, or only with another program
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")


@functools.cache
def image_suffixes():
    """The suffixes of all files that Pillow decodes: .png, .jpg, .webp, .tif …"""
    known = Image.registered_extensions()           # {suffix: format}; some are only written
    return tuple(suffix for suffix, kind in known.items()
                 if kind in Image.OPEN and kind not in NOT_DECODED)


def is_image(name):
    return name.lower().endswith(image_suffixes()) and not name.startswith(".")


def list_images(folder):
    """Paths of the images in a folder and its subfolders, see list_files()."""
    return [path for path in list_files(folder) if is_image(os.path.basename(path))]


def list_files(folder):
    """Paths of the files in a folder and its subfolders, sorted; regular ones, none hidden.

    Links are followed, except to a folder visited before or to a parent of this one, which would
    add everything beside it. Returns [] if the folder does not exist; raises OSError if one
    cannot be read.
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
            if entry.is_symlink() and not os.path.exists(entry.path):
                continue        # it leads nowhere, or to itself
            if entry.is_dir():
                waiting.append(entry.path)
            elif entry.is_file() and not entry.name.startswith("."):
                found.append(entry.path)
    return sorted(found)


def random_subset(n, limit, seed):
    """`limit` random indices below n, sorted; all n of them if limit ≥ n."""
    if limit >= n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:limit].sort().values


def mixed_seed(*numbers):
    """Hashes several numbers, each 0 or more, into one seed."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))       # manual_seed takes 63 bits


# --- the machine ------------------------------------------------------------------------------

def machine_memory():
    """The machine's memory in bytes; infinite if the system does not report it."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_for_images(device):
    """Bytes that resident images may take: half of the machine's memory and half of what is free
    on a GPU, if less. Processes on one machine share its memory; the smallest result is used."""
    room = machine_memory() / 2 / distributed.LOCAL_WORLD_SIZE
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = min(room, free / 2)
    return distributed.smallest(room, device)


def core_count():
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):        # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count():
    """The number of worker processes: one per core, divided among torchrun's processes."""
    share = max(1, core_count() // distributed.LOCAL_WORLD_SIZE)
    return min(share, MAX_WORKERS)


def from_workers(loader):
    """Yields what a DataLoader's workers return; raises an error text as an OSError.

    The workers never receive Ctrl-C and the like: terminals and schedulers signal a whole process
    group, but workers must be ended by the main process. If that is killed, they end too. Closing
    this generator ends them.
    """
    can_block = hasattr(signal, "pthread_sigmask")      # not on Windows
    if can_block:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        parts = iter(loader)        # starts the workers
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for part in parts:
            if isinstance(part, str):
                raise OSError(part)
            yield part
    finally:
        end_workers(parts)


def end_workers(parts):
    """Ends a DataLoader's workers within seconds; kills those that wait for a disk.

    DataLoader itself would wait five seconds for each, and then send a SIGTERM, which they block.
    """
    if not hasattr(parts, "_workers"):
        return      # there are none
    parts._workers_done_event.set()
    for number, is_running in enumerate(parts._workers_status):
        if is_running:
            parts._mark_worker_as_unavailable(number, shutdown=True)
    deadline = time.monotonic() + 3
    try:
        for worker in parts._workers:
            worker.join(max(0, deadline - time.monotonic()))
    finally:        # another Ctrl-C ends the wait
        stalled = [worker for worker in parts._workers if worker.is_alive()]
        if stalled:
            signal_handling._remove_worker_pids(id(parts))      # their death is no error
            parts._worker_pids_set = False
        for worker in stalled:
            worker.kill()
        parts._shutdown_workers()


def start_worker(number):
    """Called in each worker: it shall end with its parent, even while it waits for a disk."""
    with contextlib.suppress(OSError, AttributeError):      # Linux alone has prctl
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def check_open_files():
    """Raises BadInput if workers could not send their batches; a lost one is waited for."""
    try:
        import resource         # not on Windows
    except ImportError:
        return
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < FEWEST_OPEN_FILES:
        raise BadInput(f"this process may open {allowed} files, too few to read images in worker "
                       f"processes: ulimit -n {FEWEST_OPEN_FILES}, or more")


# --- whole files ------------------------------------------------------------------------------

def decode_all(paths, size, crop):
    """Decodes files into one tensor, see decode(): uint8, n × 3 × crop × crop."""
    images = torch.empty(len(paths), 3, crop, crop, dtype=torch.uint8)
    done = 0
    work = functools.partial(decode, size=size, crop=crop)
    for part in in_parallel(work, paths, "decoding images"):
        images[done:done + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
        done += len(part)
    return images


def in_parallel(function, paths, title):
    """Yields function(some of the paths), in order, from worker processes; shows the progress.

    The function returns a sequence, or an error text that names a file.
    """
    workers = worker_count() if len(paths) > FEW_FILES else 0
    if workers:
        check_open_files()
    # the dataset is the list of paths: workers call collate_fn with some of its items
    loader = DataLoader(paths, batch_size=BATCH, num_workers=workers, collate_fn=function,
                        worker_init_fn=start_worker)
    done = 0
    for part in from_workers(loader):
        done += len(part)
        show_progress(f"{title}: {done:,} of {len(paths):,}")
        yield part
    show_progress("")


def read_sizes(paths):
    """Reads each image's (width, height) from its header; returns a list, or broken()'s text."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except Exception as error:
            return broken(path, error)
    return sizes


def decode(paths, size, crop):
    """Resizes the files' shorter sides to `size` and returns their central squares: uint8,
    n × crop × crop × 3; or broken()'s text."""
    images = np.empty((len(paths), crop, crop, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                # a JPEG decodes faster at a reduced size; twice the final size shows no loss
                image.draft("RGB", (2 * size, 2 * size))
                image = to_rgb(image)
        except Exception as error:
            return broken(path, error)
        image = with_shorter_side(image, size, Image.Resampling.BILINEAR)
        left = (image.width - crop) // 2
        top = (image.height - crop) // 2
        images[i] = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return images


def with_shorter_side(image, size, resampling):
    ratio = size / min(image.size)
    width, height = (max(size, round(length * ratio)) for length in image.size)
    if image.size == (width, height):
        return image
    return image.resize((width, height), resampling)


def to_rgb(image):
    """Converts a PIL image to upright RGB; scales 16-bit greys, puts transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):      # PIL would clip values above 255
        grey = (np.asarray(image) / 256).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# --- unreadable files -------------------------------------------------------------------------

def reason_of(error):
    return " ".join(str(error).split()) or type(error).__name__


def broken(path, error):
    """The error text that a worker returns instead of images."""
    return all_broken({path: reason_of(error)}, 1)


def all_broken(reasons, n):
    """The error text for some of n files. reasons: {path: why it cannot be read}."""
    first = list(reasons)[:FEW_NAMED]
    if len(reasons) == 1:
        return (f"{first[0]} is not a readable image ({reasons[first[0]]}): fix or remove it, or "
                "use --skip-unreadable")
    named = ", ".join(f"{path} ({reasons[path]})" for path in first)
    more = " …" if len(reasons) > FEW_NAMED else ""
    return (f"{len(reasons):,} of {n:,} files are not readable images: {named}{more}: fix or "
            "remove them, or use --skip-unreadable")


def find_unreadable(paths):
    """{path: reason} of all files that cannot be decoded whole; decodes all of them."""
    parts = in_parallel(try_to_decode, paths, "checking images")
    reasons = itertools.chain.from_iterable(parts)
    return {path: reason for path, reason in zip(paths, reasons) if reason}


def try_to_decode(paths):
    """For each file why it cannot be decoded; "" if it can."""
    reasons = []
    for path in paths:
        reason = ""
        try:
            with Image.open(path) as image:
                image.draft("RGB", (64, 64))    # faster, and yet reads a JPEG to its end
                to_rgb(image)
        except Exception as error:      # PIL raises many kinds
            reason = reason_of(error)
        reasons.append(reason)
    return reasons


@contextlib.contextmanager
def listing_unreadable(paths):
    """Instead of the first unreadable file, which raises OSError, names all of them."""
    try:
        yield
    except OSError as error:
        reasons = find_unreadable(paths)
        if not reasons:
            raise
        raise OSError(all_broken(reasons, len(paths))) from error


# --- random crops of files --------------------------------------------------------------------

class PlannedBatch(NamedTuple):
    """The images of one training step. Seed and step determine all its random numbers."""
    seed: int
    step: int               # of its epoch, from 0
    index: torch.Tensor     # n, int64, on the CPU: indices into the training set


def stream_crops(paths, plan, recipe, size, pin=False):
    """Yields both views' random crops of each PlannedBatch: uint8, 2 × n × 3 × size × size.

    Worker processes prefetch a few batches: they decode each file once, and crop and mirror it
    twice. augment(…, cropped=True) does the rest of the augmentation. plan: an iterable, read as
    far ahead as the workers are; a whole run's keeps them busy between epochs too. recipe: a key
    of AUGMENTATIONS. pin: whether to use pinned memory, for faster copies to a GPU.
    Raises OSError for a file that cannot be read. The workers end with the generator.
    """
    check_open_files()
    plan = iter(plan)
    first = next(plan)
    workers, ahead = workers_and_batches_ahead(2 * len(first.index) * 3 * size ** 2)
    loader = DataLoader(
        Crops(paths, AUGMENTATIONS[recipe]["scale"], size),
        # plain numbers: sending part of a tensor would copy all of it to shared memory
        sampler=((planned.seed, planned.step, planned.index.tolist())
                 for planned in itertools.chain([first], plan)),
        batch_size=None,                            # each is a batch already
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=pin,
        timeout=PATIENCE,
        worker_init_fn=start_worker,
    )
    yield from from_workers(loader)


def workers_and_batches_ahead(batch_bytes):
    """The number of worker processes, and of batches of this size that each may prefetch.

    All batches take at most an eighth of the machine's memory, and half of the free shared
    memory, of which containers often have little.
    """
    room = machine_memory() / 8
    if os.path.isdir(SHARED_MEMORY):
        room = min(room, shutil.disk_usage(SHARED_MEMORY).free / 2)
    fitting = int(room / distributed.LOCAL_WORLD_SIZE / batch_bytes)
    workers = max(1, min(worker_count(), fitting // 2))
    return workers, max(1, min(3, fitting // workers))


class Crops(Dataset):
    """A dataset for DataLoader's workers: a planned batch → its crops, or broken()'s text."""

    def __init__(self, paths, scale, size):
        self.paths = paths
        self.scale = scale
        self.size = size

    def __getitem__(self, planned):
        seed, step, files = planned
        generator = torch.Generator().manual_seed(mixed_seed(seed, step, CROPS))
        rand = functools.partial(torch.rand, generator=generator)

        crops = np.empty((2, len(files), self.size, self.size, 3), np.uint8)
        for i, file in enumerate(files):
            path = self.paths[file]
            try:
                image, boxes = open_for_crops(path, self.scale, self.size, rand)
            except Exception as error:
                return broken(path, error)
            for view, box in enumerate(boxes):
                crops[view, i] = cut(image, box, self.size)
        return torch.from_numpy(crops).permute(0, 1, 4, 2, 3)   # 2 × n × 3 × size × size


def open_for_crops(path, scale, size, rand):
    """Draws both crops' boxes; returns an RGB image, as large as the crops need, and the boxes."""
    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION, 1) > 4:    # stored turned by 90°
            width, height = height, width
        drawn = random_boxes(2, scale, rand, shape=height / width)
        boxes = [Boxes(*map(float, numbers)) for numbers in zip(*drawn)]    # as plain numbers

        # a JPEG decodes faster at 1/2, 1/4 or 1/8 of its size: use the smallest one at which no
        # crop needs enlarging
        shortest = min(min(box.width * width, box.height * height) for box in boxes)
        reduction = size / shortest
        image.draft("RGB", tuple(round(length * reduction) for length in image.size))
        return to_rgb(image), boxes


def cut(image, box, size):
    """Crops a PIL image to the box, resizes and perhaps mirrors it: uint8, size × size × 3."""
    left = (1 + box.centre_x - box.width) / 2 * image.width
    top = (1 + box.centre_y - box.height) / 2 * image.height
    right = min(image.width, left + box.width * image.width)
    bottom = min(image.height, top + box.height * image.height)
    part = (max(0, left), max(0, top), right, bottom)
    crop = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part))
    return crop[:, ::-1] if box.flip else crop
