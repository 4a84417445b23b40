"""Many runs of train.py: the grids of the paper's studies, for any dataset and budget.

    python study.py alpha beta -- --dataset folder --data-dir data/cifar10 --arch resnet18 --width 8 --limit-train 5000 --epochs 20
    python study.py ablation --devices cuda:0,cuda:1 --seeds 3 -- --dataset cifar100
    python metrics.py runs/study/*          draws and correlates what the runs logged

alpha     α fixed, from 0 (VICReg) to 1 (SimCLR); measured; growing [Table 19, Figure 13]
ablation  every row of Table 6
beta      AdaDim with other signs and sizes of β [§C.7], and with ±1, where the sign's effect is plain
every     AdaDim with α measured more, or less, often
from      AdaDim with α measured on R in place of Z [Figure 6c]

What follows -- goes to every run. A run that two studies share is trained once; one that is finished is skipped, one that
was cut off is resumed, and after one that fails the others go on. Exit status: 0; 1 if a run failed, which is said at the end; 2,
with one line, on bad input.
"""
import argparse
import os
import queue
import shlex
import subprocess
import sys
import threading
from pathlib import Path

STUDIES = {
    "alpha": [f"--alpha {alpha} --beta 0" for alpha in ("0", "0.2", "0.4", "0.6", "0.8", "1", "ada", "linear", "cosine")],
    "ablation": [f"--alpha {alpha} --beta 0" for alpha in ("0", "1", "0.5", "ada", "cosine", "linear")] + [
        f"--alpha {alpha} --beta 0.0001 --mi-scale 1" for alpha in ("ada", "1", "0")] + ["--alpha ada --beta 0.0001"],
    "beta": [f"--alpha ada --beta {beta}" for beta in ("-1", "-0.0001", "0", "0.0001", "0.001", "0.01", "1")],
    "every": [f"--alpha ada --beta 0.0001 --alpha-every {n}" for n in (1, 5, 20, 100)],
    "from": [f"--alpha ada --beta 0.0001 --alpha-from {x}" for x in ("z", "r")],
}
DEFAULTS = "--alpha-from z"     # what train.py does anyway gives a run no name of its own


def stop(message):
    print(f"study.py: {message}", file=sys.stderr)
    sys.exit(2)


def runs(studies, seeds):
    """{name: flags} of every run of these studies, each once."""
    found = {}
    for study in studies:
        for flags in STUDIES[study]:
            flags = flags.replace(DEFAULTS, "").strip()
            for seed in range(seeds):
                words = f"{flags} --seed {seed}".split()
                found["-".join(word.lstrip("-") if word.startswith("--") else f"{word}" for word in words).replace("--", "-minus-")] = words
    return found


def finished(folder, command):
    """Whether a run in this folder came to its end with these very flags."""
    try:
        return (folder / "finished.txt").read_text() == command
    except OSError:
        return False


def work(device, waiting, common, root, threads, failed):
    """Takes run after run from the queue and trains it on the device."""
    while True:
        try:
            name, flags = waiting.get_nowait()
        except queue.Empty:
            return
        folder = root / name
        command = [*common, *flags]
        if finished(folder, shlex.join(command)):
            print(f"{name}: was finished", flush=True)
            continue
        print(f"{name}: on {device}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "a") as output:
            status = subprocess.run([sys.executable, Path(__file__).with_name("train.py"), *command, "--device", device, "--out", folder, "--resume"],
                                    stdout=output, stderr=output, env={**os.environ, **threads}).returncode
        if status == 0:
            (folder / "finished.txt").write_text(shlex.join(command))
            print(f"{name}: finished", flush=True)
        else:
            failed.append(name)
            print(f"{name}: failed with status {status}; {folder / 'output.txt'} says why", flush=True)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="study.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="study.py STUDY … [--seeds N] [--devices LIST] [--out DIR] -- FLAGS OF TRAIN.PY")
    parser.error = lambda message: stop(f"{message} (--help explains the flags)")
    parser.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="runs of each setting, with seeds 0 … N − 1 (default: %(default)s)")
    parser.add_argument("--devices", default="auto", metavar="LIST", help="such as cuda:0,cuda:1: each trains a run at a time; cpu,cpu trains "
                        "two on the CPU, each with half of its cores (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="a folder for each run goes here (default: %(default)s)")
    args, common = parser.parse_args(argv[:split]), argv[split + 1:]
    if args.seeds < 1:
        stop(f"--seeds must be a whole number above 0, not {args.seeds}")
    for flag in ("--out", "--seed", "--device", "--resume", "--overwrite"):
        if flag in common:
            stop(f"{flag} is given to each run by the study: leave it out")
    devices, waiting, failed = args.devices.split(","), queue.Queue(), []
    chosen = runs(args.studies, args.seeds)
    for run in chosen.items():
        waiting.put(run)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(devices)))} if len(devices) > 1 else {}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(error)
    workers = [threading.Thread(target=work, args=(device, waiting, common, args.out, threads, failed), daemon=True) for device in devices]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        print("study.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} runs are finished, in {args.out}")
    if failed:
        print(f"failed: {', '.join(sorted(failed))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
