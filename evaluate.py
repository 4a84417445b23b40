"""Measures a trained encoder the standard way: linear probes, k-NN, few labels, every metric.

    python evaluate.py runs/demo                         on the run's own dataset
    python evaluate.py runs/mine --dataset cifar100      on another one: transfer
    python evaluate.py --weights resnet50.pth --dataset folder --data-dir my_images
    python evaluate.py --features features.npz           r (n × p); z (n × d) and labels y if any
    python evaluate.py runs/mine --save-features features.npz       for any other program
    from evaluate import linear_probe, load_run

--weights takes anyone's state dict of torchvision's ResNet-18 or ResNet-50.

The linear probe: the encoder is frozen, and its representations r of the training images as
they are, standardised feature by feature, are computed once. One linear layer learns on them
by SGD: momentum 0.9, no decay, batch 256, 100 epochs, learning rate falling to 0 as a cosine,
at several learning rates side by side. The learning rate is chosen on a tenth of the training
images (a fifth, where there are under 1,000) that is held out for that; then the layer learns
once more on all of them, and the test images are looked at once. solo-learn and VICReg train
this layer as long, but on augmented crops, and report the best figure on the test set itself.

linear_1pct and linear_10pct are the same with that share of each class's labels, one at least.
k-NN and the metrics are those of metrics.py, of all test images (at most 10,000, always the same,
for the metrics); alignment is of two views of 1,000 of them, LiDAR of ten. With
--json runs/x/evaluation.json, figures.py finds the figures beside the run's log.

Exit status: 0; 2 with one line on stderr for bad input.
"""
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from plumbing import cli
from plumbing import run
from baselines import METHODS
from plumbing.cli import BadInput
from data import load, pick
from plumbing.datasets import DATASETS
from plumbing.images import random_subset
from metrics import (alignment, knn_accuracy, lidar, representation_metrics, standard_error,
                     top_k_accuracy)
from methods import Method
from models import all_finite, resnet
from probe import METRIC_IMAGES, VIEW_IMAGES, encode_images, encode_views   # as while training

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)     # learning rates that the probe tries
LIDAR_IMAGES = 1000         # LiDAR is below their number, and below p
LIDAR_VIEWS = 10


# --- the linear probe -------------------------------------------------------------------------

def train_layers(x, y, n_classes, rates, epochs, seed):
    """Trains one linear layer for each learning rate, side by side.

    x: n × p, y: n. Returns weights (rates × p × classes) and biases (rates × 1 × classes).
    """
    n, p = x.shape
    generator = torch.Generator(x.device).manual_seed(seed)
    weight = torch.zeros(len(rates), p, n_classes, device=x.device, requires_grad=True)
    bias = torch.zeros(len(rates), 1, n_classes, device=x.device, requires_grad=True)
    factor = torch.tensor(rates, device=x.device).view(-1, 1, 1)

    batch_size = min(256, n)
    steps = n // batch_size
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)

    for _ in range(epochs):
        order = torch.randperm(n, generator=generator, device=x.device)
        for batch in order[:steps * batch_size].split(batch_size):
            logits = x[batch] @ weight + bias                   # rates × batch × classes
            labels = y[batch].repeat(len(rates))
            # the sum, not the mean, over the layers: each learns as if it were alone
            loss = F.cross_entropy(logits.flatten(0, 1), labels) * len(rates)

            optimizer.zero_grad()
            loss.backward()
            # a layer's learning rate is a factor on its gradient
            weight.grad *= factor
            bias.grad *= factor
            optimizer.step()
            schedule.step()
    return weight.detach(), bias.detach()


def standardise(train_x, test_x):
    """Both sets with mean 0 and standard deviation 1 in each of the training set's features."""
    mean = train_x.mean(0)
    std = train_x.std(0, correction=0)
    largest = std.max().clamp_min(1e-30)
    std = std.clamp_min(1e-6 * largest)         # a constant feature stays near 0
    return (train_x - mean) / std, (test_x - mean) / std


