"""Trains the runs of the paper's studies with train.py, on any dataset and budget.

    python study.py alpha -- --dataset shapes --arch resnet18 --width 8 --epochs 12
    python study.py ablation --devices cuda:0,cuda:1 --seeds 3 -- --dataset cifar100
    python study.py --list                  all studies, and what they reproduce
    python study.py --list alpha            the runs of one
    python figures.py runs/study/*          figures and correlations of the runs' logs

A study of your own names its methods, its settings, or both: each method with each setting.

    python study.py --methods adadim,vicreg,simclr,byol --seeds 3 -- --dataset cifar100
    python study.py --setting "--alpha 0.3 --beta 0" --setting "--alpha 0.7 --beta 0"

All runs get the flags after --. A run that two studies share is trained once. Finished runs are
skipped, interrupted ones resumed; if a run fails, the others continue. Exit status: 0; 1 if a run
failed; 2 with one line on stderr for bad input; 129, 130 or 143 after SIGHUP, Ctrl-C or SIGTERM.
"""
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import train
from baselines import METHODS
from plumbing.cli import (BadInput, Parser, device_name, one_line_errors, show_progress,
                          split_arguments, whole_number)
from plumbing.images import core_count
from plumbing.run import read_config, read_log
from plumbing.signals import Signals
from plumbing.status import duration

FOUR_METHODS = {
    "VICReg": "--alpha 0 --beta 0",
    "SimCLR": "--alpha 1 --beta 0",
    "half": "--alpha 0.5 --beta 0",
    "AdaDim": "--alpha ada --beta 0.0001",
}
RIVALS = [name for name in METHODS if name != "adadim"]
ONE_RECIPE = ("--projector 2048-2048-2048 --augment vicreg --optimizer lars --lr 0.4 "
              "--weight-decay 0.0001")
# The second paper's methods, as in its code. W2's weight for MoCo v2 is half of that paper's,
# whose loss is the sum of both directions, not their mean. L_U's weights were not published: ours
# are W2's.
SECOND_RECIPE = "--projector 2048-2048-256 --optimizer lars --lr 0.2 --weight-decay 0.0001"
SECOND_SETTINGS = {
    "moco_v2": "--set batch_norm=yes queues=1 queue=4096",
    "byol": "--set predictor=2048 last_momentum=0.99",
    "barlow_twins": "--set scale=1 off_diagonal_weight=0.08",
}
SECOND_WEIGHTS = {"moco_v2": "0.5", "byol": "0.2", "barlow_twins": "30:0"}
SIMCLR_SETTINGS = [         # Table 18's
    *(dict(lr=0.6, temperature=t, decay=1e-6) for t in (0.05, 0.07, 0.1, 0.2, 0.3, 0.4)),
    *(dict(lr=0.5, temperature=t, decay=1e-6) for t in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)),
    dict(lr=0.5, temperature=0.15, decay=1e-7),
    dict(lr=0.5, temperature=0.15, decay=1e-5),
]


def each(setting, *values):
    """The setting once for each value, which replaces {}."""
    return [setting.format(value) for value in values]


