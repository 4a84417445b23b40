"""Trains the runs of the papers' studies with train.py, on any dataset and budget.

    python study.py --list                  all studies, and what they reproduce
    python study.py alpha -- --dataset shapes --arch resnet18 --width 8 --epochs 12
    python study.py ablation --devices cuda:0,cuda:1 --seeds 3 -- --dataset cifar100
    python figures.py runs/study/*          figures and tables of the runs' logs

All runs get the flags after --, and a folder, such as runs/study/vicreg-epochs-20-seed-0. The same
command skips finished runs and resumes interrupted ones; if a run fails, the others continue.
Exit status: 1 if a run failed, 130 after Ctrl-C, 143 after SIGTERM; all trainings have then saved.
"""
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

import train
from baselines.all_methods import METHODS
from run import Parser, StopSignal, at_least, one_line_errors, read_config, split_arguments

VICREG = "--alpha 0 --beta 0"
SIMCLR = "--alpha 1 --beta 0"
ADADIM = "--alpha ada --beta 0.0001"
NNCLR = "--method nnclr --projector 2048-2048-2048"
FOUR_METHODS = (VICREG, SIMCLR, "--alpha 0.5 --beta 0", ADADIM)
RIVALS = [f"--method {name}" for name in METHODS if name != "adadim"]
ONE_RECIPE = ("--projector 2048-2048-2048 --augment vicreg --optimizer lars --lr 0.4 "
              "--weight-decay 0.0001")
# The second paper's methods, as in its code. W2's weight for MoCo v2 is half of that paper's, whose
# loss is the sum of both directions. L_U's weights were not published: ours are W2's.
SECOND_RECIPE = "--projector 2048-2048-256 --optimizer lars --lr 0.2 --weight-decay 0.0001"
SECOND_SETTINGS = {
    "moco_v2": f"{SECOND_RECIPE} --set batch_norm=yes queues=1 queue=4096",
    "byol": f"{SECOND_RECIPE} --set predictor=2048 last_momentum=0.99",
    "barlow_twins": f"{SECOND_RECIPE} --set scale=1 off_diagonal_weight=0.08",
}
SECOND_WEIGHTS = {"moco_v2": "0.5", "byol": "0.2", "barlow_twins": "30:0"}
# Table 18's: learning rate, temperature, weight decay
SIMCLR_SETTINGS = [
    *((0.6, temperature, 1e-6) for temperature in (0.05, 0.07, 0.1, 0.2, 0.3, 0.4)),
    *((0.5, temperature, 1e-6) for temperature in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)),
    *((0.5, 0.15, decay) for decay in (1e-7, 1e-5)),
]


def each(setting, *values, methods=("",)):
    """The setting with each value, which replaces {}, after the flags of each method."""
    return [f"{method} {setting.format(value)}".strip() for value in values for method in methods]