def choose_rate(x, y, n_classes, rates, epochs, seed):
    """The learning rate that does best on held-out samples of x (n × p); of equals, the first."""
    n = len(x)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(y.device)
    share = 10 if n >= 1000 else 5
    held_out, rest = order.tensor_split([max(1, n // share)])

    weights, biases = train_layers(x[rest], y[rest], n_classes, rates, epochs, seed)
    correct = []
    for weight, bias in zip(weights, biases):
        predicted = (x[held_out] @ weight + bias).argmax(1)
        correct.append((predicted == y[held_out]).sum())
    return rates[int(torch.stack(correct).argmax())]


def linear_probe(train_x, train_y, test_x, test_y, rates=RATES, epochs=100, seed=0):
    """Accuracy of a linear layer on frozen features, by the protocol in this file's head.

    train_x: n × p and test_x: m × p, floating point; train_y (n) and test_y (m): classes as
    integers from 0. n ≥ 2. rates: learning rates to choose from. Returns a dict of top1 and
    top5, in per cent, and rate, the learning rate chosen. ValueError where shapes do not fit.
    """
    n = len(train_x)
    if n < 2 or n != len(train_y):
        raise ValueError(f"expected two training samples or more with a label each, "
                         f"got {n} and {len(train_y)}")
    if len(test_x) != len(test_y) or train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"expected a label for each test row and equal widths, "
                         f"got {len(test_y)} labels, {tuple(test_x.shape)} to test on, "
                         f"{tuple(train_x.shape)} to train on")
    train_x, test_x = standardise(train_x, test_x)
    n_classes = int(torch.cat([train_y, test_y]).max()) + 1

    rate = choose_rate(train_x, train_y, n_classes, rates, epochs, seed)
    weight, bias = train_layers(train_x, train_y, n_classes, (rate,), epochs, seed)
    logits = test_x @ weight[0] + bias[0]       # m × classes
    return {
        "top1": top_k_accuracy(logits, test_y).item(),
        "top5": top_k_accuracy(logits, test_y, 5).item(),
        "rate": rate,
    }


# --- every figure, from features --------------------------------------------------------------

def share_of_labels(y, share, seed=0):
    """Sorted indices of a random share (0 … 1) of each class's samples in y (n), one at least."""
    generator = torch.Generator().manual_seed(seed)
    y = y.cpu()
    chosen = []
    for label in y.unique():
        of_this_class = (y == label).nonzero().flatten()
        count = max(1, round(share * len(of_this_class)))
        order = torch.randperm(len(of_this_class), generator=generator)
        chosen.append(of_this_class[order[:count]])
    return torch.cat(chosen).sort().values


def metrics_of(r, z=None):
    """The metrics of r (n × p) and z (n × d) on fixed rows, a dict; without z, those of r alone."""
    fixed = random_subset(len(r), METRIC_IMAGES, seed=0).to(r.device)
    if z is None:
        found = representation_metrics(r[fixed], r[fixed])
        return {name: value for name, value in found.items() if name.endswith("_r")}

    # where I(R;Z) is 0 there is no ratio
    return {"erank_r_over_mi": math.nan, **representation_metrics(r[fixed], z[fixed])}


def measure(train_r, train_y, test_r, test_y, test_z=None):
    """Every figure of a trained encoder, as a dict.

    train_r (n × p) and test_r (m × p) with their labels; test_z: m × d, for the metrics.
    """
    whole = linear_probe(train_r, train_y, test_r, test_y)
    found = {
        "linear_top1": whole["top1"],
        "linear_top1_error": standard_error(whole["top1"], len(test_y)),    # of their number
        "linear_top5": whole["top5"],
        "linear_rate": whole["rate"],
    }
    k = min(20, len(train_r))
    found["knn_top1"] = knn_accuracy(train_r, train_y, test_r, test_y, k).item()

    for name, share in {"linear_1pct": 0.01, "linear_10pct": 0.1}.items():
        few = share_of_labels(train_y, share).to(train_y.device)
        if len(few) > 1:        # one sample cannot be held out and learnt from
            found[name] = linear_probe(train_r[few], train_y[few], test_r, test_y)["top1"]
    return found | metrics_of(test_r, test_z)


# --- from a file of features ------------------------------------------------------------------

def load_features(path):
    """The arrays of an npz file as a dict: r (n × p), float32; z (n × d), y (n, int64), test
    (n, bool: the rows to test on) and views (images × views × p), or None where it lacks them.

    Raises BadInput where they are not numbers, not finite or do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("r", "z", "y", "split", "views")
                      if name in file}
        r = real_matrix(arrays, "r")
        z = real_matrix(arrays, "z") if "z" in arrays else None
        y = class_numbers(arrays["y"]) if "y" in arrays else None
        views = arrays.get("views")
        if views is not None:
            rows = real_matrix({"views": views.reshape(-1, views.shape[-1])}, "views")
            views = rows.view(views.shape)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:      # a damaged file can raise anything
        reason = str(error) or type(error).__name__
        raise BadInput(f"{path} is not an npz file with an array r, and optionally z and y "
                       f"({reason})") from error

    for name, x in {"z": z, "y": y, "split": arrays.get("split")}.items():
        if x is not None and len(x) != len(r):
            raise BadInput(f"{path}: {name} has {len(x)} rows, and r {len(r)}")
    if len(r) < 2 or (y is not None and len(r) < 10):
        raise BadInput(f"{path}: {len(r)} rows are too few: the metrics need 2, probes 10")
    test = None
    if "split" in arrays:
        test = torch.from_numpy(arrays["split"] == "test")
        if test.sum() < 2 or (~test).sum() < 2:
            raise BadInput(f"{path}: split must say 'test' of two rows or more, and something "
                           "else of two or more")
    if views is not None and (views.ndim != 3 or min(views.shape[:2]) < 2):
        raise BadInput(f"{path}: views must be images × views × features, two or more of the "
                       f"first two, not {tuple(views.shape)}")
    return {"r": r, "z": z, "y": y, "test": test, "views": views}


def real_matrix(arrays, name):
    """One of the arrays as a float32 tensor, n × d; BadInput if it is no finite real matrix."""
    if name not in arrays:
        raise BadInput(f"it lacks an array {name}")
    x = arrays[name]
    if x.dtype.kind not in "fiu" or x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise BadInput(f"{name} must be a finite matrix, not {x.dtype} {x.shape}")
    return torch.from_numpy(x.astype(np.float32))


def class_numbers(labels):
    """Labels, whole numbers or words, as classes from 0; −1, no label, stays −1."""
    labels = labels.reshape(len(labels), -1)
    if labels.dtype.kind not in "iuU" or labels.shape[1] != 1:
        raise BadInput(f"y must be a whole number or a word per row, not {labels.dtype} "
                       f"{labels.shape}")
    names, numbers = np.unique(labels[:, 0], return_inverse=True)
    smallest = names[0] if labels.dtype.kind == "i" else 0
    if smallest < -1:
        raise BadInput("y has negative labels other than −1, which stands for none")
    if smallest == -1:
        numbers = numbers - 1
    return torch.from_numpy(numbers.reshape(-1).astype(np.int64))


def measure_features(path, device="cpu"):
    """The figures of an npz file, computed on the device: the metrics of r and z.

    With views, LiDAR. With y, k-NN and probes too: those of the rows whose split is "test", which
    learn from the others; without a split they learn from four fifths. Raises BadInput.
    """
    saved = {name: None if x is None else x.to(device)
             for name, x in load_features(path).items()}
    r, y, test = saved["r"], saved["y"], saved["test"]
    # the metrics need no labels: they are of all rows
    found = metrics_of(r, saved["z"])
    if saved["views"] is not None:
        found["lidar_r"] = lidar(saved["views"]).item()
    if y is None:
        return found

    if test is None:
        order = torch.randperm(len(r), generator=torch.Generator().manual_seed(0)).to(device)
        test, train = order.tensor_split([len(r) // 5])
    else:
        test, train = test.nonzero().flatten(), (~test).nonzero().flatten()
    train, test = train[y[train] >= 0], test[y[test] >= 0]
    if len(train) < 2 or len(test) < 2:
        raise BadInput(f"{path}: two labelled rows are needed to train on, and two to test")
    return measure(r[train], y[train], r[test], y[test]) | found


def save_features(path, data, features):
    """Writes r, z (where there is one), y, split and, of folders, the files' names to an npz.

    features: {split: {"index": of the images, "outputs": [r] or [r, z]}}.
    """
    arrays = {"y": [], "split": [], "files": []}
    for split, found in features.items():
        for name, x in zip("rz", found["outputs"]):
            arrays.setdefault(name, []).append(x.cpu().numpy())
        arrays["y"].append(data[f"{split}_y"].cpu().numpy()[found["index"].numpy()])
        arrays["split"].append(np.full(len(found["index"]), split))
        if data["streamed"]:
            files = pick(data[f"{split}_x"], found["index"])
            arrays["files"].append(np.array([str(file) for file in files]))
    arrays = {name: np.concatenate(parts) for name, parts in arrays.items() if parts}
    run.write_whole(path, lambda file: np.savez(file, **arrays))


# --- from a trained encoder -------------------------------------------------------------------

def load_run(folder):
    """(encoder, projector, facts) of a run of train.py, from its last.pt, on the CPU.

    facts is a dict: classes, size, image_size, stem, mean, std of the images that it was trained
    on; dataset, data_dir, streamed, min_size; and flags, those of train.py, as in
    facts["flags"]["--arch"].
    Raises BadInput where there is no such run, or its file is damaged.
    """
    path = Path(folder) / "last.pt"
    saved = run.load_checkpoint(path)
    try:
        flags = saved["config"]
        facts = saved["facts"] | {
            "dataset": flags["--dataset"],
            "flags": flags,
        }
        encoder, p = resnet(flags["--arch"], flags["--width"], facts["stem"])
        method = METHODS.get(flags["--method"], Method)     # a method of one's own is not known
        projector = method.make_projector(p, flags["--projector"])
        encoder.load_state_dict(below("method.encoder.", saved["learner"]))
        projector.load_state_dict(below("method.projector.", saved["learner"]))
    except Exception as error:      # whatever else a file may hold
        raise BadInput(f"{path} is not a whole checkpoint of train.py "
                       f"({type(error).__name__})") from error
    return encoder, projector, facts


def below(prefix, state):
    """The part of a state dict whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items()
            if name.startswith(prefix)}


def load_weights(path):
    """An encoder from a state dict of torchvision's ResNet-18 or ResNet-50, whichever it fits.

    Its width and stem are what the weights have. Raises BadInput where they fit neither.
    """
    try:
        run.check_whole_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        width, _, kernel_size, _ = state["conv1.weight"].shape
        stem = "small" if kernel_size == 3 else "imagenet"
        # ResNet-50's blocks have three convolutions each, ResNet-18's two
        arch = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
        encoder, _ = resnet(arch, width, stem)
        encoder.load_state_dict(state)
    except OSError as error:
        raise BadInput(error) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise BadInput(f"{path} is not a state dict of torchvision's ResNet-18 or ResNet-50 "
                       f"({reason})") from error
    return encoder


def load_own_images(facts, data_dir=None, classes=None):
    """The images that a run was trained on: from its place, with its classes, in its sizes."""
    layout = DATASETS[facts["dataset"]]["layout"]
    if classes is None and layout in ("classes", "folder"):
        classes = facts["classes"] or None
    # a folder's images as files, or they would be decoded to the size that suits them today
    resident = "no" if layout == "folder" else "auto"
    data = load(facts["dataset"], data_dir or facts["data_dir"], classes=classes,
                resident=resident, min_size=facts["min_size"])
    return data | {"size": facts["size"], "image_size": facts["image_size"]}


def measure_views(data, nets, device):
    """Alignment and LiDAR, for which several views of an image are needed, as a dict."""
    n_test = len(data["test_x"])
    pairs = random_subset(n_test, VIEW_IMAGES, seed=0)
    for_lidar = random_subset(n_test, LIDAR_IMAGES, seed=0)
    found = {}
    two_views = encode_views(data, pairs, 2, nets, device)
    many_views = encode_views(data, for_lidar, LIDAR_VIEWS, nets, device)
    for name, two, many in zip("rz", two_views, many_views):
        found[f"alignment_{name}"] = alignment(two[:, 0], two[:, 1]).item()
        found[f"lidar_{name}"] = lidar(many).item()
    return found


def measure_images(data, encoder, projector, mean, std, device, save_to=None):
    """Every figure of an encoder on a dataset, as a dict.

    data: what data.load() gives. projector: None where there is none. mean, std: of each
    channel, what the encoder was trained with. save_to: a file for the features, or None.
    Raises BadInput on too few images.
    """
    n_test = len(data["test_x"])
    train_y = data["train_y"].to(device)
    labelled = (data["train_y"] >= 0).nonzero().flatten()
    if data["classes"] and len(labelled) < 2:
        raise BadInput("there is one labelled training image: the probe needs two or more")

    nets = [encoder.to(device, memory_format=torch.channels_last)]
    if projector is not None:
        nets.append(projector.to(device))
    data = data | {"mean": mean, "std": std}

    # of the training images the labelled ones will do, but for other programs all are saved
    index = {"train": labelled, "test": torch.arange(n_test)}
    if save_to is not None:
        index["train"] = torch.arange(len(train_y))
    features = {}
    for split, images in index.items():
        if len(images):
            outputs = encode_images(data, f"{split}_x", images, nets, device)
            features[split] = {"index": images, "outputs": outputs}
    if save_to is not None:
        save_features(save_to, data, features)

    found = {"labelled_train_images": len(labelled), "test_images": n_test}
    test_r, *test_z = features["test"]["outputs"]           # test_z is empty without a projector
    if data["classes"]:
        has_label = train_y[index["train"].to(device)] >= 0
        train_r = features["train"]["outputs"][0][has_label]
        test_y = data["test_y"].to(device)
        found |= measure(train_r, train_y[train_y >= 0], test_r, test_y, *test_z)
    else:
        found |= metrics_of(test_r, *test_z)
    return found | measure_views(data, nets, device)


# --- the program ------------------------------------------------------------------------------

def parse_args(argv):
    parser = cli.Parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="the folder of a run of train.py")
    add("--weights", type=Path, metavar="FILE",
        help="a state dict of torchvision's ResNet-18 or ResNet-50 instead")
    add("--features", type=Path, metavar="FILE",
        help="an npz file instead: an array r and, if there are any, z, labels y, split ('test' "
        "or not) and views (images × views × features of r, for LiDAR)")
    add("--save-features", type=Path, metavar="FILE",
        help="write r, z, y, split and the files' names of all images to an npz file")
    add("--dataset", choices=DATASETS, help="default: the run's own")
    add("--data-dir", metavar="DIR",
        help="where the files are (default: where the run found them, or ./data)")
    add("--classes", type=Path, metavar="FILE",
        help="names of the class folders to use, one per line")
    add("--device", type=cli.device_name, default="auto",
        help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)

    sources = [source for source in (args.run, args.weights, args.features) if source is not None]
    if len(sources) != 1:
        raise BadInput("give one of: a run's folder, --weights FILE, --features FILE")
    if args.weights and not args.dataset:
        raise BadInput("--weights needs a --dataset to measure on")
    if args.save_features and args.features:
        raise BadInput("--save-features has nothing to add to --features")
    cli.check_output_file(args.json, "--json")
    cli.check_output_file(args.save_features, "--save-features")
    return args


