"""Kills training runs, damages their files, fills their disks; counts the tries that they survive.

    make torture                    a few hundred tries: about half an hour on a CPU
    python -m tools.torture --tries 20 --only kills,disks

A try starts a tiny run, disturbs it in one of these ways at a random moment, continues it with
--resume until it is finished, and compares it with an undisturbed run: log, checkpoint and
encoder, bit for bit.

    kills       SIGKILL, SIGTERM, SIGINT, SIGHUP, to the process or its group, up to three times
    pairs       a signal to one or both of two processes that train together
    disks       no file can grow beyond a random size, as on a full disk
    damage      a bit of last.pt flipped, its end cut off, or foreign code in it
    rivals      a second run started in the same folder
    growth      200 epochs: memory, open files and threads must not grow

Exit status: 0 if all tries were survived, else 1; 2, with one line, on bad input. Needs fork and
/proc, so Linux.
"""
import contextlib
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tools.forks import STATUS, Lost, Training, end_as_torchrun_does, pair   # before torch

import torch

KINDS = ("kills", "pairs", "disks", "damage", "rivals", "growth")
FLAGS = ("--dataset folder --device cpu --precision fp32 --arch resnet18 --width 2 --projector "
         "16-16 --batch-size 64 --epochs 3 --alpha-every 1 --alpha-batches 2 --eval-every 2 "
         "--warmup-epochs 1 --save-minutes 0.002").split()
SETTINGS = [words.split() for words in (        # resident and streamed; every kind of state
    "--resident yes",
    "--resident no",
    "--method moco_v2 --set queue=100",
    "--method deepcluster_v2 --set prototypes=8",
    "--method dino --set prototypes=8 frozen_epochs=2 --resident no",
)]


def expect(condition, what):
    if not condition:
        raise Lost(what)


def finish(flags, out):
    training = Training(flags, out)
    status = training.wait()
    expect(status == 0, f"status {status} after --resume: {training.said()}")


# --- comparing runs ---------------------------------------------------------------------------

def contents(out):
    """The result of a run, as text and tensors: log without times, checkpoint, encoder."""
    last = torch.load(out / "last.pt", weights_only=True)
    timed = ("seconds", "samples_per_s")
    rows = [{key: value for key, value in row.items() if key not in timed}
            for row in last["rows"]]
    log = (out / "log.csv").read_text().splitlines()
    return {
        "rows": rows, "epochs": [line.split(",")[0] for line in log],
        "learner": last["learner"], "optimizer": last["optimizer"],
        "encoder": torch.load(out / "backbone.pt", weights_only=True),
    }


