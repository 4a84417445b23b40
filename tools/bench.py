"""How fast this is: the training step beside bare networks, other losses and PIL, in one run.

    python -m tools.bench                     ResNet-18 and batches of 256 CIFAR-sized images
    python -m tools.bench --arch resnet50 --compile --json bench.json
    python -m tools.bench --width 16 --projector 512-512-512          what a CPU trains in minutes
    python -m tools.bench --methods           every method's step, and its memory

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
import copy
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from plumbing import cli
import probe
import train
from augment import augment_with
from baselines import METHODS
from tools.bench_pieces import (LOSSES, NORMALISATION, STORED, augmentation_on_one_core,
                          calls_at_a_time, finish, growth, seconds, show_pieces, streaming,
                          value_and_gradient)
from tools.capture import CapturedStep
from data import batches_of_views, plan_batches
from losses import info_nce, vicreg
from methods import AdaDim, Method, StepResult
from metrics import effective_rank, knn_accuracy, representation_metrics
from models import RESNETS, encode, memory_layout, resnet

IMAGES = 4096               # random ones, on the device, that batches are of
PASSED_IMAGES = 512         # whose passes through the networks are timed for an evaluation
EPOCH_IMAGES = 50_000       # of the epoch with which α updates and evaluations are compared


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
        show_pieces(f)


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
