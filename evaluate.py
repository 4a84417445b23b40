"""Evaluates a trained encoder: linear probes, k-NN, few labels, all metrics.

    python evaluate.py runs/demo                         on the run's own dataset
    python evaluate.py runs/mine --dataset cifar100      on another dataset: transfer
    python evaluate.py --weights resnet50.pth --dataset folder --data-dir my_images
    python evaluate.py --features features.npz           r (n × p); optionally z (n × d), labels y
    python evaluate.py runs/mine --layers --picture     looks inside: layers.png, picture.png
    python evaluate.py runs/mine --save-features features.npz       for other programs
    from evaluate import linear_probe, load_run

--weights takes any state dict of torchvision's ResNet-18 or ResNet-50, or of any network as
backbone.pt with encoder.json beside it, as train.py writes them.

The linear probe: the frozen encoder computes the representations r of the training images once,
without augmentation; each feature is standardised. A linear layer is trained on them by SGD:
momentum 0.9, no weight decay, batch 256, 100 epochs, and a learning rate that decays to 0 as a
cosine. Several learning rates are compared on a held-out tenth of the training images (a fifth
of fewer than 1,000). With the best one the layer is trained again, on all training images, and
tested once. solo-learn and VICReg train as long, but on augmented crops, and report the best
accuracy on the test set itself.

linear_1pct and linear_10pct train on that share of each class's labels, at least one. k-NN and
metrics are those of metrics.py, on the test images; the metrics take a fixed subset of at most
10,000. Alignment takes two views of 256 of them, LiDAR ten views of 1,000.
--layers and --picture write layers.csv, layers.png and picture.png to the run's folder instead;
the probes of --layers learn from at most 10,000 training images.
figures.py reads the results from evaluation.json in a run's folder: --json runs/x/evaluation.json.

Exit status: 0; 2 with one line on stderr for bad input.
"""
import json
import math
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch
import torch.nn.functional as F

from data import load, notes
from losses import matrices
from metrics import (alignment, knn_accuracy, lidar, representation_metrics, standard_error,
                     top_k_accuracy)
from models import all_finite
from plumbing import cli, run
from plumbing.cli import BadInput
from plumbing.datasets import DATASETS
from plumbing.encoders import check_image_size, load_own_images, load_run, load_weights
from plumbing.features import load_features, save_features
from plumbing.images import random_subset
from plumbing.inside import look_inside
from probe import METRIC_IMAGES, VIEW_IMAGES, encode_images, encode_views   # as in training

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)     # learning rates that the probe tries
LIDAR_IMAGES = 1000         # LiDAR cannot exceed this, nor p
LIDAR_VIEWS = 10


# --- the linear probe -------------------------------------------------------------------------

def train_layers(x, y, n_classes, rates, epochs, seed):
    """Trains one linear layer for each learning rate, side by side.

    x: n × p, y: n. Returns weights (rates × p × classes) and biases (rates × 1 × classes).
    """
    n, p = x.shape
    generator = torch.Generator(x.device).manual_seed(seed)
    weight = torch.zeros(len(rates), p, n_classes, device=x.device, dtype=x.dtype)
    bias = torch.zeros(len(rates), 1, n_classes, device=x.device, dtype=x.dtype)
    weight.requires_grad_()
    bias.requires_grad_()
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
            # summed, not averaged, over the layers: each learns as if it were alone
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
    """Shifts and scales both sets so that the training set's features have mean 0, deviation 1."""
    mean = train_x.mean(0)
    std = train_x.std(0, correction=0)
    largest = std.max().clamp_min(1e-30)
    std = std.clamp_min(1e-6 * largest)         # a constant feature stays near 0
    return (train_x - mean) / std, (test_x - mean) / std


def choose_rate(x, y, n_classes, rates, epochs, seed):
    """The learning rate that is best on held-out samples of x (n × p); the first if several are."""
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
    """Accuracy of a linear layer on frozen features; this file's docstring has the protocol.

    train_x: n × p and test_x: m × p, floating point, n ≥ 2; train_y (n) and test_y (m): classes
    as integers from 0; tensors or NumPy arrays. rates: learning rates to choose from. Returns a
    dict of top1 and top5, in per cent, and rate, the learning rate chosen. Raises ValueError if
    shapes do not fit.
    """
    (train_x,), (test_x,) = matrices(train_x), matrices(test_x)
    train_y, test_y = torch.as_tensor(train_y).long(), torch.as_tensor(test_y).long()
    one_label_per_row = len(train_x) == len(train_y) and len(test_x) == len(test_y)
    if len(train_x) < 2 or not one_label_per_row or train_x.shape[1] != test_x.shape[1]:
        raise ValueError("expected two or more training rows, one label per row and equal widths, "
                         f"got {tuple(train_x.shape)} with {len(train_y)} labels to train on, "
                         f"{tuple(test_x.shape)} with {len(test_y)} to test on")
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


