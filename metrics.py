"""The metrics that AdaDim's paper reads its training by, as plain functions of tensors.

Needs torch and losses.py. The entropy H_2, I(R;Z) and W2 are losses too and stand there; here are the rest, and
`representation_metrics(r, z)`, which computes all that a row of log.csv holds:

    from metrics import effective_rank, representation_metrics
    effective_rank(z)                       # between 1 and min(n, d)
    representation_metrics(r, z)["mi"]      # I(R;Z) in nats

Its main draws the logs of runs, computes Table 3's correlations, and can do so while a run goes on:

    python metrics.py runs/a runs/b … --out figures

Conventions: x is a floating-point matrix n × d, one sample a row; it is computed on in float32 (float64 stays
float64). Results are 0-dim tensors; accuracies are in per cent. NaN in gives NaN out (a count: 0). ValueError on wrong
shapes or settings.
"""
import argparse
import csv
import math
import re
import sys
from pathlib import Path

import torch

from losses import (cosine_kernel, matrices, matrix_mutual_information, renyi_entropy, spectrum, unit,
                    wasserstein_uniformity)


def effective_rank(x):
    """exp of the entropy of the singular values' shares p = σ/Σσ, x uncentred (Roy & Vetterli, the paper's [35]).

    From 1 (all rows along one line; zeros too) to min(n, d) (equal singular values).
    """
    x, = matrices(x)
    sigma = spectrum(torch.linalg.svdvals, x)
    p = sigma / sigma.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.special.entr(p).sum().exp()        # entr(p) = −p log p, with 0·log 0 = 0


def uniformity(x, t=2.0):
    """log mean_{i<j} exp(−t‖x̂_i − x̂_j‖²) (Wang & Isola, the paper's [47]); 0 is collapse, lower is more uniform. n ≥ 2."""
    x, = matrices(x, rows=2)
    n = len(x)
    squared_distance = 2 - 2 * cosine_kernel(x)
    others = squared_distance[~torch.eye(n, dtype=torch.bool, device=x.device)]
    return torch.logsumexp(-t * others.clamp_min(0), dim=0) - math.log(n * (n - 1))


def alignment(x, y):
    """mean_i ‖x̂_i − ŷ_i‖² of two views x, y (n × d) of the same images (Wang & Isola); 0 is best, 4 worst."""
    x, y = matrices(x, y, same_width=True)
    return (unit(x) - unit(y)).square().sum(1).mean()


def covariance_spectrum(x):
    """The d eigenvalues of x's covariance divided by their sum, largest first; all zero if x is constant."""
    x, = matrices(x)
    sigma = spectrum(torch.linalg.svdvals, x - x.mean(0))
    sigma = sigma * (sigma.norm() > torch.finfo(x.dtype).eps * x.norm())    # below that it is the mean's rounding
    share = sigma.square() / sigma.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.cat([share, share.new_zeros(x.shape[1] - len(share))])


def eigenvalue_count(x, threshold=0.01):
    """How many covariance eigenvalues hold more than `threshold` of their sum [§A.8]."""
    return (covariance_spectrum(x) > threshold).sum()


