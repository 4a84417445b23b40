"""Trains an image encoder without labels with AdaDim (arXiv 2505.12576).

    python train.py --dataset cifar100 --beta 1e-4              the paper's main experiment
    python train.py --dataset cifar100 --alpha 0.5 --beta 0     a fixed α
    python train.py --dataset cifar100 --method simclr          vicreg, byol …: see --methods
    python train.py --dataset folder --data-dir my_images --arch resnet18 --epochs 100
    torchrun --nproc_per_node=8 train.py …                      the same on eight GPUs

A run writes to --out: config.json, log.csv (one row per epoch), last.pt (for --resume),
backbone.pt (the encoder, in torchvision's format) with encoder.json, and dynamics.png.
Exit status: 0; 2 with one line on stderr for bad input or a non-finite loss; 129, 130 or 143 after
SIGHUP, Ctrl-C or SIGTERM.

From top to bottom: flags, learning rate, one step, and train(), the whole run as one function.
losses.py has the loss, methods.py the method that weights its terms and sets α, baselines/ the
compared methods, probe.py the online probe, optim.py LARS; plumbing/session.py has everything
about a run that is not learning.
"""
import math
import sys
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch

import probe
from augment import AUGMENTATIONS, augment_with
from baselines import METHODS
from data import batches_of_views, fingerprint, load, plan_batches, to_device
from figures import draw_run
from methods import Method
from models import ARCHITECTURES, RESNETS, make_encoder, memory_layout
from optim import LEARNING_RATES, clip_gradient, make_optimizer
from plumbing import distributed, run
from plumbing.checkpoint import facts_of, load_optimizer, restoring
from plumbing.cli import (BadInput, Parser, device_name, fast_precision, layer_sizes, number,
                          open_device, set_determinism, whole_number)
from plumbing.compiling import compile_networks
from plumbing.datasets import DATASETS
from plumbing.distributed import RANK, WORLD_SIZE
from plumbing.images import memory_for_images, mixed_seed
from plumbing.method_flags import (FAMILY, all_methods, alpha_type, check_method_flags,
                                   chosen_method, known_names, read_settings, three_weights,
                                   weight_type)
from plumbing.session import Session
from plumbing.signals import orderly_end
from plumbing.status import announce, last_lines

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FOR_METHODS = 2     # seeds the methods' random numbers apart from those of views and crops


# --- flags ----------------------------------------------------------------------------------------

