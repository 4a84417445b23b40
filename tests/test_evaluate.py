"""Tests of evaluate.py: the probe on known data; the program on a run, weights and features.

    python -m pytest -q tests/test_evaluate.py
"""
import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import evaluate
import train
from evaluate import linear_probe, load_run, share_of_labels, train_layers
from metrics import effective_rank, lidar
from models import load_encoder, mlp, resnet
from plumbing import inside
from plumbing.cli import BadInput
from plumbing.inside import layer_outputs
from plumbing.run import last_value, read_log
from plumbing.shapes import draw_shapes
from tests.helpers import exit_status, random_images, run, save_images

SCALES = torch.logspace(-1.5, 1.5, 6)       # of the features below, up to a thousandfold


def figures(tmp_path, *flags):
    """The results that the program writes with --json; ValueError on NaN, which is no JSON."""
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    path = tmp_path / "figures.json"
    assert exit_status(evaluate.main, *flags, "--device", "cpu", "--json", path) == 0
    return json.loads(path.read_text(), parse_constant=refuse)


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
    found = linear_probe(train_x + offset, train_y, test_x + offset, test_y, epochs=20)
    assert abs(found["top1"] - best) < 2.5


def test_probe_learns_nothing_from_meaningless_labels():
    train_x, train_y = clusters(600, 0.1, seed=0)
    test_x, test_y = clusters(400, 0.1, seed=1)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert linear_probe(train_x, train_y[order], test_x, test_y, epochs=20)["top1"] < 45


def test_probe_repeats_exactly():
    samples = *clusters(600, 0.5, seed=0), *clusters(400, 0.5, seed=1)
    assert linear_probe(*samples, epochs=3) == linear_probe(*samples, epochs=3)


