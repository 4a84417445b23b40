"""How fast this is: the training step beside bare networks, other losses and PIL, in one run.

    python bench.py                     ResNet-18 and batches of 256 CIFAR-sized images
    python bench.py --arch resnet50 --compile --json bench.json
    python bench.py --width 16 --projector 512-512-512          what a CPU trains in minutes
    python bench.py --methods           every method's step, and its memory

Times are medians of many steps after warming up; what is compared takes turns, so that a machine
that slows down does so for all. Nothing is checked against a bound: machines differ.

captured        the whole step as a CUDA graph; on a GPU alone
whole           train.py's step: two views of each image, networks, losses, backward pass, LARS
bare            the same networks on random input that is on the device already, with a mean as
                the loss and torch's SGD: what the step would cost if all else were free
simclr, vicreg  the whole step with that one loss in place of AdaDim's; left out with --compile,
                where each would compile the networks once more
MFU             model FLOP/s utilisation: the FLOPs that torch counts in the bare step, per second
                of the whole step, over the speed of a large matrix product in the same precision
parts           what each takes by itself, not compiled, as a share of the whole step
memory          the peak: of the step on a GPU, of this process so far on a CPU
evaluation      what one takes beside an epoch: its networks' passes, its metrics and k-NN
one core        augmentation of a batch, beside torchvision's PIL transforms, image by image
streamed        JPEGs to two crops of 224 pixels each, in worker processes: of 375 × 500 pixels,
                and as data.py --resize 256 stores them
losses          time of value and gradient, bytes kept for the gradient, as batch and width grow
"""
import contextlib
import copy
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

import cli
import probe
import train
from augment import AUGMENTATIONS, augment, augment_with, normalise
from baselines import METHODS
from capture import CapturedStep
from data import batches_of_views, plan_batches
from images import stream_crops, workers_and_batches_ahead
from losses import adadim, info_nce, matrix_mutual_information, vicreg
from methods import AdaDim, Method, StepResult
from metrics import effective_rank, knn_accuracy, representation_metrics
from models import RESNETS, encode, memory_layout, resnet

CPU = torch.device("cpu")
IMAGES = 4096               # random ones, on the device, that batches are of
PASSED_IMAGES = 512         # whose passes through the networks are timed for an evaluation
EPOCH_IMAGES = 50_000       # of the epoch with which α updates and evaluations are compared
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


# --- the step and its rivals ------------------------------------------------------------------

class OneLoss(Method):
    """A method as somebody would write it who has nothing but its loss in mind."""

    def forward(self, views, index, progress):
        r = self.encoder(views)                         # 2n × p
        z1, z2 = self.projector(r).chunk(2)             # n × d each
        return StepResult(self.loss(z1, z2), {}, r, {})


class SimCLR(OneLoss):
    loss = staticmethod(info_nce)


class VICReg(OneLoss):
    loss = staticmethod(vicreg)


RIVALS = {"simclr": SimCLR, "vicreg": VICReg}


def set_up(args, device):
    """What all learners are trained with, as in train.train; args.precision is not auto."""
    # the learning rate: thousands of steps on noise must not end in NaN, on which some kernels
    # are slow, or fast
    settings = train.parse_args([f"--projector={args.projector}", "--alpha=0.4", "--lr=1e-9",
                                 f"--batch-size={args.batch_size}"])
    layout = memory_layout(device, args.precision, args.width)
    noise = torch.randn(2 * args.batch_size, 3, args.image_size, args.image_size, device=device)
    autocast, scaler = train.mixed_precision(args.precision, device)
    return SimpleNamespace(
        args=args, settings=settings, device=device, layout=layout,
        autocast=autocast, scaler=scaler,
        batches=endless_batches(args, device, layout),
        noise=noise.contiguous(memory_format=layout),           # 2n × 3 × s × s
    )


def endless_batches(args, device, layout):
    """Epoch after epoch of batches of random images, as training has them."""
    shape = (IMAGES, 3, args.image_size, args.image_size)
    data = {"train_x": torch.randint(256, shape, dtype=torch.uint8).to(device),
            "train_y": torch.randint(10, (IMAGES,)).to(device),
            "image_size": args.image_size, "streamed": False, **NORMALISATION}
    view_of = torch.compile(augment_with) if args.compile else augment_with
    plan = plan_batches(IMAGES, args.batch_size, seed=0, epochs=1_000_000)
    return batches_of_views(data, plan, "vicreg", layout, view_of)


def make_learner(kind, setup):
    """A train.Learner whose method is of this class."""
    args = setup.args
    encoder, p = resnet(args.arch, args.width, "small" if args.image_size <= 64 else "imagenet")
    method = kind(setup.settings, encoder, p, IMAGES)
    learner = train.Learner(method, probe.OnlineProbe(encoder, p, n_classes=10))
    learner.to(setup.device, memory_format=setup.layout)
    if args.compile:
        learner.compile()
    return learner


