"""Trains an image encoder without labels with AdaDim (arXiv 2505.12576), or with any method of its family.

    L = α·InfoNCE + (1 − α)·VICReg + β·m·I(R;Z)

    python train.py --dataset cifar100 --beta 1e-4              the paper's main experiment: the defaults are its own
    python train.py --dataset cifar100 --alpha 1 --beta 0       SimCLR
    python train.py --dataset cifar100 --alpha 0 --beta 0       VICReg
    python train.py --dataset folder --data-dir my_images --arch resnet18 --epochs 100 --alpha-every 5
    torchrun --nproc_per_node=8 train.py …                      the same on eight GPUs; --batch-size is that of all together

A run leaves in --out: log.csv (a row an epoch), last.pt (to --resume from), backbone.pt (the encoder, for torchvision's
ResNet) and dynamics.png. Exit status: 0; 2 with one line on stderr for bad input or a loss that is no longer finite;
130 or 143 when stopped by Ctrl-C or SIGTERM. The file reads top to bottom: flags, optimiser, evaluation, checkpoints,
then train(), the whole run as one function.
"""
import argparse
import copy
import datetime
import math
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from augment import AUGMENTATIONS, DRAWS, augment_with, normalise
from data import DATASETS, fingerprint, live, load, machine_memory, pixels, random_subset, stream_crops
from losses import adadim, wasserstein_uniformity
from metrics import RUN_PANELS, draw_dynamics, effective_rank, knn_accuracy, read_log, representation_metrics, top_k_accuracy
from models import RESNETS, encode, mlp, resnet

COLUMNS = ("epoch step seconds samples_per_s lr alpha loss info_nce vicreg mi_loss probe_loss probe_top1 probe_top5 knn_top1 "
           "erank_r erank_z h2_r h2_z mi uniformity_r uniformity_z w2_r w2_z eigs_r eigs_z var30_r var30_z").split()
RATES = {"lars": (0.4, 0.1), "sgd": (0.05, 0.1), "adamw": (1e-3, 1e-2)}       # default rate of the encoder, of the probe
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TEST_IMAGES, KNN_IMAGES = 2048, 8192      # fixed random images that an evaluation uses, of the test and training set
RANK, WORLD = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else (0, 1)     # by torchrun
caught = {"wait": False, "signal": None}        # Ctrl-C and SIGTERM end a run at once or, where that is unsafe, after the step


# --- flags ------------------------------------------------------------------------------------------------------------

