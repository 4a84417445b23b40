"""Trains an image encoder without labels with AdaDim (arXiv 2505.12576).

    python train.py --dataset cifar100 --beta 1e-4              the paper's main experiment
    python train.py --dataset cifar100 --alpha 1 --beta 0       SimCLR
    python train.py --dataset cifar100 --alpha 0 --beta 0       VICReg
    python train.py --dataset cifar100 --method byol            another method (--methods)
    python train.py --dataset folder --data-dir my_images --arch resnet18 --epochs 100
    torchrun --nproc_per_node=8 train.py …                      the same on eight GPUs

A run leaves in --out: config.json, log.csv (one row per epoch), last.pt (to --resume from),
backbone.pt (the encoder, for torchvision's ResNet) and dynamics.png. Exit status: 0; 2 with one
line on stderr for bad input or a loss that is no longer finite; 129, 130 or 143 when stopped by
SIGHUP, Ctrl-C or SIGTERM.

From top to bottom: flags, learning rate, one step, and train(), the whole run as one function.
The loss is in losses.py, the method that weighs it and sets α in methods.py, the methods that it
is compared with in baselines.py, the online probe and the Learner, which trains it beside the
method, in probe.py, LARS in optim.py.
"""
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from plumbing import compiling
from plumbing import distributed
import probe
from plumbing import run
from augment import AUGMENTATIONS, augment_with
from baselines import METHODS
from plumbing.cli import (BadInput, Parser, device_name, fast_precision, layer_sizes, number,
                          open_device, show_progress, whole_number)
from data import batches_of_views, fingerprint, load, plan_batches, to_device
from plumbing.datasets import DATASETS
from plumbing.distributed import RANK, WORLD_SIZE
from figures import draw_run
from plumbing.images import memory_for_images, mixed_seed
from methods import (all_methods, alpha_type, check_method_flags, chosen_method, read_settings,
                     three_weights, weight_type)
from models import RESNETS, memory_layout, resnet
from optim import LEARNING_RATES, clip_gradient, make_optimizer
from probe import Learner
from plumbing.process import (Signals, StatusLine, check_evaluation, check_losses, check_weights,
                              describe, epoch_line, last_lines, note_of_precision,
                              note_of_threads, orderly_end, warn_of_few)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FOR_METHODS = 2     # sets random numbers of methods apart from those of views and crops
MAY_DIFFER_ON_RESUME = ("--out", "--data-dir", "--classes", "--resident", "--device", "--compile",
                        "--save-minutes", "--tensorboard", "--resume", "--overwrite")


# --- flags ------------------------------------------------------------------------------------

