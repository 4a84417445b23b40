"""Trains an image encoder without labels with AdaDim (arXiv 2505.12576).

    python train.py --dataset cifar100 --beta 1e-4              the paper's main experiment
    python train.py --dataset cifar100 --method simclr          vicreg, byol …: see --methods
    python train.py --dataset folder --data-dir my_images --arch resnet18 --epochs 100
    torchrun --nproc_per_node=8 train.py …                      the same on eight GPUs

A run writes to --out: config.json, log.csv (one row per epoch), last.pt (for --resume),
backbone.pt (the encoder, in torchvision's format) with encoder.json, and dynamics.png.

From top to bottom: flags, learning rate, the networks and one step, and the whole run. losses.py
has the loss, methods.py what weights its terms and sets α, run.py the files of a run.
"""
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

import distributed
import probe
import run
from augment import AUGMENTATIONS, augment_with
from baselines.all_methods import METHODS
from data import (DATASETS, batches_of_views, load, memory_for_images, mixed_seed, plan_batches,
                  to_device)
from distributed import RANK, WORLD_SIZE
from figures import draw_run
from methods import (FAMILY, AdaDim, alpha_type, first_and_last, list_methods, read_settings,
                     three_weights)
from models import DTYPES, ENCODERS, RESNETS, make_encoder, memory_layout, mixed_precision
from optim import LEARNING_RATES, clip_gradient, make_optimizer
from run import BadInput, at_least, positive

FOR_METHODS = 2     # a separate random stream for methods


# --- flags ----------------------------------------------------------------------------------------