def number(kind, accept, wanted):
    """An argparse type: kind(text), where accept() holds for it."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value
    return parse


def parse_args(argv):
    count = number(int, lambda v: v > 0, "a whole number above 0")
    two = number(int, lambda v: v > 1, "a whole number above 1")
    finite = number(float, math.isfinite, "a finite number")
    positive = number(float, lambda v: 0 < v < math.inf, "a number above 0")
    not_negative = number(float, lambda v: 0 <= v < math.inf, "0 or a number above it")
    alpha = number(lambda text: text if text in ("ada", "linear", "cosine") else float(text),
                   lambda v: isinstance(v, str) or 0 <= v <= 1, "ada, linear, cosine or a number from 0 to 1")
    sizes = number(str, lambda v: re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", v), "layer sizes such as 2048-2048-2048")
    device = number(str, lambda v: re.fullmatch(r"auto|cpu|cuda(:\d+)?", v), "auto, cpu, cuda or cuda:N")
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message} (--help explains the flags)")

    def group(title):
        add = parser.add_argument_group(title).add_argument
        return lambda flag, text, **settings: add(
            flag, help=text + (f" (default: {settings['default']})" if "default" in settings else ""), **settings)

    add = group("data")
    add("--dataset", "imagenet, imagenet100 and inat21 are your own copy in --data-dir, folder your own images: train/<class>/… and test/<class>/… "
        "(or val/), or images without classes; shapes is built in, the others are downloaded", choices=DATASETS, default="cifar100")
    add("--data-dir", "where the files are, or are downloaded to", default="./data", metavar="DIR")
    add("--augment", "augmentation scheme", choices=AUGMENTATIONS, default="vicreg")
    add("--classes", "a file with the names of the class folders to use, one a line", type=Path, metavar="FILE")
    add("--resident", "keep all images on the device, their central squares; no: worker processes decode them as they are needed; auto: as they fit; a run "
        "goes on as it began",
        choices=("auto", "yes", "no"), default="auto")
    add("--limit-train", "train on N random images only, for quick trials", type=count, metavar="N")

    add = group("networks")
    add("--arch", "encoder", choices=RESNETS, default="resnet50")
    add("--width", "channels of its first stage; less suits a CPU", type=count, default=64, metavar="N")
    add("--projector", "layer sizes", type=sizes, default="2048-2048-2048", metavar="SIZES")

    add = group("loss")
    add("--alpha", "weight of InfoNCE against VICReg: ada (measured: AdaDim), linear or cosine (from 0 to 1 over training), or a "
        "number from 0 (VICReg) to 1 (SimCLR)", type=alpha, default="ada")
    add("--alpha-every", "with ada: α is set after every Nth epoch, and is 0 until then", type=count, default=20, metavar="N")
    add("--alpha-batches", "with ada: batches that α is measured on", type=count, default=10, metavar="N")
    add("--alpha-from", "with ada: measure α on embeddings z (published) or representations r", choices=("z", "r"), default="z")
    add("--beta", "weight of I(R;Z): above 0 lowers it, below 0 raises it", type=finite, default=1e-4)
    add("--mi-scale", "m, which multiplies β: alpha (published), or 1 for a constant regulariser", choices=("alpha", "1"), default="alpha")
    add("--temperature", "τ of InfoNCE", type=positive, default=0.1)
    add("--w2-weight", "adds W times the embeddings' Wasserstein uniformity, the views' mean", type=not_negative, default=0.0, metavar="W")

    add = group("optimisation")
    add("--epochs", "how often all images are seen", type=count, default=400)
    add("--batch-size", "images a step, two views of each; an epoch's last incomplete batch is dropped", type=two, default=256, metavar="N")
    add("--optimizer", "for the encoder, the projector and the probe", choices=RATES, default="lars")
    add("--lr", "rate for a batch of 256, scaled with the batch (default: 0.4 for lars, 0.05 for sgd, 0.001 for adamw)", type=positive)
    add("--weight-decay", "not on the probe", type=not_negative, default=1e-4, metavar="W")
    add("--warmup-epochs", "linear warm-up before the cosine decay (default: 10, or a fifth of a run of less than 50 epochs)",
        type=not_negative, metavar="N")
    add("--precision", "of the networks; losses and metrics take fp32", choices=DTYPES, default="bf16")
    add("--compile", "torch.compile augmentation, networks and losses: slow to start, then faster on a GPU", action="store_true")
    add("--device", "cpu, cuda, cuda:1 …; auto takes a GPU where there is one", type=device, default="auto")
    add("--seed", "of weights, order and augmentation", type=number(int, lambda v: 0 <= v < 2 ** 31, "a whole number from 0"), default=0)

    add = group("the run")
    add("--out", "where the run goes (default: runs/ and a name made of dataset, α, β and seed)", type=Path, metavar="DIR")
    add("--eval-every", "evaluate after every Nth epoch, and the last", type=count, default=1, metavar="N")
    add("--baseline", "train the same probe on the untrained encoder too, and compare at the end", action="store_true")
    add("--tensorboard", "write what log.csv holds for TensorBoard too, into --out", action="store_true")
    add("--resume", "go on from last.pt in --out, exactly; start, where there is none yet", action="store_true")
    add("--overwrite", "replace the run that is in --out", action="store_true")

    if "--beta" in argv[:-1]:       # argparse takes -1e-4 for a flag
        i = argv.index("--beta")
        argv = [*argv[:i], "=".join(argv[i:i + 2]), *argv[i + 2:]]
    args = parser.parse_args(argv)
    args.lr = args.lr or RATES[args.optimizer][0]
    args.warmup_epochs = min(10, args.epochs / 5) if args.warmup_epochs is None else args.warmup_epochs
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} must be below --epochs {args.epochs}")
    args.out = args.out or Path(f"runs/{args.dataset}-alpha_{args.alpha}-beta_{args.beta:g}-seed{args.seed}")
    return args


def stop(message):
    """Bad input: one line on stderr, exit status 2."""
    live("")
    print(f"train.py{f' (process {RANK})' if RANK else ''}: {message}", file=sys.stderr)
    sys.exit(2)


# --- optimisation -----------------------------------------------------------------------------------------------------

class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step is, for each weight tensor w with gradient g, scaled to w's own size (You et al., 2017).

    q = eta·‖w‖ / (‖g‖ + weight_decay·‖w‖ + 1e-8), with clip_lr at most lr in effect: q ← min(q/lr, 1);
    g ← q·(g + weight_decay·w); v ← momentum·v + g; w ← w − lr·v. Biases and norms (one dimension) take the plain
    step without decay; so does, but for the decay, a tensor of zeros, which could never leave zero otherwise.
    """

    def __init__(self, params, lr, momentum=0.9, weight_decay=1e-4, eta=0.02, clip_lr=True):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta, clip_lr=clip_lr))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: p.ndim <= 1)
            if not params:
                continue
            lr, decay = group["lr"], group["weight_decay"]
            weights = [p for p in params if p.ndim > 1]
            grads = [p.grad for p in params]
            if weights:     # foreach: a handful of kernels for all tensors together, and one a tensor for the product with q
                decayed = torch._foreach_add(grads[:len(weights)], weights, alpha=decay)
                w = torch.stack(torch._foreach_norm(weights))
                g = torch.stack(torch._foreach_norm(grads[:len(weights)]))
                q = group["eta"] * w / (g + decay * w + 1e-8)
                if group["clip_lr"]:
                    q = (q / lr).clamp(max=1)
                q = torch.where(w > 0, q, 1)
                grads[:len(weights)] = torch._foreach_mul(decayed, q.unbind())
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, grads)
            torch._foreach_add_(params, momenta, alpha=-lr)
        return loss


