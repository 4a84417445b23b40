"""How fast training is on this machine.

    python -m tools.bench                       ResNet-18, CIFAR-sized images
    python -m tools.bench --width 16 --projector 512-512-512        what a CPU trains in hours

step         train.py's step and its parts, beside the bare networks' step: random input that is
             on the device already, the outputs' mean as the loss, torch's SGD. MFU: the bare
             step's FLOPs per second of the whole step, over the speed of a matrix product
evaluation   an α update and an evaluation, beside an epoch of 50,000 images
methods      every method's step, never compiled: time, operations, bytes that these read and write
             as if nothing stayed in a cache; on a GPU also launched kernels, waits and copies. An
             operation is a call of PyTorch's own that computes, such as a product: on a CPU their
             number stands in for that of launches, which is somewhat larger
images       augmentation; decoding JPEGs, with two crops of 224 pixels of each; on one core

Times are medians after warming up. Functions that are compared take turns, so that a machine
that slows down does so for all. Peak memory is a step's on a GPU, this process's on a CPU.
"""
import statistics
import sys
import tempfile
import time
from functools import partial

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import probe
import train
from augment import AUGMENTATIONS, augment, augment_with, normalise
from baselines import METHODS
from data import batches_of_views, plan_batches
from losses import adadim
from metrics import effective_rank, knn_accuracy, representation_metrics
from models import RESNETS, encode, memory_layout
from optim import make_optimizer
from plumbing import cli, compiling
from plumbing.images import Crops

IMAGES = 4096               # random ones, on the device, that batches are drawn from
EPOCH_IMAGES = 50_000
ADADIMS_PROJECTOR = "2048-2048-2048"
PASSED_IMAGES = 128         # whose passes through the networks are timed for an evaluation
NORMALISATION = {"mean": [0.5] * 3, "std": [0.25] * 3}


# --- timing ---------------------------------------------------------------------------------------

def timed(functions, device, budget=0.0):
    """Median time of one call of each function of a dict, in seconds: {name: time}.

    The functions take turns: one to warm up, then at least one, and more within `budget` seconds.
    """
    calls = 10 if device.type == "cuda" else 1      # waiting for a GPU takes time
    times = {name: [] for name in functions}
    turn, began = 0, time.perf_counter()
    while turn < 2 or (time.perf_counter() - began) * (turn + 1) / turn < budget:
        turn += 1
        for name, function in functions.items():
            cli.show_progress(f"  {name}, turn {turn}")
            cli.synchronise(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            cli.synchronise(device)
            times[name].append((time.perf_counter() - start) / calls)
    cli.show_progress("")
    return {name: statistics.median(values[1:]) for name, values in times.items()}


# --- a training on random images ------------------------------------------------------------------

def random_data(args, device):
    """Images and labels on the device, as data.load() returns them."""
    size = args.image_size
    images = torch.randint(256, (IMAGES, 3, size, size), dtype=torch.uint8)
    return {"train_x": images.to(device), "train_y": torch.randint(10, (IMAGES,)).to(device),
            "image_size": size, "stem": "small" if size <= 64 else "imagenet",
            "classes": range(10), "streamed": False, **NORMALISATION}


class Training:
    """Networks, optimiser and batches of one method; step() is train.py's training step."""

    def __init__(self, args, device, data, method="adadim", compiled=False):
        # the learning rate: thousands of steps on noise must not end in NaN, on which some
        # kernels are slow, or fast
        words = [f"--method={method}", f"--batch-size={args.batch_size}", "--lr=1e-9"]
        for flag in ("arch", "width", "precision"):
            words.append(f"--{flag}={getattr(args, flag)}")
        if method == "adadim" or args.projector != ADADIMS_PROJECTOR:   # else the method's own
            words.append(f"--projector={args.projector}")
        settings = train.parse_args(words)
        self.learner = train.make_learner(settings, data, device)
        groups = self.learner.param_groups(settings)
        self.optimizer = make_optimizer(settings.optimizer, groups)
        self.autocast, self.scaler = train.mixed_precision(args.precision, device)
        self.clip = settings.clip
        self.progress = torch.tensor(0.5, dtype=torch.float64, device=device)

        view_of = augment_with
        if compiled:
            compiling.compile_networks(self.learner, device)
            view_of = torch.compile(augment_with)
        plan = plan_batches(IMAGES, args.batch_size, seed=0, epochs=1_000_000)
        layout = memory_layout(device, args.precision, args.width)
        self.batches = batches_of_views(data, plan, settings.augment, layout, view_of)

    def step(self):
        _, kept = train.training_step(self.learner, self.learner, self.optimizer, self.scaler,
                                      self.autocast, self.clip, next(self.batches), self.progress)
        self.learner.method.after_step(kept, 0, self.progress)

    def random_outputs(self, n):
        """Representations r (n × p) and embeddings z (n × d)."""
        device = self.progress.device
        p = self.learner.probe.linear.in_features
        d = self.learner.method.projector[-1].out_features
        return torch.rand(n, p, device=device), torch.randn(n, d, device=device)


def choose_batch(args, device, data):
    """256; on a CPU the largest power of two from 8 to 256 whose step takes a hundredth of
    --minutes."""
    if device.type == "cuda":
        return 256
    args.batch_size = 8
    trial = Training(args, device, data)
    per_image = timed({"trial": trial.step}, device)["trial"] / 8
    batch_size = 8
    while batch_size < 256 and 2 * batch_size * per_image <= 0.6 * args.minutes:
        batch_size *= 2
    return batch_size


# --- the parts: each returns {name: {unit: number}} -----------------------------------------------

def bare_loss(learner, views):
    """The mean of embeddings (2n × d) and of the probe's logits (2n × classes)."""
    r = learner.method.encoder(views)                       # 2n × p
    z = learner.method.projector(r)
    return z.float().mean() + learner.probe.linear(r.detach()).float().mean()


def count_flops(learner, views):
    """FLOPs of one forward and backward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        bare_loss(learner, views).backward()
    return counter.get_total_flops()


def peak_memory(step, device):
    """Bytes: of one step on a GPU, of this process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    import resource         # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_step(training, args, device, budget):
    learner, autocast = training.learner, training.autocast
    views, _, _ = next(training.batches)
    loss_of_views = torch.compile(bare_loss) if args.compile else bare_loss
    sgd = torch.optim.SGD(learner.parameters(), lr=1e-9, momentum=0.9)

    def bare_step():
        with autocast:
            loss = loss_of_views(learner, views)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    def forward():
        with autocast, torch.no_grad():
            bare_loss(learner, views)

    r, z = [x.requires_grad_() for x in training.random_outputs(len(views))]

    def losses():
        loss, _ = adadim(*r.chunk(2), *z.chunk(2), alpha=0.4)
        torch.autograd.grad(loss, (r, z))

    parts = {"augmentation": partial(next, training.batches), "networks, forward": forward,
             "losses and their gradient": losses, "LARS": training.optimizer.step}
    times = timed({"whole": training.step, "bare": bare_step, **parts}, device, budget)
    whole = times["whole"]

    with autocast:
        flops = count_flops(learner, views)
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=train.DTYPES[args.precision])
    product = timed({"matrix product": partial(torch.matmul, a, b)}, device, budget=1.0)
    speed = 2 * n ** 3 / product["matrix product"]          # FLOP/s

    shares = {part: 100 * times[part] / whole for part in parts}
    shares["networks, backward, and the rest"] = 100 - sum(shares.values())
    return {
        "whole step": {"ms": 1e3 * whole, "images/s": args.batch_size / whole},
        "bare networks' step": {"ms": 1e3 * times["bare"]},
        "whole over bare": {"%": 100 * whole / times["bare"]},
        "MFU": {"%": 100 * flops / whole / speed},
        "matrix product": {"TFLOP/s": speed / 1e12},
        "peak memory": {"GB": peak_memory(training.step, device) / 1e9},
        **{part: {"% of the whole step": share} for part, share in shares.items()},
    }