def parse_args(argv):
    """Parses the flags; --method determines the defaults of some. Raises BadInput."""
    parser = run.Parser("train.py", __doc__)
    parser.add_argument("--methods", action="version", version=list_methods(METHODS),
                        help="list all methods with their papers, defaults and settings")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="cifar100", choices=tuple(DATASETS),
        help="shapes: built in; folder: your images, in train/<class>/… and test/<class>/…, or "
        "without classes; imagenet, imagenet100, inat21: your copy; all others are downloaded")
    add("--data-dir", default="./data", metavar="DIR", help="folder of the images, and downloads")
    add("--augment", default="vicreg", choices=tuple(AUGMENTATIONS), help="augmentation scheme")
    add("--classes", type=Path, metavar="FILE", help="class folders to use, one per line")
    add("--resident", default="auto", choices=("auto", "yes", "no"), help="yes: centre-crop the "
        "images and keep them in device memory; no: stream their files; auto: yes if they fit")
    add("--image-size", type=at_least(8), help="of a folder's images, in pixels (default: 224)")
    add("--limit-train", type=at_least(1), metavar="N", help="train on N random images")

    add = parser.add_argument_group("networks").add_argument
    add("--arch", default="resnet50", choices=(*RESNETS, *ENCODERS), metavar="NAME",
        help="encoder: a ResNet of torchvision, such as resnet18, or one of your own")
    add("--width", default=64, type=at_least(1), help="channels of a ResNet's first stage")
    add("--projector", default="2048-2048-2048", metavar="SIZES", help="sizes of its layers")

    add = parser.add_argument_group("method").add_argument
    add("--method", default="adadim", choices=(*METHODS, *FAMILY), help="see --methods")
    add("--set", action="extend", nargs="+", metavar="NAME=VALUE", help="the method's own settings")
    add("--alpha", default="ada", type=alpha_type, help="weight of InfoNCE: ada (measured), linear "
        "or cosine (from 0 to 1 over training), or a number from 0 (VICReg) to 1 (SimCLR)")
    add("--alpha-every", default=20, type=at_least(1), help="ada: epochs from one α to the next")
    add("--alpha-batches", default=10, type=at_least(1), help="ada: batches to measure α on")
    add("--alpha-from", default="z", choices=("z", "r"), help="ada: measured on z (published) or r")
    add("--beta", default=1e-4, type=float,
        help="weight of I(R;Z): above 0, training lowers it; below 0, training raises it")
    add("--mi-scale", default="alpha", choices=("alpha", "1"), help="the factor m in β·m·I(R;Z)")
    add("--temperature", default=0.1, type=positive, help="τ of InfoNCE")
    add("--vicreg-weights", default="25,25,1", type=three_weights, metavar="S,V,C",
        help="weights of VICReg's invariance, variance and covariance")
    add("--w2-weight", default="0", type=first_and_last, metavar="MAX[:MIN]",
        help="weight of the embeddings' Wasserstein uniformity, from MAX to MIN over training")
    add("--lu-weight", default="0", type=first_and_last, metavar="MAX[:MIN]",
        help="the same for Wang & Isola's uniformity")

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", default=400, type=at_least(1), help="passes over the training images")
    add("--batch-size", default=256, type=at_least(2), help="images per step, in all processes")
    add("--optimizer", default="lars", choices=tuple(LEARNING_RATES), help="of all networks")
    add("--lr", type=positive, help="learning rate for a batch of 256 (default: 0.4 for lars, 0.05 "
        "for sgd, 0.001 for adam and adamw; a method may set its own)")
    add("--weight-decay", default=1e-4, type=at_least(0, float), help="the probe has none")
    add("--warmup-epochs", type=at_least(0, float), help="linear warm-up before the cosine decay "
        "(default: 10, or a fifth of fewer than 50, but at least 200 steps)")
    add("--clip", default=2.0, type=at_least(0, float), help="times the usual norm; 0: off")
    add("--precision", default="auto", choices=("auto", *DTYPES), help="of the networks; losses "
        "and metrics use true fp32. auto: bf16 if the device computes in it, else fp32")
    add("--compile", default="no", choices=("yes", "no"), help="use torch.compile")
    add("--deterministic", default="no", choices=("yes", "no"), help="the same GPU bits each time")
    add("--sync-batch-norm", default="yes", choices=("yes", "no"),
        help="on several GPUs: batch norms see the whole batch, or their GPU's part")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 …")
    add("--seed", default=0, type=at_least(0), help="of weights, order and augmentation")

    add = parser.add_argument_group("the run").add_argument
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: in runs/)")
    add("--eval-every", default=1, type=at_least(1), help="epochs from one evaluation to the next")
    add("--save-minutes", default=10.0, type=at_least(0, float), help="between two last.pt")
    add("--baseline", action="store_true", help="also probe a frozen, untrained encoder")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="continue exactly from last.pt, if there is one")
    add("--overwrite", action="store_true", help="replace the run in --out")

    # the defaults of some flags depend on --method; vicreg and simclr are AdaDim with a fixed α
    first = run.Parser("train.py", None, add_help=False)
    first.add_argument("--method", default="adadim")
    name = first.parse_known_args(argv)[0].method
    method = METHODS.get(name, AdaDim)
    defaults = method.defaults | FAMILY.get(name, {})
    parser.set_defaults(**{flag[2:].replace("-", "_"): value for flag, value in defaults.items()})
    args = parser.parse_args(argv)
    args.method = name if name in METHODS else "adadim"

    given = {word.partition("=")[0] for word in argv}
    ignored = given & set(AdaDim.uses) - set(method.uses)
    if ignored:
        print(f"note: {name} has no use for {', '.join(sorted(ignored))}")
    if args.batch_size % WORLD_SIZE:
        parser.error(f"--batch-size {args.batch_size} cannot be split over {WORLD_SIZE} processes")
    if args.warmup_epochs is not None and args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} must be below --epochs")
    try:
        args.set = read_settings(args.method, args.set, METHODS) or None
    except ValueError as error:
        parser.error(error)
    own_optimizer = defaults.get("--optimizer", "lars")
    if args.lr is None or ("--lr" not in given and args.optimizer != own_optimizer):
        args.lr = LEARNING_RATES[args.optimizer]["encoder"]
    if args.out is None:
        settings = f"alpha_{args.alpha}-beta_{args.beta:g}" if name == "adadim" else name
        args.out = Path("runs") / f"{args.dataset}-{settings}-seed-{args.seed}"
    return args


# --- learning rate --------------------------------------------------------------------------------

def warmup_steps(args, steps):
    """Default: 10 epochs or a fifth of a short run; at least 200 steps, or half of a tiny run."""
    if args.warmup_epochs is not None:
        return args.warmup_epochs * steps
    return max(min(10, args.epochs / 5) * steps, min(200, args.epochs * steps / 2))


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

class Learner(nn.Module):
    """The method and, if there are labels, the online probe: one module for one backward pass."""

    def __init__(self, method, online_probe):
        super().__init__()
        self.method = method
        self.probe = online_probe
        self.register_buffer("mean_norm", torch.zeros(()))      # see optim.clip_gradient

    def forward(self, views, index, labels, progress):
        """The objective (0-dim), the logs, and `kept` for the method's after_step.

        labels: n. views, index, progress: see Method.forward.
        """
        result = self.method(views, index, progress)
        logs = {"loss": result.loss, **result.logs}
        logs = {column: value.detach() for column, value in logs.items()}
        if self.probe is None:
            return result.loss, logs, result.kept

        # r is detached: the encoder learns nothing from the labels
        probe_loss, baseline_loss = self.probe(result.r.detach(), views, labels)
        logs["probe_loss"] = probe_loss.detach()
        return result.loss + probe_loss + baseline_loss, logs, result.kept

    def param_groups(self, args):
        """The method's groups, and the probe's with its own learning rate and no weight decay."""
        scale = args.batch_size / 256
        groups = self.method.param_groups(args.lr * scale, args.weight_decay)
        if self.probe is not None:
            probe_lr = LEARNING_RATES[args.optimizer]["probe"] * scale
            groups.append(dict(params=self.probe.trained_params(), base_lr=probe_lr,
                               weight_decay=0.0))
        return groups


