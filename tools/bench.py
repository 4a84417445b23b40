"""How fast this is: the training step beside bare networks, and an evaluation beside an epoch.

    python -m tools.bench                           ResNet-18, CIFAR-sized images
    python -m tools.bench --width 16 --projector 512-512-512        what a CPU trains in hours
    python -m tools.bench --methods                 every method's step, and its memory

whole       train.py's step: views, networks, losses, backward pass, clipping, LARS
bare        the same networks on random input that is on the device already, with a mean as the
            loss and torch's SGD: what the step would cost if all else were free
MFU         the FLOPs that torch counts in the bare step, per second of the whole one, over the
            speed of a large matrix product in the same precision
parts       timed by themselves, not compiled, as shares of the whole step
memory      the peak: of the step on a GPU, of this process so far on a CPU
evaluation  one update of α and one evaluation, as shares of an epoch of 50,000 images

Times are medians after warming up; compared functions take turns, so that a machine that slows
down does so for all. Nothing is checked against a bound: machines differ.
"""
import copy
import json
import math
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

import optim
import probe
import train
from augment import augment_with
from baselines import METHODS
from data import batches_of_views, plan_batches
from losses import adadim
from metrics import effective_rank, knn_accuracy, representation_metrics
from models import RESNETS, encode, memory_layout, resnet
from plumbing import cli

IMAGES = 4096               # random ones, on the device, that batches are drawn from
PASSED_IMAGES = 256         # whose passes through the networks are timed for an evaluation
EPOCH_IMAGES = 50_000
SLOWEST_STEP = 3.0          # seconds: a CPU's batches are as large as that allows
NORMALISATION = {"mean": [0.5] * 3, "std": [0.25] * 3}


# --- timing ---------------------------------------------------------------------------------------