def explained_variance(x, fraction=0.3):
    """Share of the variance, 0 to 1, held by the largest `fraction` of the d covariance eigenvalues [§A.8]; 1 if constant."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    share = covariance_spectrum(x)
    if share[0] == 0:
        return torch.ones_like(share[0])
    return share[:max(1, int(fraction * len(share) + 0.5))].sum()


def mutual_information(r, z, order=2, kernel="samples"):
    """I(R;Z) in nats: losses.matrix_mutual_information, or with kernel="features" §A.3's other reading of it.

    r: n × p, z: n × d. "samples" compares the n × n kernels of the rows, the loss's definition. "features" normalises
    the columns and compares the d × d kernels of the features, and so needs p = d.
    """
    if kernel not in ("samples", "features"):
        raise ValueError(f"kernel must be samples or features, got {kernel!r}")
    if kernel == "features":
        r, z = r.T, z.T
    return matrix_mutual_information(r, z, order)


def knn_accuracy(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    """Weighted k-NN accuracy in per cent: each of the k nearest by cosine votes for its class with exp(cosine/T).

    train_x: n × d, test_x: m × d, train_y (n), test_y (m): classes as integers ≥ 0. k is at most n.
    """
    train_x, = matrices(train_x)
    test_x, = matrices(test_x)
    if len(train_x) != len(train_y) or len(test_x) != len(test_y) or train_x.shape[1] != test_x.shape[1]:
        raise ValueError("expected one label a row and equal widths")
    if not 1 <= k <= len(train_x) or not temperature > 0:
        raise ValueError(f"expected 1 ≤ k ≤ {len(train_x)} and a positive temperature, got {k} and {temperature}")
    train_x, n_classes, correct = unit(train_x), int(train_y.max()) + 1, 0
    for x, y in zip(unit(test_x).split(1024), test_y.split(1024)):      # in pieces: m × n may not fit
        cosine, nearest = (x @ train_x.T).topk(k)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()         # the shift cancels; exp(1/T) could overflow
        votes = weight.new_zeros(len(x), n_classes).scatter_add_(1, train_y[nearest], weight)
        correct = correct + (votes.argmax(1) == y).sum()
    return 100 * correct / len(test_y)


def top_k_accuracy(logits, y, k=1):
    """Per cent of the rows of logits (n × classes) whose label y (n) is among the k largest; k at most the classes."""
    return 100 * (logits.topk(min(k, logits.shape[1])).indices == y[:, None]).any(1).float().mean()


def pearson(x, y):
    """Pearson's correlation of two equally long vectors, tensors or lists; NaN where one of them is constant."""
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two vectors of the same length ≥ 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (x.norm() * y.norm())


@torch.no_grad()
def representation_metrics(r, z):
    """Every metric of log.csv that needs no labels, as a dict of floats. r: n × p, z: n × d, of the same n ≥ 2 images."""
    found = {"mi": matrix_mutual_information(r, z)}
    for name, x in (("r", r), ("z", z)):
        found[f"erank_{name}"] = effective_rank(x)
        found[f"h2_{name}"] = renyi_entropy(cosine_kernel(x))
        found[f"uniformity_{name}"] = uniformity(x)
        found[f"w2_{name}"] = wasserstein_uniformity(x)
        found[f"eigs_{name}"] = eigenvalue_count(x)
        found[f"var30_{name}"] = explained_variance(x)
    return {name: float(value) for name, value in found.items()}


# --- from the logs of runs ----------------------------------------------------------------------------------------------

RUN_PANELS = (      # title, and the lines: name in the legend → column of log.csv
    ("Accuracy on the test images (%)", {"online linear probe": "probe_top1", "k-NN": "knn_top1"}),
    ("α, the weight of InfoNCE", {"": "alpha"}),
    ("Effective rank", {"representations R": "erank_r", "embeddings Z": "erank_z"}),
    ("Mutual information I(R;Z) (nats)", {"": "mi"}),
)
PANELS = RUN_PANELS + (
    ("Entropy H₂ (nats)", {"R": "h2_r", "Z": "h2_z"}),
    ("Eigenvalues with over 1 % of the variance", {"R": "eigs_r", "Z": "eigs_z"}),
    ("Variance in the top 30 % of eigenvalues", {"R": "var30_r", "Z": "var30_z"}),
    ("Uniformity (Wang & Isola)", {"R": "uniformity_r", "Z": "uniformity_z"}),
    ("Wasserstein uniformity W₂", {"R": "w2_r", "Z": "w2_z"}),
    ("Loss: InfoNCE", {"": "info_nce"}),
    ("Loss: VICReg", {"": "vicreg"}),
    ("Loss: I(R;Z) of a batch (nats)", {"": "mi_loss"}),
)
SUMMARY = ("probe_top1", "knn_top1", "erank_r", "erank_z", "mi", "alpha")       # a run's last values, in tables
CORRELATES = {"effective rank of R": ("erank_r",), "effective rank of Z": ("erank_z",), "I(R;Z)": ("mi",),
              "effective rank of R / I(R;Z)": ("erank_r", "mi"), "effective rank of Z / I(R;Z)": ("erank_z", "mi")}