# --- accuracies and metrics, from features ----------------------------------------------------

def share_of_labels(y, share):
    """Sorted indices of a random share (0 … 1) of each class's samples in y (n), at least one."""
    generator = torch.Generator().manual_seed(0)
    y = y.cpu()
    chosen = []
    for label in y.unique():
        of_this_class = (y == label).nonzero().flatten()
        count = max(1, round(share * len(of_this_class)))
        order = torch.randperm(len(of_this_class), generator=generator)
        chosen.append(of_this_class[order[:count]])
    return torch.cat(chosen).sort().values


def accuracies(train_r, train_y, test_r, test_y):
    """Accuracies of linear probes and k-NN in per cent, as a dict. r: n × p, y: n."""
    whole = linear_probe(train_r, train_y, test_r, test_y)
    k = min(20, len(train_r))
    found = {
        "linear_top1": whole["top1"],
        "linear_top1_error": standard_error(whole["top1"], len(test_y)),
        "linear_top5": whole["top5"],
        "linear_rate": whole["rate"],
        "knn_top1": knn_accuracy(train_r, train_y, test_r, test_y, k).item(),
    }
    for name, share in {"linear_1pct": 0.01, "linear_10pct": 0.1}.items():
        few = share_of_labels(train_y, share).to(train_y.device)
        if len(few) > 1:        # one is held out, and one is needed to learn from
            found[name] = linear_probe(train_r[few], train_y[few], test_r, test_y)["top1"]
    return found


def metrics_of(r, z=None):
    """The metrics of r (n × p) and z (n × d), a dict; without z, those of r alone."""
    fixed = random_subset(len(r), METRIC_IMAGES, seed=0).to(r.device)
    if z is None:
        found = representation_metrics(r[fixed], r[fixed])
        return {name: value for name, value in found.items() if name.endswith("_r")}

    # if I(R;Z) is 0 there is no ratio
    return {"erank_r_over_mi": math.nan, **representation_metrics(r[fixed], z[fixed])}


def measure_features(path, device="cpu"):
    """Accuracies and metrics of an npz file of features, computed on the device, as a dict.

    LiDAR needs views. Probes and k-NN need y: they are tested on the rows whose split is "test"
    and learn from all others; without a split, they learn from four fifths. Raises BadInput.
    """
    saved = {name: None if x is None else x.to(device)
             for name, x in load_features(path).items()}
    r, y, test = saved["r"], saved["y"], saved["test"]
    found = metrics_of(r, saved["z"])           # of all rows: metrics need no labels
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
    return accuracies(r[train], y[train], r[test], y[test]) | found


# --- from a trained encoder -------------------------------------------------------------------

def measure_views(data, nets, device):
    """Alignment and LiDAR, which need several views of an image, as a dict."""
    n_test = len(data["test_x"])
    pairs = random_subset(n_test, VIEW_IMAGES, seed=0)
    for_lidar = random_subset(n_test, LIDAR_IMAGES, seed=0)
    two_views = encode_views(data, pairs, 2, nets, device)
    many_views = encode_views(data, for_lidar, LIDAR_VIEWS, nets, device)
    found = {}
    for name, two, many in zip("rz", two_views, many_views):
        found[f"alignment_{name}"] = alignment(two[:, 0], two[:, 1]).item()
        found[f"lidar_{name}"] = lidar(many).item()
    return found


def measure_images(data, encoder, projector, device, save_to=None):
    """Accuracies and metrics of an encoder on a dataset, as a dict.

    data: of data.load(), with the mean and std that the encoder was trained with. projector:
    None if there is none. save_to: a file for the features, or None. Raises BadInput if there are
    too few images.
    """
    labelled = (data["train_y"] >= 0).nonzero().flatten()
    if data["classes"] and len(labelled) < 2:
        raise BadInput("there is one labelled training image: the probe needs two or more")
    nets = [encoder.to(device, memory_format=torch.channels_last)]
    if projector is not None:
        nets.append(projector.to(device))

    # probes need the labelled training images; other programs get all
    train = labelled if save_to is None else torch.arange(len(data["train_y"]))
    features = {}
    for split, index in {"train": train, "test": torch.arange(len(data["test_y"]))}.items():
        if len(index):
            outputs = encode_images(data, f"{split}_x", index, nets, device)
            features[split] = {"index": index, "outputs": outputs}
    if save_to is not None:
        save_features(save_to, data, features)

    found = {"labelled_train_images": len(labelled), "test_images": len(data["test_y"])}
    test_r, *test_z = features["test"]["outputs"]           # test_z is empty without a projector
    if data["classes"]:
        train_r = features["train"]["outputs"][0]
        train_y = data["train_y"][train].to(device)
        has_label = train_y >= 0
        found |= accuracies(train_r[has_label], train_y[has_label], test_r,
                            data["test_y"].to(device))
    return found | metrics_of(test_r, *test_z) | measure_views(data, nets, device)