def figures_of(args):
    """The figures that the command line asks for, as a dict."""
    device = cli.open_device(args.device)
    if args.features:
        return measure_features(args.features, device)

    if args.run:
        encoder, projector, facts = load_run(args.run)
    else:
        encoder, projector, facts = load_weights(args.weights), None, None
    if not all_finite(encoder):
        raise BadInput(f"{args.run or args.weights}: the encoder's weights are not finite: there "
                       "is nothing to measure")

    name = args.dataset or facts["dataset"]
    print(f"loading {name} …", flush=True)
    if args.dataset:
        data = load(name, args.data_dir or "./data", classes=args.classes)
    else:
        data = load_own_images(facts, args.data_dir, args.classes)

    # the normalisation that the encoder was trained with; of other people's it is not known
    known = facts or data
    found = measure_images(data, encoder, projector, known["mean"], known["std"], device,
                           args.save_features)
    return {"dataset": name} | found


def as_json(found):
    """The figures as JSON, which has no word for NaN and infinity: they become null."""
    whole = {}
    for name, value in found.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        whole[name] = value if finite else None
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def main(argv=None):
    with cli.one_line_errors("evaluate.py"):
        args = parse_args(argv)
        found = figures_of(args)

        for name, value in found.items():
            text = f"{value:.4g}" if isinstance(value, float) else f"{value}"
            print(f"{name:22}{text:>12}")
        if args.json:
            run.write_whole(args.json, lambda file: file.write(as_json(found).encode()))


if __name__ == "__main__":
    main()