def same(a, b):
    """Whether two nested values are the same, bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def expect_whole(out, whole):
    """Raises Lost unless the run has the same result as the undisturbed one."""
    found = contents(out)
    for part, value in found.items():
        expect(same(value, whole[part]), f"{part}: not that of an undisturbed run")


# --- disturbances -----------------------------------------------------------------------------

def kill_some(draw, flags, out, whole):
    """Up to three signals; each must end the run with the right status, and nothing is lost."""
    for _ in range(draw.randint(1, 3)):
        number = draw.choice(list(STATUS))
        to_group = draw.random() < 0.5
        training = Training(flags, out)
        time.sleep(draw.uniform(0, whole["seconds"]))
        training.send(number, to_group)
        status = training.wait()
        said = training.said()
        if status == 0:         # it had ended before
            break
        expect(status == STATUS[number], f"{number!r}: status {status}: {said}")
        if status > 0:
            expect(said.count("go on with") == 1, f"{number!r}: it said: {said}")
        expect("Traceback" not in said, said)
    finish(flags, out)
    expect_whole(out, whole)


def kill_pair(draw, flags, out, whole):
    """One of two processes gets a signal, or both."""
    trainings = pair(flags, out)
    time.sleep(draw.uniform(0, whole["seconds"]))
    number = draw.choice(list(STATUS))
    victims = trainings if draw.random() < 0.5 else [draw.choice(trainings)]
    for training in victims:
        training.send(number, to_group=False)
    time.sleep(0.3)
    end_as_torchrun_does(trainings)
    for training in trainings:
        expect("Traceback" not in training.said(), training.said())
    last = pair(flags, out)
    for training in last:
        status = training.wait()
        expect(status == 0, f"status {status} after --resume: {training.said()}")
    expect_whole(out, whole)


def fill_disk(draw, flags, out, whole):
    """Files cannot grow beyond a random size; the last checkpoint stays whole."""
    training = Training(flags, out)
    time.sleep(draw.uniform(0, whole["seconds"]))
    training.send(signal.SIGKILL, to_group=True)
    training.wait()
    limit = int(whole["bytes"] * draw.random())
    training = Training(flags, out, file_limit=limit)
    status, said = training.wait(), training.said()
    if status != 0:         # 0 if there was nothing left to write
        expect(status == 2, f"files of {limit} bytes: status {status}: {said}")
        expect("cannot write" in said or "File too large" in said, said)
        expect("Traceback" not in said, said)
    finish(flags, out)
    expect_whole(out, whole)


class Foreign:
    """A pickle that runs code when it is loaded, as in a hostile file: it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def spoil(draw, flags, out, whole):
    """last.pt is damaged: the run must notice it, or not be affected; previous.pt must help."""
    training = Training(flags, out)
    while not (out / "previous.pt").exists() and training.ended() is None:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, whole["seconds"] / 2))
    training.send(signal.SIGKILL, to_group=True)
    training.wait()
    last, mark = out / "last.pt", out.with_suffix(".mark")
    data = bytearray(last.read_bytes())
    how = draw.choice(("flip", "cut", "foreign"))
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        last.write_bytes(data)
    elif how == "cut":
        last.write_bytes(data[:draw.randrange(len(data))])
    else:
        with zipfile.ZipFile(last, "w") as file:
            file.writestr("last/data.pkl", pickle.dumps(Foreign(mark)))
            file.writestr("last/version", "3\n")
    training = Training(flags, out)
    status, said = training.wait(), training.said()
    expect(not mark.exists(), "foreign code was run")
    expect(status == 2 or (status == 0 and how == "flip"), f"{how}: status {status}: {said}")
    if status == 2:
        expect("previous.pt is the checkpoint before it" in said, said)
        (out / "previous.pt").replace(last)
        finish(flags, out)
    expect_whole(out, whole)


def rival(draw, flags, out, whole):
    """A second run in the same folder is refused, or finds the first one finished."""
    first = Training(flags, out)
    time.sleep(draw.uniform(0, 1.2 * whole["seconds"]))
    second = Training(flags, out)
    statuses = sorted([first.wait(), second.wait()])
    said = second.said()
    expect(statuses in ([0, 0], [0, 2]), f"statuses {statuses}: {said}")
    if second.wait() == 2:
        expect(f"process {first.pid} on" in said or "just" in said, said)
    finish(flags, out)
    expect_whole(out, whole)


