"""Evaluates a trained encoder: linear probes, k-NN, few labels, all metrics.

    python evaluate.py runs/demo                         on the run's own dataset
    python evaluate.py runs/mine --dataset cifar100      on another dataset: transfer
    python evaluate.py --weights resnet50.pth --dataset folder --data-dir my_images
    python evaluate.py --features features.npz           r, and perhaps z, labels y, split
    python evaluate.py runs/mine --layers                layer by layer; draws layers.png

The linear probe is trained on r of the training images, not augmented, each feature standardised:
SGD with momentum 0.9, no weight decay, batch 256, 100 epochs, a cosine to 0. Learning rates are
compared on a held-out tenth of the training images (a fifth of fewer than 1,000); with the best,
a layer is trained on all, and tested once. solo-learn and VICReg report the best test accuracy.

linear_1pct and linear_10pct train on that share of each class's labels. k-NN and metrics are those
of metrics.py; metrics take 10,000 test images, alignment two views of 256, LiDAR ten of 1,000.
"""
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from baselines.all_methods import METHODS
from data import DATASETS, load, random_subset
from figures import new_figure
from losses import matrices
from methods import Method
from metrics import (alignment, effective_rank, knn_accuracy, lidar, mutual_information,
                     representation_metrics, standard_error, top_k_accuracy)
from models import load_encoder, make_encoder, resnet
from probe import METRIC_IMAGES, VIEW_IMAGES, encode_images, encode_views   # as in training
from run import (BadInput, Parser, load_checkpoint, one_line_errors, open_device, write_text,
                 write_whole)

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)     # learning rates that the probe tries
LIDAR_IMAGES = 1000         # LiDAR cannot exceed this, nor p
LIDAR_VIEWS = 10


# --- the linear probe -------------------------------------------------------------------------

def train_layers(x, y, n_classes, rates, epochs, seed):
    """Trains one linear layer for each learning rate, a factor on its gradient, side by side.

    x: n × p, y: n. Returns weights (rates × p × classes) and biases (rates × 1 × classes).
    """
    n, p = x.shape
    generator = torch.Generator(x.device).manual_seed(seed)
    weight = x.new_zeros(len(rates), p, n_classes, requires_grad=True)
    bias = x.new_zeros(len(rates), 1, n_classes, requires_grad=True)
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
            weight.grad *= factor
            bias.grad *= factor
            optimizer.step()
            schedule.step()
    return weight.detach(), bias.detach()