def parse_args(argv):
    """Parses the flags; --method determines the defaults of some. Raises BadInput."""
    name = chosen_method(argv, METHODS)
    method = METHODS.get(name, METHODS["adadim"])       # vicreg and simclr are AdaDim with fixed α
    parser = Parser("train.py", __doc__)
    # argparse's action "version" prints a text and exits with status 0
    parser.add_argument("--methods", action="version",
                        version=all_methods(METHODS, Method.defaults),
                        help="list all methods with their papers, defaults and settings")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="cifar100", choices=tuple(DATASETS),
        help="shapes: built in. folder: your own images, in train/<class>/… and test/<class>/… "
        "(or val/), or without classes. imagenet, imagenet100, inat21: your own copy, in "
        "--data-dir. All others are downloaded, unless they are in --data-dir")
    add("--data-dir", default="./data", metavar="DIR",
        help="folder for the dataset's files and for downloads")
    add("--augment", default="vicreg", choices=tuple(AUGMENTATIONS), help="augmentation scheme")
    add("--classes", type=Path, metavar="FILE",
        help="a file that lists the class folders to use, one per line")
    add("--resident", default="auto", choices=("auto", "yes", "no"),
        help="yes: keep the images' central squares on the device; no: stream the files; auto: "
        "yes if the images fit")
    add("--min-size", type=whole_number(1), metavar="N",
        help="leave out a folder's images whose shorter side has fewer than N pixels (default: a "
        "quarter of the size of the networks' input)")
    add("--image-size", type=whole_number(8, 4096), metavar="N",
        help="size of the networks' input, for a folder's images (default: 224, or the median of "
        "their shorter sides if that is less)")
    add("--skip-unreadable", action="store_true",
        help="leave out image files that cannot be decoded; all are decoded once to find them")
    add("--limit-train", type=whole_number(1), metavar="N",
        help="train on N random images, for quick trials")

    add = parser.add_argument_group("networks").add_argument
    add("--arch", default="resnet50", metavar="NAME",
        help="encoder: a classification network of torchvision, such as resnet18, convnext_tiny "
        "or vit_b_16. For small images, ResNets get a smaller stem")
    add("--width", default=64, type=whole_number(1), metavar="N",
        help="channels of a ResNet's first stage; use fewer on a CPU")
    add("--projector", default="2048-2048-2048", type=layer_sizes, metavar="SIZES",
        help="layer sizes of the projector")

    add = parser.add_argument_group("method").add_argument
    add("--method", default="adadim", choices=known_names(METHODS),
        help="the training method, see --methods")
    add("--set", action="extend", nargs="+", metavar="NAME=VALUE",
        help="the method's own settings, as in --set queue=4096 momentum=0.9")
    add("--alpha", default="ada", type=alpha_type,
        help="weight of InfoNCE against VICReg: ada (measured, AdaDim), linear or cosine (from 0 "
        "to 1 over training), or a number from 0 (VICReg) to 1 (SimCLR)")
    add("--alpha-every", default=20, type=whole_number(1), metavar="N",
        help="with ada: set α after every Nth epoch")
    add("--alpha-batches", default=10, type=whole_number(1), metavar="N",
        help="with ada: number of batches on which α is measured")
    add("--alpha-from", default="z", choices=("z", "r"),
        help="with ada: measure α on embeddings z (published) or on representations r")
    add("--beta", default=1e-4, type=number(),
        help="weight of I(R;Z): above 0, training lowers it; below 0, training raises it")
    add("--mi-scale", default="alpha", choices=("alpha", "1"),
        help="m, the factor of β: alpha (published), or 1")
    add("--temperature", default=0.1, type=number(0, above=True), help="τ of InfoNCE")
    add("--vicreg-weights", default="25,25,1", type=three_weights, metavar="S,V,C",
        help="weights of VICReg's invariance, variance and covariance")
    add("--w2-weight", default="0", type=weight_type, metavar="MAX[:MIN]",
        help="add MAX times the embeddings' Wasserstein uniformity to the loss; with MIN, the "
        "weight moves from MAX to MIN over training")
    add("--lu-weight", default="0", type=weight_type, metavar="MAX[:MIN]",
        help="the same with Wang & Isola's uniformity")

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", default=400, type=whole_number(1), metavar="N",
        help="passes over the training images")
    add("--batch-size", default=256, type=whole_number(2), metavar="N",
        help="global batch size: images per step, over all processes")
    add("--optimizer", default="lars", choices=tuple(LEARNING_RATES),
        help="optimiser of encoder, projector and probe")
    add("--lr", type=number(0, above=True),
        help="learning rate for a batch of 256 (default by optimiser: 0.4 for lars, 0.05 for sgd, "
        "0.001 for adam and adamw; a method may set its own)")
    add("--weight-decay", default=1e-4, type=number(0), metavar="W",
        help="weight decay; the probe has none")
    add("--warmup-epochs", type=number(0), metavar="N",
        help="epochs of linear warm-up before the cosine decay (default: 10, or a fifth of a run "
        "of fewer than 50, but at least 200 steps)")
    add("--clip", default=2.0, type=number(0), metavar="N",
        help="clip gradients to N times their running mean norm; 0: never")
    add("--precision", default="auto", choices=("auto", *DTYPES),
        help="precision of the networks; losses and metrics use true fp32, never TF32. auto: bf16 "
        "if the device is fast at it, else fp32")
    add("--compile", default="no", choices=("yes", "no"),
        help="use torch.compile: slow to start, then faster on some machines")
    add("--deterministic", default="no", choices=("yes", "no"),
        help="use only deterministic GPU kernels, so that a run can be resumed bit for bit; "
        "slower")
    add("--sync-batch-norm", choices=("yes", "no"),
        help="with several GPUs: batch norms see the whole batch (default: yes) or only their "
        "GPU's part, which saves synchronisation")
    add("--device", default="auto", type=device_name,
        help="auto (a GPU if there is one), cpu, cuda, cuda:1 …")
    add("--seed", default=0, type=whole_number(0, 2 ** 31 - 1),
        help="random seed for weights, order and augmentation")

    add = parser.add_argument_group("the run").add_argument
    add("--out", type=Path, metavar="DIR",
        help="the run's folder (default: runs/ plus dataset, α and β or method, and seed)")
    add("--eval-every", default=1, type=whole_number(1), metavar="N",
        help="evaluate after every Nth epoch and after the last")
    add("--save-minutes", default=10.0, type=number(0), metavar="N",
        help="write last.pt every N minutes, also within an epoch, and when the run is stopped; "
        "0: after every step")
    add("--baseline", action="store_true",
        help="also train a probe on a frozen, randomly initialised encoder")
    add("--tensorboard", action="store_true", help="also write the log for TensorBoard, to --out")
    add("--resume", action="store_true",
        help="continue exactly from last.pt in --out; start from scratch if there is none")
    add("--overwrite", action="store_true", help="replace the run in --out")

    parser.set_defaults(**{flag[2:].replace("-", "_"): value
                           for flag, value in (method.defaults | FAMILY.get(name, {})).items()})
    args = parser.parse_args(argv)
    given = {word.partition("=")[0] for word in argv}
    if name not in METHODS:
        args.method = "adadim"
    if name in FAMILY and "--alpha" in given:
        parser.error(f"--alpha: --method {name} fixes α; --method adadim takes any")
    check_method_flags(parser, args, given, METHODS)
    if args.arch not in ARCHITECTURES:
        parser.error(f"--arch must be a classification network of torchvision with one linear "
                     f"classifier, such as resnet18 or convnext_tiny, not {args.arch!r}")
    if "--width" in given and args.arch not in RESNETS:
        print(f"note: {args.arch} has no use for --width, which is for ResNets only")
    args.set = read_settings(args.method, args.set, METHODS) or None
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    if args.batch_size % WORLD_SIZE:
        parser.error(f"--batch-size {args.batch_size} cannot be split over {WORLD_SIZE} processes")
    own_optimizer = args.optimizer == parser.get_default("optimizer")
    if args.lr is None or ("--lr" not in given and not own_optimizer):
        args.lr = LEARNING_RATES[args.optimizer]["encoder"]
    if "--warmup-epochs" in given and args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} must be below "
                     f"--epochs {args.epochs}")
    if args.out is None:
        settings = f"alpha_{args.alpha}-beta_{args.beta:g}" if name == "adadim" else name
        args.out = Path("runs") / f"{args.dataset}-{settings}-seed{args.seed}"
    if args.out.resolve() == Path(args.data_dir).resolve():
        parser.error(f"--out {args.out} is --data-dir: this would mix the run's files with images")
    return args