def make_optimizer(learner, setup):
    return train.make_optimizer(setup.settings.optimizer, learner.param_groups(setup.settings))


def training_step(learner, setup, captured=False):
    """train.py's step on random images, as a function without arguments. captured: as a CUDA
    graph."""
    optimizer = make_optimizer(learner, setup)
    progress = torch.tensor(0.5, dtype=torch.float64, device=setup.device)
    of_batch = partial(train.training_step, learner, learner, optimizer, setup.scaler,
                       setup.autocast, setup.settings.clip)
    if captured:
        of_batch = CapturedStep(of_batch, optimizer, setup.device)

    def step():
        _, kept = of_batch(next(setup.batches), progress)
        learner.method.after_step(kept, 0, progress)
    return step


def bare_networks(learner, views):
    """Embeddings (2n × d) and the probe's logits (2n × classes), without any loss."""
    r = learner.method.encoder(views)
    return learner.method.projector(r), learner.probe.linear(r.detach())


def bare_step(learner, setup):
    """Forward and backward pass of the networks, and SGD, as a function without arguments."""
    networks = torch.compile(bare_networks) if setup.args.compile else bare_networks
    sgd = torch.optim.SGD(learner.parameters(), lr=1e-9, momentum=0.9)

    def step():
        with setup.autocast:
            z, logits = networks(learner, setup.noise)
        loss = z.float().mean() + logits.float().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return step


# --- all methods ------------------------------------------------------------------------------

def step_of_method(name, shared):
    """A step of one of baselines.METHODS, with shared.args' projector and else its own settings."""
    args = shared.args
    setup = SimpleNamespace(**vars(shared))
    setup.settings = train.parse_args([
        f"--method={name}", f"--projector={args.projector}", "--lr=1e-9",
        f"--batch-size={args.batch_size}"])
    return training_step(make_learner(METHODS[name], setup), setup)


def memory_of_method(name, args, device_name):
    """Bytes, the peak of two steps; on a CPU, of the whole process, which should be a new one."""
    device = open_device(device_name)
    step = step_of_method(name, set_up(args, device))
    step()
    return peak_memory(step, device)


def open_device(name):
    """cli.open_device; and the fastest of cuDNN's convolutions, as in training."""
    torch.backends.cudnn.benchmark = True
    return cli.open_device(name)


def measure_methods(args, device):
    """{method: {"step_s", "over_adadim", "peak_memory_bytes"}}."""
    # memory first, in a process for each: a peak is never forgotten, and even inherited
    peaks = {}
    for name in METHODS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                peaks[name] = pool.submit(memory_of_method, name, args, str(device)).result()
            except BrokenProcessPool as error:
                raise cli.BadInput(f"{name} was killed, probably for want of memory: try a smaller "
                                   "--batch-size") from error
    shared = set_up(args, device)
    steps = {name: step_of_method(name, shared) for name in METHODS}
    times = seconds(steps, device, args.steps, calls_at_a_time(device))
    return {name: {"step_s": times[name], "over_adadim": times[name] / times["adadim"],
                   "peak_memory_bytes": peaks[name]} for name in METHODS}


def show_methods(found):
    print("\nmethods, with one projector   ms per step   over AdaDim's   peak memory, GB")
    for name, f in found.items():
        print(f"  {name:24}{1e3 * f['step_s']:14.1f}{f['over_adadim']:16.3f}"
              f"{f['peak_memory_bytes'] / 1e9:18.2f}")


# --- what a step takes, and what an epoch takes beside its steps --------------------------------

def random_outputs(n, learner, setup):
    """Representations r (n × p) and embeddings z (n × d)."""
    p = learner.probe.linear.in_features
    d = learner.method.projector[-1].out_features
    return torch.rand(n, p, device=setup.device), torch.randn(n, d, device=setup.device)


def parts(learner, setup):
    """The step's parts, {name: a function without arguments}; LARS needs a step before."""
    r, z = random_outputs(2 * setup.args.batch_size, learner, setup)
    labels = torch.zeros(setup.args.batch_size, dtype=torch.int64, device=setup.device)

    @torch.no_grad()
    def forward(network, x):
        with setup.autocast:
            network(x)

    def probe_loss(r):
        loss, _ = learner.probe(r, None, labels)
        return loss

    return {
        "augmentation, both views": partial(next, setup.batches),
        "encoder, forward": partial(forward, learner.method.encoder, setup.noise),
        "projector, forward": partial(forward, learner.method.projector, r),
        "InfoNCE, with gradient": partial(value_and_gradient, LOSSES["info_nce"], r, z),
        "VICReg, with gradient": partial(value_and_gradient, LOSSES["vicreg"], r, z),
        "I(R;Z), with gradient": partial(value_and_gradient, LOSSES["mi"], r, z),
        "probe, with gradient": partial(value_and_gradient, probe_loss, r),
        "LARS": make_optimizer(learner, setup).step,
    }