def make_optimizer(args, encoder_params, probe_params):
    """The optimiser, with the probes in a group of their own: own rate, no decay, the same schedule."""
    scale, (_, probe_lr) = args.batch_size / 256, RATES[args.optimizer]
    groups = [dict(params=list(encoder_params), base_lr=args.lr * scale, weight_decay=args.weight_decay),
              dict(params=list(probe_params), base_lr=probe_lr * scale, weight_decay=0.0)]
    if args.optimizer == "lars":
        return LARS(groups, lr=args.lr)
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=args.lr)


def rate_at(step, base, warmup, total):
    """Linear warm-up from 3e-5 to base over `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return 3e-5 + (base - 3e-5) * step / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def alpha_at(schedule, measured, progress):
    """α at a step: measured, a share of the training's progress (0 … 1), or fixed."""
    return {"ada": measured, "linear": progress, "cosine": 0.5 * (1 - math.cos(math.pi * progress))}.get(schedule, schedule)


# --- networks and loss, on one device or several ----------------------------------------------------------------------

class Nets(nn.ModuleDict):
    """encoder, projector, probe (where there are labels), and with --baseline untrained and untrained_probe, in one pass."""

    def forward(self, views):
        r = self["encoder"](views)
        logits = [self["probe"](r.detach())] if "probe" in self else []
        if "untrained" in self:
            with torch.no_grad():
                features = self["untrained"](views)
            logits.append(self["untrained_probe"](features))
        return r, self["projector"](r), logits