# {study: its runs}. A run is written as its flags for train.py.
STUDIES = {
    "alpha": each("--alpha {} --beta 0", 0, 0.2, 0.4, 0.5, 0.6, 0.8, 1, "ada", "linear", "cosine"),
    "alpha-fine": each("--alpha {:g} --beta 0", *(step / 20 for step in range(21))),
    "ablation": [
        *each("--alpha {} --beta 0", "0", "1", "0.5", "ada", "cosine", "linear"),
        *each("--alpha {} --beta 0.0001 --mi-scale 1", "ada", "1", "0"),    # 1, 0: the paper's [32]
        ADADIM,
    ],
    "beta": each("--alpha ada --beta {}", "-1", "-0.0001", "0", "0.0001", "0.001", "0.01", "1"),
    "every": each(ADADIM + " --alpha-every {}", 1, 5, 20, 100),
    "alpha-batches": each(ADADIM + " --alpha-batches {}", 1, 3, 10, 30),
    "from": [ADADIM, f"{ADADIM} --alpha-from r"],
    "width": each("--projector 2048-2048-{}", 256, 1024, 2048, 4096, methods=(ADADIM, VICREG)),
    "temperature": each("--temperature {}", 0.05, 0.1, 0.2, 0.5, methods=(ADADIM, SIMCLR)),
    "length": each("--epochs {}", 20, 60, 150, methods=FOUR_METHODS),
    "optimizer": each("--optimizer {}", "lars", "adam", "sgd", methods=FOUR_METHODS),
    "methods": [VICREG, f"{SIMCLR} --augment simclr --projector 2048-2048-128",
                f"{ADADIM} --augment simclr", *RIVALS],
    "one-recipe": [
        *FOUR_METHODS,
        *each("--alpha {} --beta 0.0001 --mi-scale 1", "1", "0"),       # SimCLR, VICReg + [32]
        *each(ONE_RECIPE, "", methods=RIVALS),
    ],
    "random": [
        *(f"{SIMCLR} --lr {lr} --temperature {temperature} --weight-decay {decay:g}"
          for lr, temperature, decay in SIMCLR_SETTINGS),
        *each(VICREG + " --lr 0.3 --weight-decay 1e-06 --vicreg-weights 25,25,{:g}",
              *(nu / 10 for nu in range(3, 18))),
        *(f"{NNCLR} --lr {lr} --set temperature={temperature} --weight-decay {decay:g}"
          for lr, temperature, decay in SIMCLR_SETTINGS[:-1]),     # its last repeats its tenth
    ],
    "uniformity": [
        *(f"--method {method} {SECOND_SETTINGS[method]}{term}"
          for method, weight in SECOND_WEIGHTS.items()
          for term in ("", f" --lu-weight {weight}", f" --w2-weight {weight}")),
        *each("{}", "", "--lu-weight 1", "--w2-weight 1", methods=FOUR_METHODS),
    ],
}
REPRODUCES = {
    "alpha": "Table 19, Figures 6a, 6b, 13b: α fixed, from VICReg to SimCLR; measured; growing",
    "alpha-fine": "Figure 1a: α in steps of 0.05",
    "ablation": "Table 6, row by row",
    "beta": "Figure 7a, §C.7: signs and sizes of β, with ±1, whose effect is obvious",
    "every": "Figure 18c: α measured more or less often",
    "alpha-batches": "§A.7: α measured on fewer or more batches",
    "from": "α measured on R, which one sentence of §4 says, instead of Z",
    "width": "Figure 18a: size of the projector's output, AdaDim and VICReg",
    "temperature": "Figure 18b: InfoNCE's temperature, AdaDim and SimCLR",
    "length": "Figure 17, §C.6: does AdaDim's lead grow with training time?",
    "optimizer": "Figure 14: rank and I(R;Z) over training, with LARS, Adam and SGD",
    "methods": "Tables 12 and 15: every method with its own recipe",
    "one-recipe": "Table 22: every method with AdaDim's projector, augmentation, optimiser",
    "random": "Figure 5a, b, Table 18: 15 settings each of SimCLR and VICReg, 14 of NNCLR",
    "uniformity": "the second paper's table: plain, + L_U, + W2; the same for AdaDim's family",
}

# words in the flags of a run → words in the name of its folder, in this order
SHORTER = {
    VICREG: "vicreg",
    SIMCLR: "simclr",
    ADADIM: "adadim",
    NNCLR: "nnclr-2048",
    "--alpha ada": "adadim",
    ONE_RECIPE: "one-recipe",
    **{setting: "second-recipe" for setting in SECOND_SETTINGS.values()},
    "--method": "",
}


def folder_name(setting):
    """"--alpha ada --beta -1 --epochs 20" → adadim-beta-minus-1-epochs-20."""
    text = f"{setting} "
    for words, shorter in SHORTER.items():
        text = text.replace(f"{words} ", f"{shorter} ")
    text = re.sub(r"--alpha (\S+) --beta 0 ", r"alpha-\1 ", text)
    text = re.sub(r" -(?=[\d.])", " minus-", text).replace("--", "")
    return re.sub(r"[^\w.,=-]+", "-", text.strip())     # not all systems allow a : in names


