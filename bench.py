"""How fast train.py's step is on this machine.

    python bench.py                                     ResNet-18, CIFAR-sized random images
    python bench.py -- --method byol --batch-size 64    flags after -- are train.py's
    python bench.py -- --width 16 --projector 512-512-512       what a CPU trains in hours

whole step   the training loop's work: views, networks, losses, probe, clipping, optimiser
bare step    the same networks' forward and backward pass, with the outputs' mean as the loss, and
             torch's SGD, on views that are there already

Times are medians after a first call. Both steps take turns, so that a machine that slows down does
so for both.
"""
import statistics
import sys
import time

import torch

import train
from data import batches_of_views, plan_batches
from models import memory_layout, mixed_precision
from optim import make_optimizer
from run import (Parser, at_least, one_line_errors, open_device, resolve_auto, set_determinism,
                 split_arguments)

IMAGES = 4096               # random ones, on the device, that batches are drawn from


def timed(functions, device, seconds):
    """Median time of one call of each function of a dict, in seconds: {name: time}."""
    calls = 10 if device.type == "cuda" else 1      # waiting for a GPU takes time
    times = {name: [] for name in functions}
    began = time.perf_counter()
    turn = 0
    while turn < 2 or time.perf_counter() - began < seconds:     # the first turn warms up
        turn += 1
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure(args, size, seconds, device):
    """{quantity: number}. args: train.py's flags; size: of the images."""
    images = torch.randint(256, (IMAGES, 3, size, size), dtype=torch.uint8)
    data = {"train_x": images.to(device), "train_y": torch.randint(10, (IMAGES,)).to(device),
            "image_size": size, "stem": "small" if size <= 64 else "imagenet",
            "classes": range(10), "streamed": False, "mean": [0.5] * 3, "std": [0.25] * 3}
    learner = train.make_learner(args, data, device)
    method = learner.method
    plan = plan_batches(IMAGES, args.batch_size, args.seed, epochs=1_000_000)
    layout = memory_layout(device, args.precision, args.width)
    batches = batches_of_views(data, plan, args.augment, layout)
    optimizer = make_optimizer(args.optimizer, learner.param_groups(args))
    autocast, scaler = mixed_precision(args.precision, device)
    progress = torch.tensor(0.5, dtype=torch.float64, device=device)

    def whole_step():
        _, kept = train.training_step(learner, learner, optimizer, scaler, autocast, args.clip,
                                      next(batches), progress)
        method.after_step(kept, 0, progress)

    views, _, _ = next(batches)                             # 2n × 3 × size × size
    sgd = torch.optim.SGD(method.parameters(), lr=1e-9, momentum=0.9)

    def bare_step():
        with autocast:
            loss = method.projector(method.encoder(views)).float().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    if args.compile == "yes":
        learner.compile()
    times = timed({"whole": whole_step, "bare": bare_step}, device, seconds)
    results = {
        "whole step, ms": 1e3 * times["whole"],
        "images/s": args.batch_size / times["whole"],
        "bare step, ms": 1e3 * times["bare"],
        "whole over bare": times["whole"] / times["bare"],
    }
    if device.type == "cuda":
        results["peak memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return results


def main(argv=None):
    with one_line_errors("bench.py"):
        own_words, train_words = split_arguments(sys.argv[1:] if argv is None else argv)
        parser = Parser("bench.py", __doc__)
        add = parser.add_argument
        add("--image-size", type=at_least(8), default=32, metavar="N", help="in pixels")
        add("--seconds", type=at_least(0, float), default=60, metavar="N", help="roughly")
        own = parser.parse_args(own_words)
        # a tiny learning rate: with NaN, in which noise may end, some kernels are slow, or fast
        args = train.parse_args(["--arch=resnet18", "--lr=1e-9", *train_words])
        device = open_device(args.device)
        set_determinism(args.deterministic == "yes")
        resolve_auto(args, None, device)
        print(f"{device}: {args.method}, {args.arch}, width {args.width}, projector "
              f"{args.projector}, {own.image_size} pixels, batches of {args.batch_size}, "
              f"{args.precision}, PyTorch {torch.__version__}", flush=True)
        for name, number in measure(args, own.image_size, own.seconds, device).items():
            print(f"{name:26}{number:10,.2f}")


if __name__ == "__main__":
    main()