def make_learner(args, data, device):
    """Builds the networks on the device; the seed determines their weights."""
    torch.manual_seed(args.seed)
    try:
        encoder, p = make_encoder(args.arch, args.width, data["stem"], data["image_size"])
        method = METHODS[args.method](args, encoder, p, len(data["train_x"]))
    except ValueError as error:     # sizes that do not fit, in --width, --projector or --set
        raise BadInput(error) from error
    n_classes = len(data["classes"])
    online_probe = probe.OnlineProbe(encoder, p, n_classes, args.baseline) if n_classes else None
    layout = memory_layout(device, args.precision, args.width)
    return Learner(method, online_probe).to(device, memory_format=layout)


def training_step(model, learner, optimizer, scaler, autocast, clip, batch, progress):
    """Forward, backward, step; returns the logs, and the tensors that after_step() needs.

    model: the learner, or DistributedDataParallel around it. batch: views, index and labels.
    autocast and scaler do nothing in fp32; the scaler is for fp16 alone.
    """
    # forward
    with autocast:
        objective, logs, kept = model(*batch, progress)

    # backward; only the method is clipped: with the probe's gradient in the norm, labels would
    # change the encoder's step
    optimizer.zero_grad()
    scaler.scale(objective).backward()
    scaler.unscale_(optimizer)
    learner.method.after_backward()         # some freeze their prototypes at first
    logs["clipped"] = clip_gradient(learner.method.parameters(), optimizer, learner.mean_norm,
                                    clip)

    # step
    scaler.step(optimizer)
    scaler.update()
    return logs, kept


# --- the run --------------------------------------------------------------------------------------