def settle(args, saved, device):
    """Replaces "auto" in --precision and, on resuming, sets --resident. saved: see Session.

    A resumed run keeps its precision, and keeps its images on the device or streams them as
    before: the two ways crop differently, so its results would change.
    """
    if saved and args.precision == "auto":
        args.precision = saved["config"].get("--precision")
    elif args.precision == "auto":
        args.precision = fast_precision(device)
    if saved:
        args.resident = "no" if saved["facts"].get("streamed") else "yes"


# --- learning rate --------------------------------------------------------------------------------

def warmup_steps(args, steps):
    """Default: 10 epochs or a fifth of a short run; at least 200 steps, or half of a tiny run."""
    if args.warmup_epochs is not None:
        return args.warmup_epochs * steps
    usual = min(10, args.epochs / 5) * steps
    return max(usual, min(200, args.epochs * steps / 2))


def learning_rate(step, base, warmup, total):
    """Linear warm-up from 3e-5 to base over `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return 3e-5 + (base - 3e-5) * step / warmup
    progress = (step - warmup) / (total - warmup)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer, step, warmup, total):
    """Sets each group's learning rate, unless the method keeps it constant."""
    for group in optimizer.param_groups:
        if not group.get("constant"):
            group["lr"] = learning_rate(step, group["base_lr"], warmup, total)