def between_steps(learner, setup, epoch):
    """What comes with an epoch of so many seconds: an α update, and an evaluation, in parts.

    The networks' passes are timed on 512 images, and counted for all that probe.py takes.
    """
    _, z = random_outputs(setup.args.batch_size, learner, setup)
    rank = seconds({"rank": partial(effective_rank, z)}, setup.device, 3)["rank"]
    alpha_update = setup.settings.alpha_batches * rank

    pieces = seconds(evaluation_pieces(learner, setup), setup.device, 1)     # each takes long
    views = 2 * probe.VIEW_IMAGES
    passes = (probe.METRIC_IMAGES + probe.BANK_IMAGES + views) / PASSED_IMAGES
    pieces["networks"] *= passes
    evaluation = sum(pieces.values())
    return {"alpha_update_s": alpha_update, "alpha_update_over_epoch": alpha_update / epoch,
            "evaluation_s": evaluation, "evaluation_over_epoch": evaluation / epoch,
            "evaluation_parts": {piece: time / epoch for piece, time in pieces.items()}}


def evaluation_pieces(learner, setup):
    """What probe.evaluate does, {name: a function without arguments}; of the networks, a part."""
    size = setup.args.image_size
    images = torch.randint(256, (PASSED_IMAGES, 3, size, size), dtype=torch.uint8)
    images = images.to(setup.device)
    r, z = random_outputs(probe.METRIC_IMAGES, learner, setup)
    labels = torch.arange(len(r), device=setup.device) % 10
    bank = slice(probe.BANK_IMAGES)

    def passes():
        with setup.autocast:
            encode(images, learner.method.encoder, learner.method.projector, **NORMALISATION)

    return {"networks": passes, "metrics": partial(representation_metrics, r, z),
            "k-NN": partial(knn_accuracy, r[bank], labels[bank], r, labels)}