# A run is written as its flags for train.py.
STUDIES = {
    "alpha": {
        "redoes": "Table 19, Figure 13: α fixed, from VICReg to SimCLR; measured; growing",
        "runs": each("--alpha {} --beta 0", "0", "0.2", "0.4", "0.6", "0.8", "1", "ada", "linear",
                     "cosine"),
    },
    "alpha-fine": {
        "redoes": "Figure 1a: α in steps of 0.05",
        "runs": each("--alpha {:g} --beta 0", *(step / 20 for step in range(21))),
    },
    "ablation": {
        "redoes": "Table 6, row by row",
        "runs": [
            *each("--alpha {} --beta 0", "0", "1", "0.5", "ada", "cosine", "linear"),
            "--alpha ada --beta 0.0001 --mi-scale 1",
            "--alpha 1 --beta 0.0001 --mi-scale 1",         # SimCLR + [32]
            "--alpha 0 --beta 0.0001 --mi-scale 1",         # VICReg + [32]
            "--alpha ada --beta 0.0001",                    # AdaDim
        ],
    },
    "beta": {
        "redoes": "§C.7: signs and sizes of β, with ±1, whose effect is obvious",
        "runs": each("--alpha ada --beta {}", "-1", "-0.0001", "0", "0.0001", "0.001", "0.01",
                     "1"),
    },
    "every": {
        "redoes": "Figure 18c: α measured more or less often",
        "runs": each("--alpha ada --beta 0.0001 --alpha-every {}", 1, 5, 20, 100),
    },
    "alpha-batches": {
        "redoes": "§A.6: α measured on fewer or more batches",
        "runs": each("--alpha ada --beta 0.0001 --alpha-batches {}", 1, 3, 10, 30),
    },
    "from": {
        "redoes": "Figure 6c: α measured on R instead of Z",
        "runs": ["--alpha ada --beta 0.0001", "--alpha ada --beta 0.0001 --alpha-from r"],
    },
    "width": {
        "redoes": "Figure 18a: size of the projector's output, AdaDim and VICReg",
        "runs": [f"{method} --projector 2048-2048-{size}" for size in (256, 1024, 2048, 4096)
                 for method in (FOUR_METHODS["AdaDim"], FOUR_METHODS["VICReg"])],
    },
    "temperature": {
        "redoes": "Figure 18b: InfoNCE's temperature, AdaDim and SimCLR",
        "runs": [f"{method} --temperature {temperature}" for temperature in (0.05, 0.1, 0.2, 0.5)
                 for method in (FOUR_METHODS["AdaDim"], FOUR_METHODS["SimCLR"])],
    },
    "length": {
        "redoes": "Figure 17, §C.6: does AdaDim's lead grow with training time?",
        "runs": [f"{method} --epochs {epochs}" for epochs in (20, 60, 150)
                 for method in FOUR_METHODS.values()],
    },
    "optimizer": {
        "redoes": "Figure 14: LARS, Adam and SGD",
        "runs": [f"{method} --optimizer {optimizer}" for optimizer in ("lars", "adam", "sgd")
                 for method in FOUR_METHODS.values()],
    },
    "methods": {
        "redoes": "Tables 12 and 15: every method with its own recipe",
        "runs": [
            "--alpha 0 --beta 0",                           # VICReg
            "--alpha 1 --beta 0 --projector 2048-2048-128",     # SimCLR
            "--alpha ada --beta 0.0001",                    # AdaDim
            *each("--method {}", *RIVALS),
        ],
    },
    "one-recipe": {
        "redoes": "Table 22: every method with AdaDim's projector, augmentation, optimiser",
        "runs": [
            *FOUR_METHODS.values(),
            *each("--alpha {} --beta 0.0001 --mi-scale 1", "1", "0"),       # SimCLR, VICReg + [32]
            *each("--method {} " + ONE_RECIPE, *RIVALS),
        ],
    },
    "random": {
        "redoes": "Figure 5a, b, Table 18: 15 settings each of SimCLR, VICReg and NNCLR",
        "runs": [
            *("--alpha 1 --beta 0 --lr {lr:g} --temperature {temperature:g} "
              "--weight-decay {decay:g}".format(**setting) for setting in SIMCLR_SETTINGS),
            *each("--alpha 0 --beta 0 --lr 0.3 --weight-decay 1e-06 --vicreg-weights 25,25,{:g}",
                  *(nu / 10 for nu in range(3, 18))),
            *("--method nnclr --lr {lr:g} --set temperature={temperature:g} "
              "--weight-decay {decay:g}".format(**setting) for setting in SIMCLR_SETTINGS),
        ],
    },
    "uniformity": {
        "redoes": "the second paper's table: plain, + L_U, + W2; the same for AdaDim's family",
        "runs": [
            *(f"--method {method} {SECOND_RECIPE} {SECOND_SETTINGS[method]}{term}"
              for method, weight in SECOND_WEIGHTS.items()
              for term in ("", f" --lu-weight {weight}", f" --w2-weight {weight}")),
            *(f"{method}{term}" for method in FOUR_METHODS.values()
              for term in ("", " --lu-weight 1", " --w2-weight 1")),
        ],
    },
}
GIVEN_BY_THE_STUDY = ("--out", "--seed", "--device", "--resume", "--overwrite")


# --- which runs -----------------------------------------------------------------------------------

def runs(studies, seeds, methods=(), settings=()):
    """{folder name: list of flags} for all runs of these studies, without duplicates.

    methods, settings: of a study of one's own, each method with each setting.
    """
    own = [f"--method {method} {setting}" for method in methods for setting in settings or [""]]
    chosen = [setting for study in studies for setting in STUDIES[study]["runs"]]
    found = {}
    for setting in (*chosen, *(own or settings)):
        for seed in range(seeds):
            flags = [*setting.split(), "--seed", str(seed)]
            found[folder_name(flags)] = flags
    return found