def measure_evaluation(training, args, device, data, step):
    """step: seconds of a training step.

    Times are scaled up from fewer images. For the metrics, part constant, part linear and part
    quadratic in their number, that was 20 % too much on a CPU, from a quarter of the images.
    """
    images = data["train_x"][:PASSED_IMAGES]
    few = probe.METRIC_IMAGES // 4
    r, z = training.random_outputs(few)
    labels = torch.arange(few, device=device) % 10
    bank = slice(probe.BANK_IMAGES)
    method = training.learner.method

    def passes():
        with training.autocast:
            encode(images, method.encoder, method.projector, **NORMALISATION)

    times = timed({
        "α update": partial(effective_rank, z[:args.batch_size]),
        "networks": passes,
        "metrics": partial(representation_metrics, r, z),
        "k-NN": partial(knn_accuracy, r[bank], labels[bank], r, labels),
    }, device)
    passed = probe.METRIC_IMAGES + probe.BANK_IMAGES + 2 * probe.VIEW_IMAGES
    times["networks"] *= passed / PASSED_IMAGES
    times["metrics"] *= 4
    times["k-NN"] *= 4
    times["evaluation, all three"] = times["networks"] + times["metrics"] + times["k-NN"]
    times["α update"] *= method.measured.batches
    epoch = EPOCH_IMAGES / args.batch_size * step
    return {name: {"s": seconds, "% of an epoch": 100 * seconds / epoch}
            for name, seconds in times.items()}


def measure_methods(args, device, data, budget):
    steps = {name: Training(args, device, data, name).step for name in METHODS}
    times = timed(steps, device, budget)
    return {name: {"ms": 1e3 * seconds, "% of AdaDim's": 100 * seconds / times["adadim"],
                   **count_operations(steps[name], device)}
            for name, seconds in times.items()}


class Operations(TorchDispatchMode):
    """In its block: the number of operations that compute, and the bytes of their tensors."""

    def __init__(self):
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view and "empty" not in operation.__name__:
            tensors = filter(torch.is_tensor, tree_leaves((args, kwargs, result)))
            self.count += 1
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def count_operations(step, device):
    """{unit: number} of one step."""
    with Operations() as operations:
        step()
    found = {"operations": operations.count, "GB": operations.bytes / 1e9}
    if device.type == "cuda":
        found |= count_calls(step)
    return found


