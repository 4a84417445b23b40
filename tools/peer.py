"""Speed of the training step against lightly's SimCLR: same networks, batches, precision.

    pip install lightly
    python -m tools.peer                  ResNet-18 and batches of 128 CIFAR-sized images
    python -m tools.peer --workers 0      lightly's images made in the training process

ours            train.py's whole step: images on the device, AdaDim's loss, LARS, probe
lightly         its SimCLRTransform, image by image, in a DataLoader's worker processes; a pass
                through the networks for each view, its NTXentLoss and LARS; no probe
lightly, fp32   the same without mixed precision, as in its examples; left out if ours is fp32

They take turns, some steps of each per round; the result is the median over rounds. In each round
lightly's DataLoader starts anew, and timing begins when the batches that it has prefetched are
used up. The pictures are noise.
"""
import statistics
import time
from functools import partial

import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import train
from models import memory_layout, mlp, resnet
from plumbing import cli
from plumbing.images import core_count
from tools import bench

AHEAD = 2           # batches that each worker prefetches


def check_lightly():
    try:
        import lightly          # noqa: F401
    except ImportError as error:
        raise cli.BadInput("peer.py needs lightly: pip install lightly") from error


def two_views(transform, pictures):
    """A DataLoader's batch of PIL images as two tensors, n × 3 × s × s each."""
    return default_collate([tuple(transform(picture)) for picture in pictures])


def lightly_steps(args, device, precision):
    """A function that starts a DataLoader and returns a generator: each next() is a step."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from lightly.utils.lars import LARS
    layout = memory_layout(device, precision, args.width)
    autocast, scaler = train.mixed_precision(precision, device)
    encoder, p = resnet(args.arch, args.width, "small" if args.image_size <= 64 else "imagenet")
    networks = torch.nn.Sequential(encoder, mlp(p, args.projector))
    networks.to(device, memory_format=layout)
    criterion = NTXentLoss(temperature=0.1)
    optimizer = LARS(networks.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)
    shape = (bench.IMAGES, args.image_size, args.image_size, 3)
    pictures = [Image.fromarray(x.numpy()) for x in torch.randint(256, shape, dtype=torch.uint8)]
    transform = SimCLRTransform(args.image_size, gaussian_blur=0.0)

    def steps():
        loader = DataLoader(pictures, args.batch_size, shuffle=True, drop_last=True,
                            collate_fn=partial(two_views, transform), num_workers=args.workers,
                            pin_memory=device.type == "cuda",
                            persistent_workers=args.workers > 0,
                            prefetch_factor=AHEAD if args.workers else None)
        while True:
            for batch in loader:
                views = [x.to(device, non_blocking=True, memory_format=layout) for x in batch]
                with autocast:
                    z1, z2 = [networks(x) for x in views]       # n × d each
                loss = criterion(z1.float(), z2.float())
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                yield
    return steps


def our_steps(args, device):
    """The same for train.py's step."""
    data = bench.random_data(args, device)
    training = bench.Training(args, device, data, compiled=args.compile)

    def steps():
        while True:
            training.step()
            yield
    return steps


def samples_per_second(start, args, device):
    """Times args.steps steps, after as many as a DataLoader's workers may have prefetched."""
    steps = start()
    for _ in range(AHEAD * args.workers + 1):
        next(steps)
    cli.synchronise(device)
    began = time.perf_counter()
    for _ in range(args.steps):
        next(steps)
    cli.synchronise(device)
    return args.steps * args.batch_size / (time.perf_counter() - began)


def measure(args, device):
    """{name: samples per second, a list with one figure per round}."""
    rivals = {"ours": our_steps(args, device),
              "lightly": lightly_steps(args, device, args.precision)}
    if args.precision != "fp32":
        rivals["lightly, fp32"] = lightly_steps(args, device, "fp32")
    speeds = {name: [] for name in rivals}
    for number in range(args.rounds):
        for name, start in rivals.items():
            cli.show_progress(f"round {number + 1}: {name}")
            speeds[name].append(samples_per_second(start, args, device))
    cli.show_progress("")
    return speeds


def show(speeds):
    ours = statistics.median(speeds["ours"])
    print("\n                 samples/s   ours over it   rounds")
    for name, rounds in speeds.items():
        speed = statistics.median(rounds)
        each = ", ".join(f"{value:.0f}" for value in rounds)
        print(f"{name:16}{speed:10.0f}{ours / speed:15.2f}   {each}")


def main(argv=None):
    with cli.one_line_errors("peer.py"):
        parser = cli.Parser("peer.py", __doc__)
        add = parser.add_argument
        bench.add_flags(add)
        add("--batch-size", default=128, type=cli.whole_number(2, bench.IMAGES), metavar="N",
            help="images per step")
        add("--workers", default=core_count(), type=cli.whole_number(0), metavar="N",
            help="worker processes of lightly's DataLoader")
        add("--steps", default=10, type=cli.whole_number(1), metavar="N", help="steps per round")
        add("--rounds", default=3, type=cli.whole_number(1), metavar="N", help="rounds to measure")
        args = parser.parse_args(argv)
        check_lightly()
        device = bench.open_device(args)
        print(f"{bench.describe(args, device)}, batch {args.batch_size}, {args.workers} workers "
              "for lightly", flush=True)
        show(measure(args, device))


if __name__ == "__main__":
    main()
