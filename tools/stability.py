"""Trains random settings for a few hundred steps, and reports which become NaN or explode.

    python -m tools.stability --minutes 60
    python -m tools.stability --dataset folder --data-dir data/cifar10 --only "lars fp32"
    python -m tools.stability -- --arch resnet50 --width 8 --epochs 16 --limit-train 5120

Each point of the grid below is trained twice on the same images in the same order: with the
defaults of train.py, and without their guard against divergence (no clipping, and a warm-up of
a fifth of the run, at most 10 epochs). A run ends after --steps steps or --seconds seconds. --out
has a row for each run; the same command continues where the last one stopped.

Exit status: 0; 1 if a run with the defaults became NaN or exploded; 2, with one line, on bad
input.
"""
import contextlib
import csv
import io
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

import train
from plumbing import cli
from plumbing.datasets import DATASETS
from plumbing.session import Session, what_went_wrong
from plumbing.signals import Signals

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

class Over(Exception):
    """Raised when a trial has reached its limits or diverged."""


class Trial(Session):
    """A session that checks the loss after each step, and ends training early."""

    def __init__(self, args, signals, most_steps, most_seconds):
        super().__init__(args, [], signals)
        self.most_steps, self.most_seconds = most_steps, most_seconds
        self.losses, self.clipped, self.wrong = [], 0, None

    def after_step(self, logs):
        self.losses.append(logs["loss"].item())
        self.clipped += int(logs["clipped"])
        self.wrong = what_went_wrong(torch.tensor(self.losses)[:, None])
        last_step = min(self.most_steps, self.args.epochs * self.steps)
        if self.wrong or len(self.losses) == last_step or self.seconds() > self.most_seconds:
            raise Over
        super().after_step(logs)

    def evaluation_is_due(self):
        return False

    def row(self):
        """The table's columns from `end` on."""
        return {
            "end": self.wrong[1].split(",")[0] if self.wrong else "trains",
            "steps": len(self.losses), "of": self.args.epochs * self.steps,
            "clipped": self.clipped, "largest_loss": f"{max(self.losses):.4g}",
            "last_loss": f"{self.losses[-1]:.4g}", "seconds": round(self.seconds()),
        }


def short_training(words, most_steps, most_seconds):
    """Trains with these flags of train.py until its limits are reached; returns Trial.row()."""
    with (tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()),
          Signals() as signals):
        args = train.parse_args([*words, "--out", folder])
        with Trial(args, signals, most_steps, most_seconds) as trial, contextlib.suppress(Over):
            train.train(args, trial)
    return trial.row()


# --- the grid ---------------------------------------------------------------------------------

def points(only):
    """The points of the grid as flags, in random order; only those with all words of `only`."""
    every = []
    for values in itertools.product(*GRID.values()):
        every.append(" ".join(f"{flag} {value}" for flag, value in zip(GRID, values)))
    random.Random(0).shuffle(every)
    return [point for point in every if set(only) <= set(point.split())]


def flags_of(point, guard, args):
    words = ["--dataset", args.dataset, "--data-dir", args.data_dir, "--device", args.device,
             "--resident", "yes", *point.split()]
    if guard == "without":
        fifth = min(10, train.parse_args(words).epochs / 5)
        words += ["--clip", "0", "--warmup-epochs", str(fifth)]
    return words


def read_rows(path):
    """The rows of an earlier call; [] if there are none. BadInput if it is another table."""
    if not path.exists() or path.stat().st_size == 0:
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        if file.readline().strip() != ",".join(COLUMNS):
            raise cli.BadInput(f"{path} is not a table of stability.py: choose another --out")
        return list(csv.DictReader(file, COLUMNS))


def run_points(chosen, args):
    """Trains point after point until --minutes have passed; returns all rows of the table."""
    rows = read_rows(args.out)
    done = [(row["flags"], row["guard"]) for row in rows]
    left = [pair for pair in itertools.product(chosen, ("with", "without")) if pair not in done]
    print(f"{len(left)} runs are left, and {args.minutes:g} minutes to start them", flush=True)
    deadline = time.monotonic() + 60 * args.minutes
    with open(args.out, "a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            table.writeheader()
        for point, guard in left:
            if time.monotonic() > deadline:
                break
            cli.show_progress(f"{guard} the guard: {point}")
            found = short_training(flags_of(point, guard, args), args.steps, args.seconds)
            row = {"flags": point, "guard": guard, **found}
            rows.append(row)
            table.writerow(row)
            file.flush()
            cli.show_progress("")
            print(f"{point}\n    {guard:7} the guard {found['end']}: {found['steps']} of "
                  f"{found['of']} steps, {found['clipped']} clipped, largest loss "
                  f"{found['largest_loss']}, last {found['last_loss']}", flush=True)
    return rows


def summary(rows):
    """How many runs there were with and without the guard, and how they ended."""
    lines = []
    for guard in ("with", "without"):
        ends = [row["end"] for row in rows if row["guard"] == guard]
        counts = [f", {ends.count(end)} {end}" for end in sorted(set(ends))]
        lines.append(f"{guard} the guard: {len(ends)} trainings{''.join(counts)}")
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------

def parse_args(argv):
    """The script's own arguments, and the points to train: those of the grid, or one after --."""
    own, flags = cli.split_arguments(argv)
    parser = cli.Parser("stability.py", __doc__)
    add = parser.add_argument
    add("--dataset", default="shapes", choices=tuple(DATASETS), help="dataset to train on")
    add("--data-dir", default="./data", metavar="DIR", help="where its files are")
    add("--only", default=[], type=str.split, metavar="WORDS",
        help="only points with all of these words, such as 'lars fp32'")
    add("--steps", default=300, type=cli.whole_number(1), metavar="N", help="most steps of a run")
    add("--seconds", default=300.0, type=cli.number(0, above=True), metavar="S",
        help="longest duration of a run")
    add("--minutes", default=60.0, type=cli.number(0, above=True), metavar="M",
        help="start no run after that time")
    add("--device", default="auto", type=cli.device_name, help="cpu, cuda, cuda:1 …")
    add("--out", default=Path("stability.csv"), type=Path, metavar="CSV", help="the table")
    args = parser.parse_args(own)
    chosen = points(args.only)
    if flags:
        chosen = [" ".join(flags)]
        train.parse_args(flags_of(chosen[0], "without", args))      # raises BadInput
    if not chosen:
        parser.error(f"--only: no point of the grid has {' '.join(args.only)}")
    return args, chosen


def main(argv=None):
    with cli.one_line_errors("stability.py"):
        args, chosen = parse_args(sys.argv[1:] if argv is None else argv)
        rows = run_points(chosen, args)
        print(summary(rows))
        if any(row["guard"] == "with" and row["end"] != "trains" for row in rows):
            sys.exit(1)


if __name__ == "__main__":
    main()