def grow(draw, flags, out, whole, epochs=200):
    """Prints memory, open files and threads after a quarter of the epochs and near the end. Files
    and threads must not grow, memory by no more than a tenth and 5 MB."""
    training = Training([*flags, "--epochs", str(epochs), "--eval-every", "10"], out)
    found = {}
    while training.ended() is None:
        done = 0
        with contextlib.suppress(OSError):
            done = (out / "log.csv").read_bytes().count(b"\n") - 1
        for when in (epochs // 4, epochs - 20):
            if done >= when and when not in found:
                found[when] = footprint(training.pid)
        time.sleep(0.05)
    expect(len(found) == 2, f"it ended too early: {training.said()}")
    for epoch, sizes in found.items():
        words = ", ".join(f"{value} {name}" for name, value in sizes.items())
        print(f"after {epoch} epochs {words}")
    early, late = found.values()
    expect(late["MB"] < 1.1 * early["MB"] + 5, f"memory grew: {found}")
    expect(late["files"] <= early["files"] and late["threads"] <= early["threads"],
           f"files or threads grew: {found}")


def footprint(pid):
    """A process's memory, open files and threads: the minima of several readings, because a file
    may be open while it is written."""
    looks = []
    for _ in range(20):
        status = Path(f"/proc/{pid}/status").read_text()
        facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        looks.append({"MB": int(facts["VmRSS"].split()[0]) // 1024,
                      "files": len(os.listdir(f"/proc/{pid}/fd")),
                      "threads": int(facts["Threads"])})
        time.sleep(0.005)
    return {name: min(look[name] for look in looks) for name in looks[0]}


# --- the count --------------------------------------------------------------------------------

TRIES = {"kills": kill_some, "pairs": kill_pair, "disks": fill_disk, "damage": spoil,
         "rivals": rival, "growth": grow}
SHARE = {"kills": 1, "pairs": 0.1, "disks": 0.15, "damage": 0.3, "rivals": 0.1, "growth": 0}


def draw_images(folder):
    """Draws 256 training and 64 test images of two classes; in a fork, because it uses torch."""
    pid = os.fork()
    if pid == 0:
        from PIL import Image

        from plumbing import shapes
        images, _ = shapes.draw_shapes(320, torch.Generator().manual_seed(0), 16)
        for i, image in enumerate(images):
            split = "train" if i < 256 else "test"
            place = folder / split / ("a", "b")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
        os._exit(0)
    os.waitpid(pid, 0)


def torture(tries, kinds, seed=0):
    """{kind: [tried, survived]}. tries: of kills; other kinds get their SHARE of that."""
    draw = random.Random(seed)
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw_images(place / "images")
        common = [*FLAGS, "--data-dir", str(place / "images")]
        wholes = {}
        for kind in kinds:
            counts[kind] = [0, 0]
            settings = SETTINGS
            if kind == "disks":     # the limit would apply to workers' shared memory too
                settings = [setting for setting in SETTINGS if "no" not in setting]
            for number in range(max(1, round(SHARE[kind] * tries))):
                setting = settings[number % len(settings)]
                together = kind == "pairs"
                key = (*setting, together)
                if key not in wholes:
                    wholes[key] = leave_alone([*common, *setting], place / f"{len(wholes)}-whole",
                                              together)
                out = place / f"{kind}-{number}"
                survived = True
                try:
                    TRIES[kind](draw, [*common, *setting], out, wholes[key])
                except Lost as error:
                    survived = False
                    print(f"{kind} {number} ({' '.join(setting)}): {error}")
                counts[kind][0] += 1
                counts[kind][1] += survived
                shutil.rmtree(out, ignore_errors=True)
            print(f"{kind}: {counts[kind][0]} tried, {counts[kind][1]} survived", flush=True)
    return counts


def leave_alone(flags, out, together):
    """The result of an undisturbed run, its duration in seconds and its checkpoint's bytes."""
    started = time.time()
    trainings = pair(flags, out) if together else [Training(flags, out)]
    for training in trainings:
        status = training.wait()
        if status != 0:
            raise RuntimeError(f"the undisturbed run: status {status}: {training.said()}")
    seconds = time.time() - started
    return {**contents(out), "seconds": seconds, "bytes": (out / "last.pt").stat().st_size}


# --- command line -----------------------------------------------------------------------------

def main(argv=None):
    from plumbing.cli import Parser, one_line_errors, whole_number
    with one_line_errors("torture.py"):
        parser = Parser("torture.py", __doc__)
        add = parser.add_argument
        add("--tries", default=200, type=whole_number(1), metavar="N",
            help="number of kills; other kinds get a share of that")
        add("--only", default=",".join(KINDS), metavar="KINDS", help="some of the kinds above")
        add("--seed", default=0, type=whole_number(0), help="random seed for the moments")
        args = parser.parse_args(sys.argv[1:] if argv is None else argv)
        kinds = args.only.split(",")
        if not set(kinds) <= set(KINDS):
            parser.error(f"--only: kinds are {', '.join(KINDS)}")
        counts = torture(args.tries, kinds, args.seed)
        survived_all = all(tried == survived for tried, survived in counts.values())
        sys.exit(0 if survived_all else 1)


if __name__ == "__main__":
    main()
