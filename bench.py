"""How fast this is, as ratios that are measured in one run: the training step beside the bare model, PIL, SimCLR, the device's peak.

    python bench.py                                                   ResNet-18 and batches of 256 CIFAR-sized images
    python bench.py --arch resnet50 --compile --json bench.json
    python bench.py --arch resnet18 --width 16 --projector 512-512-512          what a CPU trains in minutes

Times are medians of many steps after warming up; what is compared takes turns, so that a machine that slows down does so for all.

whole     train.py's step: two views of each image, networks, losses, backward pass, LARS, probe
bare      the same networks forward and backward on random input that is on the device already, with a sum as the loss, and
          torch's SGD: what the step would cost if all else were free
simclr, vicreg      the whole step with that one loss in place of AdaDim's
mfu       model FLOP/s utilisation: the FLOPs that torch counts in the bare step, a second of the whole step's time, over the speed of
          a large matrix product in the same precision
parts     what each takes by itself, not compiled, as a share of the whole step
memory    the peak: of the step on a GPU, of this process so far on a CPU
one core  augmentation of one batch, beside torchvision's PIL transforms with the same settings, image by image
streamed  500-pixel JPEGs, made for this, to two random crops of 224 pixels in worker processes: data.py's second path
losses    time of value and gradient (one, after two to warm up), and bytes kept for the gradient, as batch and width grow

Nothing here is checked against a bound: machines differ. Exit status: 0; 2 with one line on stderr for bad input.
"""
import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import train
from augment import AUGMENTATIONS, DRAWS, augment, augment_with, normalise
from data import stream_crops, worker_count
from losses import adadim, info_nce, matrix_mutual_information, vicreg
from metrics import effective_rank, representation_metrics
from models import RESNETS, encode, mlp, resnet


def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(functions, device, repeats, block=1):
    """Median time of one call of each function of a dict, in seconds; they take turns, `block` calls at a time, after two to warm up."""
    times = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            finish(device)
            start = time.perf_counter()
            for _ in range(block):
                function()
            finish(device)
            if turn > 1:
                times[name].append((time.perf_counter() - start) / block)
    return {name: statistics.median(values) for name, values in times.items()}


def steps(args, device):
    """The training step and its rivals as functions without arguments, the parts, and the networks."""
    torch.manual_seed(0)
    dtype = train.DTYPES[args.precision]
    settings = train.parse_args(["--dataset", "shapes", "--precision", args.precision, "--batch-size", str(args.batch_size)])
    autocast = lambda: torch.autocast(device.type, dtype, enabled=args.precision != "fp32")
    encoder, p = resnet(args.arch, args.width, "small" if args.image_size <= 64 else "imagenet")
    nets = train.Nets({"encoder": encoder, "projector": mlp(p, args.projector), "probe": nn.Linear(p, 10)})
    nets.to(device, memory_format=torch.channels_last)
    images = torch.randint(256, (4096, 3, args.image_size, args.image_size), dtype=torch.uint8).to(device)
    labels, generator = torch.randint(10, (4096,)).to(device), torch.Generator(device)
    order = torch.randperm(4096, device=device)[:args.batch_size]
    mean, std = torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
    facts, alpha = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), torch.tensor(0.4, device=device)
    noise = torch.randn(2 * args.batch_size, 3, args.image_size, args.image_size, device=device).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile if args.compile else lambda function: function
    forward, view_of = compiled(lambda views: nets(views)), compiled(augment_with)

    def two_views():
        draws = torch.rand(2, len(order), DRAWS, generator=generator, device=device)
        views = torch.cat([view_of(draws[view], images[order], "vicreg", view, args.image_size, False) for view in (0, 1)])
        return normalise(views, mean, std).contiguous(memory_format=torch.channels_last)

    def step_with(losses_of, optimizer):
        def step():
            objective, logged, _ = losses_of(nets, two_views(), labels[order], alpha, settings)
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
        return step

    def single(loss_function):
        """losses_of of train.py with one loss, for SimCLR or VICReg as somebody would write it who has nothing else in mind."""
        def losses_of(model, views, labels, alpha, settings):
            with autocast():
                r, z, (logits,) = model(views)
            loss = loss_function(*z.chunk(2))
            probe_loss = nn.functional.cross_entropy(logits.float(), labels.repeat(2))
            return loss + probe_loss, torch.stack([loss, probe_loss]).detach(), None
        return losses_of

    lars = train.make_optimizer(settings, [*nets["encoder"].parameters(), *nets["projector"].parameters()], nets["probe"].parameters())
    sgd = torch.optim.SGD(nets.parameters(), lr=1e-9, momentum=0.9)
    for group in lars.param_groups:
        group["lr"] = 1e-9      # thousands of steps on noise must not end in NaN, which some kernels are slow, or fast, on

    def bare():
        with autocast():
            r, z, (logits,) = forward(noise)
        loss = z.float().mean() + logits.float().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    contestants = {"whole": step_with(compiled(train.losses_of), lars), "bare": bare,
                   "simclr": step_with(compiled(single(info_nce)), lars), "vicreg": step_with(compiled(single(vicreg)), lars)}

    # the parts, each by itself
    r = torch.rand(2 * args.batch_size, p, device=device)
    z = torch.randn(2 * args.batch_size, int(args.projector.split("-")[-1]), device=device)

    def with_gradient(function, *inputs):
        def call():
            leaves = [x.detach().requires_grad_() for x in inputs]
            function(*leaves).backward()
        return call

    def no_gradient(module, x):
        def call():
            with torch.no_grad(), autocast():
                module(x)
        return call

    start = time.perf_counter()
    contestants["whole"]()      # LARS, as a part, needs gradients
    finish(device)
    first = time.perf_counter() - start
    parts = {"augmentation, both views": two_views, "encoder, forward": no_gradient(encoder, noise), "projector, forward": no_gradient(nets["projector"], r),
             "InfoNCE, with gradient": with_gradient(lambda z: info_nce(*z.chunk(2)), z), "VICReg, with gradient": with_gradient(lambda z: vicreg(*z.chunk(2)), z),
             "I(R;Z), with gradient": with_gradient(matrix_mutual_information, r, z),
             "probe, with gradient": with_gradient(lambda r: nets["probe"](r).logsumexp(1).mean(), r), "LARS": lars.step}
    return contestants, parts, nets, images, facts, autocast, first