def linear_probe(train_x, train_y, test_x, test_y, rates=RATES, epochs=100, seed=0):
    """Accuracy of a linear layer on frozen features; this file's docstring has the protocol.

    train_x: n × p and test_x: m × p, floating point, n ≥ 2; train_y (n) and test_y (m): classes
    as integers from 0; tensors or NumPy arrays. Returns a dict of top1 and top5, in per cent, and
    rate, the one chosen of rates.
    """
    (train_x,), (test_x,) = matrices(train_x), matrices(test_x)
    train_y, test_y = torch.as_tensor(train_y).long(), torch.as_tensor(test_y).long()
    n_classes = int(torch.cat([train_y, test_y]).max()) + 1
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    std = std.clamp_min(1e-6 * std.max().clamp_min(1e-30))      # a constant feature stays near 0
    train_x = (train_x - mean) / std
    test_x = (test_x - mean) / std

    n = len(train_x)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(train_y.device)
    held_out, rest = order.tensor_split([max(1, n // 10 if n >= 1000 else n // 5)])
    layers = train_layers(train_x[rest], train_y[rest], n_classes, rates, epochs, seed)
    correct = [int(((train_x[held_out] @ weight + bias).argmax(1) == train_y[held_out]).sum())
               for weight, bias in zip(*layers)]
    rate = rates[correct.index(max(correct))]           # the first if several are best
    weight, bias = train_layers(train_x, train_y, n_classes, (rate,), epochs, seed)
    logits = test_x @ weight[0] + bias[0]       # m × classes
    return {"top1": top_k_accuracy(logits, test_y).item(),
            "top5": top_k_accuracy(logits, test_y, 5).item(), "rate": rate}


# --- accuracies and metrics, from features ----------------------------------------------------

def share_of_labels(y, share):
    """Sorted indices of a random share (0 … 1) of each class's samples in y (n), at least one."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for label in y.unique():
        samples = (y == label).nonzero().flatten().cpu()
        count = max(1, round(share * len(samples)))
        chosen.append(samples[torch.randperm(len(samples), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def accuracies(train_r, train_y, test_r, test_y):
    """Accuracies of linear probes and k-NN in per cent, as a dict. r: n × p, y: n."""
    whole = linear_probe(train_r, train_y, test_r, test_y)
    results = {
        "linear_top1": whole["top1"],
        "linear_top1_error": standard_error(whole["top1"], len(test_y)),
        "linear_top5": whole["top5"],
        "linear_rate": whole["rate"],
        "knn_top1": knn_accuracy(train_r, train_y, test_r, test_y, min(20, len(train_r))).item(),
    }
    for name, share in {"linear_1pct": 0.01, "linear_10pct": 0.1}.items():
        few = share_of_labels(train_y, share).to(train_y.device)
        if len(few) > 1:        # one is held out, and one is needed to learn from
            results[name] = linear_probe(train_r[few], train_y[few], test_r, test_y)["top1"]
    return results


def metrics_of(r, z=None):
    """{name: metric} of r (n × p) and z (n × d), or of r alone."""
    fixed = random_subset(len(r), METRIC_IMAGES, seed=0).to(r.device)
    if z is None:
        results = representation_metrics(r[fixed], r[fixed])
        return {name: value for name, value in results.items() if name.endswith("_r")}
    return representation_metrics(r[fixed], z[fixed])


def measure_features(path, device="cpu"):
    """Accuracies and metrics of an npz file of features, computed on the device, as a dict.

    The file holds r (n × p), and may hold z (n × d) and, for accuracies, y (n numbers or words;
    −1: no label) and split (n words): probes are tested where it is "test", and learn from the
    other rows. Raises OSError.
    """
    with np.load(path) as file:
        arrays = dict(file)
    r, *z = [torch.from_numpy(arrays[name].astype(np.float32)).to(device)
             for name in ("r", "z") if name in arrays]
    results = metrics_of(r, *z)         # of all rows: metrics need no labels
    if "y" not in arrays or "split" not in arrays:
        return results
    labels, numbers = np.unique(arrays["y"], return_inverse=True)
    y = torch.from_numpy(numbers - int(labels[0] == -1)).to(device)
    in_test = torch.from_numpy(arrays["split"] == "test").to(device)
    train, test = (y >= 0) & ~in_test, (y >= 0) & in_test
    return accuracies(r[train], y[train], r[test], y[test]) | results


# --- from a trained encoder -------------------------------------------------------------------

def load_run(folder):
    """(encoder, projector, facts) of a run of train.py, from its last.pt, on the CPU.

    facts: those of run.facts_of, dataset, and flags: facts["flags"]["--arch"]. Raises BadInput.
    """
    saved = load_checkpoint(Path(folder) / "last.pt")
    if saved is None:
        raise BadInput(f"{folder} is not the folder of a run: it has no last.pt")
    flags = saved["config"]
    facts = saved["facts"] | {"dataset": flags["--dataset"], "flags": flags}
    encoder, p = make_encoder(flags["--arch"], flags["--width"], facts["stem"], facts["image_size"])
    method = METHODS.get(flags["--method"], Method)     # Method for one of the user's own
    projector = method.make_projector(p, flags["--projector"], flags["--set"])
    nets = torch.nn.ModuleDict({"encoder": encoder, "projector": projector})
    nets.load_state_dict({name: saved["learner"][f"method.{name}"] for name in nets.state_dict()})
    return encoder, projector, facts


def load_weights(path):
    """(encoder, facts) from a run's backbone.pt and encoder.json, see models.load_encoder, or a
    state dict of torchvision's ResNet-18 or ResNet-50, of any width and stem, with facts empty.
    """
    if path.name == "backbone.pt":
        return load_encoder(path.parent)
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    # ResNet-50's blocks have three convolutions each, ResNet-18's two
    arch = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
    width, _, kernel_size, _ = state["conv1.weight"].shape
    encoder, _ = resnet(arch, width, "small" if kernel_size == 3 else "imagenet")
    encoder.load_state_dict(state)
    return encoder, {}


def load_own_images(facts, data_dir=None):
    """The images that a run was trained on, see data.load. data_dir: if they have moved."""
    settings = {"classes": facts["classes"]} if facts["flags"]["--classes"] else {}
    if facts["dataset"] == "folder":    # views are cropped from whole images, so not resident
        settings |= {"resident": "no", "image_size": facts["image_size"]}
    return load(facts["dataset"], data_dir or facts["data_dir"], **settings)


def measure_images(data, nets, device, save_to=None):
    """{name: number} on a dataset of data.load; nets: the encoder, and perhaps the projector;
    save_to: a file for all images' features, see save_features, or None."""
    n_test = len(data["test_y"])
    labelled = (data["train_y"] >= 0).nonzero().flatten()
    results = {"labelled_train_images": len(labelled), "test_images": n_test}
    test = encode_images(data, "test_x", torch.arange(n_test), nets, device)
    if save_to is not None:
        train = encode_images(data, "train_x", torch.arange(len(data["train_y"])), nets, device)
        save_features(save_to, data, train, test)
        train_r = train[0][labelled.to(device)]
    elif data["classes"]:
        train_r, = encode_images(data, "train_x", labelled, nets[:1], device)
    if data["classes"]:
        results |= accuracies(train_r, data["train_y"][labelled].to(device), test[0],
                              data["test_y"].to(device))
    results |= metrics_of(*test)
    for_lidar = random_subset(n_test, LIDAR_IMAGES, seed=0)
    two_views = encode_views(data, random_subset(n_test, VIEW_IMAGES, seed=0), 2, nets, device)
    many_views = encode_views(data, for_lidar, LIDAR_VIEWS, nets, device)
    for name, two, many in zip("rz", two_views, many_views):
        results[f"alignment_{name}"] = alignment(two[:, 0], two[:, 1]).item()
        results[f"lidar_{name}"] = lidar(many).item()
    return results


def save_features(path, data, train, test):
    """Writes an npz file for measure_features. train, test: [r] or [r, z] of all these images."""
    arrays = {name: torch.cat(parts).cpu().numpy() for name, *parts in zip("rz", train, test)}
    arrays["split"] = np.repeat(["train", "test"], [len(data["train_x"]), len(data["test_x"])])
    if data["classes"]:
        arrays["y"] = torch.cat([data["train_y"], data["test_y"]]).numpy()
    write_whole(path, lambda file: np.savez(file, **arrays))


# --- layer by layer -----------------------------------------------------------------------------

def layer_outputs(data, split, index, encoder, projector, device):
    """{layer: n × width} of the images data[split][index], from the first stage to r and z.

    Maps of features are averaged over their positions; so a ResNet's last stage is r. A
    projector's hidden layers are the inputs of its Linears but the first.
    """
    outputs = {}

    def keep(name, module, inputs, output):
        x = inputs[0] if name.startswith("projector") else output
        x = x.mean((2, 3)) if x.ndim == 4 else x
        outputs.setdefault(name, []).append(x.clone())      # the next layer may be in-place

    layers = {name: child for name, child in encoder.named_children() if list(child.children())}
    _, *linears = [layer for layer in projector.modules() if isinstance(layer, torch.nn.Linear)]
    layers |= {f"projector {i}": layer for i, layer in enumerate(linears, start=1)}
    layers |= {"r": encoder, "z": projector}
    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in layers.items()]
    encode_images(data, split, index, [encoder, projector], device)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(batches) for name, batches in outputs.items()}


def measure_layers(data, encoder, projector, device):
    """{layer: {width, erank, mi: I(layer; Z), linear_top1}}, of at most METRIC_IMAGES images."""
    test = random_subset(len(data["test_x"]), METRIC_IMAGES, seed=0)
    tested = layer_outputs(data, "test_x", test, encoder, projector, device)
    rows = {name: {"width": x.shape[1], "erank": effective_rank(x).item(),
                   "mi": mutual_information(x, tested["z"]).item()} for name, x in tested.items()}
    if data["classes"]:
        labelled = (data["train_y"] >= 0).nonzero().flatten()
        train = labelled[random_subset(len(labelled), METRIC_IMAGES, seed=0)]
        train_y, test_y = data["train_y"][train].to(device), data["test_y"][test].to(device)
        learnt_from = layer_outputs(data, "train_x", train, encoder, projector, device)
        for name, x in tested.items():
            rows[name]["linear_top1"] = linear_probe(learnt_from[name], train_y, x, test_y)["top1"]
    return rows


def draw_layers(path, rows):
    """Draws a panel for each measure, over the layers in order. rows: of measure_layers."""
    _, *measures = rows["z"]            # all but the width
    figure, axes = new_figure(len(measures), 3, 4, 4)
    for axis, measure in zip(axes, measures):
        axis.plot(list(rows), [row[measure] for row in rows.values()], marker="o")
        axis.set_title(measure)
        axis.tick_params(axis="x", rotation=90)
    figure.savefig(path, dpi=150)


def parse_args(argv):
    parser = Parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="the folder of a run of train.py")
    add("--weights", type=Path, metavar="FILE",
        help="instead of a run: a state dict of ResNet-18 or ResNet-50, or a run's backbone.pt")
    add("--features", type=Path, metavar="FILE", help="instead: an npz file with r, z, y and split")
    add("--save-features", type=Path, metavar="FILE", help="write those of all images to an npz")
    add("--dataset", choices=DATASETS, help="default: the run's own")
    add("--data-dir", metavar="DIR", help="of the dataset (default: the run's own, or ./data)")
    add("--classes", type=Path, metavar="FILE", help="of --dataset: the class folders to use")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 …")
    add("--layers", action="store_true",
        help="instead: rank, I(layer; Z) and a probe after each stage of encoder and projector")
    add("--json", type=Path, metavar="FILE", help="also write the results to a JSON file")
    args = parser.parse_args(argv)
    if [args.run, args.weights, args.features].count(None) != 2:
        parser.error("give one of: a run's folder, --weights FILE, --features FILE")
    if (args.weights or args.classes) and not args.dataset:
        parser.error("--weights and --classes need a --dataset")
    if args.layers and not args.run:
        parser.error("--layers looks into a run")
    return args


