"""Speed of the training step against lightly's SimCLR: same encoder, sizes, batches, precision.

    pip install lightly
    python -m tools.peer                  ResNet-18 and batches of 128 CIFAR-sized images
    python -m tools.peer --workers 0      lightly's images made in the training process

ours            train.py's whole step: images on the device, AdaDim's loss, LARS, probe
lightly         its SimCLRTransform, image by image, in a DataLoader's worker processes; a pass
                through the networks for each view, its projection head, NTXentLoss, LARS; no probe
lightly, fp32   the same without mixed precision, as in its examples; left out if ours is fp32

They take turns, some steps of each per round; the result is the median over rounds. In each round
lightly's DataLoader starts anew, and timing begins when the batches that it has prefetched are
used up. The pictures are noise. Nothing is checked against a bound: machines differ.
"""
import statistics
import time

import torch
from PIL import Image
from torch.utils.data import DataLoader

import train
from models import RESNETS, memory_layout, resnet
from plumbing import cli
from plumbing.images import core_count
from tools import bench

AHEAD = 2           # batches that each worker prefetches


def check_lightly():
    try:
        import lightly          # noqa: F401
    except ImportError as error:
        raise cli.BadInput("peer.py needs lightly: pip install lightly") from error


class NoisePictures(torch.utils.data.Dataset):
    """Random PIL images, each transformed into two views: (3 × s × s, 3 × s × s)."""

    def __init__(self, n, image_size, transform):
        self.pixels = torch.randint(256, (n, image_size, image_size, 3), dtype=torch.uint8).numpy()
        self.transform = transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        view1, view2 = self.transform(Image.fromarray(self.pixels[i]))
        return view1, view2


def batches_without_end(loader):
    while True:
        yield from loader


def networks_of_lightly(args, device, layout):
    """Our encoder with lightly's projection head, whose layer sizes are args.projector."""
    from lightly.models.modules.heads import ProjectionHead
    encoder, width = resnet(args.arch, args.width, "small" if args.image_size <= 64 else "imagenet")
    *hidden, d = [int(size) for size in args.projector.split("-")]
    blocks = []
    for size in hidden:
        blocks.append((width, size, torch.nn.BatchNorm1d(size), torch.nn.ReLU()))
        width = size
    blocks.append((width, d, None, None))
    networks = torch.nn.Sequential(encoder, ProjectionHead(blocks))
    return networks.to(device, memory_format=layout)


def lightly_step(args, device, precision):
    """A function that starts a DataLoader and returns its step, a function without arguments."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from lightly.utils.lars import LARS
    layout = memory_layout(device, precision, args.width)
    autocast, scaler = train.mixed_precision(precision, device)
    networks = networks_of_lightly(args, device, layout)
    criterion = NTXentLoss(temperature=0.1)
    optimizer = LARS(networks.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)
    pictures = NoisePictures(bench.IMAGES, args.image_size,
                             SimCLRTransform(args.image_size, gaussian_blur=0.0))

    def start():
        loader = DataLoader(pictures, args.batch_size, shuffle=True, drop_last=True,
                            num_workers=args.workers, pin_memory=device.type == "cuda",
                            persistent_workers=args.workers > 0,
                            prefetch_factor=AHEAD if args.workers else None)
        batches = batches_without_end(loader)

        def step():
            views = [x.to(device, non_blocking=True, memory_format=layout) for x in next(batches)]
            with autocast:
                z1, z2 = [networks(x) for x in views]       # n × d each
            loss = criterion(z1.float(), z2.float())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return step
    return start


def our_step(args, device):
    """A function that returns train.py's step, a function without arguments."""
    setup = bench.Setup(args, device, args.batch_size)
    step = setup.training_step(*setup.learner())

    def start():
        return step
    return start


def samples_per_second(start, args, device):
    """Times args.steps steps, after as many as a DataLoader's workers may have prefetched."""
    step = start()
    for _ in range(AHEAD * args.workers + 1):
        step()
    cli.synchronise(device)
    began = time.perf_counter()
    for _ in range(args.steps):
        step()
    cli.synchronise(device)
    return args.steps * args.batch_size / (time.perf_counter() - began)


def measure(args, device):
    """{name: samples per second, a list with one figure per round}."""
    rivals = {"ours": our_step(args, device), "lightly": lightly_step(args, device, args.precision)}
    if args.precision != "fp32":
        rivals["lightly, fp32"] = lightly_step(args, device, "fp32")
    speeds = {name: [] for name in rivals}
    for _ in range(args.rounds):
        for name, start in rivals.items():
            speeds[name].append(samples_per_second(start, args, device))
    return speeds


def show(speeds, args, device):
    where = f"{torch.get_num_threads()} threads of a CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(f"{where}, PyTorch {torch.__version__}: {args.arch} of width {args.width}, projector "
          f"{args.projector}, batch {args.batch_size}, {args.image_size} pixels, {args.precision}, "
          f"{args.workers} workers for lightly\n")
    ours = statistics.median(speeds["ours"])
    print("                 samples/s   ours over it   rounds")
    for name, rounds in speeds.items():
        speed = statistics.median(rounds)
        each = ", ".join(f"{value:.0f}" for value in rounds)
        print(f"{name:16}{speed:10.0f}{ours / speed:15.2f}   {each}")


def parse_args(argv):
    parser = cli.Parser("peer.py", __doc__)
    add = parser.add_argument
    add("--arch", default="resnet18", choices=tuple(RESNETS), help="encoder")
    add("--width", default=64, type=cli.whole_number(1), metavar="N",
        help="channels of the encoder's first stage")
    add("--projector", default="2048-2048-2048", type=cli.layer_sizes, metavar="SIZES",
        help="layer sizes")
    add("--batch-size", default=128, type=cli.whole_number(2, bench.IMAGES), metavar="N",
        help="images per step")
    add("--image-size", default=32, type=cli.whole_number(1), metavar="N", help="in pixels")
    add("--precision", default="auto", choices=("auto", *train.DTYPES),
        help="auto: as train.py chooses it")
    add("--compile", action="store_true", help="use torch.compile for our networks")
    add("--workers", default=core_count(), type=cli.whole_number(0), metavar="N",
        help="worker processes of lightly's DataLoader")
    add("--steps", default=10, type=cli.whole_number(1), metavar="N", help="steps per round")
    add("--rounds", default=3, type=cli.whole_number(1), metavar="N", help="rounds to measure")
    add("--device", default="auto", type=cli.device_name, help="cpu, cuda, cuda:1 …")
    return parser.parse_args(argv)


def main(argv=None):
    with cli.one_line_errors("peer.py"):
        args = parse_args(argv)
        check_lightly()
        device = bench.open_device(args.device)
        if args.precision == "auto":
            args.precision = cli.fast_precision(device)
        show(measure(args, device), args, device)


if __name__ == "__main__":
    main()