COLOURS = ("#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#0072b2", "#000000")     # Okabe and Ito's: colour-blind safe


def read_log(path):
    """A run's log.csv as a dict of columns, lists of floats with NaN where a field is empty; a last, cut-off line is left out.

    Raises OSError, or ValueError if the file is no such log.
    """
    with open(path, newline="", encoding="utf-8") as file:
        text = file.read()
    try:
        names, *rows = csv.reader(text[:text.rfind("\n") + 1].splitlines())
        columns = {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(names)}
        return {"epoch": columns.pop("epoch"), **columns}
    except (ValueError, IndexError, KeyError):
        raise ValueError(f"{path} is not the log of a run") from None


def last(log, column):
    """The last number in a column; NaN if there is none."""
    return next((value for value in reversed(log.get(column, [])) if value == value), math.nan)


def method(folder):
    """What a run's folder is named after, without its seed: alpha-0.2-beta-0-seed-1 → α 0.2, β 0."""
    name = re.sub(r"-?seed-?\d+$", "", folder) or folder
    for pattern, text in ((r"-alpha-from-r", ", α from R"), (r"-alpha-every-", ", α every "), (r"-mi-scale-1", ", m 1"),
                          (r"-beta[-_]", ", β "), (r"minus-", "−"), (r"\balpha[-_]", "α ")):
        name = re.sub(pattern, text, name)
    return name


def colours(methods):
    """{method: colour}: a scale for the fixed α alone, a colour of its own for each other method, whatever else is drawn."""
    from matplotlib import colormaps
    usual = {"AdaDim": "α ada, β 0.0001", "SimCLR": "α 1, β 0", "VICReg": "α 0, β 0"}
    fixed = {name: re.fullmatch(r".*α ([\d.]+)(, β 0)?", usual.get(name, name)) for name in methods}
    named = {"α ada, β 0.0001": COLOURS[0], "α ada, β 0": COLOURS[1], "α linear, β 0": COLOURS[2], "α cosine, β 0": COLOURS[3],
             "AdaDim": COLOURS[0]}
    free = [colour for colour in COLOURS if colour not in [named.get(name) for name in methods]] or list(COLOURS)
    others = [name for name in methods if name not in named and not fixed[name]]
    return {name: named.get(name) or (colormaps["viridis"](0.95 * min(1, float(fixed[name][1]))) if fixed[name] else
                                      free[others.index(name) % len(free)]) for name in methods}


def draw_dynamics(runs, png, panels=PANELS):
    """Runs over their epochs, overlaid, as a PNG. runs: {method: [log, …]}, a line each. ImportError without matplotlib."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    across = 2 if len(panels) <= 4 else 3
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.4 * across, 3 * down), sharex=True, layout="constrained", squeeze=False)
    colour = colours(runs)
    for axis, (title, lines) in zip(axes.flat, panels):
        for (label, column), style in zip(lines.items(), ("-", "--")):
            axis.plot([], [], style, color="black", label=label)
            for name, logs in runs.items():
                for log in logs:
                    points = [(e, v) for e, v in zip(log["epoch"], log.get(column, [])) if v == v]
                    if points:
                        axis.plot(*zip(*points), style, color=colour[name], linewidth=1.3, marker="." if len(points) < 40 else None, markersize=4)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=9)
        if "alpha" in lines.values():
            axis.set_ylim(-0.03, 1.03)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    if len(runs) > 1:
        handles = [plt.Line2D([], [], color=colour[name], label=name) for name in runs]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(runs), 5), frameon=False)
    figure.savefig(png, dpi=120)
    plt.close(figure)


def draw_plane(runs, png):
    """Each run's end in the plane of effective rank and I(R;Z), its accuracy as colour [Figures 1a, 5]. runs: {method: [log, …]}."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    common = set.intersection(*(set(name.split(", ")) for name in runs))
    ends = [(name, *(last(log, column) for column in ("mi", "probe_top1", "erank_r", "erank_z"))) for name, logs in runs.items() for log in logs]
    for axis, title, which in zip(axes, ("representations R", "embeddings Z"), (3, 4)):
        points = axis.scatter([end[which] for end in ends], [end[1] for end in ends], c=[end[2] for end in ends], cmap="cividis", s=45, edgecolor="black",
                              linewidth=0.4)
        for name in runs:       # a line joins a method's runs; its name stands at the right end, without what all have in common
            mine = sorted((end[which], end[1]) for end in ends if end[0] == name)
            axis.plot(*zip(*mine), color="0.6", linewidth=0.8, zorder=0)
            label = ", ".join(word for word in name.split(", ") if word not in common or len(runs) == 1)
            axis.annotate(label, mine[-1], textcoords="offset points", xytext=(6, -3), fontsize=7.5, zorder=1)
        axis.set_xlabel(f"effective rank of the {title}")
        axis.margins(0.12)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("I(R;Z) (nats)")
    figure.colorbar(points, ax=axes, label="probe accuracy (%)")
    figure.savefig(png, dpi=120)
    plt.close(figure)