def parse_args(argv):
    """The flags, with the defaults of the method that --method names."""
    method = METHODS[chosen_method(argv)]
    parser = Parser("train.py", __doc__, method.defaults)
    # "version" is argparse's word for a flag that prints something, and ends with status 0
    parser.add_argument("--methods", action="version", version=all_methods(),
                        help="print every method: its paper, its defaults, its settings")

    add = parser.group("data")
    add("--dataset", "cifar100", DATASETS, "shapes is built in. folder: your own images, in "
        "train/<class>/… and test/<class>/… (or val/), or without classes. imagenet, "
        "imagenet100, inat21: your own copy, in --data-dir. The others are downloaded")
    add("--data-dir", "./data", str, "where the files are, or are downloaded to", "DIR")
    add("--augment", "vicreg", AUGMENTATIONS, "augmentation scheme")
    add("--classes", None, Path, "a file with the class folders to use, one per line", "FILE")
    add("--resident", "auto", ("auto", "yes", "no"), "keep the images on the device (their "
        "central squares), or stream their files; auto: keep them if they fit")
    add("--min-size", None, whole_number(1), "leave out a folder's images of less than N pixels "
        "in height or width (default: a quarter of their median)", "N")
    add("--limit-train", None, whole_number(1), "train on N random images, for quick trials", "N")

    add = parser.group("networks")
    add("--arch", "resnet50", RESNETS, "encoder")
    add("--width", 64, whole_number(1), "channels of its first stage; fewer suit a CPU", "N")
    add("--projector", "2048-2048-2048", layer_sizes, "layer sizes", "SIZES")

    add = parser.group("method")
    add("--method", "adadim", METHODS, "what to train with; --methods tells more")
    add("--set", None, list, "the method's own settings, as in --set queue=4096 momentum=0.9",
        "NAME=VALUE")
    add("--alpha", "ada", alpha_type, "weight of InfoNCE against VICReg: ada (measured: AdaDim), "
        "linear or cosine (from 0 to 1 over training), or from 0 (VICReg) to 1 (SimCLR)")
    add("--alpha-every", 20, whole_number(1), "with ada: set α after every Nth epoch", "N")
    add("--alpha-batches", 10, whole_number(1), "with ada: batches on which α is measured", "N")
    add("--alpha-from", "z", ("z", "r"), "with ada: measure α on embeddings z (published) or on "
        "representations r")
    add("--beta", 1e-4, number(), "weight of I(R;Z): above 0 lowers it, below 0 raises it")
    add("--mi-scale", "alpha", ("alpha", "1"), "m, the factor of β: alpha (published), or 1")
    add("--temperature", 0.1, number(0, above=True), "τ of InfoNCE")
    add("--vicreg-weights", "25,25,1", three_weights, "of VICReg's invariance, variance and "
        "covariance", "S,V,C")
    add("--w2-weight", "0", weight_type, "add MAX times the embeddings' Wasserstein uniformity; "
        "or a weight that goes from MAX to MIN over training", "MAX[:MIN]")
    add("--lu-weight", "0", weight_type, "the same with Wang & Isola's uniformity", "MAX[:MIN]")

    add = parser.group("optimisation")
    add("--epochs", 400, whole_number(1), "how often all images are seen")
    add("--batch-size", 256, whole_number(2), "images per step, of all processes", "N")
    add("--optimizer", "lars", LEARNING_RATES, "for the encoder, the projector and the probe")
    add("--lr", None, number(0, above=True), "learning rate, for a batch of 256 (default, but for "
        "the method's own optimiser: 0.4 for lars, 0.05 for sgd, 0.001 for adam and adamw)")
    add("--weight-decay", 1e-4, number(0), "not on the probe", "W")
    add("--warmup-epochs", None, number(0), "linear warm-up before the cosine decay (default: "
        "10, or a fifth of a run of less than 50 epochs, but at least 200 steps)", "N")
    add("--clip", 2.0, number(0), "clip gradients to N times their mean norm; 0: never", "N")
    add("--precision", "auto", ("auto", *DTYPES), "of the networks; losses and metrics use fp32, "
        "which is never TF32. auto: bf16 where the device is fast at it, fp32 elsewhere")
    add("--compile", "no", ("auto", "yes", "no"), "use torch.compile: slow to start, then faster "
        "on some machines; auto: try whether the run is long enough to gain by it")
    add("--device", "auto", device_name, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    add("--seed", 0, whole_number(0, 2 ** 31 - 1), "of weights, order and augmentation")

    add = parser.group("the run")
    add("--out", None, Path, "its folder (default: runs/ and dataset, α, β and seed)", "DIR")
    add("--eval-every", 1, whole_number(1), "evaluate after every Nth epoch, and the last", "N")
    add("--save-minutes", 10.0, number(0), "write last.pt that often, in the middle of an epoch "
        "too, and when the run is stopped; 0: after every step", "N")
    add("--baseline", False, bool, "train a probe on a frozen, randomly initialised encoder too")
    add("--tensorboard", False, bool, "write the log for TensorBoard too, into --out")
    add("--resume", False, bool, "go on from last.pt in --out, exactly; start if there is none")
    add("--overwrite", False, bool, "replace the run that is in --out")

    args = parser.parse_args(argv)
    given = {word.partition("=")[0] for word in argv}
    check_method_flags(parser, args, method, given)
    args.set = read_settings(args.method, args.set) or None
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    own_optimizer = args.optimizer == parser.get_default("optimizer")
    if args.lr is None or ("--lr" not in given and not own_optimizer):
        args.lr = LEARNING_RATES[args.optimizer]["encoder"]
    if args.warmup_epochs is not None and args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g} must be below "
                     f"--epochs {args.epochs}")
    if args.out is None:
        settings = f"alpha_{args.alpha}-beta_{args.beta:g}"
        if args.method != "adadim":
            settings = args.method
        args.out = Path("runs") / f"{args.dataset}-{settings}-seed{args.seed}"
    return args


# --- learning rate ----------------------------------------------------------------------------

def warmup_steps(args, steps):
    """10 epochs, or a fifth of a short run; at least 200 steps, but at most half of the run."""
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
    """Each group's, but for those that a method keeps constant."""
    for group in optimizer.param_groups:
        if group.get("constant"):
            continue
        rate = learning_rate(step, group["base_lr"], warmup, total)
        if torch.is_tensor(group["lr"]):        # see capture.py
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


# --- the networks, and one step of their training ---------------------------------------------

def make_learner(args, data, device):
    """The networks as the flags say, on the device, with weights that follow from the seed."""
    torch.manual_seed(args.seed)
    encoder, p = resnet(args.arch, args.width, data["stem"])
    method = METHODS[args.method](args, encoder, p, len(data["train_x"]))
    online_probe = None
    if data["classes"]:
        online_probe = probe.OnlineProbe(encoder, p, len(data["classes"]), args.baseline)
    layout = memory_layout(device, args.precision, args.width)
    return Learner(method, online_probe).to(device, memory_format=layout)