def folder_name(flags):
    """["--alpha", "0.5", "--beta", "-1", "--seed", "0"] → alpha-0.5-beta-minus-1-seed-0."""
    text = " ".join(["", *flags]).replace(" --", " ").replace(" -", " minus-").strip()
    return text.replace(" ", "-").replace("/", "-")


def print_studies(names):
    """A line for each study or, if some are named, their runs."""
    for name in names or STUDIES:
        study = STUDIES[name]
        print(f"{name:13}  {len(study['runs']):2} runs  {study['redoes']}")
        for setting in study["runs"] if names else ():
            print(f"    {setting}")


def is_finished(folder, arguments):
    """Whether the folder holds a complete run with these arguments for train.py."""
    try:
        config = read_config(folder)
        epochs = read_log(folder / "log.csv")["epoch"]
    except (BadInput, OSError):
        return False
    same_run = what_is_trained(config["arguments"]) == what_is_trained(arguments)
    last_epoch = epochs[-1] if epochs else 0
    all_epochs = last_epoch == config["flags"].get("--epochs")
    return same_run and all_epochs and (folder / "backbone.pt").exists()


def what_is_trained(arguments):
    """The arguments without --device, --out and --resume, which do not change the result."""
    kept = []
    words = iter(arguments)
    for word in words:
        if word in ("--device", "--out"):
            next(words, None)       # its value
        elif word != "--resume":
            kept.append(word)
    return kept


# --- training them --------------------------------------------------------------------------------

class Training(NamedTuple):
    device: str
    process: subprocess.Popen


def start_training(arguments, folder, device, environment):
    """Starts or resumes a run; its output is appended to output.txt in its folder."""
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, script, *arguments, "--device", device, "--out", folder, "--resume"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "a") as output:
        # in a session of its own: Ctrl-C would reach it twice, and end it before it has saved
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment,
                                   start_new_session=True)
    return Training(device, process)


def shared_environment(devices):
    """Environment variables for trainings that run side by side, one on each device."""
    environment = dict(os.environ)
    if len(devices) > 1:
        # threads that wait by spinning would occupy the cores that the trainings share
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // len(devices))))
    return environment


def say(text):
    show_progress("")
    print(text, flush=True)


def succeeded(name, status, folder):
    """Reports how a training ended; returns whether its exit status is 0."""
    if status == 0:
        say(f"{name}: finished")
    else:
        say(f"{name}: failed with status {status}; see {folder / 'output.txt'}")
    return status == 0


class Progress:
    """How many runs are done, and how long the others will take, by the epochs in their logs.

    An epoch of each run counts the same.
    """

    def __init__(self, epochs, out):
        """epochs: {name of a run: its number of epochs}."""
        self.epochs, self.out = epochs, out
        self.before = sum(map(self.epochs_done, epochs))
        self.started = self.looked = time.monotonic()
        self.estimated = False

    def epochs_done(self, name):
        with contextlib.suppress(OSError):
            lines = (self.out / name / "log.csv").read_bytes().count(b"\n")
            return min(max(0, lines - 1), self.epochs[name])
        return 0

    def text(self, ended):
        """Such as "3 of 20 runs done, about 1:20:00 to go". ended: the names of runs that ended."""
        text = f"{len(ended)} of {len(self.epochs)} runs done"
        now = sum(map(self.epochs_done, self.epochs))
        left = sum(self.epochs[name] - self.epochs_done(name)
                   for name in self.epochs if name not in ended)
        if now == self.before or left == 0:
            return text
        self.estimated = True
        seconds = (time.monotonic() - self.started) / (now - self.before) * left
        return f"{text}, about {duration(seconds)} to go"

    def look(self, ended):
        """Rewrites the terminal's last line every five seconds; the first estimate is printed."""
        if time.monotonic() - self.looked < 5:
            return
        self.looked = time.monotonic()
        known = self.estimated
        text = self.text(ended)
        if self.estimated and not known:
            say(text)
        show_progress(text)