def seconds(functions, device, budget=5.0):
    """Median time of one call of each function of a dict, in seconds: {name: time}.

    They take turns: one to warm up, then three and as many more as `budget` seconds allow. On a
    GPU ten calls are timed together.
    """
    calls = 10 if device.type == "cuda" else 1
    times = {name: [] for name in functions}
    started, turn = time.perf_counter(), 0
    while turn < 4 or time.perf_counter() - started < budget:
        for name, function in functions.items():
            cli.show_progress(f"{name}, turn {turn}")
            cli.synchronise(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            cli.synchronise(device)
            times[name].append((time.perf_counter() - start) / calls)
        turn += 1
    cli.show_progress("")
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def value_and_gradient(loss, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    loss(*leaves).backward()


# --- the step -------------------------------------------------------------------------------------

class Setup:
    """Everything that steps of one network, batch and precision share."""

    def __init__(self, args, device, batch_size):
        self.args, self.device, self.batch_size = args, device, batch_size
        self.layout = memory_layout(device, args.precision, args.width)
        self.autocast, self.scaler = train.mixed_precision(args.precision, device)
        size = (2 * batch_size, 3, args.image_size, args.image_size)
        self.noise = torch.randn(size, device=device).contiguous(memory_format=self.layout)
        self.batches = self.endless_batches()

    def endless_batches(self):
        shape = (IMAGES, 3, self.args.image_size, self.args.image_size)
        data = {"train_x": torch.randint(256, shape, dtype=torch.uint8).to(self.device),
                "train_y": torch.randint(10, (IMAGES,)).to(self.device),
                "image_size": self.args.image_size, "streamed": False, **NORMALISATION}
        view_of = torch.compile(augment_with) if self.args.compile else augment_with
        plan = plan_batches(IMAGES, self.batch_size, seed=0, epochs=1_000_000)
        return batches_of_views(data, plan, "vicreg", self.layout, view_of)

    def learner(self, method="adadim"):
        """A learner and its optimiser, as train.py makes them."""
        # the learning rate: thousands of steps on noise must not end in NaN, on which some
        # kernels are slow, or fast
        words = [f"--method={method}", f"--projector={self.args.projector}", "--lr=1e-9",
                 f"--batch-size={self.batch_size}"]
        settings = train.parse_args(words + ["--alpha=0.4"] * (method == "adadim"))
        stem = "small" if self.args.image_size <= 64 else "imagenet"
        encoder, p = resnet(self.args.arch, self.args.width, stem)
        network = METHODS[method](settings, encoder, p, IMAGES)
        learner = probe.Learner(network, probe.OnlineProbe(encoder, p, n_classes=10))
        learner.to(self.device, memory_format=self.layout)
        if self.args.compile:
            learner.compile()
        return learner, optim.make_optimizer(settings.optimizer, learner.param_groups(settings))

    def training_step(self, learner, optimizer):
        """train.py's step on random images, as a function without arguments."""
        progress = torch.tensor(0.5, dtype=torch.float64, device=self.device)

        def step():
            _, kept = train.training_step(learner, learner, optimizer, self.scaler, self.autocast,
                                          2.0, next(self.batches), progress)
            learner.method.after_step(kept, 0, progress)
        return step

    def bare_step(self, learner):
        """Forward and backward pass of the networks, and SGD, as a function without arguments."""
        networks = torch.compile(bare_networks) if self.args.compile else bare_networks
        sgd = torch.optim.SGD(learner.parameters(), lr=1e-9, momentum=0.9)

        def step():
            with self.autocast:
                z, logits = networks(learner, self.noise)
            loss = z.float().mean() + logits.float().mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        return step


def bare_networks(learner, views):
    """Embeddings (2n × d) and the probe's logits (2n × classes), without any loss."""
    r = learner.method.encoder(views)
    return learner.method.projector(r), learner.probe.linear(r.detach())


def choose_batch(args, device):
    """--batch-size; else 256 or, on a CPU, less: as a trial of 16 images says."""
    if args.batch_size or device.type == "cuda":
        return args.batch_size or 256
    setup = Setup(args, device, 16)
    trial = seconds({"a trial of 16 images": setup.training_step(*setup.learner())}, device, 0)
    per_image = trial["a trial of 16 images"] / 16
    return max(16, min(256, 2 ** int(math.log2(SLOWEST_STEP / per_image))))


def random_outputs(n, learner, device):
    """Representations r (n × p) and embeddings z (n × d)."""
    p = learner.probe.linear.in_features
    d = learner.method.projector[-1].out_features
    return torch.rand(n, p, device=device), torch.randn(n, d, device=device)


def parts_of_step(setup, learner, optimizer):
    """{name: a function without arguments}; the optimiser's needs gradients of an earlier step."""
    r, z = random_outputs(2 * setup.batch_size, learner, setup.device)
    labels = torch.zeros(setup.batch_size, dtype=torch.int64, device=setup.device)

    @torch.no_grad()
    def forward(network, x):
        with setup.autocast:
            network(x)

    def loss(r1, r2, z1, z2):
        return adadim(r1, r2, z1, z2, alpha=0.4)[0]

    def probe_loss(r):
        return learner.probe(r, None, labels)[0]

    return {
        "augmentation, both views": partial(next, setup.batches),
        "encoder, forward": partial(forward, learner.method.encoder, setup.noise),
        "projector, forward": partial(forward, learner.method.projector, r),
        "losses, with gradient": partial(value_and_gradient, loss, *r.chunk(2), *z.chunk(2)),
        "probe, with gradient": partial(value_and_gradient, probe_loss, r),
        "LARS": optimizer.step,
    }


def peak_memory(step, device):
    """Bytes: of one step on a GPU, of this process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    import resource         # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def count_flops(learner, setup):
    """FLOPs of one forward and backward pass of two views of each image, as torch counts them."""
    learner = copy.deepcopy(learner).to("meta")         # shapes alone: nothing is computed
    with FlopCounterMode(display=False) as counter:
        z, _ = bare_networks(learner, torch.empty(setup.noise.shape, device="meta"))
        z.mean().backward()
    return counter.get_total_flops()


def peak_flops(dtype, device):
    """FLOP/s of a large square matrix product: what the device can do."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    times = seconds({"matrix product": partial(torch.matmul, a, b)}, device)
    return 2 * n ** 3 / times["matrix product"]


def measure_step(setup, budget):
    """The figures of the step, as a dict; in about `budget` seconds."""
    device = setup.device
    learner, optimizer = setup.learner()
    whole = setup.training_step(learner, optimizer)
    start = time.perf_counter()
    whole()
    cli.synchronise(device)
    found = {"first_step_s": time.perf_counter() - start,
             "peak_memory_bytes": peak_memory(whole, device)}

    times = seconds({"whole": whole, "bare": setup.bare_step(learner)}, device, 0.5 * budget)
    step = times["whole"]
    flops = count_flops(learner, setup)
    speed = peak_flops(train.DTYPES[setup.args.precision], device)
    found |= {"step_s": step, "samples_per_s": setup.batch_size / step, "bare_s": times["bare"],
              "step_over_bare": step / times["bare"], "flops_per_step": flops,
              "peak_flops_per_s": speed, "mfu": flops / step / speed}

    part_times = seconds(parts_of_step(setup, learner, optimizer), device, 0.2 * budget)
    found["parts"] = {part: part_time / step for part, part_time in part_times.items()}
    found["parts"]["backward of the networks, and the rest"] = 1 - sum(found["parts"].values())
    return found | measure_evaluation(setup, learner, EPOCH_IMAGES / setup.batch_size * step)


def measure_evaluation(setup, learner, epoch):
    """An update of α and an evaluation, as shares of an epoch of so many seconds.

    The networks' passes are timed on a few images, and counted for all that probe.py takes.
    """
    device, size = setup.device, setup.args.image_size
    images = torch.randint(256, (PASSED_IMAGES, 3, size, size), dtype=torch.uint8).to(device)
    r, z = random_outputs(probe.METRIC_IMAGES, learner, device)
    labels = torch.arange(len(r), device=device) % 10
    bank = slice(probe.BANK_IMAGES)

    def passes():
        with setup.autocast:
            encode(images, learner.method.encoder, learner.method.projector, **NORMALISATION)

    times = seconds({
        "networks": passes,
        "metrics": partial(representation_metrics, r, z),
        "k-NN": partial(knn_accuracy, r[bank], labels[bank], r, labels),
        "rank": partial(effective_rank, z[:setup.batch_size]),
    }, device, 0)
    alpha_update = 10 * times.pop("rank")                       # of ten batches
    times["networks"] *= (len(r) + probe.BANK_IMAGES + 2 * probe.VIEW_IMAGES) / PASSED_IMAGES
    return {"alpha_update_over_epoch": alpha_update / epoch,
            "evaluation_over_epoch": sum(times.values()) / epoch,
            "evaluation_parts": {part: part_time / epoch for part, part_time in times.items()}}


# --- all methods ----------------------------------------------------------------------------------

def memory_of_method(name, args, device_name, batch_size):
    """Bytes, the peak of two steps; on a CPU, of the whole process, which should be a new one."""
    device = open_device(device_name)
    setup = Setup(args, device, batch_size)
    step = setup.training_step(*setup.learner(name))
    step()
    return peak_memory(step, device)


def measure_methods(setup, budget):
    """{method: {"step_s", "over_adadim", "peak_memory_bytes"}}."""
    peaks, steps = {}, {}
    for name in METHODS:
        cli.show_progress(f"memory of {name}")
        # a process for each: a peak is never forgotten, and even inherited
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            job = pool.submit(memory_of_method, name, setup.args, str(setup.device),
                              setup.batch_size)
            try:
                peaks[name] = job.result()
            except BrokenProcessPool as error:
                raise cli.BadInput(f"{name} was killed, probably for want of memory: try a "
                                   "smaller --batch-size") from error
        steps[name] = setup.training_step(*setup.learner(name))
    times = seconds(steps, setup.device, budget)
    return {name: {"step_s": times[name], "over_adadim": times[name] / times["adadim"],
                   "peak_memory_bytes": peaks[name]} for name in METHODS}


# --- the program ----------------------------------------------------------------------------------

def open_device(name):
    """cli.open_device; and the fastest of cuDNN's convolutions, as in training."""
    torch.backends.cudnn.benchmark = True
    return cli.open_device(name)


def measure(args, device):
    """All figures, as a dict."""
    torch.manual_seed(0)
    setup = Setup(args, device, choose_batch(args, device))
    where = f"{torch.get_num_threads()} threads of a CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    what = "a step of every method" if args.methods else "the step, its parts, an evaluation"
    print(f"{what}: about {args.minutes:g} minutes\n{where}, PyTorch {torch.__version__}: "
          f"{args.arch} of width {args.width}, projector {args.projector}, batch "
          f"{setup.batch_size}, {args.image_size} pixels, {args.precision}"
          f"{', compiled' * args.compile}", flush=True)
    found = {"device": where, "torch": torch.__version__, "batch_size": setup.batch_size}
    for flag in ("arch", "width", "projector", "image_size", "precision", "compile"):
        found[flag] = getattr(args, flag)
    if args.methods:
        return found | {"methods": measure_methods(setup, 30 * args.minutes)}
    return found | measure_step(setup, 60 * args.minutes)


def show(found):
    """Prints the figures."""
    for name, f in found.get("methods", {}).items():
        print(f"{name:24}{1e3 * f['step_s']:10.1f} ms, {f['over_adadim']:.3f} of AdaDim's step; "
              f"{f['peak_memory_bytes'] / 1e9:.2f} GB")
    if "methods" in found:
        return
    f = SimpleNamespace(**found)
    evaluation_parts = ", ".join(f"{part} {share:.2%}" for part, share
                                 in f.evaluation_parts.items())
    figures = {
        "whole step": f"{1e3 * f.step_s:.1f} ms, {f.samples_per_s:,.0f} samples/s "
                      f"(the first, with all that it builds: {f.first_step_s:.1f} s)",
        "bare step": f"{1e3 * f.bare_s:.1f} ms: the whole one takes {f.step_over_bare:.3f} of it",
        "MFU": f"{f.mfu:.1%} of {f.peak_flops_per_s / 1e12:.2g} TFLOP/s; "
               f"{f.flops_per_step / 1e12:.2f} TFLOP per step",
        "peak memory": f"{f.peak_memory_bytes / 1e9:.2f} GB",
        "α update": f"{f.alpha_update_over_epoch:.2%} of an epoch of {EPOCH_IMAGES:,}",
        "evaluation": f"{f.evaluation_over_epoch:.1%} of that epoch ({evaluation_parts})",
        "parts, of the whole step": "",
        **{f"  {part}": f"{share:7.1%}" for part, share in f.parts.items()},
    }
    for label, text in figures.items():
        print(f"{label:42}{text}")


def parse_args(argv):
    parser = cli.Parser("bench.py", __doc__)
    add = parser.add_argument
    add("--methods", action="store_true", help="nothing but a step of every method")
    add("--arch", default="resnet18", choices=tuple(RESNETS), help="encoder")
    add("--width", default=64, type=cli.whole_number(1), metavar="N",
        help="channels of its first stage")
    add("--projector", default="2048-2048-2048", type=cli.layer_sizes, metavar="SIZES",
        help="layer sizes")
    add("--batch-size", type=cli.whole_number(2, IMAGES), metavar="N",
        help="images per step (default: 256; on a CPU as many as it trains on in 3 seconds)")
    add("--image-size", default=32, type=cli.whole_number(1), metavar="N", help="in pixels")
    add("--precision", default="auto", choices=("auto", *train.DTYPES),
        help="auto: as train.py chooses it")
    add("--compile", action="store_true", help="with torch.compile, in the bare step too")
    add("--minutes", default=1.5, type=cli.number(0), metavar="N",
        help="roughly; the longer, the more steps are timed")
    add("--device", default="auto", type=cli.device_name, help="cpu, cuda, cuda:1 …")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
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
