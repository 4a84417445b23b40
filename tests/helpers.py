"""What several test modules share: small images, tiny trainings, processes, comparisons."""
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from datasets import SHAPES, draw_shapes
from run import load_checkpoint

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)        # like the processes that are started here, for the same bits


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tolerance=1e-9):
    assert float(a) == pytest.approx(float(b), rel=tolerance, abs=tolerance)


def random_images(n, size, seed=0):
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator(seed))


def save_images(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(folder / f"{i:05}{suffix}", quality=100, subsampling=0)    # of JPEGs


def shapes_folder(root, names, n_train, n_test, size):
    """Drawn shapes of some classes as an image folder."""
    per_class = (n_train + n_test) // len(names)
    x, y = draw_shapes(2 * per_class * len(SHAPES), generator(), size)
    for name in names:
        images = x[y == SHAPES.index(name)]
        save_images(root / "train" / name, images[:n_train // len(names)])
        save_images(root / "test" / name, images[n_train // len(names):per_class])


# drawn by conftest.py before the first test, and removed after the last one
SMALL_IMAGES = Path(tempfile.gettempdir()) / f"adadim-test-images-{os.getpid()}"
SMALL = (f"--dataset folder --data-dir {SMALL_IMAGES} --image-size 16 "
         "--device cpu --precision fp32").split()
TINY = [*SMALL, *("--arch resnet18 --width 2 --projector 16-16 --limit-train 256 "
                  "--batch-size 64 --alpha-every 2 --epochs 4 --eval-every 4 "
                  "--warmup-epochs 0.8 --save-minutes 0").split()]


def exit_status(main, *arguments):
    """The exit status of a script's main, called with these arguments in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def run(*flags, figure=False):
    """The exit status of train.py's main, called with these flags in this process."""
    with pytest.MonkeyPatch.context() as patch:
        if not figure:      # drawing it would take longer than most trainings here
            patch.setattr(train, "draw_run", lambda out: None)
        return exit_status(train.main, *flags)


def start(*command, **settings):
    """train.py as a process of its own, on one thread."""
    command = [sys.executable, ROOT / "train.py", *command]
    return subprocess.Popen([str(word) for word in command], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
                            **settings)


def wait_for_epoch(log, epoch, process, seconds=120):
    """Waits until a run's log has this many epochs, or its process has ended."""
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("\n") > epoch:
            return
        time.sleep(0.002)


def assert_equal(a, b):
    """Fails unless two values from checkpoints are the same, bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def rows_without_times(log):
    times = ("seconds", "samples_per_s")
    with open(log) as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in times} for row in rows]


def assert_same_run(one, other):
    """Two runs' checkpoints and logs are the same, but for the times."""
    a, b = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for flag in ("--out", "--resume"):
        del a["config"][flag], b["config"][flag]
    assert a["config"] == b["config"]
    for key in ("epoch", "learner", "optimizer", "scaler"):
        assert_equal(a[key], b[key])
    assert rows_without_times(one / "log.csv") == rows_without_times(other / "log.csv")


def torchrun(*command, **settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True,
                            **settings)


def whole_and_halves(code, folder, device="cpu"):
    """The results of a script as the only process, and as each of two.

    Its arguments are a folder and a device. Process RANK of WORLD_SIZE saves its results in that
    folder as WORLD_SIZE-RANK.pt.
    """
    script = folder / "halves.py"
    script.write_text(code)
    two = torchrun(script, folder, device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(folder), device])
        exec(code, {})                  # in this process, the only one
    assert two.wait() == 0, two.stderr.read()
    return torch.load(folder / "1-0.pt"), [torch.load(folder / f"2-{rank}.pt") for rank in (0, 1)]


def run_until(step, *flags):
    """run(), with a Ctrl-C in the step before this one, counted from 0 over the whole run."""
    honest = train.set_learning_rates

    def interrupted(optimizer, at, *rest):
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(optimizer, at, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "set_learning_rates", interrupted)
        assert run(*flags) == 130


def assert_resumes_exactly(flags, folder, step, saved_at):
    """A run that is cut at a step and resumed is the same as one that was not, in folder/whole.

    saved_at: the complete epochs, and the next one's steps, in the checkpoint of folder/cut.
    """
    whole, cut = folder / "whole", folder / "cut"
    assert run(*flags, "--out", whole) == 0
    run_until(step, *flags, "--out", cut)
    saved = load_checkpoint(cut / "last.pt")
    assert (saved["epoch"], saved["step"]) == saved_at
    assert run(*flags, "--out", cut, "--resume") == 0
    assert_same_run(whole, cut)