def summary(runs):
    """A row for each method: its name, number of runs, then mean and standard deviation over them of each of SUMMARY."""
    rows = []
    for name, logs in runs.items():
        row = {"method": name, "runs": len(logs)}
        for column in SUMMARY:
            values = torch.tensor([last(log, column) for log in logs], dtype=torch.float64)
            row[column], row[f"{column}_std"] = values.mean().item(), values.std(correction=0).item()
        rows.append(row)
    return rows


def correlations(runs, accuracy="probe_top1"):
    """Pearson's r over the runs' ends between accuracy and each of CORRELATES [Table 3]: rows of quantity, r, |r|, runs."""
    rows = []
    for quantity, columns in CORRELATES.items():
        pairs = []
        for log in (log for logs in runs.values() for log in logs):
            values = [last(log, column) for column in columns]
            x, y = values[0] / values[1] if len(values) > 1 and values[1] else values[0] if len(values) == 1 else math.nan, last(log, accuracy)
            if math.isfinite(x) and math.isfinite(y):
                pairs.append((x, y))
        r = pearson(*zip(*pairs)).item() if len(pairs) > 2 else math.nan
        rows.append({"quantity": quantity, "r": r, "abs_r": abs(r), "runs": len(pairs)})
    return rows


def main(argv=None):
    def stop(message):
        print(f"metrics.py: {message}", file=sys.stderr)
        sys.exit(2)

    parser = argparse.ArgumentParser(prog="metrics.py", allow_abbrev=False, description="Draws and correlates what runs of train.py "
                                     "logged: dynamics.png, plane.png, summary.csv and correlations.csv. Runs whose names differ in "
                                     "their seed alone count as one method. A run may still be going on.")
    parser.error = stop
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        runs = {}
        for folder in args.runs:
            if folder.is_dir() and not (folder / "log.csv").exists():       # of a study's run that failed at once
                print(f"{folder} holds no log.csv: left out")
                continue
            log = read_log(folder / "log.csv")
            if log["epoch"]:
                runs.setdefault(method(folder.resolve().name), []).append(log)
            else:
                print(f"{folder} has no epoch yet: left out")
        if not runs:
            stop("there is nothing to draw yet")
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in (("summary", summary(runs)), ("correlations", correlations(runs))):
            with open(args.out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, rows[0])
                table.writeheader()
                table.writerows(rows)
        wide = max(map(len, runs))
        print(f"{'':{wide}}  runs  " + "  ".join(f"{column:>14}" for column in SUMMARY))
        for row in summary(runs):
            print(f"{row['method']:{wide}}  {row['runs']:4}  " + "  ".join(f"{row[c]:7.3g} ± {row[c + '_std']:4.2g}" for c in SUMMARY))
        for row in correlations(runs):
            print(f"Pearson's r of probe accuracy and {row['quantity']}: {row['r']:.3f} ({row['runs']} runs)")
        try:
            draw_dynamics(runs, args.out / "dynamics.png")
            draw_plane(runs, args.out / "plane.png")
        except ImportError:
            print("the figures were left out: they need matplotlib (pip install matplotlib)")
    except (OSError, ValueError) as error:
        stop(error)


if __name__ == "__main__":
    main()
