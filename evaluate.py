"""Measures a trained encoder the standard way: linear probes, k-NN, few labels, and every metric of the paper.

    python evaluate.py runs/demo                                            on the run's own dataset
    python evaluate.py runs/mine --dataset cifar100                         on another: transfer
    python evaluate.py --weights resnet50.pth --dataset folder --data-dir my_images     torchvision's ResNet, anyone's weights
    python evaluate.py --features features.npz                              arrays r and z (n × p, n × d), and labels y if there are any
    from evaluate import linear_probe

The linear probe: the encoder is frozen, and its representations r of the training images as they are, standardised feature by
feature, are computed once. One linear layer learns on them by SGD: momentum 0.9, no decay, batch 256, 100 epochs, rate
falling to 0 as a cosine, at several rates side by side. The rate is chosen on a tenth of the training images (a fifth, where
there are under 1,000) that is held out for that; then the layer learns once more on all of them, and the test images are
looked at once. solo-learn and VICReg train this layer as long, but on augmented crops, and report the best figure on the
test set itself. linear_1pct and linear_10pct are the same with that share of each class's labels, one at least. k-NN and
the metrics are those of metrics.py; the metrics are taken on 2,048 fixed test images, alignment on two views of them.

Exit status: 0; 2 with one line on stderr for bad input.
"""
import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from augment import augment
from data import DATASETS, load, pixels, random_subset
from metrics import alignment, knn_accuracy, representation_metrics, top_k_accuracy
from models import RESNETS, encode, mlp, resnet

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TEST_IMAGES = 2048      # that the metrics are taken on, as in train.py


def train_layers(x, y, n_classes, rates, epochs, seed):
    """One linear layer for each rate, trained side by side: weights (rates × p × classes) and biases (rates × 1 × classes)."""
    generator = torch.Generator(x.device).manual_seed(seed)
    weight = torch.zeros(len(rates), x.shape[1], n_classes, device=x.device, requires_grad=True)
    bias = torch.zeros(len(rates), 1, n_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)
    rates = torch.tensor(rates, device=x.device).view(-1, 1, 1)
    batch_size = min(256, len(x))
    steps = len(x) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator, device=x.device)[:steps * batch_size].split(batch_size):
            logits = x[batch] @ weight + bias
            loss = F.cross_entropy(logits.flatten(0, 1), y[batch].repeat(len(rates))) * len(rates)
            optimizer.zero_grad()
            loss.backward()
            weight.grad *= rates        # a layer's rate is a factor on its gradient
            bias.grad *= rates
            optimizer.step()
            schedule.step()
    return weight.detach(), bias.detach()