def train_all(chosen, common, devices, out, epochs):
    """Trains the chosen runs, one at a time on each device; returns the names of those that failed.

    chosen: see runs(). common: arguments for all of them. epochs: {name: number of epochs}. A
    signal stops the trainings, too.
    """
    waiting = {}                        # {name: arguments}
    for name, flags in chosen.items():
        arguments = [*common, *flags]
        if is_finished(out / name, arguments):
            say(f"{name}: was finished")
        else:
            waiting[name] = arguments

    environment = shared_environment(devices)
    free = list(devices)
    running = {}                        # {name: Training}
    failed = []
    progress = Progress(epochs, out)
    with Signals() as signals:
        signals.hold()                  # otherwise one could interrupt a start
        try:
            while (waiting or running) and not signals.stop_wanted():
                if waiting and free:
                    name = next(iter(waiting))
                    device = free.pop(0)
                    say(f"{name}: on {device}")
                    try:
                        running[name] = start_training(waiting.pop(name), out / name, device,
                                                       environment)
                    except OSError as error:
                        say(f"{name}: failed, {error}")
                        failed.append(name)
                        free.append(device)

                ended = [name for name in running if running[name].process.poll() is not None]
                for name in ended:
                    training = running.pop(name)
                    free.append(training.device)
                    if not succeeded(name, training.process.returncode, out / name):
                        failed.append(name)
                done = [name for name in chosen if name not in waiting and name not in running]
                if ended and (waiting or running):
                    say(progress.text(done))
                progress.look(done)
                time.sleep(0.1)
        finally:
            show_progress("")
            for training in running.values():
                training.process.terminate()
            for training in running.values():
                training.process.wait()     # until it has saved
        signals.release()               # raises KeyboardInterrupt if there was a signal
    return failed


# --- command line ---------------------------------------------------------------------------------

def device_list(text):
    """An argparse type: the devices in a list such as cuda:0,cuda:1."""
    return [device_name(word) for word in text.split(",")]


def comma_list(text):
    return text.split(",")


def parse_args(argv):
    """The study's own arguments, parsed, and the list of those after --, for all runs."""
    own, common = split_arguments(argv)
    usage = ("study.py STUDY … [--list] [--methods LIST] [--setting FLAGS] [--seeds N] "
             "[--devices LIST] [--out DIR] -- FLAGS OF TRAIN.PY")
    parser = Parser("study.py", __doc__, usage=usage)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--list", action="store_true",
                        help="list all studies and what they reproduce, or a STUDY's runs")
    parser.add_argument("--methods", type=comma_list, default=(), metavar="LIST",
                        help="train these methods, such as adadim,vicreg,simclr,byol")
    parser.add_argument("--setting", action="append", default=[], metavar="FLAGS",
                        help='train with these flags of train.py, such as --setting "--lr 0.2"; '
                        "may be repeated (a single word needs =, as in --setting=--baseline)")
    parser.add_argument("--seeds", type=whole_number(1, 1000), default=2, metavar="N",
                        help="runs of each setting, with seeds 0 … N − 1")
    parser.add_argument("--devices", type=device_list, default="auto", metavar="LIST",
                        help="such as cuda:0,cuda:1; each trains one run at a time. cpu,cpu trains "
                        "two runs on the CPU, each on half of its cores")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR",
                        help="where each run gets a folder")
    args = parser.parse_args(own)
    for name in args.studies:
        if name not in STUDIES:
            parser.error(f"STUDY: there is no {name!r}: choose from {', '.join(STUDIES)}")
    if not (args.studies or args.methods or args.setting or args.list):
        parser.error(f"STUDY: name at least one of {', '.join(STUDIES)}, or --methods")
    for word in (*common, *" ".join(args.setting).split()):
        flag = word.partition("=")[0]
        if flag in GIVEN_BY_THE_STUDY:
            raise BadInput(f"{flag} is given to each run by the study: leave it out")
        if flag in ("--methods", "--help", "-h"):
            raise BadInput(f"{flag} would train nothing: call train.py {flag}")
    return args, common


def main(argv=None):
    with one_line_errors("study.py"):
        args, common = parse_args(sys.argv[1:] if argv is None else argv)
        if args.list:
            print_studies(args.studies)
            return
        chosen = runs(args.studies, args.seeds, args.methods, args.setting)
        with contextlib.redirect_stdout(io.StringIO()):     # without notes on flags
            epochs = {name: train.parse_args([*common, *flags]).epochs      # raises BadInput
                      for name, flags in chosen.items()}                    # before any run
        args.out.mkdir(parents=True, exist_ok=True)
        try:
            failed = train_all(chosen, common, args.devices, args.out, epochs)
        except KeyboardInterrupt as interrupt:
            print("study.py: stopped; the same command continues", file=sys.stderr)
            sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
        say(f"{len(chosen) - len(failed)} of {len(chosen)} runs are finished, in {args.out}")
        if failed:
            say(f"failed: {', '.join(failed)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
