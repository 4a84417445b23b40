"""Tests of evaluate.py: the probe on known data; the program on a run, weights and features.

    python -m pytest -q tests/test_evaluate.py
"""
import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import evaluate
import models
from evaluate import layer_outputs, linear_probe, share_of_labels, train_layers
from metrics import effective_rank
from methods import mlp
from models import resnet
from run import last_value, read_log
from datasets import draw_shapes
from tests.helpers import exit_status, random_images, run, save_images

SCALES = torch.logspace(-1.5, 1.5, 6)       # of the features below, up to a thousandfold
COMMON = ("--dataset folder --image-size 16 --projector 16-8 --optimizer adamw --device cpu "
          "--precision fp32").split()


def results(tmp_path, *flags):
    """The results that the program writes with --json."""
    path = tmp_path / "results.json"
    assert exit_status(evaluate.main, *flags, "--device", "cpu", "--json", path) == 0
    return json.loads(path.read_text())


def clusters(n, spread, seed):
    """n samples (n × 6) around four corners, one per class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    noise = torch.randn(n, 6, generator=generator)
    return (torch.eye(4, 6)[y] + spread * noise) * SCALES, y


# --- the linear probe -------------------------------------------------------------------------

def test_probe_comes_close_to_the_best_rule():
    train_x, train_y = clusters(2000, 0.5, seed=0)
    test_x, test_y = clusters(2000, 0.5, seed=1)
    nearest_corner = torch.cdist(test_x / SCALES, torch.eye(4, 6)).argmin(1)
    best = 100 * (nearest_corner == test_y).double().mean()
    offset = 10 * torch.arange(6)       # each feature has a mean of its own
    probe = linear_probe(train_x + offset, train_y, test_x + offset, test_y, epochs=20)
    assert abs(probe["top1"] - best) < 2.5


def test_the_learning_rate_is_not_chosen_on_the_test_set():
    """Wrong test labels change the accuracy, but not the choice."""
    train_x, train_y = clusters(500, 0.6, seed=0)
    test_x, test_y = clusters(500, 0.6, seed=1)
    right = linear_probe(train_x, train_y, test_x, test_y, epochs=5)
    turned = linear_probe(train_x, train_y, test_x, 3 - test_y, epochs=5)
    assert right["rate"] == turned["rate"]
    assert right["top1"] > 2 * turned["top1"]


@pytest.mark.parametrize("n, learnt_from", [(500, 400), (2000, 1800)])
def test_samples_are_held_out_while_the_learning_rate_is_chosen(n, learnt_from, monkeypatch):
    calls = []

    def train_and_note(x, y, n_classes, rates, epochs, seed):
        calls.append({"samples": len(x), "rates": rates})
        return train_layers(x, y, n_classes, rates, epochs, seed)

    monkeypatch.setattr(evaluate, "train_layers", train_and_note)
    samples = clusters(n, 0.5, seed=0)
    probe = linear_probe(*samples, *samples, rates=(0.1, 1.0), epochs=1)
    assert calls == [{"samples": learnt_from, "rates": (0.1, 1.0)},
                     {"samples": n, "rates": (probe["rate"],)}]


def test_share_of_labels():
    y = torch.tensor([0] * 200 + [1] * 100 + [2] * 5)
    few = share_of_labels(y, 0.1)
    assert y[few].bincount().tolist() == [20, 10, 1]        # at least one
    assert len(few.unique()) == 31
    assert torch.equal(few, share_of_labels(y, 0.1))


# --- runs and weights -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of drawn shapes of three classes, with a short run on it in run/."""
    root = tmp_path_factory.mktemp("evaluate")
    x, y = draw_shapes(400, torch.Generator().manual_seed(0), 16)
    for name, part in {"train": slice(0, 300), "test": slice(300, 400)}.items():
        for label in (0, 5, 6):
            save_images(root / name / str(label), x[part][y[part] == label])
    flags = "--arch resnet18 --width 8 --epochs 4 --batch-size 16".split()
    assert run(*COMMON, *flags, "--data-dir", root, "--out", root / "run") == 0
    return root


def test_a_run_is_measured(place, tmp_path):
    measured = results(tmp_path, place / "run")
    log = read_log(place / "run" / "log.csv")
    # train.py measured the same images
    for name in ("erank_r", "erank_z", "mi", "knn_top1", "w2_z", "h2_r"):
        assert measured[name] == pytest.approx(last_value(log, name), rel=1e-3), name
    assert measured["linear_top5"] == 100      # there are three classes
    assert 1 < measured["lidar_r"] < 64 and 1 < measured["lidar_z"] < 8       # of 64 and 8 features
    assert {"linear_1pct", "linear_10pct", "mi_over_erank_r"} <= measured.keys()

    rows = results(tmp_path, place / "run", "--layers")      # r and z are among the layers
    assert list(rows) == ["layer1", "layer2", "layer3", "layer4", "r", "projector 1", "z"]
    assert [row["width"] for row in rows.values()] == [8, 16, 32, 64, 64, 16, 8]
    for layer, column, name in (("r", "erank", "erank_r"), ("z", "erank", "erank_z"),
                                ("r", "mi", "mi"), ("r", "linear_top1", "linear_top1")):
        assert rows[layer][column] == pytest.approx(measured[name], rel=1e-3), name
    assert Image.open(place / "run" / "layers.png").width > 500