def count_flops(nets, image_size, batch_size, device):
    """FLOPs of one forward and backward pass of two views of each image, as torch counts them."""
    x = torch.randn(2 * batch_size, 3, image_size, image_size, device=device)
    with FlopCounterMode(display=False) as counter:
        _, z, _ = nets(x)
        z.mean().backward()
    return counter.get_total_flops()


def peak_flops(dtype, device):
    """FLOP/s of a large square matrix product: what the device can do."""
    n, allowed = 8192 if device.type == "cuda" else 3072, torch.backends.cuda.matmul.allow_tf32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = True        # as convolutions may
    try:
        return 2 * n ** 3 / seconds({"product": lambda: a @ b}, device, 10)["product"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def augmentation_on_one_core(image_size, n=256):
    """Views a second of augment() and of torchvision's PIL transforms, in one thread."""
    threads, a = torch.get_num_threads(), AUGMENTATIONS["vicreg"]
    images, generator = torch.randint(256, (n, 3, image_size, image_size), dtype=torch.uint8), torch.Generator()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    by_pil = transforms.Compose([
        transforms.RandomResizedCrop(image_size, a["scale"]), transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(*a["jitter"])], a["jitter_p"]), transforms.RandomGrayscale(a["grey_p"]),
        transforms.RandomSolarize(128, a["solarise_p"][0]), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
    ours = lambda: normalise(augment(images, "vicreg", 0, generator), (0.5,) * 3, (0.25,) * 3)
    theirs = lambda: torch.stack([by_pil(picture) for picture in pictures])
    torch.set_num_threads(1)
    try:
        return {name: n / t for name, t in seconds({"ours": ours, "pil": theirs}, torch.device("cpu"), 7).items()}
    finally:
        torch.set_num_threads(threads)


def streaming(n=384, size=500, crop=224):
    """Images a second, two crops of each, of data.stream_crops on a folder of JPEGs, and of PIL image by image on one core."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.jpg" for i in range(n)]
        smooth = nn.functional.interpolate(torch.rand(n // 8, 3, 40, 40), (size * 3 // 4, size), mode="bicubic").clamp(0, 1)
        for i, path in enumerate(paths):
            picture = (smooth[i // 8] + 0.03 * torch.randn_like(smooth[0])).clamp(0, 1)
            torchvision.transforms.functional.to_pil_image(picture).save(path, quality=90)
        crop_twice = transforms.Compose([transforms.RandomResizedCrop(crop, (0.2, 1)), transforms.RandomHorizontalFlip(), transforms.PILToTensor()])

        def by_pil():
            for path in paths[:64]:
                with Image.open(path) as image:
                    image = image.convert("RGB")
                    crop_twice(image), crop_twice(image)

        def ours():
            for _ in stream_crops(paths * 4, torch.arange(4 * n).view(-1, 64), 0, "vicreg", crop):
                pass

        pil, mine = (seconds({"it": function}, torch.device("cpu"), 3)["it"] for function in (by_pil, ours))
    return {"images_per_s": 4 * n / mine, "workers": worker_count(), "pil_images_per_s_one_core": 64 / pil}


def growth(device):
    """Time of value and gradient, and bytes kept in between, of each loss: as the batch grows (width 2,048), as the width does (batch 256)."""
    losses = {"info_nce": lambda r, z: info_nce(*z.chunk(2)), "vicreg": lambda r, z: vicreg(*z.chunk(2)), "mi": matrix_mutual_information,
              "adadim": lambda r, z: adadim(*r.chunk(2), *z.chunk(2), 0.4)[0]}
    rows = []
    for batch, width in [(256, 512), (256, 2048), (256, 8192), (1024, 2048), (4096, 2048)]:
        row = {"batch": batch, "width": width}
        for name, loss in losses.items():
            r, z = torch.rand(2 * batch, 512, device=device, requires_grad=True), torch.randn(2 * batch, width, device=device, requires_grad=True)
            kept = {}
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x):
                loss(r, z)
            row[f"{name}_bytes"] = sum(kept.values())
            row[f"{name}_ms"] = 1e3 * seconds({"it": lambda: torch.autograd.grad(loss(r, z), (r, z), allow_unused=True)}, device, 1)["it"]
        rows.append(row)
    return rows


def measure(args, device):
    """All figures, as a dict."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    found = {"device": name, "torch": torch.__version__, **{key: getattr(args, key) for key in ("arch", "width", "projector", "image_size", "batch_size",
                                                                                               "precision", "compile")}}
    contestants, parts, nets, images, facts, autocast, found["first_step_s"] = steps(args, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    contestants["whole"]()
    if device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    block = 10 if device.type == "cuda" else 1
    times = seconds(contestants, device, args.steps, block)
    found |= {"step_s": times["whole"], "bare_s": times["bare"], "samples_per_s": args.batch_size / times["whole"], "step_over_bare": times["whole"] / times["bare"],
              "adadim_over_simclr": times["whole"] / times["simclr"], "adadim_over_vicreg": times["whole"] / times["vicreg"]}
    found["flops_per_step"] = count_flops(nets, args.image_size, min(args.batch_size, 32), device) * args.batch_size / min(args.batch_size, 32)
    found["peak_flops_per_s"] = peak_flops(train.DTYPES[args.precision], device)
    found["mfu"] = found["flops_per_step"] / times["whole"] / found["peak_flops_per_s"]
    found["parts"] = {part: t / times["whole"] for part, t in seconds(parts, device, args.steps, block).items()}
    found["parts"]["backward of the networks, and the rest"] = 1 - sum(found["parts"].values())

    # an epoch of 50,000 images; evaluation's passes are timed on 512 images and counted for all that train.py takes
    epoch = 50_000 / args.batch_size * times["whole"]
    z = torch.randn(args.batch_size, int(args.projector.split("-")[-1]), device=device)
    test_r, test_z = torch.rand(train.TEST_IMAGES, nets["probe"].in_features, device=device), torch.randn(train.TEST_IMAGES, z.shape[1], device=device)

    def passes():
        with autocast():
            encode(images[:512], nets["encoder"], nets["projector"], **facts)

    extra = seconds({"alpha": lambda: effective_rank(z), "passes": passes, "metrics": lambda: representation_metrics(test_r, test_z)}, device, 3)
    found["alpha_update_s"], found["alpha_update_over_epoch"] = 10 * extra["alpha"], 10 * extra["alpha"] / epoch
    found["evaluation_s"] = extra["passes"] * (train.TEST_IMAGES + train.KNN_IMAGES) / 512 + extra["metrics"]
    found["evaluation_over_epoch"] = found["evaluation_s"] / epoch
    if device.type == "cpu":
        import resource     # not there on Windows, where the figure is left out
        found["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if not args.step_only:
        one_core = augmentation_on_one_core(args.image_size)
        found |= {"augment_views_per_s": one_core["ours"], "pil_views_per_s": one_core["pil"], "augment_over_pil": one_core["ours"] / one_core["pil"]}
        found["streamed"], found["losses"] = streaming(), growth(device)
    return found


def show(found):
    """The figures as text."""
    print(f"{found['device']}, PyTorch {found['torch']}: {found['arch']} of width {found['width']}, projector {found['projector']}, batch {found['batch_size']}, "
          f"{found['image_size']} pixels, {found['precision']}{', compiled' if found['compile'] else ''}\n")
    for label, text in (
            ("whole step", f"{1e3 * found['step_s']:.1f} ms, {found['samples_per_s']:,.0f} samples/s (the first, with all that it builds: {found['first_step_s']:.1f} s)"),
            ("bare step", f"{1e3 * found['bare_s']:.1f} ms: the whole one takes {found['step_over_bare']:.3f} of it"),
            ("beside SimCLR, VICReg", f"{found['adadim_over_simclr']:.3f} and {found['adadim_over_vicreg']:.3f} of their steps"),
            ("MFU", f"{found['mfu']:.1%} of {found['peak_flops_per_s'] / 1e12:.1f} TFLOP/s; {found['flops_per_step'] / 1e12:.2f} TFLOP a step"),
            ("peak memory", f"{found['peak_memory_bytes'] / 1e9:.2f} GB"),
            ("α update", f"{found['alpha_update_s']:.2f} s, {found['alpha_update_over_epoch']:.2%} of an epoch of 50,000"),
            ("evaluation", f"{found['evaluation_s']:.2f} s, {found['evaluation_over_epoch']:.1%} of that epoch")):
        print(f"{label:24}{text}")
    print("\nparts, of the whole step")
    for part, share in found["parts"].items():
        print(f"  {part:40}{share:7.1%}")
    if "losses" in found:
        print(f"\naugmentation, one core   {found['augment_views_per_s']:,.0f} views/s; PIL {found['pil_views_per_s']:,.0f}: {found['augment_over_pil']:.1f} times as many")
        s = found["streamed"]
        print(f"streamed JPEGs           {s['images_per_s']:,.0f} images/s, two crops each, with {s['workers']} workers; PIL, one core: {s['pil_images_per_s_one_core']:,.0f}")
        print("\nlosses: ms with gradient / MB kept for it\n  batch  width" + "".join(f"{name:>18}" for name in ("InfoNCE", "VICReg", "I(R;Z)", "AdaDim")))
        for row in found["losses"]:
            print(f"{row['batch']:7}{row['width']:7}" + "".join(f"{row[name + '_ms']:10.1f} /{row[name + '_bytes'] / 1e6:6.0f}" for name in ("info_nce", "vicreg", "mi", "adadim")))


def stop(message):
    print(f"bench.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message} (--help explains the flags)")
    count = train.number(int, lambda v: v > 0, "a whole number above 0")
    two = train.number(int, lambda v: 1 < v <= 4096, "a whole number from 2 to 4096")
    add = functools.partial(parser.add_argument, metavar="N")
    parser.add_argument("--arch", choices=RESNETS, default="resnet18", help="(default: %(default)s)")
    add("--width", type=count, default=64, help="channels of the first stage (default: %(default)s)")
    add("--projector", default="2048-2048-2048", metavar="SIZES", help="(default: %(default)s)")
    add("--batch-size", type=two, default=256, help="(default: %(default)s)")
    add("--image-size", type=count, default=32, help="in pixels (default: %(default)s)")
    add("--steps", type=count, default=15, help="that the medians are of; ten times as many on a GPU (default: %(default)s)")
    parser.add_argument("--precision", choices=train.DTYPES, default="bf16", help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="networks and losses with torch.compile, in the bare step too")
    parser.add_argument("--step-only", action="store_true", help="leave out what does not concern the step")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)
    if args.json and (args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK)):
        stop(f"cannot write to {args.json}")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
        torch.empty(0, device=device)
        torch.backends.cudnn.benchmark = True
    except (RuntimeError, AssertionError) as error:
        stop(f"--device {args.device} can't be used here ({str(error).splitlines()[0]})")
    try:
        mlp(8, args.projector)
    except ValueError as error:
        stop(error)
    try:
        found = measure(args, device)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        stop("there is not enough memory: try a smaller --batch-size, --width or --projector")
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
