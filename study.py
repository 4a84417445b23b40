"""Many runs of train.py: the grids of the paper's studies, for any dataset and budget.

    python study.py alpha -- --dataset shapes --arch resnet18 --width 8 --epochs 12
    python study.py ablation --devices cuda:0,cuda:1 --seeds 3 -- --dataset cifar100
    python figures.py runs/study/*          draws and correlates what the runs logged

    python study.py --list                  every study, its runs, and what they redo

What follows -- goes to every run. A run that two studies share is trained once. A finished run
is skipped, one that was cut off is resumed, and after one that fails the others go on. Exit
status: 0; 1 if a run failed, which is said at the end; 2, with one line, on bad input.
"""
import contextlib
import os
import queue
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import train
from baselines import METHODS
from plumbing.cli import (BadInput, Parser, device_name, one_line_errors, split_arguments,
                          whole_number)
from plumbing.images import core_count
from plumbing.run import read_config, read_log
from plumbing.signals import Signals

FOUR_METHODS = {
    "VICReg": "--alpha 0 --beta 0",
    "SimCLR": "--alpha 1 --beta 0",
    "half": "--alpha 0.5 --beta 0",
    "AdaDim": "--alpha ada --beta 0.0001",
}
RIVALS = [name for name in METHODS if name != "adadim"]
ONE_RECIPE = ("--projector 2048-2048-2048 --augment vicreg --optimizer lars --lr 0.4 "
              "--weight-decay 0.0001")
SECOND_PAPER = {            # the weights of its uniformity, for each method
    "moco_v2": "1",
    "byol": "0.2",
    "barlow_twins": "30:0",
}
SIMCLR_SETTINGS = [         # learning rate, temperature and weight decay, as Table 18 lists them
    *((0.6, temperature, 1e-6) for temperature in (0.05, 0.07, 0.1, 0.2, 0.3, 0.4)),
    *((0.5, temperature, 1e-6) for temperature in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)),
    (0.5, 0.15, 1e-7),
    (0.5, 0.15, 1e-5),
]


def each(setting, *values):
    """The setting with each of the values in the place of {}."""
    return [setting.format(value) for value in values]


# Runs are flags of train.py, as one would type them.
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
        "redoes": "§C.7: other signs and sizes of β, and ±1, whose effect is plain",
        "runs": each("--alpha ada --beta {}", "-1", "-0.0001", "0", "0.0001", "0.001", "0.01",
                     "1"),
    },
    "every": {
        "redoes": "Figure 18c: α measured more, or less, often",
        "runs": each("--alpha ada --beta 0.0001 --alpha-every {}", 1, 5, 20, 100),
    },
    "alpha-batches": {
        "redoes": "§A.6: α measured on fewer, or more, batches",
        "runs": each("--alpha ada --beta 0.0001 --alpha-batches {}", 1, 3, 10, 30),
    },
    "from": {
        "redoes": "Figure 6c: α measured on R in place of Z",
        "runs": ["--alpha ada --beta 0.0001", "--alpha ada --beta 0.0001 --alpha-from r"],
    },
    "width": {
        "redoes": "Figure 18a: the projector's output, AdaDim beside VICReg",
        "runs": [f"{method} --projector 2048-2048-{size}" for size in (256, 1024, 2048, 4096)
                 for method in (FOUR_METHODS["AdaDim"], FOUR_METHODS["VICReg"])],
    },
    "temperature": {
        "redoes": "Figure 18b: InfoNCE's temperature, AdaDim beside SimCLR",
        "runs": [f"{method} --temperature {temperature}" for temperature in (0.05, 0.1, 0.2, 0.5)
                 for method in (FOUR_METHODS["AdaDim"], FOUR_METHODS["SimCLR"])],
    },
    "length": {
        "redoes": "Figure 17, §C.6: does the measured α gain with training time?",
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
        "redoes": "Tables 9 and 22: every method with AdaDim's projector, augmentation, optimiser",
        "runs": [
            *FOUR_METHODS.values(),
            *each("--alpha {} --beta 0.0001 --mi-scale 1", "1", "0"),       # SimCLR, VICReg + [32]
            *each("--method {} " + ONE_RECIPE, *RIVALS),
        ],
    },
    "random": {
        "redoes": "Figure 5a, b, Table 18: 15 settings each of SimCLR, VICReg and NNCLR",
        "runs": [
            *("--alpha 1 --beta 0 --lr {:g} --temperature {:g} --weight-decay {:g}".format(*setting)
              for setting in SIMCLR_SETTINGS),
            *each("--alpha 0 --beta 0 --lr 0.3 --weight-decay 1e-06 --vicreg-weights 25,25,{:g}",
                  *(nu / 10 for nu in range(3, 18))),
            *("--method nnclr --lr {:g} --set temperature={:g} --weight-decay {:g}".format(*setting)
              for setting in SIMCLR_SETTINGS),
        ],
    },
    "uniformity": {
        "redoes": "the second paper's table, plain, + L_U, + W2; and the same of AdaDim's family",
        "runs": [
            *(f"--method {method}{term}" for method, weight in SECOND_PAPER.items()
              for term in ("", f" --lu-weight {weight}", f" --w2-weight {weight}")),
            *(f"{method}{term}" for method in FOUR_METHODS.values()
              for term in ("", " --lu-weight 1", " --w2-weight 1")),
        ],
    },
}
GIVEN_BY_THE_STUDY = ("--out", "--seed", "--device", "--resume", "--overwrite")


# --- which runs -----------------------------------------------------------------------------------