def linear_probe(train_x, train_y, test_x, test_y, rates=RATES, epochs=100, seed=0):
    """Accuracy of a linear layer on frozen features, by the protocol above: a dict of top1, top5 (per cent) and rate.

    train_x: n × p, test_x: m × p, float; train_y (n), test_y (m): classes as integers ≥ 0, at least two of them and two images.
    """
    if len(train_x) < 2 or len(train_x) != len(train_y) or len(test_x) != len(test_y) or train_x.shape[1] != test_x.shape[1]:
        raise ValueError("expected two training samples or more, one label a row and equal widths")
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    train_x, test_x = ((x - mean) / std.clamp_min(1e-6 * std.max().clamp_min(1e-30)) for x in (train_x, test_x))
    n_classes, n = int(torch.cat([train_y, test_y]).max()) + 1, len(train_x)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(train_y.device)
    held_out, rest = order.tensor_split([max(1, n // (10 if n >= 1000 else 5))])
    weight, bias = train_layers(train_x[rest], train_y[rest], n_classes, rates, epochs, seed)
    correct = torch.stack([((train_x[held_out] @ w + b).argmax(1) == train_y[held_out]).sum() for w, b in zip(weight, bias)])
    rate = rates[int(correct.argmax())]     # the lowest of the best
    weight, bias = train_layers(train_x, train_y, n_classes, (rate,), epochs, seed)
    logits = test_x @ weight[0] + bias[0]
    return {"top1": top_k_accuracy(logits, test_y).item(), "top5": top_k_accuracy(logits, test_y, 5).item(), "rate": rate}


def share_of_labels(y, share, seed=0):
    """Sorted indices of that share of each class's samples at random, one at least."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in y.cpu().unique():
        mine = (y.cpu() == label).nonzero().flatten()
        found.append(mine[torch.randperm(len(mine), generator=generator)[:max(1, round(share * len(mine)))]])
    return torch.cat(found).sort().values


def measure(train_r, train_y, test_r, test_y, test_z=None):
    """Every figure of a trained encoder as a dict: train_r (n × p) and test_r (m × p) with labels, test_z (m × d) for the metrics."""
    found = {}
    whole = linear_probe(train_r, train_y, test_r, test_y)
    found |= {"linear_top1": whole["top1"], "linear_top5": whole["top5"], "linear_rate": whole["rate"]}
    found["knn_top1"] = knn_accuracy(train_r, train_y, test_r, test_y, k=min(20, len(train_r))).item()
    for name, share in (("linear_1pct", 0.01), ("linear_10pct", 0.1)):
        few = share_of_labels(train_y, share).to(train_y.device)
        if len(few) > 1:
            found[name] = linear_probe(train_r[few], train_y[few], test_r, test_y)["top1"]
    return found | metrics_of(test_r, test_z)


def metrics_of(r, z=None):
    """SPEC's metrics of r and z on fixed rows; where there is no z, those of r alone."""
    fixed = random_subset(len(r), TEST_IMAGES, seed=0).to(r.device)
    found = representation_metrics(r[fixed], (r if z is None else z)[fixed])
    if z is None:
        return {name: value for name, value in found.items() if name.endswith("_r")}
    return found | {"erank_r_over_mi": found["erank_r"] / found["mi"] if found["mi"] else float("nan")}


# --- what there is to measure -------------------------------------------------------------------------------------------

def stop(message):
    print(f"evaluate.py: {message}", file=sys.stderr)
    sys.exit(2)


def load_run(folder):
    """Encoder, projector and the facts of a run of train.py, from its last.pt."""
    path = Path(folder) / "last.pt"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config, nets = saved["config"], saved["nets"]
        encoder, p = resnet(config["--arch"], config["--width"], saved["stem"])
        projector = mlp(p, config["--projector"])
        for name, net in (("encoder", encoder), ("projector", projector)):
            net.load_state_dict({key.split(".", 1)[1]: value for key, value in nets.items() if key.startswith(f"{name}.")})
    except OSError:
        stop(f"{path} cannot be read: is {folder} the folder of a run of train.py?")
    except Exception as error:      # a damaged file can raise anything
        stop(f"{path} is not a whole checkpoint of train.py ({type(error).__name__})")
    return encoder, projector, saved


def load_weights(path):
    """An encoder from a state dict of torchvision's ResNet-18 or 50, whichever it fits; its stem is what the weights have."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: value for key, value in state.get("state_dict", state).items() if not key.startswith("fc.")}
        width, stem = state["conv1.weight"].shape[0], "small" if state["conv1.weight"].shape[2] == 3 else "imagenet"
        arch = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
        encoder, _ = resnet(arch, width, stem)
        encoder.load_state_dict(state)
    except OSError as error:
        stop(error)
    except Exception as error:
        stop(f"{path} is not a state dict of torchvision's ResNet-18 or ResNet-50 ({' '.join(str(error).split())[:150]})")
    return encoder


def measure_features(path):
    """The figures of an npz file: the metrics of r and z; with y, k-NN and probes too, learnt on four fifths of the rows."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("r", "z", "y") if name in file}
        r, z = torch.from_numpy(arrays["r"]).float(), torch.from_numpy(arrays["z"]).float()
    except Exception as error:
        stop(f"{path} is not an npz file with arrays r and z, and optionally y ({' '.join(str(error).split()) or type(error).__name__})")
    if r.ndim != 2 or z.ndim != 2 or len(r) != len(z) or len(r) < 2 or not (r.isfinite().all() and z.isfinite().all()):
        stop(f"{path}: r and z must be finite matrices of as many rows, two or more, not {tuple(r.shape)} and {tuple(z.shape)}")
    if "y" not in arrays:
        return metrics_of(r, z)
    y = torch.from_numpy(arrays["y"]).long().flatten()
    if len(y) != len(r) or y.min() < 0 or len(y) < 10:
        stop(f"{path}: y must be a label from 0 for each of the rows, ten or more, not {tuple(arrays['y'].shape)}")
    order = torch.randperm(len(r), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(r) // 5])
    return measure(r[train], y[train], r[test], y[test]) | metrics_of(r, z)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message} (--help explains the flags)")
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="the folder of a run of train.py")
    add("--weights", type=Path, metavar="FILE", help="a state dict of torchvision's ResNet-18 or ResNet-50 instead")
    add("--features", type=Path, metavar="FILE", help="an npz file with arrays r, z and optionally y instead")
    add("--dataset", choices=DATASETS, help="default: the run's own")
    add("--data-dir", metavar="DIR", help="where the files are (default: where the run found them, or ./data)")
    add("--classes", type=Path, metavar="FILE", help="names of the class folders to use, one a line")
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)
    if sum(source is not None for source in (args.run, args.weights, args.features)) != 1:
        stop("give one of: a run's folder, --weights FILE, --features FILE")
    if args.weights and not args.dataset:
        stop("--weights needs a --dataset to measure on")
    if args.json and (args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK)):
        stop(f"cannot write to {args.json}")
    try:
        if args.features:
            found = measure_features(args.features)
        else:
            device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
            torch.empty(0, device=device)
            encoder, projector, saved = load_run(args.run) if args.run else (None, None, None)
            name = args.dataset or saved["config"]["--dataset"]
            print(f"loading {name} …", flush=True)
            own = saved is not None and not args.dataset        # the very images of the run: its place, classes and sizes
            classes = args.classes or (saved["classes"] if own and DATASETS[name]["layout"] in ("classes", "folder") and saved["classes"] else None)
            resident = "no" if own and DATASETS[name]["layout"] == "folder" else "auto"
            data = load(name, args.data_dir or (saved["data_dir"] if own else "./data"), classes=classes, resident=resident)
            data |= {key: saved[key] for key in ("size", "image_size") if own}
            if encoder is None:
                encoder = load_weights(args.weights)
            facts = {key: (saved or data)[key] for key in ("mean", "std")}
            heads = [projector.to(device)] if projector else []
            encoder.to(device, memory_format=torch.channels_last)
            features = lambda split, index, *nets: [torch.cat(parts) for parts in zip(*(
                encode(pixels(data, split, some).to(device), encoder, *nets, **facts) for some in index.split(4096)))]
            test_r, *test_z = features("test_x", torch.arange(len(data["test_x"])), *heads)
            labelled = (data["train_y"] >= 0).nonzero().flatten()
            if data["classes"]:
                train_r, = features("train_x", labelled)
                found = measure(train_r, data["train_y"][labelled].to(device), test_r, data["test_y"].to(device), *test_z)
            else:
                found = metrics_of(test_r, *test_z)
            fixed, generator = pixels(data, "test_x", random_subset(len(test_r), TEST_IMAGES, seed=0)).to(device), torch.Generator(device)
            views = [augment(fixed, "vicreg", view, generator.manual_seed(view)) for view in (0, 1)]
            first, second = (encode(view, encoder, *heads, **facts)[-1] for view in views)
            found["alignment_z" if heads else "alignment_r"] = alignment(first, second).item()
            found = {"dataset": name, "labelled_train_images": len(labelled), "test_images": len(test_r)} | found
        for key, value in found.items():
            print(f"{key:22}{value:12.4g}" if isinstance(value, float) else f"{key:22}{value:>12}")
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError, AssertionError) as error:
        stop(str(error).splitlines()[0])
    except RuntimeError as error:
        stop(f"{str(error).splitlines()[0]} (--device {args.device})")


if __name__ == "__main__":
    main()
