"""Does the recipe hold? Trains random settings for a few hundred steps; says which end in NaN.

    python -m tools.stability --minutes 60
    python -m tools.stability --dataset folder --data-dir data/cifar10 --only "lars fp32"
    python -m tools.stability -- --arch resnet50 --width 8 --epochs 16 --limit-train 5120

Each point of the grid below is trained twice on the same images in the same order: with the
defaults of train.py, and with what they were before there was a guard (no clipping, a warm-up of
a fifth of the run). A training has up to --steps steps, or --seconds seconds if those are over
first. --out has a row for each; the same command goes on where the last one stopped.

Exit status: 0; 1 if a training with the defaults became NaN or exploded; 2, with one line, on
bad input.
"""
import contextlib
import csv
import itertools
import random
import sys
import time
from pathlib import Path

import torch

from plumbing import process
import train
from plumbing.cli import (BadInput, Parser, device_name, fast_precision, number, one_line_errors,
                 open_device, split_arguments, whole_number)
from data import batches_of_views, load, pick, plan_batches, to_device
from plumbing.datasets import DATASETS
from plumbing.images import mixed_seed, random_subset
from models import memory_layout
from optim import make_optimizer

GRID = {
    "--arch": ("resnet18", "resnet50"),
    "--width": (8, 16, 64),
    "--projector": ("256-256-256", "2048-2048-2048"),
    "--limit-train": (600, 5120, 50000),
    "--epochs": (1, 2, 16),
    "--alpha": ("0", "ada --alpha-every 1", "1"),
    "--optimizer": ("lars", "sgd", "adamw"),
    "--precision": ("bf16", "fp32"),
}
COLUMNS = ("flags", "guard", "end", "steps", "of", "clipped", "largest_loss", "last_loss",
           "seconds")


# --- one training -----------------------------------------------------------------------------

def short_training(args, images, device, most_steps, most_seconds):
    """The losses of a training's first steps, until it goes wrong or its limits are reached.

    images: from load(); args.limit_train of them are used. Each step is train.training_step's,
    with the method and the schedules as in train.train. Returns the columns from `end` on.
    """
    # data, networks, optimiser
    data = dict(images)
    keep = random_subset(len(data["train_x"]), args.limit_train, args.seed)
    data["train_x"], data["train_y"] = pick(data["train_x"], keep), data["train_y"][keep]
    to_device(data, device)
    steps = len(keep) // args.batch_size                    # per epoch
    total_steps = steps * args.epochs
    warmup = train.warmup_steps(args, steps)
    learner = train.make_learner(args, data, device)
    method = learner.method
    layout = memory_layout(device, args.precision, args.width)
    optimizer = make_optimizer(args.optimizer, learner.param_groups(args))
    autocast, scaler = train.mixed_precision(args.precision, device)

    # the steps
    started = time.time()
    plan = plan_batches(len(keep), args.batch_size, args.seed, args.epochs)
    batches = batches_of_views(data, plan, args.augment, layout)
    generator = torch.Generator(device)
    all_logs, clipped, wrong = [], 0.0, None
    with contextlib.closing(batches):       # ends processes that read files
        for step in range(min(most_steps, total_steps)):
            epoch, step_of_epoch = 1 + step // steps, step % steps
            if step_of_epoch == 0:
                generator.manual_seed(mixed_seed(args.seed, epoch, 0, train.FOR_METHODS))
                method.before_epoch(epoch, steps, generator)
            progress = torch.tensor(step / max(1, total_steps - 1), dtype=torch.float64)
            train.set_learning_rates(optimizer, step, warmup, total_steps)
            logs, kept = train.training_step(learner, learner, optimizer, scaler, autocast,
                                             args.clip, next(batches), progress.to(device))
            method.after_step(kept, step_of_epoch, progress)
            if step_of_epoch == steps - 1:
                method.after_epoch(epoch)

            clipped += logs["clipped"].item()
            all_logs.append(torch.stack([logs["loss"]]))
            wrong = process.what_went_wrong(torch.stack(all_logs))
            if wrong or time.time() - started > most_seconds:
                break

    losses = torch.cat(all_logs)                            # steps
    return {
        "end": wrong[1].split(",")[0] if wrong else "trains", "steps": len(losses),
        "of": total_steps, "clipped": int(clipped), "largest_loss": f"{losses.max():.4g}",
        "last_loss": f"{losses[-1]:.4g}", "seconds": round(time.time() - started),
    }