class Gather(torch.autograd.Function):
    """The rows of all processes, in their order. Each then has the whole batch's loss, so that no gradient need travel back."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        # times their number, for DistributedDataParallel averages what it should add up
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def losses_of(model, views, labels, alpha, args):
    """What is minimised, what is logged of it, and what α may be measured on.

    model: Nets, or DistributedDataParallel around it. views: both, stacked for one pass; labels: of one; of this process's part
    of the batch. The loss is that of the batch of all processes; the probe's, as logged, that of this one. alpha: a 0-dim tensor on the device.
    """
    with torch.autocast(views.device.type, DTYPES[args.precision], enabled=args.precision != "fp32"):
        r, z, logits = model(views)
    r1, r2, z1, z2 = *r.chunk(2), *z.chunk(2)
    if dist.is_initialized():
        r1, r2, z1, z2 = (Gather.apply(x.float()) for x in (r1, r2, z1, z2))
    loss, parts = adadim(r1, r2, z1, z2, alpha, args.beta, 1.0 if args.mi_scale == "1" else None, args.temperature)
    if args.w2_weight:
        loss = loss + args.w2_weight * (wasserstein_uniformity(z1) + wasserstein_uniformity(z2)) / 2
    objective, both = loss, labels.repeat(2)
    labelled = (both >= 0).sum().clamp_min(1).float()
    if dist.is_initialized():
        dist.all_reduce(labelled)
        labelled = labelled / dist.get_world_size()
    probe_losses = [F.cross_entropy(x.float(), both, ignore_index=-1, reduction="sum") / labelled for x in logits]
    for probe_loss in probe_losses:
        objective = objective + probe_loss
    logged = torch.stack([loss, *parts.values(), probe_losses[0] if logits else torch.zeros_like(loss)]).detach()
    return objective, logged, (z1 if args.alpha_from == "z" else r1).detach()


# --- evaluation -------------------------------------------------------------------------------------------------------

def evaluate(nets, data, autocast):
    """Accuracies and metrics on the fixed test images, by their names in log.csv; without labels the metrics alone."""
    facts = dict(mean=data["mean"], std=data["std"])
    with autocast():
        r, z, *logits = encode(data["test_x"], nets["encoder"], *(nets[name] for name in ("projector", "probe") if name in nets), **facts)
        found = representation_metrics(r, z)
        if logits:
            y, (bank,) = data["test_y"], encode(data["knn_x"], nets["encoder"], **facts)
            found |= {"probe_top1": top_k_accuracy(*logits, y).item(), "probe_top5": top_k_accuracy(*logits, y, 5).item(),
                      "knn_top1": knn_accuracy(bank, data["knn_y"], r, y, k=min(20, len(bank))).item()}
    return found


# --- what a run leaves ------------------------------------------------------------------------------------------------

def write_whole(path, write):
    """Calls write(file) on a temporary file that then takes path's place: path is there whole, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:        # torch.save's RuntimeError: the disk is full
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def csv_line(row):
    return (",".join("" if value is None else f"{value:.7g}" for value in row) + "\n").encode()


def read_checkpoint(path):
    """last.pt, if it is whole; if not, one line says what is wrong."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["config"], checkpoint["streamed"]
    except OSError:
        raise
    except Exception as error:      # a damaged file can raise anything
        stop(f"{path} is not a whole checkpoint ({type(error).__name__}): restore it, or start over with --overwrite")
    return checkpoint


def duration(seconds):
    """h:mm:ss, or days and hours."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} days {hours % 24} h" if hours > 48 else f"{hours}:{minutes:02}:{seconds:02}"


# --- the run ----------------------------------------------------------------------------------------------------------

