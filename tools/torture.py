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
    swaps       an image replaced by another one of the same size and time
    stalls      a disk that does not answer, and one SIGTERM
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
from PIL import Image

from plumbing import cli

FLAGS = ("--dataset folder --device cpu --precision fp32 --arch resnet18 --width 2 --projector "
         "16-16 --batch-size 64 --epochs 3 --alpha-every 1 --alpha-batches 2 --eval-every 2 "
         "--warmup-epochs 1 --save-minutes 0.002").split()
SETTINGS = (        # resident and streamed; every kind of state
    "--resident yes",
    "--resident no",
    "--method moco_v2 --set queue=128",
    "--method deepcluster_v2 --set prototypes=8",
    "--method dino --set prototypes=8 frozen_epochs=2 --resident no",
)


def expect(condition, what):
    if not condition:
        raise Lost(what)


def finish(*trainings):
    for training in trainings:
        status = training.wait()
        expect(status == 0, f"status {status} after --resume: {training.output()}")


# --- comparing runs ---------------------------------------------------------------------------

def result_of(out):
    """The result of a run, as numbers and tensors: log without times, checkpoint, encoder."""
    last = torch.load(out / "last.pt", weights_only=True)
    for row in last["rows"]:
        del row["seconds"], row["samples_per_s"]
    header, *rows = (out / "log.csv").read_text().splitlines()
    return {
        "rows": last["rows"], "epochs": [int(row.split(",")[0]) for row in rows],
        "learner": last["learner"], "optimizer": last["optimizer"],
        "encoder": torch.load(out / "backbone.pt", weights_only=True),
    }


def expect_whole(out, whole):
    """Raises Lost unless the run has the same result as the undisturbed one, bit for bit."""
    try:
        torch.testing.assert_close(result_of(out), whole["result"], rtol=0, atol=0)
    except AssertionError as error:
        raise Lost(f"not the result of an undisturbed run: {error}") from error


# --- disturbances -----------------------------------------------------------------------------

def kill_some(flags, out, whole):
    """Up to three signals; each must end the run with the right status."""
    for _ in range(random.randint(1, 3)):
        number = random.choice(list(STATUS))
        training = Training(flags, out)
        time.sleep(random.uniform(0, whole["seconds"]))
        training.send(number, to_group=random.random() < 0.5)
        status, output = training.wait(), training.output()
        if status == 0:         # it had ended before
            break
        expect(status == STATUS[number], f"{number!r}: status {status}: {output}")
        expect(status < 0 or output.count("go on with") == 1, f"{number!r}: {output}")
        expect("Traceback" not in output, output)
    finish(Training(flags, out))
    expect_whole(out, whole)


def kill_pair(flags, out, whole):
    """One of two processes gets a signal, or both."""
    trainings = pair(flags, out)
    time.sleep(random.uniform(0, whole["seconds"]))
    number = random.choice(list(STATUS))
    for training in random.sample(trainings, random.randint(1, 2)):
        training.send(number, to_group=False)
    time.sleep(0.3)
    end_as_torchrun_does(trainings)
    for training in trainings:
        expect("Traceback" not in training.output(), training.output())
    finish(*pair(flags, out))
    expect_whole(out, whole)


def fill_disk(flags, out, whole):
    """Files cannot grow beyond a random size; the last checkpoint stays whole."""
    training = Training(flags, out)
    time.sleep(random.uniform(0, whole["seconds"]))
    training.kill()
    limit = int(whole["bytes"] * random.random())
    training = Training(flags, out, file_limit=limit)
    status, output = training.wait(), training.output()
    expect(status in (0, 2), f"files of {limit} bytes: status {status}: {output}")
    if status == 2:         # 0 if there was nothing left to write
        expect("cannot write" in output or "File too large" in output, output)
        expect("Traceback" not in output, output)
    finish(Training(flags, out))
    expect_whole(out, whole)