# --- the networks, and one training step ----------------------------------------------------------

def make_learner(args, data, device):
    """Builds the networks on the device; the seed determines their weights."""
    torch.manual_seed(args.seed)
    try:
        encoder, p = make_encoder(args.arch, args.width, data["stem"], data["image_size"])
    except ValueError as error:     # it does not accept these images, or this --width
        raise BadInput(f"--arch, --width or --image-size: {error}") from error
    method = METHODS[args.method](args, encoder, p, len(data["train_x"]))
    online_probe = None
    if data["classes"]:
        online_probe = probe.OnlineProbe(encoder, p, len(data["classes"]), args.baseline)
    layout = memory_layout(device, args.precision, args.width)
    return probe.Learner(method, online_probe).to(device, memory_format=layout)


def mixed_precision(precision, device):
    """The networks' autocast context, and the scaler of their gradients (for fp16)."""
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return autocast, scaler


def training_step(model, learner, optimizer, scaler, autocast, clip, batch, progress):
    """Forward, backward, step; returns the logs, and the tensors that after_step() needs.

    model: the learner, or DistributedDataParallel around it. batch: views, index and labels.
    """
    # forward
    with autocast:
        objective, logs, kept = model(*batch, progress)

    # backward; only the method is clipped: with the probe's gradient in the norm, labels would
    # change the encoder's step
    optimizer.zero_grad()
    scaler.scale(objective).backward()
    scaler.unscale_(optimizer)
    learner.method.after_backward()
    logs["clipped"] = clip_gradient(learner.method.parameters(), optimizer, learner.mean_norm,
                                    clip)

    # step
    scaler.step(optimizer)
    scaler.update()
    return logs, kept


# --- the run --------------------------------------------------------------------------------------