def train(args):
    # what can be refused is refused before anything is written or takes long
    last, log = args.out / "last.pt", args.out / "log.csv"
    if (last.exists() or log.exists()) and not (args.resume or args.overwrite):
        stop(f"{args.out} already holds a run: --resume goes on with it, --overwrite replaces it, another --out spares it")
    if args.resume and log.exists() and not last.exists() and log.read_bytes().count(b"\n") > 1:
        stop(f"{args.out} holds a log but no last.pt to go on from: --overwrite replaces the run, another --out spares it")
    parent = next(path for path in (args.out, *args.out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        stop(f"cannot write to {args.out}: {parent} is not {'writable' if parent.is_dir() else 'a directory'}")
    if args.batch_size % WORLD:
        stop(f"--batch-size {args.batch_size} cannot be shared by {WORLD} processes")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
        if WORLD > 1 and device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", RANK)))      # each process has its own
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
        if WORLD > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
    except (RuntimeError, AssertionError, ValueError) as error:
        stop(f"--device {args.device} can't be used here ({str(error).splitlines()[0]}): leave it out, or say cpu")
    autocast = lambda: torch.autocast(device.type, DTYPES[args.precision], enabled=args.precision != "fp32")
    torch.backends.cudnn.benchmark = True

    if args.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            stop("--tensorboard needs a package that is not here: pip install tensorboard")

    # the data, on the device for good or, where that is too small, read as it is needed
    room = machine_memory() / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        room = min(room, torch.cuda.mem_get_info(device)[0] / 2)
    if WORLD > 1:       # as much as the process has that has least
        dist.all_reduce(room := torch.tensor(room, device=device), dist.ReduceOp.MIN)
    saved = read_checkpoint(last) if args.resume and last.exists() else None
    resident = args.resident if saved is None else "no" if saved["streamed"] else "yes"        # a run goes on as it began
    try:
        data = load(args.dataset, args.data_dir, args.limit_train, args.seed, args.classes, resident, float(room))
    except (ValueError, OSError) as error:
        stop(error)
    n, n_classes = len(data["train_x"]), len(data["classes"])
    steps, total = n // args.batch_size, n // args.batch_size * args.epochs
    if len(data["test_x"]) < 2:
        stop("there is one test image: the metrics need two or more")
    if steps == 0:
        stop(f"--batch-size {args.batch_size} is larger than the training set of {n:,} images")
    # these may differ when a run is resumed
    skip = ("out", "data_dir", "classes", "resident", "device", "compile", "tensorboard", "resume", "overwrite")
    config = {f"--{key.replace('_', '-')}": value for key, value in vars(args).items() if key not in skip}
    config |= {"data": f"{n} images with checksum {fingerprint(data)}"}
    streamed, files = isinstance(data["train_x"], list), data["train_x"]
    fixed, labelled = random_subset(len(data["test_x"]), TEST_IMAGES, seed=0), (data["train_y"] >= 0).nonzero().flatten()
    knn = labelled[random_subset(len(labelled), KNN_IMAGES, seed=0)]
    data |= {"test_x": pixels(data, "test_x", fixed), "test_y": data["test_y"][fixed], "knn_x": pixels(data, "train_x", knn), "knn_y": data["train_y"][knn]}
    data = {key: value.to(device) if torch.is_tensor(value) else value for key, value in data.items()}

    # the networks; with --baseline an encoder that stays as it was drawn, and a probe that learns from it
    torch.manual_seed(args.seed)
    encoder, width = resnet(args.arch, args.width, data["stem"])
    nets = Nets({"encoder": encoder, "projector": mlp(width, args.projector)})
    if n_classes:
        nets["probe"] = nn.Linear(width, n_classes)
        if args.baseline:
            nets.update({"untrained": copy.deepcopy(encoder).requires_grad_(False), "untrained_probe": copy.deepcopy(nets["probe"])})
    if WORLD > 1 and device.type == "cuda":
        nets = nn.SyncBatchNorm.convert_sync_batchnorm(nets)
    # oneDNN crashes in the backward pass of a narrow 7 × 7 stem in fp32 and channels_last (seen with PyTorch 2.6 to 2.15)
    crashes = device.type == "cpu" and args.precision == "fp32" and data["stem"] == "imagenet" and args.width < 16
    layout = torch.contiguous_format if crashes else torch.channels_last
    nets.to(device, memory_format=layout)
    probes = [p for name in nets if "probe" in name for p in nets[name].parameters()]
    optimizer = make_optimizer(args, [*nets["encoder"].parameters(), *nets["projector"].parameters()], probes)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")

    # where it starts: from nothing, or from a checkpoint
    done, measured_alpha, earlier, rows = 0, 0.0, 0.0, []
    if saved:
        wrong = [f"{key} {saved['config'].get(key)} there, {value} here" for key, value in config.items() if saved["config"].get(key) != value]
        if wrong:
            stop(f"{last} is of another configuration ({'; '.join(wrong)}): give the same flags, or another --out")
        nets.load_state_dict(saved["nets"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        done, measured_alpha, earlier, rows = saved["epoch"], saved["alpha"], saved["seconds"], saved["rows"]
    elif args.resume:
        print(f"{args.out} holds no checkpoint yet: starting from the beginning", file=sys.stderr)

    # after the checkpoint was read: DistributedDataParallel sees to it that all processes start alike
    model = nn.parallel.DistributedDataParallel(nets, gradient_as_bucket_view=True) if WORLD > 1 else nets
    step_losses, view_of = losses_of, augment_with
    if args.compile:
        view_of = torch.compile(augment_with)
        if WORLD > 1:
            nets.compile()      # what the processes say to each other stays out of it
        else:
            step_losses = torch.compile(losses_of)

    def save(epoch, seconds):
        if RANK > 0:
            return
        write_whole(last, lambda file: torch.save({
            "epoch": epoch, "alpha": measured_alpha, "seconds": seconds, "rows": rows, "config": config,
            "nets": nets.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
            **{key: data[key] for key in ("classes", "size", "image_size", "stem", "mean", "std")},
            "streamed": streamed, "data_dir": str(Path(args.data_dir).absolute())}, file))

    def check_finite(logged, epoch):
        bad = (~logged.isfinite()).any(1)
        if len(logged) == steps:        # the last step's update can break the weights after its loss was taken
            bad[-1] |= ~torch.stack([value.isfinite().all() for value in nets.state_dict().values()]).all()
        if bad.any():
            stop(f"the loss became NaN or infinite in epoch {epoch}, step {int(bad.int().argmax()) + 1} of {steps}: try a longer "
                 f"--warmup-epochs (100 steps or more) or a lower --lr; {last} still holds epoch {epoch - 1}")

    millions = lambda net: f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M"
    print(f"{args.dataset}: {n:,} training images of {data['image_size']} pixels, {f'{n_classes} classes' if n_classes else 'no labels: no probe'}"
          f"{', read as they are needed' if streamed else ''}; {args.arch} "
          f"({millions(nets['encoder'])} parameters), projector {args.projector} ({millions(nets['projector'])}); "
          f"{f'{WORLD} × ' if WORLD > 1 else ''}{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, {args.precision}; to {args.out}")
    if args.alpha == "ada" and args.alpha_every >= args.epochs:
        print(f"note: α stays 0, for it is first measured after epoch {args.alpha_every}: a lower --alpha-every changes that")
    if RANK == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        for path in [path for name in ("log.csv", "last.pt", "backbone.pt", "dynamics.png", "events.out.*") for path in args.out.glob(name)]:
            if args.overwrite:
                path.unlink()
        # the checkpoint is what counts: rows of the log that came after it are trained, and written, again
        write_whole(log, lambda file: file.writelines([(",".join(COLUMNS) + "\n").encode(), *map(csv_line, rows)]))
        if done == 0:
            save(0, 0.0)
        if args.tensorboard:
            writer = SummaryWriter(args.out, purge_step=done + 1)

    started, generator = time.time(), torch.Generator(device)
    mean, std = (torch.tensor(data[key]).to(device) for key in ("mean", "std"))
    for epoch in range(done + 1, args.epochs + 1):
        # all of an epoch's randomness comes from its number, so that it can be repeated exactly
        generator.manual_seed(args.seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator, device=device)
        measure = torch.randperm(steps, generator=generator, device=device)[:args.alpha_batches].tolist()
        if RANK > 0:
            generator.manual_seed(((args.seed * 1_000_003 + epoch) * 65_536 + RANK) % 2 ** 63)      # the same order for all, their own augmentation for each
        batches = order[:steps * args.batch_size].view(steps, WORLD, -1)[:, RANK]
        if streamed:
            seed = (args.seed * 1_000_003 + epoch) * WORLD + RANK
            crops = stream_crops(files, batches.cpu(), seed, args.augment, data["image_size"], pin=device.type == "cuda")
        progress = [((epoch - 1) * steps + step) / max(1, total - 1) for step in range(steps)]
        alphas = torch.tensor([alpha_at(args.alpha, measured_alpha, share) for share in progress]).to(device)
        ranks, logged, begun = [], torch.zeros(steps, 5, device=device), time.time()
        shown, caught["wait"] = begun, streamed     # an exception among the workers' own doings would be lost
        for step, batch in enumerate(batches):      # nothing waits for the device, but what is shown once a second, fp16 and measuring α
            if caught["signal"]:
                crops.close()
                raise KeyboardInterrupt(caught["signal"])
            at = (epoch - 1) * steps + step
            for group in optimizer.param_groups:
                group["lr"] = rate_at(at, group["base_lr"], args.warmup_epochs * steps, total)
            images = next(crops).to(device, non_blocking=True) if streamed else data["train_x"][batch].expand(2, -1, -1, -1, -1)
            draws = torch.rand(2, len(batch), DRAWS, generator=generator, device=device)
            views = torch.cat([view_of(draws[view], images[view], args.augment, view, data["image_size"], streamed) for view in (0, 1)])
            views = normalise(views, mean, std).contiguous(memory_format=layout)
            objective, logged[step], measured = step_losses(model, views, data["train_y"][batch], alphas[step], args)
            optimizer.zero_grad()
            scaler.scale(objective).backward()
            scaler.step(optimizer)
            scaler.update()
            if step in measure and args.alpha == "ada" and epoch % args.alpha_every == 0:
                ranks.append(effective_rank(measured) / min(measured.shape))    # of the largest that a batch can have
            if epoch == done + 1 and step in (0, 1, 4):     # the first step is slow
                logged.cpu()                                # waits for the device
                if step == 0 and args.compile:
                    print(f"compiling, with the first step, took {duration(time.time() - begun)}", flush=True)
                if step == 4:
                    print(f"about {duration((time.time() - mark) / 3 * (total - at))} to go on this device", flush=True)
                mark = time.time()
            if time.time() - shown > 1:
                check_finite(logged[:step + 1], epoch)
                shown, rate = time.time(), (step + 1) * args.batch_size / (time.time() - begun)
                live(f"epoch {epoch}/{args.epochs}  step {step + 1}/{steps}  loss {logged[step, 0]:.3f}  {rate:,.0f} samples/s")
        caught["wait"] = False
        check_finite(logged, epoch)
        rate = steps * args.batch_size / (time.time() - begun)
        if ranks:
            measured_alpha = torch.stack(ranks).mean().item()

        row = dict(zip(("loss", "info_nce", "vicreg", "mi_loss", "probe_loss")[:5 if n_classes else 4], logged.mean(0).tolist()))
        row |= {"epoch": epoch, "step": epoch * steps, "samples_per_s": rate, "lr": optimizer.param_groups[0]["lr"], "alpha": alphas[-1].item()}
        if (epoch % args.eval_every == 0 or epoch == args.epochs) and RANK == 0:
            row |= evaluate(nets, data, autocast)
        row["seconds"] = earlier + time.time() - started
        rows.append([row.get(column) for column in COLUMNS])
        save(epoch, row["seconds"])
        if RANK == 0:
            with open(log, "ab") as file:
                file.write(csv_line(rows[-1]))
        if args.tensorboard and RANK == 0:
            for column in row:
                writer.add_scalar(column, row[column], epoch)
            writer.flush()
        live("")
        accuracy = f"probe {row['probe_top1']:.1f} %  k-NN {row['knn_top1']:.1f} %  " if "probe_top1" in row else ""
        left = (time.time() - started) / (epoch - done) * (args.epochs - epoch)
        print(f"epoch {epoch}/{args.epochs}  loss {row['loss']:.3f} (InfoNCE {row['info_nce']:.3f}, VICReg {row['vicreg']:.3f}, "
              f"I {row['mi_loss']:.3f})  α {row['alpha']:.3f}  {accuracy}{rate:,.0f} samples/s  {duration(left)} left", flush=True)

    if WORLD > 1:
        dist.destroy_process_group()
    if RANK > 0:
        return
    weights = {name: value.cpu().contiguous() for name, value in nets["encoder"].state_dict().items()}
    write_whole(args.out / "backbone.pt", lambda file: torch.save(weights, file))
    try:
        draw_dynamics({args.out.name: [read_log(log)]}, args.out / "dynamics.png", RUN_PANELS)
    except ImportError:
        print("dynamics.png was left out: it needs matplotlib (pip install matplotlib)")
    final = dict(zip(COLUMNS, rows[-1]))
    print(f"finished in {duration(final['seconds'])}; in {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    if "untrained" in nets:
        with autocast():
            _, logits = encode(data["test_x"], nets["untrained"], nets["untrained_probe"], mean=data["mean"], std=data["std"])
        before = top_k_accuracy(logits, data["test_y"]).item()
        print(f"probe accuracy: {final['probe_top1']:.1f} %; of the same probe on the untrained encoder: {before:.1f} %; "
              f"training gained {final['probe_top1'] - before:.1f} points")


def main(argv=None):
    command = sys.argv[1:] if argv is None else argv

    def terminate(number, frame):
        caught["signal"] = number
        if not caught["wait"]:
            raise KeyboardInterrupt(number)

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")       # a terminal that cannot show α
    caught.update(wait=False, signal=None)
    before = [(number, signal.signal(number, terminate)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        if RANK > 0:
            sys.stdout = open(os.devnull, "w")      # the first process speaks for all
        train(parse_args(command))
    except KeyboardInterrupt as interrupt:
        again = [sys.executable, __file__, *(word for word in command if word not in ("--resume", "--overwrite")), "--resume"]
        live("")
        if RANK == 0:
            print(f"train.py: stopped; go on with: {'the same torchrun … and --resume' if WORLD > 1 else shlex.join(again)}", file=sys.stderr)
        sys.exit(128 + (interrupt.args or (signal.SIGINT,))[0])
    except (RuntimeError, MemoryError) as error:
        if WORLD > 1 and re.search("gloo|nccl|peer|connection|socket", str(error), re.IGNORECASE):
            stop("another process of this run ended, see what it says; the same command with --resume goes on")
        if "DataLoader worker" in str(error):
            stop("a process that reads images was killed, probably for want of memory; the same command with --resume goes on")
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        stop("there is not enough memory: try a smaller --batch-size, --width or --projector")
    except BrokenPipeError:     # as in: python train.py … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        stop(error)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
