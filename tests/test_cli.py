"""Property-based tests of the command lines: no input gives a traceback or an odd exit status.

    python -m pytest -q tests/test_cli.py
"""
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from baselines import METHODS
from plumbing import cli, stand_in
from tests.helpers import ROOT, SMALL

# each script, and the functions that do its work: replaced here
WORK = {
    "train": ["train"], "evaluate": ["measure_images"], "figures": [], "study": ["train_all"],
    "simulate": ["simulate"], "uniformity": ["study"], "bench": ["measure", "show"],
    "peer": ["check_lightly", "measure", "show"],
    "stability": ["run_points"], "data": ["load", "describe", "contact_sheet"],
    "torture": ["torture"],
}
ODD = ("", " ", "-", "--", "-1", "0", "1", "2", "3.5", "1e3", "1e30", "1e300", "1e-320", "nan",
       "-inf", "٣", "0x10", "1_0", "1,2,3", "1:0", "16-16", "0-0", "ada", "cpu", "cuda:99", "yes",
       "lars", "shapes", "folder", "alpha", "none", "α", "a\nb", "$\\frac{$", "x" * 300, ".",
       "no/such/place", "/dev/null/x", "--resume", "--help", "-h", "bad\udcffname")
values = st.one_of(st.sampled_from(ODD), st.integers().map(str), st.floats().map(str),
                   st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                           max_size=8))
REPEATABLE = settings(deadline=None, derandomize=True,
                      suppress_health_check=[HealthCheck.function_scoped_fixture])


def module_of(script):
    tools = ("bench", "peer", "stability", "torture")
    return importlib.import_module(f"tools.{script}" if script in tools else script)


def flags_of(script):
    """All flags in the output of --help."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        module_of(script).main(["--help"])
    return sorted(set(re.findall(r"--[a-z0-9][a-z0-9-]*", told.getvalue())))


def outcome(main, words):
    """(exit status, stderr). Any exception but SystemExit fails the test."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            status = stop.code
    return status or 0, err.getvalue()


@pytest.mark.parametrize("script", WORK)
@given(data=st.data())
@settings(REPEATABLE, max_examples=60)
def test_whatever_is_typed(script, data, tmp_path, monkeypatch):
    """Runs everything but the work itself: bad flags are refused in one line."""
    monkeypatch.chdir(tmp_path)
    module = module_of(script)
    for name in WORK[script]:
        monkeypatch.setattr(module, name, lambda *args, **kwargs: {})
    flag = st.sampled_from(flags_of(script))
    words = []
    for _ in range(data.draw(st.integers(0, 5))):
        words += data.draw(st.sampled_from([[flag, values], [values], [flag]]).flatmap(
            lambda parts: st.tuples(*parts)))
    status, err = outcome(module.main, words)
    assert status in (0, 1, 2), words
    if status == 2:
        assert err.startswith(f"{script}.py: ") and err.count("\n") == 1, (words, err)


# --- trainings --------------------------------------------------------------------------------

# values that train.py accepts, ordinary and extreme, for a network of a few weights
TRAINED = {
    "--method": tuple(METHODS),
    "--alpha": ("0", "1", "0.5", "ada", "linear", "cosine", "1e-30"),
    "--alpha-every": ("1", "1000000"),
    "--alpha-batches": ("1", "7"),
    "--alpha-from": ("z", "r"),
    "--beta": ("0", "1", "-1", "1e30", "-1e-30"),
    "--mi-scale": ("alpha", "1"),
    "--temperature": ("0.1", "1e-30", "1e30"),
    "--vicreg-weights": ("25,25,1", "0,0,0", "1e30,0,1e-30"),
    "--w2-weight": ("0", "1", "30:0", "1e30"),
    "--lu-weight": ("0", "1", "0:1e-30"),
    "--epochs": ("1", "2"),
    "--batch-size": ("2", "3", "64", "65"),
    "--optimizer": ("lars", "sgd", "adam", "adamw"),
    "--lr": ("1e-30", "0.1", "1e30"),
    "--weight-decay": ("0", "1e-4", "1e30"),
    "--warmup-epochs": ("0", "0.5", "1", "1e30"),
    "--clip": ("0", "2", "1e-30", "1e30"),
    "--precision": ("fp32", "bf16"),
    "--deterministic": ("yes", "no"),
    "--sync-batch-norm": ("yes", "no"),
    "--seed": ("0", str(2 ** 31 - 1)),
    "--eval-every": ("1", "1000"),
    "--save-minutes": ("0", "1e30"),
    "--projector": ("1", "8-8", "2-3-4"),
    "--width": ("1", "2"),
    "--augment": ("vicreg", "simclr", "symmetric_weak", "byol", "ressl", "lejepa"),
    "--resident": ("yes", "no", "auto"),
    "--min-size": ("1", "16", "17"),
    "--image-size": ("8", "16", "24"),
    "--limit-train": ("1", "64", "100"),
    "--skip-unreadable": (), "--baseline": (), "--tensorboard": (), "--overwrite": (),
    "--resume": (),
}
FEW_STEPS = "--arch resnet18 --width 1 --projector 4-4 --limit-train 64 --batch-size 32 --epochs 1"