def train(args, command, stop):
    """Trains one run. command: the words of the command line. stop: a run.StopSignal."""
    device = run.open_device(args.device)
    run.warn_of_weeks(args, device)
    distributed.start(device)
    saved = run.load_checkpoint(args.out / "last.pt") if args.resume else None
    run.resolve_auto(args, saved, device)                   # --precision, --resident
    run.set_determinism(args.deterministic == "yes")

    # data: keep the images on the device if they fit, otherwise stream them
    data = load(args.dataset, args.data_dir, args.limit_train, args.seed, args.classes,
                args.resident, memory_for_images(device), args.image_size)      # a dict
    n_images = len(data["train_x"])
    if n_images < args.batch_size:
        raise BadInput(f"--batch-size {args.batch_size} is more than the {n_images:,} images")
    config = run.flags_of(args) | {"data": f"{n_images} images"}
    to_device(data, device)
    steps = n_images // args.batch_size                     # per epoch
    total_steps = steps * args.epochs
    warmup = warmup_steps(args, steps)

    # networks, optimiser; several processes; torch.compile
    learner = make_learner(args, data, device)
    method = learner.method
    optimizer = make_optimizer(args.optimizer, learner.param_groups(args))
    autocast, scaler = mixed_precision(args.precision, device)
    columns = ("epoch", "step", "seconds", "samples_per_s", "lr", "clipped", "loss",
               *method.columns, *method.details, *probe.columns())

    # begin, or resume after `epochs_done` epochs and `steps_done` steps of the next one
    epochs_done, steps_done, rows, step_logs, seconds_before = 0, 0, [], [], 0.0
    if saved:
        run.check_same_flags(saved["config"], config, args.out)
        config = saved["config"]
        learner.load_state_dict(saved["learner"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        epochs_done, steps_done, rows = saved["epoch"], saved["step"], saved["rows"]
        step_logs = list(saved["step_logs"].to(device))
        seconds_before = saved["seconds"]
    started = saved_at = shown_at = time.monotonic()

    def save(epoch, step):
        """Writes last.pt: of `epoch` complete epochs, and `step` steps of the next one."""
        run.save_checkpoint(args.out / "last.pt", {
            "learner": learner.state_dict(),            # networks, probe, α, queues
            "optimizer": optimizer.state_dict(),        # momenta
            "scaler": scaler.state_dict(),              # fp16's loss scale
            "epoch": epoch,                             # complete epochs
            "step": step,                               # steps done in the next epoch
            "step_logs": torch.stack(step_logs) if step else torch.empty(0),
            "rows": rows,                               # of log.csv
            "seconds": seconds_before + time.monotonic() - started,
            "config": config,                           # flags, and the number of images
            "facts": run.facts_of(data, args.data_dir),     # names of classes, mean, std …
        })

    run.announce(args, data, method, device)
    if RANK == 0 and not saved:
        run.remove_run(args.out)
        save(0, 0)
        run.write_config(args.out, command, config, device)
    stop.listen()               # from here on, a signal to stop saves first

    # `model` is for the forward pass; weights are saved and read through `learner`
    model = distributed.parallel(learner, device, args.sync_batch_norm == "yes")
    view_of = torch.compile(augment_with) if args.compile == "yes" else augment_with
    if args.compile == "yes":       # with several processes, without their communication
        for module in [learner] if WORLD_SIZE == 1 else [method.encoder, method.projector]:
            module.compile()

    # one stream of batches for the whole run: files are read ahead while an epoch is evaluated
    plan = plan_batches(n_images, args.batch_size, args.seed, args.epochs, epochs_done + 1,
                        steps_done)
    layout = memory_layout(device, args.precision, args.width)
    batches = batches_of_views(data, plan, args.augment, layout, view_of)

    generator = torch.Generator(device)         # in the same state in every process
    for epoch in range(epochs_done + 1, args.epochs + 1):
        first_step = (epoch - 1) * steps
        progress = torch.arange(first_step, first_step + steps, dtype=torch.float64)
        progress = (progress / max(1, total_steps - 1)).to(device)      # of training, 0 … 1
        if steps_done == 0:         # not if resumed within an epoch
            generator.manual_seed(mixed_seed(args.seed, epoch, 0, FOR_METHODS))
            method.before_epoch(epoch, steps, generator)
        epoch_began = time.monotonic()

        for step in range(steps_done, steps):
            batch = next(batches)                       # views, index, labels
            torch.manual_seed(mixed_seed(args.seed, epoch, RANK, step, FOR_METHODS))
            set_learning_rates(optimizer, first_step + step, warmup, total_steps)
            logs, kept = training_step(model, learner, optimizer, scaler, autocast, args.clip,
                                       batch, progress[step])
            method.after_step(kept, step, progress[step])
            step_logs.append(torch.stack(list(logs.values())))

            # reading a loss waits for the GPU, so look once in a while, and before saving
            now = time.monotonic()
            due = stop.received or now - saved_at >= 60 * args.save_minutes
            saving = RANK == 0 and due and step + 1 < steps     # after the last one: see below
            if saving or now - shown_at > run.PROGRESS_SECONDS:
                run.check_finite(step_logs, epoch)
                left = run.time_left(seconds_before + now - started,
                                     (first_step + step + 1) / total_steps)
                run.show_progress(f"epoch {epoch}/{args.epochs}  step {step + 1}/{steps}  "
                                  f"loss {logs['loss']:.3f}  {left}")
                shown_at = now
            if saving:
                save(epoch - 1, step + 1)
                saved_at = now
                stop.exit_if_received()                 # torchrun then ends the other processes

        # a row of log.csv: mean losses; learning rate and α of the last step; metrics
        means = run.check_finite(step_logs, epoch).mean(0)
        seconds = time.monotonic() - epoch_began
        row = {"epoch": epoch, "step": epoch * steps, **dict(zip(logs, means.tolist()))}
        row["clipped"] *= steps                         # a count of steps, not a share
        row["lr"] = optimizer.param_groups[0]["lr"]
        row["samples_per_s"] = (steps - steps_done) * args.batch_size / seconds
        row |= {name: value.item() for name, value in method.schedule(progress[-1]).items()}
        method.after_epoch(epoch)                       # may set a new α
        if RANK == 0 and (epoch % args.eval_every == 0 or epoch == args.epochs):
            row |= probe.evaluate(method, learner.probe, data, device, autocast)
        row["seconds"] = seconds_before + time.monotonic() - started
        rows.append(row)
        step_logs, steps_done = [], 0

        if RANK == 0:
            run.write_log(args.out, columns, rows)
            run.print_epoch(row, args.epochs, method.columns)
            due = stop.received or time.monotonic() - saved_at >= 60 * args.save_minutes
            if due or epoch == args.epochs:
                save(epoch, 0)
                saved_at = time.monotonic()
                stop.exit_if_received()

    distributed.finish()
    if RANK == 0:
        run.save_backbone(args.out, method.encoder, args, data, command)
        draw_run(args.out)
        untrained = probe.untrained_accuracy(learner.probe, data, device, autocast)
        run.print_summary(args.out, rows[-1], untrained, len(data["test_x"]))


def main(argv=None):
    command = sys.argv[1:] if argv is None else argv
    with run.one_line_errors("train.py"), run.StopSignal() as stop:
        args = parse_args(command)
        with run.reserved(args.out, args.resume, args.overwrite):
            train(args, command, stop)


if __name__ == "__main__":
    main()