def count_calls(step):
    """{unit: number} of one step's calls to CUDA."""
    with torch.profiler.profile() as profiler:
        step()
    calls = {event.key: event.count for event in profiler.key_averages()}
    kinds = {"launches": "LaunchKernel", "waits": "StreamSynchronize", "copies": "MemcpyAsync"}
    return {unit: sum(count for name, count in calls.items() if part in name)
            for unit, part in kinds.items()}


def measure_images(data):
    n, size = 64, data["image_size"]
    images = data["train_x"][:n].cpu()

    def views():
        normalise(augment(images), **NORMALISATION)

    functions = {f"views of {size} pixels": views}
    torch.set_num_threads(1)        # for the rest of the program: this part is the last one
    with tempfile.TemporaryDirectory() as folder:
        for height in (375, 256):       # ImageNet's, and after data.py --resize 256
            width = height * 4 // 3
            path = f"{folder}/{height}.jpg"
            noise = Image.effect_noise((width, height), 16)     # half a byte per pixel as JPEG
            noise.convert("RGB").save(path, quality=90)
            crops = Crops([path], AUGMENTATIONS["vicreg"]["scale"], size=224)
            functions[f"JPEGs of {width} × {height} pixels"] = partial(
                crops.__getitem__, (0, 0, n * [0]))     # seed, step, files
        times = timed(functions, torch.device("cpu"), budget=5.0)
    return {name: {"a second": n / seconds} for name, seconds in times.items()}


# --- the program ----------------------------------------------------------------------------------

def measure(args, device):
    """Measures and prints all parts; returns {part: {name: {unit: number}}}."""
    print(f"{describe(args, device)}\nabout {args.minutes:g} minutes: train.py's step and its "
          "parts, evaluations, every method's step, images", flush=True)
    torch.manual_seed(0)
    data = random_data(args, device)
    args.batch_size = args.batch_size or choose_batch(args, device, data)
    training = Training(args, device, data, compiled=args.compile)
    seconds = 60 * args.minutes

    step = measure_step(training, args, device, 0.25 * seconds)
    show(f"step, with a batch of {args.batch_size} images", step)
    step_seconds = step["whole step"]["ms"] / 1e3
    evaluation = measure_evaluation(training, args, device, data, step_seconds)
    show(f"evaluation, and an epoch of {EPOCH_IMAGES:,} images", evaluation)
    methods = measure_methods(args, device, data, 0.4 * seconds)
    show("methods", methods)
    images = measure_images(data)
    show("images, on one core", images)
    return {"step": step, "evaluation": evaluation, "methods": methods, "images": images}


def show(title, figures):
    print(f"\n{title}")
    for name, numbers in figures.items():
        columns = []
        for unit, number in numbers.items():
            digits = 2 if number < 1000 else 0
            columns.append(f"{number:12,.{digits}f} {unit:8}")
        print(f"  {name:34}{''.join(columns).rstrip()}", flush=True)


def describe(args, device):
    """The machine and the networks."""
    where = f"{torch.get_num_threads()} threads of a CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return (f"{where}, PyTorch {torch.__version__}: {args.arch} of width {args.width}, projector "
            f"{args.projector}, {args.image_size} pixels, {args.precision}"
            f"{', compiled' * args.compile}")


def add_flags(add):
    """The flags of the networks and the device; peer.py has them too."""
    add("--arch", default="resnet18", choices=tuple(RESNETS), help="encoder")
    add("--width", default=64, type=cli.whole_number(1), metavar="N",
        help="channels of its first stage")
    add("--projector", default=ADADIMS_PROJECTOR, type=cli.layer_sizes, metavar="SIZES",
        help="layer sizes")
    add("--image-size", default=32, type=cli.whole_number(1), metavar="N", help="in pixels")
    add("--precision", default="auto", choices=("auto", *train.DTYPES), help="as in train.py")
    add("--compile", action="store_true", help="use torch.compile; its minutes come on top")
    add("--device", default="auto", type=cli.device_name, help="cpu, cuda, cuda:1 …")


def open_device(args):
    """The device, with cuDNN's fastest convolutions as in training; settles --precision auto."""
    torch.backends.cudnn.benchmark = True
    device = cli.open_device(args.device)
    if args.precision == "auto":
        args.precision = cli.fast_precision(device)
    return device


def parse_args(argv):
    parser = cli.Parser("bench.py", __doc__)
    add_flags(parser.add_argument)
    parser.add_argument("--batch-size", type=cli.whole_number(2, IMAGES), metavar="N",
                        help="images per step (default: 256; on a CPU, fewer if it is slow)")
    parser.add_argument("--minutes", default=2.5, type=cli.number(0), metavar="N",
                        help="roughly; the longer, the more steps are timed")
    return parser.parse_args(argv)


def main(argv=None):
    with cli.one_line_errors("bench.py"):
        args = parse_args(argv)
        measure(args, open_device(args))


if __name__ == "__main__":
    main()