@given(data=st.data())
@settings(REPEATABLE, max_examples=15)
def test_whatever_is_trained(data, monkeypatch):
    """A run succeeds, or ends with one line about bad input or a loss that is not finite."""
    monkeypatch.setattr(train, "draw_run", lambda out: None)
    words = [*SMALL, *FEW_STEPS.split()]
    for flag in data.draw(st.lists(st.sampled_from(sorted(TRAINED)), max_size=5)):
        choices = TRAINED[flag]
        words += [flag, data.draw(st.sampled_from(choices))] if choices else [flag]
    with tempfile.TemporaryDirectory() as folder:
        status, err = outcome(train.main, [*words, "--out", f"{folder}/run"])
    assert status in (0, 2), words
    if status == 2:
        assert err.startswith("train.py: ") and err.count("\n") == 1, (words, err)


def test_every_flag_of_train_is_tried_above():
    """A new flag must be added to TRAINED, or here if it cannot vary."""
    elsewhere = {"--help", "--arch", "--classes", "--compile", "--data-dir", "--dataset",
                 "--device", "--methods", "--nproc", "--out", "--set"}
    named = set(flags_of("train")) - elsewhere
    assert named == set(TRAINED)


def test_a_closed_stdout_is_replaced(monkeypatch):
    """Python sets it to None after >&-."""
    monkeypatch.setattr(sys, "stdout", None)
    with cli.one_line_errors("x"):
        cli.show_progress("text")
        print("more")


@pytest.mark.parametrize("flags", ["--width 1" + 30 * "0", "--width 1" + 400 * "0",
                                   "--projector 99999999-8", "--epochs 2000000000"])
def test_absurd_numbers_are_refused(flags):
    status, err = outcome(train.main, flags.split())
    assert status == 2 and "must be" in err and err.count("\n") == 1


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_becomes_the_current_one(monkeypatch, name, index):
    """torch.cuda.set_device refuses a GPU without a number, even on a machine without GPUs."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    monkeypatch.setattr(torch.cuda, "set_device",
                        lambda device: chosen.append(torch.cuda._utils._get_device_index(device)))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert cli.open_device(name) == torch.device("cuda", index)
    assert chosen == [index]
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("message, is_memory", [
    ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
    ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", True),
    ("CUDA error: an illegal memory access was encountered", False),
    ("NCCL error: unhandled cuda error", False),
])
def test_only_what_is_out_of_memory_is_said_to_be(message, is_memory):
    assert cli.out_of_memory(RuntimeError(message)) == is_memory


# --- texts that need no torch, see plumbing/stand_in.py -------------------------------------------

ONLY_TEXT = [
    *(f"{script} --help" for script in stand_in.SCRIPTS),
    "train.py -h", "train.py --methods", "train.py --method byol --lr 0.1 --help",
    "study.py --list", "study.py alpha --list", "simulate.py nothing --help",
    "train.py --dataset cifar100 --epoch 3", "train.py --bata=1", "study.py --list --sed 3",
    "study.py alpha --sed 3 -- --epochs 4", "data.py --x",
]


@pytest.mark.parametrize("command", ONLY_TEXT)
def test_a_text_is_the_same_without_torch(command, capsys, monkeypatch):
    """python -S finds no installed package."""
    script, *words = command.split()
    monkeypatch.setenv("COLUMNS", "90")
    alone = subprocess.run([sys.executable, "-S", ROOT / script, *words], capture_output=True,
                           env={**os.environ, "PYTHONUTF8": "1"}, text=True, encoding="utf-8")
    status, err = 0, ""
    try:
        module_of(script.removesuffix(".py")).main(words)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (alone.stdout, alone.stderr, alone.returncode) == (out, err, status or 0)


@pytest.mark.parametrize("script", stand_in.SCRIPTS)
def test_all_else_gets_torch(script):
    """Flags that the script has, whatever follows them; and all words after --."""
    path = ROOT / script
    texts = {"--help", "--methods" if script == "train.py" else "--list"}
    flags = set(flags_of(script.removesuffix(".py"))) - texts
    for flag in flags:
        assert not stand_in.only_prints(path, [flag, "x"])
        assert not stand_in.only_prints(path, [f"{flag}=--help", "--", "--help", "--epoch"])
    assert not stand_in.only_prints(path, ["-1e-4", "--alpha 0.3 --beta 0"])


def test_a_script_does_not_go_on_with_the_stand_in(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [stand_in.Finder, *sys.meta_path])
    with pytest.raises(RuntimeError, match="without torch"):
        train.parse_args(["--epochs", "3"])