def peak_memory(step, device):
    """Bytes: of one step on a GPU, of this process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    import resource         # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def count_flops(learner, image_size, batch_size):
    """FLOPs of one forward and backward pass of two views of each image, as torch counts them."""
    learner = copy.deepcopy(learner).to("meta")         # shapes alone: nothing is computed
    views = torch.empty(2 * batch_size, 3, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        z, _ = bare_networks(learner, views)
        z.mean().backward()
    return counter.get_total_flops()


def peak_flops(dtype, device):
    """FLOP/s of a large square matrix product: what the device can do."""
    n = 8192 if device.type == "cuda" else 3072
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    times = seconds({"product": lambda: a @ b}, device, 10, calls_at_a_time(device))
    return 2 * n ** 3 / times["product"]


# --- beside PIL, and with growing inputs --------------------------------------------------------

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


# --- all figures --------------------------------------------------------------------------------

def measure(args, device):
    """All figures, as a dict."""
    torch.manual_seed(0)
    found = {"device": f"{torch.get_num_threads()} threads of a CPU", "torch": torch.__version__}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    for flag in ("arch", "width", "projector", "image_size", "batch_size", "precision", "compile"):
        found[flag] = getattr(args, flag)

    if args.methods:
        return found | {"methods": measure_methods(args, device)}
    found |= measure_step(set_up(args, device))
    if not args.step_only:
        found |= augmentation_on_one_core(args.image_size)
        found["streamed"] = {stored: streaming(stored) for stored in STORED}
        found["losses"] = growth(device)
    return found


def measure_step(setup):
    """The figures that concern the step, as a dict."""
    args = setup.args
    device = setup.device
    found = {}

    # the first one, and memory, before the rivals take theirs
    learner = make_learner(AdaDim, setup)
    whole = training_step(learner, setup)
    start = time.perf_counter()
    whole()
    finish(device)
    found["first_step_s"] = time.perf_counter() - start
    found["peak_memory_bytes"] = peak_memory(whole, device)

    # beside its rivals
    steps = {"whole": whole, "bare": bare_step(learner, setup)}
    if not args.compile:
        for name, kind in RIVALS.items():
            steps[name] = training_step(make_learner(kind, setup), setup)
    if device.type == "cuda" and args.precision != "fp16" and not args.compile:
        steps["captured"] = training_step(make_learner(AdaDim, setup), setup, captured=True)
    block = calls_at_a_time(device)
    times = seconds(steps, device, args.steps, block)
    step = times["whole"]
    found |= {"step_s": step, "samples_per_s": args.batch_size / step,
              "bare_s": times["bare"], "step_over_bare": step / times["bare"]}
    if "captured" in times:
        found["captured_over_step"] = times["captured"] / step
    for name in RIVALS.keys() & times.keys():
        found[f"adadim_over_{name}"] = step / times[name]

    # beside what the device could do
    found["flops_per_step"] = count_flops(learner, args.image_size, args.batch_size)
    found["peak_flops_per_s"] = peak_flops(train.DTYPES[args.precision], device)
    found["mfu"] = found["flops_per_step"] / step / found["peak_flops_per_s"]

    # its parts, and what comes between steps
    part_times = seconds(parts(learner, setup), device, args.steps, block)
    found["parts"] = {part: part_time / step for part, part_time in part_times.items()}
    found["parts"]["backward of the networks, and the rest"] = 1 - sum(found["parts"].values())
    return found | between_steps(learner, setup, EPOCH_IMAGES / args.batch_size * step)


def show(found):
    """Prints the figures."""
    f = SimpleNamespace(**found)
    compiled = ", compiled" if f.compile else ""
    print(f"{f.device}, PyTorch {f.torch}: {f.arch} of width {f.width}, projector {f.projector}, "
          f"batch {f.batch_size}, {f.image_size} pixels, {f.precision}{compiled}\n")
    if "methods" in found:
        show_methods(f.methods)
        return
    figures = {
        "whole step": f"{1e3 * f.step_s:.1f} ms, {f.samples_per_s:,.0f} samples/s "
                      f"(the first, with all that it builds: {f.first_step_s:.1f} s)",
        "bare step": f"{1e3 * f.bare_s:.1f} ms: the whole one takes {f.step_over_bare:.3f} of it",
    }
    if not f.compile:
        figures["beside SimCLR, VICReg"] = (f"{f.adadim_over_simclr:.3f} and "
                                            f"{f.adadim_over_vicreg:.3f} of their steps")
    if "captured_over_step" in found:
        figures["captured step"] = f"{f.captured_over_step:.3f} of the whole one's time"
    evaluation_parts = ", ".join(f"{part} {share:.2%}" for part, share
                                 in f.evaluation_parts.items())
    figures |= {
        "MFU": f"{f.mfu:.1%} of {f.peak_flops_per_s / 1e12:.2g} TFLOP/s; "
               f"{f.flops_per_step / 1e12:.2f} TFLOP per step",
        "peak memory": f"{f.peak_memory_bytes / 1e9:.2f} GB",
        "α update": f"{f.alpha_update_s:.2f} s, {f.alpha_update_over_epoch:.2%} of an epoch of "
                    f"{EPOCH_IMAGES:,}",
        "evaluation": f"{f.evaluation_s:.2f} s, {f.evaluation_over_epoch:.1%} of that epoch "
                      f"({evaluation_parts})",
    }
    for label, text in figures.items():
        print(f"{label:24}{text}")
    print("\nparts, of the whole step")
    for part, share in f.parts.items():
        print(f"  {part:40}{share:7.1%}")
    if "losses" in found:
        show_the_rest(f)


def show_the_rest(f):
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


def parse_args(argv):
    parser = cli.Parser("bench.py", __doc__)
    add = parser.group("what is timed")
    add("--arch", "resnet18", RESNETS, "encoder")
    add("--width", 64, cli.whole_number(1), "channels of its first stage", "N")
    add("--projector", "2048-2048-2048", cli.layer_sizes, "layer sizes", "SIZES")
    add("--batch-size", 256, cli.whole_number(2, IMAGES), "images per step", "N")
    add("--image-size", 32, cli.whole_number(1), "in pixels", "N")
    add("--precision", "auto", ("auto", *train.DTYPES), "auto: as train.py chooses it")
    add("--compile", False, bool, "networks and losses with torch.compile, in the bare step too")
    add("--methods", False, bool, "nothing but a step of every method, in time and memory")
    add("--step-only", False, bool, "leave out what does not concern the step")
    add = parser.group("how")
    add("--steps", 15, cli.whole_number(1), "that medians are of; ten times as many on a GPU", "N")
    add("--device", "auto", cli.device_name, "cpu, cuda, cuda:1 …; auto: a GPU if there is one")
    add("--json", None, Path, "write the figures here too", "FILE")
    return parser.parse_args(argv)


def main(argv=None):
    with cli.one_line_errors("bench.py"):
        args = parse_args(argv)
        cli.check_output_file(args.json, "--json")
        device = open_device(args.device)
        if args.precision == "auto":
            args.precision = cli.fast_precision(device)
        found = measure(args, device)
        show(found)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