# --- the program ------------------------------------------------------------------------------

def parse_args(argv):
    parser = cli.Parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="the folder of a run of train.py")
    add("--weights", type=Path, metavar="FILE",
        help="instead of a run: a state dict of torchvision's ResNet-18 or ResNet-50, or a run's "
        "backbone.pt with its encoder.json")
    add("--features", type=Path, metavar="FILE",
        help="instead of a run: an npz file with an array r and optionally z, labels y, split "
        "('test' or not) and views (images × views × features of r, for LiDAR)")
    add("--save-features", type=Path, metavar="FILE",
        help="write r, z, y, split and the file names of all images to an npz file")
    add("--dataset", choices=DATASETS, help="default: the run's own")
    add("--data-dir", metavar="DIR",
        help="folder of the dataset's files (default: the run's own, or ./data)")
    add("--classes", type=Path, metavar="FILE",
        help="a file that lists the class folders to use, one per line")
    add("--skip-unreadable", action="store_true",
        help="leave out image files that cannot be decoded")
    add("--device", type=cli.device_name, default="auto",
        help="auto (a GPU if there is one), cpu, cuda, cuda:1 …")
    add("--layers", action="store_true",
        help="instead: effective rank, I(layer; Z) and a linear probe (on at most 10,000 training "
        "images) after each stage of the encoder and each layer of the projector; to the run's "
        "layers.csv and layers.png")
    add("--picture", action="store_true",
        help="instead: a map of the test images by PCA, and nearest neighbours of a few; to the "
        "run's picture.png")
    add("--json", type=Path, metavar="FILE", help="also write the results to a JSON file")
    args = parser.parse_args(argv)

    sources = (args.run, args.weights, args.features)
    if sum(source is not None for source in sources) != 1:
        raise BadInput("give one of: a run's folder, --weights FILE, --features FILE")
    if args.weights and not args.dataset:
        raise BadInput("--weights needs a --dataset to measure on")
    if args.save_features and args.features:
        raise BadInput("--save-features has nothing to add to --features")
    if args.json and args.json in (args.features, args.weights):
        parser.error(f"--json would replace {args.json}, from which it reads")
    looks_inside = args.layers or args.picture
    if looks_inside and (args.json or args.save_features or not args.run):
        parser.error("--layers and --picture look into a run, and write to its folder alone")
    cli.check_output_file(args.json, "--json")
    cli.check_output_file(args.save_features, "--save-features")
    return args


def figures_of(args):
    """The results that the command line asks for, as a dict."""
    device = cli.open_device(args.device)
    if args.features:
        return measure_features(args.features, device)

    if args.run:
        encoder, projector, facts = load_run(args.run)
    else:
        encoder, facts = load_weights(args.weights)
        projector = None
    if not all(all_finite(net) for net in (encoder, projector) if net is not None):
        raise BadInput(f"{args.run or args.weights}: the networks' weights are not finite")

    if args.layers:
        cli.check_output_file(args.run / "layers.png", "--layers")
    if args.picture:
        cli.check_output_file(args.run / "picture.png", "--picture")

    name = args.dataset or facts["dataset"]
    print(f"loading {name} …", flush=True)
    if args.dataset:
        sizes = facts and {key: facts[key] for key in ("size", "image_size", "stem")}
        data = load(name, args.data_dir or "./data", classes=args.classes, like=sizes,
                    skip_unreadable=args.skip_unreadable)
    else:
        data = load_own_images(facts, args.data_dir, args.classes, args.skip_unreadable)

    print(f"{len(data['train_x']):,} training and {len(data['test_x']):,} test images of "
          f"{data['image_size']} pixels")
    for note in notes(data):
        print(note)

    # other people's normalisation is unknown: it stays the dataset's own
    if facts:
        data |= {"mean": facts["mean"], "std": facts["std"]}
    check_image_size(encoder, args.run or args.weights, data["image_size"])
    if args.layers or args.picture:
        look_inside(args, data, encoder, projector, device, linear_probe)
        return {}
    return {"dataset": name} | measure_images(data, encoder, projector, device, args.save_features)


def as_json(found):
    """The results as JSON; NaN and infinity, which JSON lacks, become null."""
    finite = {name: value if isinstance(value, str) or math.isfinite(value) else None
              for name, value in found.items()}
    return json.dumps(finite, indent=1, allow_nan=False) + "\n"


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