def mixed_precision(precision, device):
    """The autocast in which networks run, and the scaler of their gradients."""
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return autocast, scaler


def training_step(model, learner, optimizer, scaler, autocast, clip, batch, progress):
    """Forward, backward, step; returns the logs, and what the method's after_step needs.

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


# --- the run ----------------------------------------------------------------------------------

def train(args, command, signals, at_end):
    """One run. at_end: an ExitStack, for what has to end with it, however it ends."""
    # fail fast: check everything before anything is loaded or written
    if args.batch_size % WORLD_SIZE:
        raise BadInput(f"--batch-size {args.batch_size} cannot be shared by "
                       f"{WORLD_SIZE} processes")
    if args.tensorboard:
        run.check_tensorboard()
    device = open_device(distributed.own_device(args.device))
    distributed.start(device)
    last = args.out / "last.pt"
    saved = run.load_checkpoint(last) if args.resume and last.exists() else None
    if args.precision == "auto":
        args.precision = saved["config"].get("--precision") if saved else fast_precision(device)
    if args.compile == "auto" and saved:
        args.compile = saved["config"].get("--compile")
    config = run.flags_of(args)
    run.check_same_flags(last, saved, config, MAY_DIFFER_ON_RESUME)
    if args.resume and not saved and RANK == 0:
        print(f"{args.out} holds no checkpoint yet: starting from the beginning", file=sys.stderr)

    # data: keep the images on the device if they fit, otherwise stream them
    if saved:       # go on as it began
        args.resident = "no" if saved["facts"].get("streamed") else "yes"
    data = load(args.dataset, args.data_dir, args.limit_train, args.seed, args.classes,
                args.resident, memory_for_images(device), args.min_size)
    n_images = len(data["train_x"])
    if n_images < args.batch_size:
        raise BadInput(f"--batch-size {args.batch_size} is larger than the training set of "
                       f"{n_images:,} images")
    config["data"] = f"{n_images} images with checksum {fingerprint(data)}"
    run.check_same_flags(last, saved, config, MAY_DIFFER_ON_RESUME)
    to_device(data, device)
    steps = n_images // args.batch_size                     # per epoch
    total_steps = steps * args.epochs
    warmup = warmup_steps(args, steps)

    # networks and optimiser
    torch.backends.cudnn.benchmark = True
    learner = make_learner(args, data, device)
    method, online_probe, encoder = learner.method, learner.probe, learner.method.encoder
    layout = memory_layout(device, args.precision, args.width)
    optimizer = make_optimizer(args.optimizer, learner.param_groups(args))
    autocast, scaler = mixed_precision(args.precision, device)

    # where to start: at nothing, or at a checkpoint
    epochs_done, steps_done, logs_done = 0, 0, []
    seconds_before, rows = 0.0, []
    checkpoints = run.Checkpoints(last, args.save_minutes)
    started = time.time()
    if saved:
        with run.restoring(last):
            learner.load_state_dict(saved["learner"])
            optimizer.load_state_dict(saved["optimizer"])
            scaler.load_state_dict(saved["scaler"])
            epochs_done, steps_done = saved["epoch"], saved["step"]
            logs_done = saved["step_logs"].to(device).unbind()          # of a step each
            seconds_before, rows = saved["seconds"], saved["rows"]
        checkpoints.note(epochs_done, steps_done)
        note_of_threads(saved["facts"].get("threads"), device)

    def save(epoch, step, step_logs):
        """epoch: how many are complete. step, step_logs: of the next one, so far."""
        check_weights(learner, epoch + 1, checkpoints)
        logs = torch.stack(step_logs) if step_logs else torch.empty(0)  # step × columns
        checkpoints.save(
            epoch, step, step_logs=logs, seconds=seconds_before + time.time() - started,
            rows=rows, config=config, facts=run.facts_of(data, args.data_dir),
            learner=learner.state_dict(), optimizer=optimizer.state_dict(),
            scaler=scaler.state_dict())

    # several processes, and what is said of them all
    model = distributed.parallel(learner, device)
    print(describe(args, data, method, device))
    note_of_precision(args.precision, device)
    if data["classes"]:
        warn_of_few(len(data["test_x"]))

    # compiling
    view_of = augment_with
    if args.compile == "auto":
        args.compile = config["--compile"] = compiling.decide(
            learner, args.batch_size // WORLD_SIZE, data["image_size"], layout, device, autocast,
            total_steps - epochs_done * steps - steps_done)
    if args.compile == "yes":
        view_of = torch.compile(augment_with)
        compiling.compile_networks(learner)

    # the run's folder
    columns = ("epoch", "step", "seconds", "samples_per_s", "lr", "clipped", "loss",
               *method.columns, *probe.COLUMNS)
    signals.hold()      # from here on they wait for the end of a step: no file is left half written
    if RANK == 0:
        if args.overwrite:
            run.remove_run(args.out)
        if not saved:
            run.write_config(args.out, command, config, device)
            save(0, 0, [])
        log = run.Log(args.out, columns, rows, args.tensorboard)

    # all batches to come; processes that read files go on while an epoch is evaluated
    plan = plan_batches(n_images, args.batch_size, args.seed, args.epochs, epochs_done + 1,
                        steps_done)
    batches = batches_of_views(data, plan, args.augment, layout, view_of)
    at_end.callback(batches.close)      # or processes that read files would outlive an exception

    generator = torch.Generator(device)
    status_line = StatusLine(args, steps, epochs_done * steps + steps_done)
    for epoch in range(epochs_done + 1, args.epochs + 1):

        # a run can go on in the middle of an epoch
        first = steps_done if epoch == epochs_done + 1 else 0
        step_logs = list(logs_done) if first else []
        if first == 0:
            generator.manual_seed(mixed_seed(args.seed, epoch, 0, FOR_METHODS))
            method.before_epoch(epoch, steps, generator)
        first_step = (epoch - 1) * steps
        progress = torch.arange(first_step, first_step + steps, dtype=torch.float64)
        progress = (progress / max(1, total_steps - 1)).to(device)      # steps

        status_line.start_epoch(epoch, first)
        for step in range(first, steps):
            # learning rate, forward, backward, step
            batch = next(batches)
            torch.manual_seed(mixed_seed(args.seed, epoch, RANK, step, FOR_METHODS))
            set_learning_rates(optimizer, first_step + step, warmup, total_steps)
            logs, kept = training_step(model, learner, optimizer, scaler, autocast, args.clip,
                                       batch, progress[step])
            method.after_step(kept, step, progress[step])

            # logs stay on the device: reading them waits for a GPU, so it is done once per second
            step_logs.append(torch.stack(list(logs.values())))
            stop = signals.stop_wanted()
            save_now = (stop or checkpoints.due()) and step + 1 < steps
            if save_now or status_line.due():
                check_losses(torch.stack(step_logs), rows, steps, epoch, checkpoints)
                status_line.show(step + 1, logs["loss"].item())
            if save_now:
                save(epoch - 1, step + 1, step_logs)
            if stop and save_now:
                batches.close()                             # ends processes that read images
                signals.release()
        step_logs = torch.stack(step_logs)                  # steps × columns
        check_losses(step_logs, rows, steps, epoch, checkpoints)
        samples_per_second = status_line.samples_per_second(steps)

        # α as this epoch used it; then, if --alpha is ada and its epoch has come, α is set anew
        schedule = method.schedule(progress[-1])
        schedule = {column: value.item() for column, value in schedule.items()}
        method.after_epoch(epoch)

        # evaluation, log, checkpoint
        if RANK > 0:
            continue
        row = {"epoch": epoch, "step": epoch * steps, "samples_per_s": samples_per_second,
               "lr": optimizer.param_groups[0]["lr"], **schedule}
        row |= dict(zip(logs, step_logs.mean(0).tolist()))
        row["clipped"] *= steps                             # a number of steps, not their share
        if epoch % args.eval_every == 0 or epoch == args.epochs:
            row |= probe.evaluate(method, online_probe, data, device, autocast)
        row["seconds"] = seconds_before + time.time() - started
        check_evaluation(row, rows, checkpoints)
        rows.append(row)
        log.append(row)
        stop = signals.stop_wanted()        # one that comes later waits for the next step
        if stop or checkpoints.due() or epoch == args.epochs:
            save(epoch, 0, [])
        show_progress("")
        print(epoch_line(row, args, method.columns, status_line.seconds_left()), flush=True)
        if stop:
            batches.close()
            signals.release()

    # what the run leaves
    batches.close()
    distributed.finish()
    if RANK > 0:
        return
    run.save_backbone(args.out / "backbone.pt", encoder)
    signals.release()
    try:
        draw_run(run.read_log(log.path), args.out / "dynamics.png")
    except ImportError:
        print("dynamics.png was left out: it needs matplotlib (pip install matplotlib)")
    untrained = probe.untrained_accuracy(online_probe, data, device, autocast)
    print(last_lines(args.out, rows[-1], untrained, len(data["test_x"])))


def main(argv=None):
    command = sys.argv[1:] if argv is None else argv
    signals = Signals()
    with orderly_end("train.py", command, signals), signals:
        args = parse_args(command)
        with run.reserved(args.out, args.resume, args.overwrite), ExitStack() as at_end:
            train(args, command, signals, at_end)


if __name__ == "__main__":
    main()