def train(args, session):
    """Trains one run. session: its checkpoint, log, status line and signals."""
    # fail fast: check everything before loading or writing anything
    if args.tensorboard:
        run.check_tensorboard()
    device = open_device(distributed.own_device(args.device))
    distributed.start(device)
    settle(args, session.saved, device)
    session.record(run.flags_of(args))

    # data: keep the images on the device if they fit, otherwise stream them
    data = load(args.dataset, args.data_dir, args.limit_train, args.seed, args.classes,
                args.resident, memory_for_images(device), args.min_size, args.image_size,
                session.saved and session.saved["facts"], args.skip_unreadable)
    n_images = len(data["train_x"])
    if n_images < args.batch_size:
        raise BadInput(f"--batch-size {args.batch_size} is larger than the training set of "
                       f"{n_images:,} images")
    session.record({"data": f"{n_images} images with checksum {fingerprint(data)}"})
    to_device(data, device)
    steps = n_images // args.batch_size                     # per epoch
    total_steps = steps * args.epochs
    warmup = warmup_steps(args, steps)

    # networks and optimiser
    set_determinism(args.deterministic == "yes")
    learner = make_learner(args, data, device)
    method, online_probe = learner.method, learner.probe
    optimizer = make_optimizer(args.optimizer, learner.param_groups(args))
    autocast, scaler = mixed_precision(args.precision, device)

    def checkpoint():
        """The content of last.pt."""
        return {
            "learner": learner.state_dict(),            # networks, probe, α, queues
            "optimizer": optimizer.state_dict(),        # momenta
            "scaler": scaler.state_dict(),              # fp16's loss scale
            "epoch": session.epoch,                     # complete epochs
            "step": session.step,                       # steps done in the next epoch
            "step_logs": session.stacked_logs(),        # of those steps
            "rows": session.rows,                       # of log.csv
            "seconds": session.seconds(),               # of training
            "config": session.config,                   # flags, and a checksum of the images
            "facts": facts_of(data, args.data_dir),     # about the images, for evaluate.py
        }

    if session.saved:
        with restoring(session.last):
            learner.load_state_dict(session.saved["learner"])
            load_optimizer(optimizer, session.saved["optimizer"])
            scaler.load_state_dict(session.saved["scaler"])

    # several processes, torch.compile
    model = distributed.parallel(learner, device, args.sync_batch_norm != "no")
    announce(args, data, method, device)
    view_of = augment_with
    if args.compile == "yes":
        view_of = torch.compile(augment_with)
        compile_networks(learner, device)

    # the run's files
    columns = ("epoch", "step", "seconds", "samples_per_s", "lr", "clipped", "loss",
               *method.columns, *method.details, *probe.columns())
    session.start(steps, columns, method.columns, checkpoint, device)

    # one generator for the whole run: image workers prefetch while an epoch is evaluated
    plan = plan_batches(n_images, args.batch_size, args.seed, args.epochs, session.epoch + 1,
                        session.step)
    layout = memory_layout(device, args.precision, args.width)
    batches = batches_of_views(data, plan, args.augment, layout, view_of)
    session.callback(batches.close)     # otherwise image workers survive an exception

    generator = torch.Generator(device)
    for epoch in range(session.epoch + 1, args.epochs + 1):
        first_step = (epoch - 1) * steps
        progress = torch.arange(first_step, first_step + steps, dtype=torch.float64)
        progress = (progress / max(1, total_steps - 1)).to(device)      # steps, from 0 to 1
        if session.step == 0:       # not if resumed within an epoch
            generator.manual_seed(mixed_seed(args.seed, epoch, 0, FOR_METHODS))
            method.before_epoch(epoch, steps, generator)

        for step in range(session.step, steps):
            batch = session.next_batch(batches)
            torch.manual_seed(mixed_seed(args.seed, epoch, RANK, step, FOR_METHODS))
            set_learning_rates(optimizer, first_step + step, warmup, total_steps)
            logs, kept = training_step(model, learner, optimizer, scaler, autocast, args.clip,
                                       batch, progress[step])
            method.after_step(kept, step, progress[step])
            session.after_step(logs)        # status line, checkpoint, Ctrl-C

        # the row records the α that this epoch used; after_epoch() may then set a new one
        row = session.after_steps()         # mean losses
        row["lr"] = optimizer.param_groups[0]["lr"]
        for column, value in method.schedule(progress[-1]).items():
            row[column] = value.item()
        method.after_epoch(epoch)
        if session.evaluation_is_due():
            row |= probe.evaluate(method, online_probe, data, device, autocast)
        session.after_epoch(row)            # log, checkpoint, Ctrl-C

    # final files and summary
    batches.close()
    distributed.finish()
    if RANK == 0:
        run.save_backbone(args.out, method.encoder, args, data, session.command)
        session.signals.release()
        draw_run(args.out)
        untrained = probe.untrained_accuracy(online_probe, data, device, autocast)
        print(last_lines(args.out, session.rows[-1], untrained, len(data["test_x"])))


def main(argv=None):
    command = sys.argv[1:] if argv is None else argv
    with orderly_end(command) as signals:
        args = parse_args(command)
        with (run.reserved(args.out, args.resume, args.overwrite),
              Session(args, command, signals) as session):
            train(args, session)


if __name__ == "__main__":
    main()