class Foreign:
    """A pickle that runs code when it is loaded, as in a hostile file: it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def spoil(flags, out, whole):
    """last.pt is damaged: the run must notice it, or not be affected; previous.pt must help."""
    training = Training(flags, out)
    while not (out / "previous.pt").exists() and training.ended() is None:
        time.sleep(0.002)
    time.sleep(random.uniform(0, whole["seconds"] / 2))
    training.kill()

    last, mark = out / "last.pt", out.with_suffix(".mark")
    data = bytearray(last.read_bytes())
    how = random.choice(("flip", "cut", "foreign"))
    if how == "flip":
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        last.write_bytes(data)
    elif how == "cut":
        last.write_bytes(data[:random.randrange(len(data))])
    else:
        with zipfile.ZipFile(last, "w") as file:
            file.writestr("last/data.pkl", pickle.dumps(Foreign(mark)))
            file.writestr("last/version", "3\n")

    training = Training(flags, out)
    status, output = training.wait(), training.output()
    expect(not mark.exists(), "foreign code was run")
    expect(status == 2 or (status == 0 and how == "flip"), f"{how}: status {status}: {output}")
    if status == 2:
        expect("previous.pt is the checkpoint before it" in output, output)
        (out / "previous.pt").replace(last)
        finish(Training(flags, out))
    expect_whole(out, whole)


def rival(flags, out, whole):
    """A second run in the same folder is refused, or finds the first one finished."""
    first = Training(flags, out)
    time.sleep(random.uniform(0, 1.2 * whole["seconds"]))
    second = Training(flags, out)
    statuses = sorted([first.wait(), second.wait()])
    output = second.output()
    expect(statuses in ([0, 0], [0, 2]), f"statuses {statuses}: {output}")
    if second.wait() == 2:
        expect(f"process {first.pid} on" in output or "just" in output, output)
    finish(Training(flags, out))
    expect_whole(out, whole)


def swap_image(flags, out, whole):
    """The run is refused until the old image is back."""
    training = Training(flags, out)
    while not (out / "last.pt").exists() and training.ended() is None:
        time.sleep(0.002)
    training.kill()

    folder = Path(flags[flags.index("--data-dir") + 1])
    pictures = sorted((folder / "train").rglob("*.png"), key=lambda path: path.stat().st_size)
    other, picture = sorted(random.sample(range(len(pictures)), 2))     # the smaller one first
    other, picture = pictures[other], pictures[picture]
    content, facts = picture.read_bytes(), picture.stat()
    picture.write_bytes(other.read_bytes().ljust(len(content), b" "))
    os.utime(picture, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    training = Training(flags, out)
    status, output = training.wait(), training.output()
    picture.write_bytes(content)
    expect(status == 2 and "another configuration" in output, f"status {status}: {output}")
    finish(Training(flags, out))
    expect_whole(out, whole)


def stall(flags, out, whole):
    """A streamed run ends, and loses nothing, though it waits for its images."""
    training = Training(flags, out, stalls=True)
    time.sleep(random.uniform(0, 2 * whole["seconds"]))
    training.send(signal.SIGTERM, to_group=False)
    begun = time.monotonic()
    status, output = training.wait(), training.output()
    expect(status in (0, 143) and time.monotonic() - begun < 30, f"status {status}: {output}")
    finish(Training(flags, out))
    expect_whole(out, whole)


def grow(flags, out, whole, epochs=200):
    """Prints memory, open files and threads after a quarter of the epochs and near the end. Files
    and threads must not grow, memory by no more than a tenth and 5 MB."""
    training = Training([*flags, "--epochs", str(epochs), "--eval-every", "10"], out)
    found = []
    for epoch in (epochs // 4, epochs - 20):
        done = 0
        while done < epoch and training.ended() is None:
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                done = (out / "log.csv").read_bytes().count(b"\n") - 1
        expect(training.ended() is None, f"it ended too early: {training.output()}")
        sizes = footprint(training.pid)
        words = ", ".join(f"{value} {name}" for name, value in sizes.items())
        print(f"after {epoch} epochs: {words}")
        found.append(sizes)
    training.wait()
    early, late = found
    expect(late["MB"] < 1.1 * early["MB"] + 5, "memory grew")
    expect(late["files"] <= early["files"] and late["threads"] <= early["threads"],
           "files or threads grew")


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
         "rivals": rival, "swaps": swap_image, "stalls": stall, "growth": grow}
SHARE = {"kills": 1, "pairs": 0.1, "disks": 0.15, "damage": 0.3, "rivals": 0.1, "swaps": 0.1,
         "stalls": 0.1, "growth": 0}


def draw_images(folder):
    """256 training and 64 test images of noise, in two classes."""
    for i in range(320):
        split = "train" if i < 256 else "test"
        place = folder / split / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 64).convert("RGB").save(place / f"{i}.png")


def leave_alone(flags, out, together):
    """An undisturbed run: its result, its duration in seconds, its checkpoint's size in bytes."""
    started = time.time()
    finish(*(pair(flags, out) if together else [Training(flags, out)]))
    seconds = time.time() - started
    return {"result": result_of(out), "seconds": seconds,
            "bytes": (out / "last.pt").stat().st_size}


def survives(kind, number, place, wholes):
    """Whether one try is survived. wholes: undisturbed runs, which are added when needed."""
    settings = SETTINGS
    if kind == "disks":     # the limit would apply to image workers' shared memory too
        settings = [words for words in SETTINGS if "--resident no" not in words]
    if kind == "stalls":
        settings = [words for words in SETTINGS if "--resident no" in words]
    words, together = settings[number % len(settings)], kind == "pairs"
    flags = [*FLAGS, "--data-dir", str(place / "images"), *words.split()]
    out = place / f"{kind}-{number}"
    try:
        if (words, together) not in wholes:
            alone = place / f"whole-{len(wholes)}"
            wholes[words, together] = leave_alone(flags, alone, together)
        TRIES[kind](flags, out, wholes[words, together])
    except Lost as error:
        print(f"{kind} {number} ({words}): {error}", flush=True)
        return False
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return True


def torture(tries, kinds):
    """Whether all tries are survived. tries: of kills; other kinds get their SHARE of that."""
    survived_all, wholes = True, {}
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder) / "images")
        for kind in kinds:
            count, survived = max(1, round(SHARE[kind] * tries)), 0
            for number in range(count):
                cli.show_progress(f"{kind}: {number} of {count} tried")
                survived += survives(kind, number, Path(folder), wholes)
            cli.show_progress("")
            print(f"{kind}: {count} tried, {survived} survived", flush=True)
            survived_all = survived_all and survived == count
    return survived_all


# --- command line -----------------------------------------------------------------------------

def main(argv=None):
    with cli.one_line_errors("torture.py"):
        parser = cli.Parser("torture.py", __doc__)
        parser.add_argument("--tries", default=200, type=cli.whole_number(1), metavar="N",
                            help="number of kills; other kinds get a share of that")
        parser.add_argument("--only", default=",".join(TRIES), metavar="KINDS",
                            help="some of the kinds above")
        args = parser.parse_args(argv)
        kinds = args.only.split(",")
        if not set(kinds) <= set(TRIES):
            parser.error(f"--only: kinds are {', '.join(TRIES)}")
        sys.exit(0 if torture(args.tries, kinds) else 1)


if __name__ == "__main__":
    main()