def evaluate_command(args):
    """The results that the command line asks for, as a dict."""
    device = open_device(args.device)
    if args.features:
        return measure_features(args.features, device)
    *nets, facts = load_run(args.run) if args.run else load_weights(args.weights)
    if args.dataset:
        size = facts.get("image_size") if args.dataset == "folder" else None
        data = load(args.dataset, args.data_dir or "data", classes=args.classes, image_size=size)
    else:
        data = load_own_images(facts, args.data_dir)
    # other people's normalisation is unknown: it stays the dataset's own
    data |= {key: facts[key] for key in ("mean", "std") if key in facts}
    nets[0].to(memory_format=torch.channels_last)
    nets = [net.to(device) for net in nets]
    if args.layers:
        rows = measure_layers(data, *nets, device)
        draw_layers(args.run / "layers.png", rows)
        return rows
    name = args.dataset or facts["dataset"]
    return {"dataset": name} | measure_images(data, nets, device, args.save_features)


def shown(value):
    if isinstance(value, dict):
        return "  ".join(f"{name} {shown(number)}" for name, number in value.items())
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def main(argv=None):
    with one_line_errors("evaluate.py"):
        args = parse_args(argv)
        results = evaluate_command(args)
        for name, value in results.items():
            print(f"{name:22}{shown(value):>12}")
        if args.json:       # JSON has no NaN
            known = {name: None if value != value else value for name, value in results.items()}
            write_text(args.json, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