def runs(studies, seeds):
    """{name of its folder: its flags, a list} for every run of these studies, each once."""
    found = {}
    for study in studies:
        for setting in STUDIES[study]["runs"]:
            for seed in range(seeds):
                flags = [*setting.split(), "--seed", str(seed)]
                found[folder_name(flags)] = flags
    return found


def print_studies():
    for name, study in STUDIES.items():
        print(f"{name}: {study['redoes']}")
        for setting in study["runs"]:
            print(f"    {setting}")


def folder_name(flags):
    """["--alpha", "0.5", "--beta", "-1", "--seed", "0"] → alpha-0.5-beta-minus-1-seed-0."""
    words = []
    for word in flags:
        if word.startswith("--"):
            words.append(word.removeprefix("--"))
        elif word.startswith("-"):
            words.append("minus-" + word.removeprefix("-"))
        else:
            words.append(word)
    return "-".join(words)


# --- which of them are done -----------------------------------------------------------------------

def is_finished(folder, arguments):
    """Whether a run with these arguments for train.py came to its end in this folder."""
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
    """The arguments without those that say where: --device, --out, and --resume."""
    kept = []
    words = iter(arguments)
    for word in words:
        if word in ("--device", "--out"):
            next(words, None)       # its value
        elif word != "--resume":
            kept.append(word)
    return kept


# --- doing them -----------------------------------------------------------------------------------

class Trainings:
    """The processes that train now. They have sessions of their own, or Ctrl-C would reach them
    twice, and the second signal would end them before they have saved."""

    def __init__(self):
        self.running = set()
        self.stopping = False

    def run(self, command, output, environment):
        """Starts a process and waits for it; returns its exit status."""
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment,
                                 start_new_session=True)
        self.running.add(child)
        if self.stopping:           # stop() may have come before it was added
            child.terminate()
        status = child.wait()
        self.running.discard(child)
        return status

    def stop(self):
        self.stopping = True
        for child in list(self.running):
            child.terminate()


def train_one(name, arguments, folder, devices, trainings, environment):
    """Trains or resumes a run on a free device; returns whether it came to its end.

    devices: a queue of the free ones. The run's output goes to output.txt in its folder.
    """
    if is_finished(folder, arguments):
        say(f"{name}: was finished")
        return True
    device = devices.get()
    say(f"{name}: on {device}")
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, script, *arguments, "--device", device, "--out", folder, "--resume"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "a") as output:
            status = trainings.run(command, output, environment)
    except OSError as error:
        say(f"{name}: failed, {error}")
        return False
    finally:
        devices.put(device)
    if status != 0:
        say(f"{name}: failed with status {status}; see {folder / 'output.txt'}")
        return False
    say(f"{name}: finished")
    return True


def say(text):
    print(text, flush=True)


def train_all(chosen, common, devices, out):
    """Trains the chosen runs, one at a time on each device; returns the names of those that failed.

    chosen: see runs(). common: arguments for each of them. A signal ends the trainings, too.
    """
    environment = dict(os.environ)
    if len(devices) > 1:
        # they share the machine's cores, and threads that wait by spinning would take them all
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // len(devices))))
    free = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    trainings = Trainings()
    with Signals(), ThreadPoolExecutor(len(devices)) as pool:
        finished = {}
        try:
            for name, flags in chosen.items():
                finished[name] = pool.submit(train_one, name, [*common, *flags], out / name, free,
                                             trainings, environment)
            return [name for name, future in finished.items() if not future.result()]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)      # no other begins
            trainings.stop()
            raise


# --- command line ---------------------------------------------------------------------------------

def device_list(text):
    """An argparse type: the devices of a list such as cuda:0,cuda:1."""
    return [device_name(word) for word in text.split(",")]


def parse_args(argv):
    """The study's own arguments, and those after --, which go to every run."""
    own, common = split_arguments(argv)
    usage = ("study.py STUDY … [--list] [--seeds N] [--devices LIST] [--out DIR] "
             "-- FLAGS OF TRAIN.PY")
    parser = Parser("study.py", __doc__, usage=usage)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--list", action="store_true",
                        help="every study, its runs, and the table or figure that they redo")
    parser.add_argument("--seeds", type=whole_number(1), default=2, metavar="N",
                        help="runs of each setting, with seeds 0 … N − 1")
    parser.add_argument("--devices", type=device_list, default="auto", metavar="LIST",
                        help="such as cuda:0,cuda:1: each trains one run at a time; cpu,cpu trains "
                        "two on the CPU, each with half of its cores")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR",
                        help="a folder for each run goes here")
    args = parser.parse_args(own)
    for name in args.studies:
        if name not in STUDIES:
            parser.error(f"STUDY: {name!r} is none: choose from {', '.join(STUDIES)}")
    if not args.studies and not args.list:
        parser.error(f"STUDY: name at least one of {', '.join(STUDIES)}")
    for word in common:
        flag = word.partition("=")[0]
        if flag in GIVEN_BY_THE_STUDY:
            raise BadInput(f"{flag} is given to each run by the study: leave it out")
    return args, common


def main(argv=None):
    with one_line_errors("study.py"):
        args, common = parse_args(sys.argv[1:] if argv is None else argv)
        if args.list:
            print_studies()
            return
        chosen = runs(args.studies, args.seeds)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            for flags in chosen.values():
                train.parse_args([*common, *flags])     # refuses what is wrong, before a run
        args.out.mkdir(parents=True, exist_ok=True)
        try:
            failed = train_all(chosen, common, args.devices, args.out)
        except KeyboardInterrupt as interrupt:
            print("study.py: stopped; the same command goes on", file=sys.stderr)
            sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
        say(f"{len(chosen) - len(failed)} of {len(chosen)} runs are finished, in {args.out}")
        if failed:
            say(f"failed: {', '.join(failed)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