def test_outputs_of_layers():
    """Also where a projector's activations are one module, as DINO's are."""
    net, p = resnet("resnet18", 2)
    projector = mlp(p, "12-11-10", batch_norm=False, activation=torch.nn.GELU())
    images = random_images(9, 16)
    data = {"test_x": images, "size": 16, "image_size": 16, "mean": [0.5] * 3, "std": [0.2] * 3}
    outputs = layer_outputs(data, "test_x", torch.arange(9), net.eval(), projector, "cpu")
    with torch.no_grad():
        x = net.layer1(net.relu(net.bn1(net.conv1((images / 255 - 0.5) / 0.2))))
        assert torch.allclose(outputs["layer2"], net.layer2(x).mean((2, 3)), atol=1e-4)
        assert torch.allclose(outputs["projector 2"], projector[:4](outputs["r"]), atol=1e-4)
    widths = {name: x.shape[1] for name, x in outputs.items() if "layer" not in name}
    assert widths == {"r": 16, "projector 1": 12, "projector 2": 11, "z": 10}


def own_encoder(image_size):
    layers = torch.nn.Flatten(), torch.nn.Linear(3 * image_size ** 2, 24)
    return torch.nn.Sequential(*layers), 24


def test_another_network_is_measured_from_its_weights(place, tmp_path, monkeypatch):
    """Its r has negative entries."""
    monkeypatch.setitem(models.ENCODERS, "mine", own_encoder)
    flags = "--arch mine --epochs 1 --batch-size 64".split()
    assert run(*COMMON, *flags, "--data-dir", place, "--out", tmp_path / "run") == 0
    (tmp_path / "copy").mkdir()
    for name in ("backbone.pt", "encoder.json"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "copy")
    copied = results(tmp_path, "--weights", tmp_path / "copy" / "backbone.pt",
                     "--dataset", "folder", "--data-dir", place)
    logged = last_value(read_log(tmp_path / "run" / "log.csv"), "erank_r")
    assert copied["erank_r"] == pytest.approx(logged, rel=1e-3)


def test_other_peoples_weights_are_measured(place, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.pth")
    images = ("--dataset", "folder", "--data-dir", place)
    measured = results(tmp_path, "--weights", tmp_path / "theirs.pth", *images)
    assert "linear_top1" in measured and "alignment_r" in measured
    assert "mi" not in measured and "erank_z" not in measured         # there is no z


def test_images_without_labels_are_measured(place, tmp_path):
    shutil.copytree(place / "train" / "0", tmp_path / "images")
    measured = results(tmp_path, place / "run", "--dataset", "folder",
                    "--data-dir", tmp_path / "images")
    assert measured["labelled_train_images"] == 0
    assert "mi" in measured and "alignment_z" in measured
    assert not any("top1" in name or "pct" in name for name in measured)


# --- features ---------------------------------------------------------------------------------

def test_features_are_measured(tmp_path):
    """Their labels may be words, and only the split's test rows are tested."""
    labels = np.array(["cat", "dog", "eel", "fox"])
    r, y = clusters(500, 0.1, seed=0)
    arrays = {"r": r.numpy(), "split": np.where(np.arange(500) < 400, "train", "test")}
    np.savez(tmp_path / "f.npz", z=r[:, :3].numpy(), y=labels[y.numpy()], **arrays)
    measured = results(tmp_path, "--features", tmp_path / "f.npz")
    assert measured["linear_top1"] > 98
    assert measured["erank_r"] == pytest.approx(effective_rank(r).item(), rel=1e-4)
    assert measured["erank_z"] == pytest.approx(effective_rank(r[:, :3]).item(), rel=1e-4)

    y[400:] = (y[400:] + 1) % 4         # all test labels are wrong
    np.savez(tmp_path / "wrong.npz", y=y.numpy(), **arrays)
    assert results(tmp_path, "--features", tmp_path / "wrong.npz")["linear_top1"] < 5

    np.savez(tmp_path / "without.npz", r=r.numpy())         # no z, no labels
    measured = results(tmp_path, "--features", tmp_path / "without.npz")
    assert "linear_top1" not in measured and not any(name.endswith("_z") for name in measured)


def test_saved_features_are_what_was_measured(place, tmp_path):
    """Measured with --features they give the same results again. These images are resident."""
    saved = tmp_path / "saved.npz"
    measured = results(tmp_path, place / "run", "--dataset", "folder", "--data-dir", place,
                    "--save-features", saved)
    with np.load(saved) as arrays:
        n = len(arrays["y"])
        assert arrays["r"].shape == (n, 64) and arrays["z"].shape == (n, 8)

    again = results(tmp_path, "--features", saved)
    for name in ("linear_top1", "linear_10pct", "knn_top1"):
        assert again[name] == pytest.approx(measured[name], abs=1e-6), name


# --- bad input --------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    ("", "give one of"),
    ("{run} --data-dir {tmp}/nowhere", "nowhere"),
    ("{run} --device cuda:77", "--device cuda:77"),
    ("{tmp}/nowhere", "{tmp}/nowhere is not the folder of a run"),
    ("--weights {tmp}/a.pth", "need a --dataset"),
    ("--weights {tmp}/a.pth --dataset shapes --layers", "--layers looks into a run"),
])
def test_bad_input(flags, words, place, tmp_path, capsys):
    command = flags.format(run=place / "run", tmp=tmp_path).split()
    assert exit_status(evaluate.main, *command) == 2
    error = capsys.readouterr().err
    assert words.format(tmp=tmp_path) in error and error.count("\n") == 1
