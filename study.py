"""Many runs of train.py: the grids of the paper's studies, for any dataset and budget.

    python study.py alpha -- --dataset shapes --arch resnet18 --width 8 --epochs 12
    python study.py ablation --devices cuda:0,cuda:1 --seeds 3 -- --dataset cifar100
    python figures.py runs/study/*          draws and correlates what the runs logged

alpha     α fixed, from 0 (VICReg) to 1 (SimCLR); measured; growing [Table 19, Figure 13]
ablation  every row of Table 6
beta      AdaDim with other signs and sizes of β [§C.7], and with ±1, whose effect is plain
every     AdaDim with α measured more, or less, often
from      AdaDim with α measured on R in place of Z [Figure 6c]

What follows -- goes to every run. A run that two studies share is trained once. A finished run
is skipped, one that was cut off is resumed, and after one that fails the others go on. Exit
status: 0; 1 if a run failed, which is said at the end; 2, with one line, on bad input.
"""
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from cli import BadInput, Parser, device_name, one_line_errors, whole_number
from run import read_config, read_log

# One line per setting: the flags of train.py as one would type them.
STUDIES = {
    "alpha": [
        "--alpha 0 --beta 0",                           # VICReg
        "--alpha 0.2 --beta 0",
        "--alpha 0.4 --beta 0",
        "--alpha 0.6 --beta 0",
        "--alpha 0.8 --beta 0",
        "--alpha 1 --beta 0",                           # SimCLR
        "--alpha ada --beta 0",
        "--alpha linear --beta 0",
        "--alpha cosine --beta 0",
    ],
    "ablation": [
        "--alpha 0 --beta 0",                           # VICReg
        "--alpha 1 --beta 0",                           # SimCLR
        "--alpha 0.5 --beta 0",
        "--alpha ada --beta 0",
        "--alpha cosine --beta 0",
        "--alpha linear --beta 0",
        "--alpha ada --beta 0.0001 --mi-scale 1",
        "--alpha 1 --beta 0.0001 --mi-scale 1",         # SimCLR + [32]
        "--alpha 0 --beta 0.0001 --mi-scale 1",         # VICReg + [32]
        "--alpha ada --beta 0.0001",                    # AdaDim
    ],
    "beta": [
        "--alpha ada --beta -1",
        "--alpha ada --beta -0.0001",
        "--alpha ada --beta 0",
        "--alpha ada --beta 0.0001",                    # AdaDim
        "--alpha ada --beta 0.001",
        "--alpha ada --beta 0.01",
        "--alpha ada --beta 1",
    ],
    "every": [
        "--alpha ada --beta 0.0001 --alpha-every 1",
        "--alpha ada --beta 0.0001 --alpha-every 5",
        "--alpha ada --beta 0.0001 --alpha-every 20",
        "--alpha ada --beta 0.0001 --alpha-every 100",
    ],
    "from": [
        "--alpha ada --beta 0.0001",                    # AdaDim: on Z
        "--alpha ada --beta 0.0001 --alpha-from r",
    ],
}
GIVEN_BY_THE_STUDY = ("--out", "--seed", "--device", "--resume", "--overwrite")


# --- which runs -----------------------------------------------------------------------------------

def runs(studies, seeds):
    """{name of its folder: its flags, a list} for every run of these studies, each once."""
    found = {}
    for study in studies:
        for setting in STUDIES[study]:
            for seed in range(seeds):
                flags = [*setting.split(), "--seed", str(seed)]
                found[folder_name(flags)] = flags
    return found


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

def train(arguments, folder, device, environment):
    """Starts or resumes a run; returns its exit status. What it says goes to output.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, script, *arguments, "--device", device, "--out", folder, "--resume"]
    with open(folder / "output.txt", "a") as output:
        ended = subprocess.run(command, stdout=output, stderr=output, env=environment)
    return ended.returncode


def work(device, waiting, common, out, environment, finished):
    """Takes run after run from the queue and trains it on the device, until none is left.

    finished: a list, to which the names of runs are added that came to their end.
    """
    while True:
        try:
            name, flags = waiting.get_nowait()
        except queue.Empty:
            return
        folder = out / name
        arguments = [*common, *flags]
        if is_finished(folder, arguments):
            say(f"{name}: was finished")
            finished.append(name)
            continue

        say(f"{name}: on {device}")
        try:
            status = train(arguments, folder, device, environment)
        except OSError as error:
            say(f"{name}: failed, {error}")
            continue
        if status == 0:
            say(f"{name}: finished")
            finished.append(name)
        else:
            say(f"{name}: failed with status {status}; {folder / 'output.txt'} says why")


def say(text):
    print(text, flush=True)


def train_all(chosen, common, devices, out):
    """Trains the chosen runs, one at a time on each device.

    chosen: see runs(). common: arguments for each of them. Returns the names of those that
    failed.
    """
    waiting = queue.Queue()
    for run in chosen.items():
        waiting.put(run)

    environment = dict(os.environ)
    if len(devices) > 1:        # the runs share the machine's cores
        cores = os.cpu_count() or 1
        environment["OMP_NUM_THREADS"] = str(max(1, cores // len(devices)))
    finished = []
    workers = []
    for device in devices:
        arguments = (device, waiting, common, out, environment, finished)
        workers.append(threading.Thread(target=work, args=arguments, daemon=True))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(set(chosen) - set(finished))


# --- command line ---------------------------------------------------------------------------------

def device_list(text):
    """An argparse type: the devices of a list such as cuda:0,cuda:1."""
    return [device_name(word) for word in text.split(",")]


def parse_args(argv):
    """The study's own arguments, and those after --, which go to every run."""
    split = argv.index("--") if "--" in argv else len(argv)
    own = argv[:split]
    common = argv[split + 1:]
    usage = "study.py STUDY … [--seeds N] [--devices LIST] [--out DIR] -- FLAGS OF TRAIN.PY"
    parser = Parser("study.py", __doc__, usage=usage)
    parser.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY",
                        help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=whole_number(1), default=2, metavar="N",
                        help="runs of each setting, with seeds 0 … N − 1 (default: %(default)s)")
    parser.add_argument("--devices", type=device_list, default="auto", metavar="LIST",
                        help="such as cuda:0,cuda:1: each trains one run at a time; cpu,cpu trains "
                        "two on the CPU, each with half of its cores (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR",
                        help="a folder for each run goes here (default: %(default)s)")
    args = parser.parse_args(own)
    for word in common:
        flag = word.partition("=")[0]
        if flag in GIVEN_BY_THE_STUDY:
            raise BadInput(f"{flag} is given to each run by the study: leave it out")
    return args, common


def main(argv=None):
    with one_line_errors("study.py"):
        args, common = parse_args(sys.argv[1:] if argv is None else argv)
        chosen = runs(args.studies, args.seeds)
        args.out.mkdir(parents=True, exist_ok=True)
        try:
            failed = train_all(chosen, common, args.devices, args.out)
        except KeyboardInterrupt:
            print("study.py: stopped; the same command goes on", file=sys.stderr)
            sys.exit(130)
        say(f"{len(chosen) - len(failed)} of {len(chosen)} runs are finished, in {args.out}")
        if failed:
            say(f"failed: {', '.join(failed)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
