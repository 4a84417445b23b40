"""Tests of evaluate.py: the probe against known answers, and the program on a run, weights and features.

    python -m pytest -q test_evaluate.py
"""
import json

import numpy as np
import pytest
import torch
import torchvision

import evaluate
import train
from shapes import draw_shapes
from evaluate import linear_probe, share_of_labels
from metrics import effective_rank
from test_train import save_images


def run(*flags):
    try:
        evaluate.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
    return 0


def clusters(n, spread, seed, classes=4, width=6):
    """n samples around fixed corners, one for each class; the features' scales differ by a thousand."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.eye(classes, width)[y] + spread * torch.randn(n, width, generator=generator)
    return x * torch.logspace(-1.5, 1.5, width), y


def test_probe_reaches_what_can_be_reached():
    train_x, train_y = clusters(600, 0.1, 0)
    test_x, test_y = clusters(400, 0.1, 1)
    assert linear_probe(train_x, train_y, test_x, test_y, epochs=20)["top1"] > 99
    noisy = linear_probe(clusters(2000, 0.5, 0)[0], clusters(2000, 0.5, 0)[1], *clusters(2000, 0.5, 1), epochs=20)["top1"]
    # the best rule there is: the nearest corner
    x, y = clusters(2000, 0.5, 1)
    nearest = torch.cdist(x / torch.logspace(-1.5, 1.5, 6), torch.eye(4, 6)).argmin(1)
    assert abs(noisy - 100 * (nearest == y).double().mean()) < 2.5
    random = linear_probe(train_x, train_y[torch.randperm(600, generator=torch.Generator().manual_seed(0))], test_x, test_y, epochs=20)
    assert random["top1"] < 45      # labels that mean nothing teach nothing
    assert linear_probe(train_x, train_y, test_x, test_y, epochs=3) == linear_probe(train_x, train_y, test_x, test_y, epochs=3)


def test_the_rate_is_not_chosen_on_the_test_set(monkeypatch):
    """With test labels turned around, the same rate is chosen and the same layer scores what is left."""
    train_x, train_y = clusters(500, 0.6, 0)
    test_x, test_y = clusters(500, 0.6, 1)
    one, other = (linear_probe(train_x, train_y, test_x, y, epochs=5) for y in (test_y, 3 - test_y))
    assert one["rate"] == other["rate"] and one["top1"] > 2 * other["top1"]


def test_share_of_labels():
    y = torch.tensor([0] * 200 + [1] * 100 + [2] * 5)
    few = share_of_labels(y, 0.1)
    assert y[few].bincount().tolist() == [20, 10, 1] and len(few.unique()) == 31        # one at least
    assert torch.equal(few, share_of_labels(y, 0.1)) and not torch.equal(few, share_of_labels(y, 0.1, seed=1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of drawn shapes, and a short run on it."""
    root = tmp_path_factory.mktemp("evaluate")
    x, y = draw_shapes(400, torch.Generator().manual_seed(0), 16)
    for split, part in (("train", slice(0, 300)), ("test", slice(300, 400))):
        for label in (0, 5, 6):
            save_images(root / split / str(label), x[part][y[part] == label])
    train.main(["--dataset", "folder", "--data-dir", str(root), "--arch", "resnet18", "--width", "4", "--projector", "16-8", "--batch-size", "32",
                "--epochs", "2", "--device", "cpu", "--precision", "fp32", "--out", str(root / "run")])
    return root


def test_a_run_is_measured(place, tmp_path):
    assert run(place / "run", "--data-dir", place, "--device", "cpu", "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"linear_top1", "linear_top5", "knn_top1", "linear_1pct", "linear_10pct", "erank_r", "erank_z", "mi", "alignment_z"} <= found.keys()
    log = train.read_log(place / "run" / "log.csv")       # what train.py itself measured, on the same images
    for name in ("erank_r", "erank_z", "mi", "knn_top1", "w2_z", "h2_r"):
        assert found[name] == pytest.approx(log[name][-1], rel=1e-3), name
    assert found["linear_top5"] == 100 and 0 < found["linear_top1"] <= 100 and 0 < found["alignment_z"] < 4


def test_other_peoples_weights_are_measured(place, tmp_path):
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    assert run("--weights", tmp_path / "theirs.pth", "--dataset", "folder", "--data-dir", place, "--device", "cpu", "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert "linear_top1" in found and "mi" not in found and "erank_z" not in found      # there is no z
    assert run("--weights", place / "run" / "backbone.pt", "--dataset", "folder", "--data-dir", place, "--device", "cpu",
               "--json", tmp_path / "ours.json") == 0
    ours = json.loads((tmp_path / "ours.json").read_text())
    assert ours["erank_r"] == pytest.approx(train.read_log(place / "run" / "log.csv")["erank_r"][-1], rel=1e-3)


def test_features_are_measured(tmp_path):
    r, y = clusters(500, 0.1, 0)
    np.savez(tmp_path / "f.npz", r=r.numpy(), z=r[:, :3].numpy(), y=y.numpy())
    assert run("--features", tmp_path / "f.npz", "--json", tmp_path / "f.json") == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["linear_top1"] > 98 and found["erank_r"] == pytest.approx(effective_rank(r).item(), rel=1e-4)
    np.savez(tmp_path / "g.npz", r=r.numpy(), z=r.numpy())
    assert run("--features", tmp_path / "g.npz", "--json", tmp_path / "g.json") == 0
    assert "linear_top1" not in json.loads((tmp_path / "g.json").read_text())


@pytest.mark.parametrize("flags, words", [
    ("", "give one of"), ("{run} --features x.npz", "give one of"), ("{tmp}/nowhere", "is {tmp}/nowhere the folder of a run"), ("--weights {tmp}/a.pth", "needs a --dataset"),
    ("--weights {tmp}/a.pth --dataset shapes", "No such file"), ("--weights {tmp}/text --dataset shapes", "not a state dict"),
    ("--features {tmp}/text", "not an npz file"), ("--features {tmp}/pickled.npz", "not an npz file"), ("--features {tmp}/uneven.npz", "as many rows"),
    ("{run} --dataset imagenet22k", "invalid choice"), ("{run} --data-dir {tmp}/nowhere", "there is no directory"), ("{run} --device cuda:77", "--device cuda:77"),
    ("{tmp}/torn", "not a whole checkpoint"), ("{run} --json {tmp}/no/where.json", "cannot write"),
])
def test_bad_input(flags, words, place, tmp_path, capsys):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "last.pt").write_bytes((place / "run" / "last.pt").read_bytes()[:999])
    np.savez(tmp_path / "pickled.npz", r=np.array([{}], dtype=object), z=np.zeros((1, 1)))
    np.savez(tmp_path / "uneven.npz", r=np.zeros((4, 2)), z=np.zeros((3, 2)))
    assert run(*flags.format(run=place / "run", tmp=tmp_path).split()) == 2
    err = capsys.readouterr().err
    assert words.format(tmp=tmp_path) in err and err.count("\n") == 1
