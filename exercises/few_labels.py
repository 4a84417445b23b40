"""Exercise 8: what a trained encoder is worth: accuracy against labels per class.

    python exercises/few_labels.py runs/mine                    any run of train.py
    python exercises/few_labels.py FOLDER --dataset cifar100 --shrink 2    backbone.pt, encoder.json

A linear probe learns from 1, 10, 100 and all labels of each class, on the frozen trained encoder
and on one with random weights (the floor). The ceiling is the same network trained on all labels.
All training images take part, also after a run with --limit-train.
Prints a table and draws it. ± is the standard deviation over three choices of the labels.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

import torch                                        # noqa: E402
import torch.nn.functional as F                     # noqa: E402

from augment import normalise                       # noqa: E402
from data import DATASETS, load, pixels             # noqa: E402
from evaluate import linear_probe, load_own_images, load_run        # noqa: E402
from figures import new_figure                      # noqa: E402
from metrics import top_k_accuracy                  # noqa: E402
from models import load_encoder, make_encoder       # noqa: E402
from probe import encode_images                     # noqa: E402
from run import BadInput, Parser, at_least, one_line_errors, open_device    # noqa: E402

PER_CLASS = (1, 10, 100)
CHOICES = 3         # of the labels


def load_folder(folder, dataset, data_dir, shrink):
    """(trained encoder, untrained encoder, width p of their outputs, data) of a run's folder.

    Without last.pt, backbone.pt and encoder.json are enough, if a dataset is named.
    """
    if dataset is None:
        encoder, _, facts = load_run(folder)
        data = load_own_images(facts, data_dir)
        facts |= {"arch": facts["flags"]["--arch"], "width": facts["flags"]["--width"]}
    else:
        encoder, facts = load_encoder(folder)
        size = facts["image_size"] * shrink if dataset == "folder" else None
        data = load(dataset, data_dir or "data", resident="yes", image_size=size)
    data |= {"mean": facts["mean"], "std": facts["std"]}
    if shrink > 1:
        for split in ("train_x", "test_x"):
            means = F.avg_pool2d(data[split].float(), shrink)       # n × 3 × s/shrink × s/shrink
            data[split] = means.round().to(torch.uint8)
        data["size"] = data["image_size"] = data["train_x"].shape[-1]
    torch.manual_seed(0)
    untrained, p = make_encoder(facts["arch"], facts["width"], facts["stem"], facts["image_size"])
    return encoder, untrained, p, data


def labels_per_class(y, count, seed):
    """Indices of `count` random images of each class in y (n, int64)."""
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return torch.cat([shuffled[y[shuffled] == label][:count] for label in y.unique()])


def curve(encoder, data, device):
    """{labels per class, or "all": accuracies of the probe in per cent, a tensor}."""
    train_y, test_y = data["train_y"].cpu(), data["test_y"].to(device)
    labelled = (train_y >= 0).nonzero().flatten()
    train_y = train_y[labelled]
    train_r, = encode_images(data, "train_x", labelled, [encoder], device)          # n × p
    test_r, = encode_images(data, "test_x", torch.arange(len(test_y)), [encoder], device)
    smallest = int(train_y.bincount().min())
    subsets = {count: [labels_per_class(train_y, count, seed) for seed in range(CHOICES)]
               for count in PER_CLASS if count < smallest}
    subsets["all"] = [torch.arange(len(train_y))]
    accuracies = {}
    for count, indices in subsets.items():
        probes = [linear_probe(train_r[index], train_y[index].to(device), test_r, test_y)
                  for index in indices]
        accuracies[count] = torch.tensor([probe["top1"] for probe in probes])
    return accuracies


def supervised_accuracy(net, p, data, epochs, device):
    """Test accuracy of net (output of width p) and a linear layer, trained on all labels."""
    labelled = (data["train_y"] >= 0).nonzero().flatten().cpu()
    y = data["train_y"].cpu()[labelled]
    images = pixels(data, "train_x", labelled).cpu()        # n × 3 × s × s, uint8
    size = images.shape[-1]
    torch.manual_seed(0)
    head = torch.nn.Linear(p, len(data["classes"])).to(device)
    net.to(device).train()
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1, momentum=0.9,
                                weight_decay=5e-4, nesterov=True)
    batch_size = min(128, len(y))
    steps = len(y) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(y))[:steps * batch_size].split(batch_size):
            x = normalise(images[batch].to(device), data["mean"], data["std"])
            top, left = torch.randint(5, (2,)).tolist()     # a shift of up to two pixels
            x = F.pad(x, (2, 2, 2, 2))[:, :, top:top + size, left:left + size]
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x, x.flip(3))
            loss = F.cross_entropy(head(net(x)), y[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    test = torch.arange(len(data["test_y"]))
    _, logits = encode_images(data, "test_x", test, [net, head], device)
    return float(top_k_accuracy(logits, data["test_y"].to(device)))


def draw(path, curves, ceiling):
    figure, (axis,) = new_figure(1, 1, 5, 3.6)
    for name, accuracies in curves.items():
        means = [float(values.mean()) for values in accuracies.values()]
        axis.plot([str(count) for count in accuracies], means, marker="o", label=name)
    if ceiling is not None:
        axis.axhline(ceiling, color="grey", linestyle="--", label="supervised, all labels")
    axis.set(xlabel="labels per class", ylabel="test accuracy (%)", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=150)


def main(argv=None):
    with one_line_errors("few_labels.py"):
        parser = Parser("few_labels.py", __doc__)
        add = parser.add_argument
        add("run", type=Path, help="the folder of a run")
        add("--dataset", choices=DATASETS, help="default: the run's own")
        add("--data-dir", metavar="DIR", help="folder of the dataset (default: the run's own)")
        add("--shrink", type=at_least(1), default=1, metavar="N",
            help="averages N × N pixels, for an encoder that was trained on smaller images")
        add("--epochs", type=at_least(0), default=10, metavar="N",
            help="of the supervised network; 0 leaves it out")
        add("--out", type=Path, default=Path("few_labels.png"), metavar="PNG", help="the figure")
        args = parser.parse_args(argv)
        device = open_device("auto")
        encoder, untrained, p, data = load_folder(args.run, args.dataset, args.data_dir,
                                                  args.shrink)
        if not data["classes"]:
            raise BadInput("these images have no labels")
        curves = {"trained": curve(encoder.to(device), data, device),
                  "untrained": curve(untrained.to(device), data, device)}
        print("labels per class  trained        untrained")
        for count in curves["trained"]:
            line = f"{count:<16}"
            for accuracies in curves.values():
                spread = "" if count == "all" else f" ± {accuracies[count].std():.1f}"
                line += f"{accuracies[count].mean():9.1f}{spread:7}"
            print(line)
        ceiling = None
        if args.epochs:
            ceiling = supervised_accuracy(untrained, p, data, args.epochs, device)
            print(f"supervised network, all labels, {args.epochs} epochs: {ceiling:.1f}")
        draw(args.out, curves, ceiling)
        print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