# --- the grid ---------------------------------------------------------------------------------

def points(seed, only):
    """The points of the grid as flags, shuffled; of those that hold all words of `only`."""
    every = []
    for values in itertools.product(*GRID.values()):
        every.append(" ".join(f"{flag} {value}" for flag, value in zip(GRID, values)))
    random.Random(seed).shuffle(every)
    return [point for point in every if set(only) <= set(point.split())]


def read_rows(path):
    """The rows of an earlier call; none where there is no file."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError):
        rows = [()]
    if rows and tuple(rows[0]) != COLUMNS:
        raise BadInput(f"{path} is not a table of stability.py: choose another --out")
    return rows


def settings_of(point, guard, args):
    """The flags of train.py for a point; what is left to chance there follows from --seed."""
    words = [*point.split(), "--seed", str(args.seed)]
    settings = train.parse_args(words)
    if guard == "without":
        fifth = min(10, settings.epochs / 5)
        settings = train.parse_args([*words, "--clip", "0", "--warmup-epochs", str(fifth)])
    if settings.precision == "auto":
        settings.precision = fast_precision(open_device(args.device))
    return settings


def run_points(chosen, args, images, device):
    """Trains point after point until the minutes are over; returns all rows of the table."""
    rows = read_rows(args.out)
    done = {(row["flags"], row["guard"]) for row in rows}
    deadline = time.time() + 60 * args.minutes
    with open(args.out, "a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        if not rows:
            table.writeheader()
        for point, guard in itertools.product(chosen, args.guards):
            if time.time() > deadline or (point, guard) in done:
                continue
            found = short_training(settings_of(point, guard, args), images, device, args.steps,
                                   args.seconds)
            row = {"flags": point, "guard": guard, **found}
            rows.append(row)
            table.writerow(row)
            file.flush()
            print("  ".join(str(value) for value in row.values()), flush=True)
    return rows


def summary(rows):
    """How many trainings there were of each kind, and how they ended."""
    lines = []
    for guard in ("with", "without"):
        ends = [row["end"] for row in rows if row["guard"] == guard]
        counts = {end: ends.count(end) for end in sorted(set(ends))}
        text = ", ".join(f"{count} {end}" for end, count in counts.items())
        lines.append(f"{guard} the guard: {len(ends)} trainings: {text}")
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------

def parse_args(argv):
    """The script's own arguments; and, as one point, those after --."""
    own, flags = split_arguments(argv)
    parser = Parser("stability.py", __doc__)
    add = parser.group("what is trained")
    add("--dataset", "shapes", DATASETS, "whose training images are used")
    add("--data-dir", "./data", str, "where its files are", "DIR")
    add("--only", [], str.split, "points with all of these words alone, such as 'lars fp32'",
        "WORDS")
    add("--guards", ["with", "without"], str.split, "'with', 'without', or both", "WORDS")
    add("--steps", 300, whole_number(1), "at most, of each training", "N")
    add("--seconds", 300.0, number(0, above=True), "at most, for each training", "S")
    add("--minutes", 60.0, number(0, above=True), "start no training after that time", "M")
    add("--seed", 0, whole_number(0, 2 ** 31 - 1), "of the points' order, and of each training")
    add("--device", "auto", device_name, "cpu, cuda, cuda:1 …")
    add("--out", Path("stability.csv"), Path, "the table", "CSV")
    args = parser.parse_args(own)
    chosen = points(args.seed, args.only)
    if flags:
        chosen = [" ".join(flags)]
        settings_of(chosen[0], "without", args)         # refuses what train.py would refuse
    if not chosen:
        parser.error(f"--only: no point of the grid has {' '.join(args.only)}")
    if not args.guards or not set(args.guards) <= {"with", "without"}:
        parser.error("--guards: 'with', 'without', or 'with without'")
    return args, chosen


def main(argv=None):
    with one_line_errors("stability.py"):
        args, chosen = parse_args(sys.argv[1:] if argv is None else argv)
        device = open_device(args.device)
        read_rows(args.out)
        images = load(args.dataset, args.data_dir, resident="yes")
        rows = run_points(chosen, args, images, device)
        print(summary(rows))
        if any(row["guard"] == "with" and row["end"] != "trains" for row in rows):
            sys.exit(1)


if __name__ == "__main__":
    main()