def test_layers_side_by_side_learn_as_if_alone():
    x, y = clusters(600, 0.5, seed=0)
    weights, biases = train_layers(x, y, 4, (0.001, 0.01), epochs=3, seed=0)
    weight, bias = train_layers(x, y, 4, (0.01,), epochs=3, seed=0)
    assert torch.allclose(weights[1], weight[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(biases[1], bias[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights[0], weight[0], rtol=0.1)


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
    found = linear_probe(*samples, *samples, rates=(0.1, 1.0), epochs=1)
    assert calls == [{"samples": learnt_from, "rates": (0.1, 1.0)},
                     {"samples": n, "rates": (found["rate"],)}]


def test_probe_takes_float64_and_numpy_arrays():
    train_x, train_y = clusters(600, 0.5, seed=0)
    test_x, test_y = clusters(400, 0.5, seed=1)
    found = linear_probe(train_x, train_y, test_x, test_y, epochs=3)
    in_numpy = linear_probe(train_x.double().numpy(), train_y.int().numpy(),
                            test_x.double().numpy(), test_y.numpy(), epochs=3)
    assert in_numpy["top1"] == pytest.approx(found["top1"], abs=1)


def test_probe_refuses_what_does_not_fit():
    x, y = clusters(20, 0.1, seed=0)
    for samples in ((x[:1], y[:1], x, y), (x, y[1:], x, y), (x, y, x, y[1:]), (x, y, x[:, 1:], y)):
        with pytest.raises(ValueError):
            linear_probe(*samples)


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
    splits = {"train": slice(0, 300), "test": slice(300, 400)}
    for name, part in splits.items():
        for label in (0, 5, 6):
            save_images(root / name / str(label), x[part][y[part] == label])
    train.main(["--dataset", "folder", "--data-dir", str(root), "--out", str(root / "run"),
                "--arch", "resnet18", "--width", "8", "--projector", "16-8", "--epochs", "4",
                "--optimizer", "adamw", "--batch-size", "16",
                "--device", "cpu", "--precision", "fp32"])
    return root


def test_a_run_is_measured(place, tmp_path):
    found = figures(tmp_path, place / "run")
    log = read_log(place / "run" / "log.csv")
    # train.py measured the same images
    for name in ("erank_r", "erank_z", "mi", "knn_top1", "w2_z", "h2_r"):
        assert found[name] == pytest.approx(last_value(log, name), rel=1e-3), name
    assert found["linear_top5"] == 100      # there are three classes
    assert 0 < found["linear_top1"] <= 100
    assert 0 < found["alignment_z"] < 4
    assert 1 < found["lidar_r"] < 64 and 1 < found["lidar_z"] < 8       # of 64 and 8 features
    assert {"linear_1pct", "linear_10pct", "erank_r_over_mi"} <= found.keys()

    # r and z are among the layers
    flags = "--layers --picture --device cpu"
    assert exit_status(evaluate.main, place / "run", *flags.split()) == 0
    with open(place / "run" / "layers.csv", newline="") as file:
        rows = {row.pop("layer"): row for row in csv.DictReader(file)}
    assert list(rows) == ["layer1", "layer2", "layer3", "r", "projector 1", "z"]
    assert [int(row["width"]) for row in rows.values()] == [8, 16, 32, 64, 16, 8]
    for layer, column, name in (("r", "erank", "erank_r"), ("z", "erank", "erank_z"),
                                ("r", "mi", "mi"), ("r", "linear_top1", "linear_top1")):
        assert float(rows[layer][column]) == pytest.approx(found[name], rel=1e-3), name
    for name in ("layers.png", "picture.png"):
        assert Image.open(place / "run" / name).width > 500

    # the same images, named as another dataset
    transfer = figures(tmp_path, place / "run", "--dataset", "folder", "--data-dir", place)
    assert transfer.keys() == found.keys()
    for name in ("erank_r", "mi", "linear_top1", "alignment_z"):
        assert transfer[name] == pytest.approx(found[name], rel=1e-3), name


def test_outputs_of_layers():
    """Also where a projector's activations are one module, as DINO's are."""
    net, p = resnet("resnet18", 2)
    projector = mlp(p, "12-11-10", batch_norm=False, activation=torch.nn.GELU())
    images = random_images(9, 16)
    data = {"test_x": images, "size": 16, "image_size": 16, "mean": [0.5] * 3, "std": [0.2] * 3}
    found = layer_outputs(data, "test_x", torch.arange(9), net.eval(), projector, "cpu")
    with torch.no_grad():
        x = net.layer1(net.relu(net.bn1(net.conv1((images / 255 - 0.5) / 0.2))))
        assert torch.allclose(found["layer2"], net.layer2(x).mean((2, 3)), atol=1e-4)
        assert torch.allclose(found["projector 2"], projector[:4](found["r"]), atol=1e-4)
    widths = {name: x.shape[1] for name, x in found.items() if "layer" not in name}
    assert widths == {"r": 16, "projector 1": 12, "projector 2": 11, "z": 10}


def test_maps_and_neighbours():
    x, y = clusters(40, 0.01, seed=0)
    x = x / SCALES
    queries = inside.choose_queries(y)
    assert len(set(queries)) == 8 and set(y[queries[:4]].tolist()) == {0, 1, 2, 3}
    nearest = inside.nearest_neighbours(x, queries, 9)      # all others of the class
    assert (y[nearest] == y[queries][:, None]).all()
    assert not (nearest == torch.tensor(queries)[:, None]).any()
    line = torch.tensor([[1.0, value, 0] for value in torch.linspace(-1, 1, 9)])
    points, shares = inside.principal_plane(line)
    assert shares.sum() == pytest.approx(1) and shares[0] > 0.9     # unit rows: an arc in a plane
    assert (points[:, 0].diff() > 0).all() or (points[:, 0].diff() < 0).all()


def test_a_run_is_loaded(place):
    encoder, projector, facts = load_run(place / "run")
    r = encoder.eval()(torch.rand(2, 3, 16, 16))
    z = projector.eval()(r)
    assert r.shape == (2, 64) and z.shape == (2, 8)
    assert facts["classes"] == ["0", "5", "6"]
    assert facts["size"] == facts["image_size"] == 16
    assert facts["stem"] == "small"
    assert len(facts["mean"]) == len(facts["std"]) == 3
    assert facts["dataset"] == "folder"
    assert facts["data_dir"] == str(place)
    assert facts["streamed"] is False
    assert facts["flags"]["--width"] == 8

    saved = torch.load(place / "run" / "backbone.pt", weights_only=True)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, saved[name]), name
    with pytest.raises(BadInput):
        load_run(place)


def test_a_run_of_another_network_is_measured(place, tmp_path, capsys):
    """Its r has negative entries."""
    flags = (f"--dataset folder --data-dir {place} --device cpu --precision fp32 --epochs 1 "
             "--arch mobilenet_v3_small --projector 16-8 --optimizer adamw --batch-size 64")
    assert run(*flags.split(), "--width", 8, "--out", tmp_path / "run") == 0
    assert "mobilenet_v3_small has no use for --width" in capsys.readouterr().out
    found = figures(tmp_path, tmp_path / "run")
    logged = last_value(read_log(tmp_path / "run" / "log.csv"), "mi")
    assert found["mi"] == pytest.approx(logged, rel=1e-3)
    net = torchvision.models.mobilenet_v3_small()
    net.classifier[3] = torch.nn.Identity()
    net.load_state_dict(torch.load(tmp_path / "run" / "backbone.pt"))

    # copied elsewhere, without last.pt
    for name in ("backbone.pt", "encoder.json"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "run" / name, tmp_path / "copy")
    copied = figures(tmp_path, "--weights", tmp_path / "copy" / "backbone.pt",
                     "--dataset", "folder", "--data-dir", place)
    assert copied["erank_r"] == pytest.approx(found["erank_r"], rel=1e-4)
    encoder, facts = load_encoder(tmp_path / "copy")
    assert not encoder.training and facts["arch"] == "mobilenet_v3_small"
    assert facts["command"].startswith(f"train.py --dataset folder --data-dir {place}")


def test_other_peoples_weights_are_measured(place, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.pth")
    images = ("--dataset", "folder", "--data-dir", place)
    found = figures(tmp_path, "--weights", tmp_path / "theirs.pth", *images)
    assert "linear_top1" in found and "alignment_r" in found
    assert "mi" not in found and "erank_z" not in found         # there is no z

    ours = figures(tmp_path, "--weights", place / "run" / "backbone.pt", *images)
    log = read_log(place / "run" / "log.csv")
    assert ours["erank_r"] == pytest.approx(last_value(log, "erank_r"), rel=1e-3)


def test_images_without_labels_are_measured(place, tmp_path):
    shutil.copytree(place / "train" / "0", tmp_path / "images")
    found = figures(tmp_path, place / "run", "--dataset", "folder",
                    "--data-dir", tmp_path / "images")
    assert found["labelled_train_images"] == 0
    assert "mi" in found and "alignment_z" in found
    assert not any("top1" in name or "pct" in name for name in found)


# --- features ---------------------------------------------------------------------------------

def test_features_are_measured(tmp_path):
    r, y = clusters(500, 0.1, seed=0)
    np.savez(tmp_path / "with_labels.npz", r=r.numpy(), z=r[:, :3].numpy(), y=y.numpy())
    found = figures(tmp_path, "--features", tmp_path / "with_labels.npz")
    assert found["linear_top1"] > 98
    assert found["erank_r"] == pytest.approx(effective_rank(r).item(), rel=1e-4)
    assert found["erank_z"] == pytest.approx(effective_rank(r[:, :3]).item(), rel=1e-4)

    views = r[:60].view(20, 3, 6)
    np.savez(tmp_path / "without.npz", r=r.numpy(), views=views.numpy())    # no z, no labels
    found = figures(tmp_path, "--features", tmp_path / "without.npz")
    assert found["lidar_r"] == pytest.approx(lidar(views).item(), rel=1e-5)
    assert "linear_top1" not in found and not any(name.endswith("_z") for name in found)


@pytest.mark.parametrize("labels", [
    np.array(["cat", "dog", "eel", "fox"]), np.array([7, 999_999, 3, 12], dtype=np.uint32),
])
def test_labels_may_be_words_and_any_numbers(labels, tmp_path):
    """With a split, its test rows are tested."""
    r, y = clusters(500, 0.1, seed=0)
    split = np.where(np.arange(500) < 400, "train", "test")
    np.savez(tmp_path / "f.npz", r=r.numpy(), y=labels[y.numpy()], split=split)
    assert figures(tmp_path, "--features", tmp_path / "f.npz")["linear_top1"] > 98
    y[400:] = (y[400:] + 1) % 4         # all test labels are wrong
    np.savez(tmp_path / "f.npz", r=r.numpy(), y=labels[y.numpy()], split=split)
    assert figures(tmp_path, "--features", tmp_path / "f.npz")["linear_top1"] < 5


def test_saved_features_are_what_was_measured(place, tmp_path):
    """Measured with --features they give the same results again. These images are resident."""
    saved = tmp_path / "saved.npz"
    found = figures(tmp_path, place / "run", "--dataset", "folder", "--data-dir", place,
                    "--save-features", saved)
    with np.load(saved) as arrays:
        files, split, y = arrays["files"], arrays["split"], arrays["y"]
        assert arrays["r"].shape == (len(files), 64) and arrays["z"].shape == (len(files), 8)
    assert all(os.path.exists(file) for file in files)
    assert all(f"/{part}/" in file for file, part in zip(files, split))
    classes = sorted({file.split("/")[-2] for file in files})
    assert [classes[label] for label in y] == [file.split("/")[-2] for file in files]

    again = figures(tmp_path, "--features", saved)
    for name in ("linear_top1", "linear_10pct", "knn_top1"):
        assert again[name] == pytest.approx(found[name], abs=1e-6), name


def test_json_holds_null_where_there_is_no_number(tmp_path, capsys):
    r = np.eye(4)[np.zeros(6, int)]         # collapsed: I(R;Z) is 0, and is no divisor
    np.savez(tmp_path / "collapsed.npz", r=r, z=np.eye(6))
    found = figures(tmp_path, "--features", tmp_path / "collapsed.npz")
    assert found["mi"] == 0
    assert found["erank_r_over_mi"] is None
    assert "nan" in capsys.readouterr().out


# --- bad input --------------------------------------------------------------------------------

SQUARE = np.eye(10)


@pytest.mark.parametrize("arrays, words", [
    (dict(r=np.array([{}], dtype=object), z=SQUARE), "not an npz file"),
    (dict(z=SQUARE), "lacks an array r"),
    (dict(r=SQUARE, z=SQUARE[:3]), "z has 3 rows, and r 10"),
    (dict(r=SQUARE[:, :0]), "r must hold numbers, samples × features"),
    (dict(r=SQUARE * 1j), "r must hold numbers, samples × features, not complex128"),
    (dict(r=SQUARE, z=np.full((10, 3), np.inf)), "z has values that are not finite"),
    (dict(r=SQUARE * 1e300), "r has values that are not finite, or too large for float32"),
    (dict(r=SQUARE, split=[["test"], ["train"]] * 5), "split must be a word per row"),
    (dict(r=SQUARE, y=np.arange(10) / 2), "y must be a whole number or a word"),
    (dict(r=SQUARE, y=np.arange(10) - 2), "negative labels"),
    (dict(r=SQUARE[:5], y=np.arange(5)), "too few"),
    (dict(r=SQUARE, views=SQUARE), "views must hold numbers, images × views × features"),
    (dict(r=SQUARE, split=["train"] * 10), "split must say 'test'"),
    (dict(r=SQUARE, y=-np.ones(10, int)), "two labelled rows"),
])
def test_bad_features(arrays, words, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadInput, match=words):
        evaluate.measure_features(tmp_path / "bad.npz")


@pytest.mark.parametrize("flags, words", [
    ("", "give one of"),
    ("{run} --features x.npz", "give one of"),
    ("{run} --data-dir {tmp}/nowhere", "there is no directory"),
    ("{run} --device cuda:77", "--device cuda:77"),
    ("{run} --json {tmp}/no/where.json", "cannot write"),
    ("{tmp}/nowhere", "is {tmp}/nowhere the folder of a run"),
    ("{tmp}/torn", "not a whole checkpoint"),
    ("{tmp}/other", "not a whole checkpoint"),
    ("{tmp}/black", "not a whole checkpoint"),
    ("{tmp}/nan", "weights are not finite"),
    ("{tmp}/large", "large/last.pt is not a whole checkpoint of train.py"),
    ("{tmp}/own", "no dataset 'my own' with 16 pixels here: give a --dataset"),
    ("--weights {tmp}/a.pth", "needs a --dataset"),
    ("--weights {tmp}/a.pth --dataset shapes", "No such file"),
    ("--weights {tmp}/text --dataset shapes", "not a state dict"),
    ("--weights {tmp}/nan.pth --dataset shapes", "weights are not finite"),
    ("--weights {tmp}/flipped.pth --dataset shapes", "is damaged"),
    ("--weights {tmp}/odd/backbone.pt --dataset shapes", "the network in {tmp}/odd/encoder.json"),
    ("--features {tmp}/good.npz --save-features {tmp}/x.npz", "nothing to add"),
    ("{run} --save-features {tmp}/no/where.npz", "cannot write"),
    ("--features {tmp}/good.npz --json {tmp}/good.npz", "--json would replace"),
    ("{run} --layers --json {tmp}/x.json", "--layers and --picture look into a run"),
    ("--features {tmp}/good.npz --picture", "--layers and --picture look into a run"),
])
def test_bad_input(flags, words, place, tmp_path, capsys):
    (tmp_path / "text").write_text("hello")
    last = place / "run" / "last.pt"
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "last.pt").write_bytes(last.read_bytes()[:999])
    saved = torch.load(last, weights_only=True)
    changes = {
        "other": {"learner": {}},
        "black": {"facts": saved["facts"] | {"std": [0.0, 0.0, 0.0]}},
        "nan": {"learner": {name: value / 0 if name.startswith("method.projector.") else value
                            for name, value in saved["learner"].items()}},
        "large": {"facts": saved["facts"] | {"size": 9999, "image_size": 9999}},
        "own": {"config": saved["config"] | {"--dataset": "my own"}},
    }
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        torch.save(saved | change, tmp_path / name / "last.pt")
    weights = torch.load(place / "run" / "backbone.pt")
    torch.save(weights | {"conv1.weight": weights["conv1.weight"] / 0}, tmp_path / "nan.pth")
    (tmp_path / "odd").mkdir()
    shutil.copy(place / "run" / "backbone.pt", tmp_path / "odd")
    facts = (place / "run" / "encoder.json").read_text()
    (tmp_path / "odd" / "encoder.json").write_text(facts.replace('"width": 8', '"width": 7'))
    flipped = bytearray((place / "run" / "backbone.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(flipped)
    np.savez(tmp_path / "good.npz", r=SQUARE, z=SQUARE)

    command = flags.format(run=place / "run", tmp=tmp_path).split()
    assert exit_status(evaluate.main, *command) == 2
    error = capsys.readouterr().err
    assert words.format(tmp=tmp_path) in error
    assert error.count("\n") == 1