def runs(studies, seeds, methods=()):
    """{folder name: list of flags} for the runs of these studies and methods, each once."""
    settings = [setting for study in studies for setting in STUDIES[study]]
    settings += [f"--method {method}" for method in methods]
    return {f"{folder_name(setting)}-seed-{seed}": [*setting.split(), "--seed", str(seed)]
            for setting in settings for seed in range(seeds)}


def is_finished(folder, arguments):
    """Whether the folder holds a complete run that was started with these arguments."""
    complete = (folder / "backbone.pt").exists()        # train.py writes it at the end
    # --device and others, which train_all adds, may differ
    return complete and read_config(folder)["arguments"][:len(arguments)] == arguments


def train_all(waiting, devices, out):
    """Trains runs, one at a time on each device; returns the names of those that failed.

    waiting: {name: arguments for train.py}; a run's folder gets its output, too, in output.txt.
    """
    threads = max(1, torch.get_num_threads() // len(devices))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    names = list(waiting)
    free = list(devices)
    running = {}                        # {name: (process, device)}
    failed = []
    with StopSignal() as stop:
        stop.listen()
        while (names or running) and not stop.received:
            if names and free:
                name = names.pop(0)
                device = free.pop(0)
                print(f"{name}: on {device}", flush=True)
                command = [sys.executable, train.__file__, *waiting[name], "--resume",
                           "--device", device, "--out", out / name]
                (out / name).mkdir(parents=True, exist_ok=True)
                with open(out / name / "output.txt", "a") as output:
                    # in a new session: a terminal's Ctrl-C, and then ours, would be two signals
                    process = subprocess.Popen(command, stdout=output, stderr=output,
                                               env=environment, start_new_session=True)
                running[name] = (process, device)
            ended = [name for name, (process, _) in running.items() if process.poll() is not None]
            for name in ended:
                process, device = running.pop(name)
                free.append(device)
                if process.returncode:
                    failed.append(name)
                outcome = "failed" if process.returncode else "finished"
                print(f"{name}: {outcome}; {len(names) + len(running)} runs to go", flush=True)
            time.sleep(0.1)
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()              # until it has saved
    if stop.received:
        print("study.py: stopped; the same command continues", file=sys.stderr)
        sys.exit(128 + stop.received)
    return failed


def parse_args(argv):
    """The study's own arguments, parsed, and the list of those after --, for all runs."""
    own, common = split_arguments(argv)
    parser = Parser("study.py", __doc__, usage="study.py STUDY … [flags] -- FLAGS OF TRAIN.PY")
    add = parser.add_argument
    add("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    add("--list", action="store_true", help="list the studies, as without any")
    add("--methods", metavar="LIST", help="train these, such as adadim,vicreg,simclr,byol")
    add("--seeds", type=at_least(1), default=2, metavar="N", help="runs of each setting")
    add("--devices", default="auto", metavar="LIST", help="such as cuda:0,cuda:1: one run on each")
    add("--out", type=Path, default=Path("runs/study"), metavar="DIR")
    args = parser.parse_args(own)
    args.devices = args.devices.split(",")
    args.methods = args.methods.split(",") if args.methods else []
    if not {*args.studies} <= {*STUDIES}:
        parser.error(f"STUDY: choose from {', '.join(STUDIES)}, not {' '.join(args.studies)}")
    return args, common


def main(argv=None):
    with one_line_errors("study.py"):
        args, common = parse_args(sys.argv[1:] if argv is None else argv)
        if args.list or not (args.studies or args.methods):
            for name, settings in STUDIES.items():
                print(f"{name:13}  {len(settings):2} runs  {REPRODUCES[name]}")
            return
        chosen = {name: [*common, *flags]
                  for name, flags in runs(args.studies, args.seeds, args.methods).items()}
        for arguments in chosen.values():
            train.parse_args(arguments)         # raises BadInput, before any run
        waiting = {name: arguments for name, arguments in chosen.items()
                   if not is_finished(args.out / name, arguments)}
        print(f"{len(chosen)} runs, of which {len(chosen) - len(waiting)} are finished")
        failed = train_all(waiting, args.devices, args.out)
        print(f"next: python figures.py {args.out}/*")
        if failed:
            print(f"failed, see output.txt in their folders: {', '.join(failed)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
