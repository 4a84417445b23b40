"""Figures and tables from the logs of runs.

    python figures.py runs/study/* --out figures --format png,pdf
    python figures.py docs/assets/runs/length.csv --only "*-epochs-150"

reads runs' folders, or CSV files of runs, and averages runs with one label. It writes

    dynamics.png        everything logged, over the epochs
    plane.png           the runs' ends in the plane of effective rank and I(R;Z)    [Figures 1a, 5]
    accuracy.png        accuracy against rank and I(R;Z)                                [Figure 5d]
    entropy.png         H₂ against effective rank                                        [Figure 8]
    settings.png        accuracy for each value of a flag                      [Figures 14, 17, 18]
    summary.md          the last values: mean and standard deviation over seeds
    correlations.md     accuracy and each measure of the runs' ends                       [Table 3]
    runs.csv            all that was read: a row per run and epoch, which this script reads again

A run's label is its folder's name without -seed-N or -N at its end. Unfinished runs are left out.
"""
import csv
import fnmatch
import itertools
import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from metrics import pearson
from run import BadInput, Parser, last_value, one_line_errors, read_config, read_log

# {title of a panel: {name of a line in the legend: column of log.csv}}
RUN_DYNAMICS = {
    "Accuracy on the test images (%)": {"online linear probe": "probe_top1", "k-NN": "knn_top1"},
    "α, the weight of InfoNCE": {"": "alpha"},
    "Effective rank": {"representations R": "erank_r", "embeddings Z": "erank_z"},
    "Mutual information I(R;Z) (nats)": {"": "mi"},
}
DYNAMICS = RUN_DYNAMICS | {
    "Mutual information I(R;Z) (nats)": {"samples' kernels": "mi", "features'": "mi_features"},
    "Entropy H₂ (nats)": {"R": "h2_r", "Z": "h2_z"},
    "Equation 2's bound: H₂(R) − I(R;Z) (nats)": {"": "h2_r_minus_mi"},
    "Eigenvalues with over 1 % of the variance": {"R": "eigs_r", "Z": "eigs_z"},
    "Variance in the top 30 % of eigenvalues": {"R": "var30_r", "Z": "var30_z"},
    "Uniformity (Wang & Isola)": {"R": "uniformity_r", "Z": "uniformity_z"},
    "Wasserstein uniformity W₂": {"R": "w2_r", "Z": "w2_z"},
    "Alignment of two views of Z": {"": "alignment_z"},
    "Loss: InfoNCE": {"": "info_nce"},
    "Loss: VICReg": {"": "vicreg"},
    "VICReg's parts, unweighted": {name: name for name in ("invariance", "variance", "covariance")},
    "Loss: I(R;Z) of a batch (nats)": {"": "mi_loss"},
}

# {name of a figure: (column on the x axis, column on the y axis) of each panel}
RELATIONS = {
    "plane": [("erank_r", "mi"), ("erank_z", "mi")],
    "accuracy": [(x, "probe_top1") for x in ("erank_r", "erank_z", "mi", "mi_features")],
    "entropy": [("erank_r", "h2_r"), ("erank_z", "h2_z")],
}
AXIS_LABELS = {
    "erank_r": "effective rank of the representations R",
    "erank_z": "effective rank of the embeddings Z",
    "mi": "I(R;Z) (nats)",
    "mi_features": "I(R;Z) on the features' kernels (nats)",
    "h2_r": "H₂(R) (nats)",
    "h2_z": "H₂(Z) (nats)",
    "probe_top1": "probe accuracy (%)",
}
# columns in the table of last values, with their headings
SUMMARY = {"probe_top1": "probe (%)", "knn_top1": "k-NN (%)", "erank_r": "erank R",
           "erank_z": "erank Z", "mi": "I(R;Z)", "alpha": "α"}
MEASURES_OF_R_AND_Z = ("erank", "rankme", "alpha_req", "stable_rank", "participation",
                       "nesum", "h2", "w2", "uniformity")
CORRELATED = ("mi", "mi_features", "mi_over_erank_r", "mi_over_erank_z", "cka",
              *(f"{measure}_{letter}" for measure in MEASURES_OF_R_AND_Z for letter in "rz"))
# flags whose values settings.png compares: the run vicreg-epochs-20 is vicreg with --epochs 20
SETTINGS = ("alpha-batches", "alpha-every", "batch-size", "epochs", "lr", "optimizer", "projector",
            "temperature")

# Okabe and Ito's colours, then some of Paul Tol's: all are safe for the colour-blind
PALETTE = ("#d55e00", "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#332288", "#999933",
           "#882255", "#661100", "#888888", "#000000")


# --- reading --------------------------------------------------------------------------------------

class Run(NamedTuple):
    label: str
    seed: str
    log: dict           # {column: [a float per epoch]}


def read_runs(paths, only="*"):
    """The runs in these folders and CSV files whose labels fit `only`, such as "vicreg,alpha-*".

    Raises BadInput if a folder holds no run, or no run is left; OSError if a path does not exist.
    """
    runs = [run for path in paths
            for run in (read_table(path) if path.suffix == ".csv" else read_folder(path))
            if any(fnmatch.fnmatchcase(run.label, pattern) for pattern in only.split(","))]
    if not runs:
        raise BadInput("there is no run to draw")
    return runs


def read_folder(folder):
    """The run in a folder, in a list, which is empty if it is unfinished."""
    flags = read_config(folder)["flags"]
    log = read_log(folder / "log.csv") if (folder / "log.csv").exists() else {}
    epochs = len(log.get("epoch", []))
    if epochs != flags["--epochs"]:
        print(f"{folder} is unfinished, epoch {epochs} of {flags['--epochs']}: left out")
        return []
    label = re.sub(r"-(seed-)?\d+$", "", folder.resolve().name)
    return [Run(label, str(flags["--seed"]), log)]


def read_table(path):
    """The runs in a CSV of write_runs(), in a list; # begins a comment, -- a column of flags."""
    logs = {}                           # {(label, seed): log}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            log = logs.setdefault((row.pop("label"), row.pop("seed")), {})
            for column, text in row.items():
                if not column.startswith("--"):
                    log.setdefault(column, []).append(float(text or "nan"))
    return [Run(label, seed, log) for (label, seed), log in logs.items()]


def write_runs(path, runs):
    """Writes runs as a CSV, which read_runs() reads: a row per run and epoch, with seven digits."""
    columns = list(dict.fromkeys(column for run in runs for column in run.log))
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["label", "seed", *columns], lineterminator="\n")
        table.writeheader()
        for run in runs:
            for values in zip(*run.log.values()):
                numbers = {column: f"{value:.7g}" for column, value in zip(run.log, values)
                           if not math.isnan(value)}
                table.writerow({"label": run.label, "seed": run.seed, **numbers})


def logs_by_label(runs):
    """{label: [log, …]}, with Equation 2's bound and Table 3's ratio, for R and for Z."""
    logs = {}
    for run in runs:
        log = dict(run.log)
        mi = log.get("mi", [])
        log["h2_r_minus_mi"] = [h - i for h, i in zip(log.get("h2_r", []), mi)]
        for rank in ("erank_r", "erank_z"):
            log[f"mi_over_{rank}"] = [i / x for i, x in zip(mi, log.get(rank, []))]
        logs.setdefault(run.label, []).append(log)
    return logs


# --- tables ---------------------------------------------------------------------------------------
# logs, here and below: {label: [log, …]}

def mean_and_deviation(values):
    """The mean and the standard deviation (n − 1) of the finite values; NaN for too few."""
    values = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    deviation = values.std().item() if len(values) > 1 else math.nan
    return values.mean().item(), deviation


def ends_of(logs, *columns):
    """The last values of a list of logs, runs × columns, without runs that lack one of them."""
    ends = [[last_value(log, column) for column in columns] for log in logs]
    ends = [end for end in ends if all(map(math.isfinite, end))]
    return torch.tensor(ends, dtype=torch.float64).reshape(len(ends), len(columns))


def summary(logs):
    """A table with a row per label, [{heading: text}, …]: mean ± deviation of the last values."""
    rows = []
    for label, its_logs in logs.items():
        row = {"": label, "runs": str(len(its_logs))}
        for column, heading in SUMMARY.items():
            mean, deviation = mean_and_deviation([last_value(log, column) for log in its_logs])
            row[heading] = f"{mean:.3g} ± {deviation:.3g}".replace(" ± nan", "").replace("nan", "–")
        rows.append(row)
    return rows


def correlations(logs):
    """Pearson's r between the runs' last probe accuracies and each of CORRELATED [Table 3].

    Returns a table, [{heading: text}, …], largest |r| first.
    """
    rows = []
    for column in CORRELATED:
        ends = ends_of(sum(logs.values(), []), column, "probe_top1")
        r, low, high = correlation(ends)
        if not math.isnan(r):
            rows.append({"accuracy and …": column, "r": f"{r:.2f}",
                         "95 %": f"{low:.2f} … {high:.2f}", "runs": str(len(ends))})
    return sorted(rows, key=lambda row: -abs(float(row["r"])))


def correlation(pairs):
    """Pearson's r of n × 2 numbers and its 95 % interval, by Fisher's transformation; or NaN."""
    r = pearson(*pairs.T).item() if len(pairs) > 2 else math.nan
    if math.isnan(r) or len(pairs) < 4:
        return r, math.nan, math.nan
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    half = 1.96 / math.sqrt(len(pairs) - 3)
    return r, math.tanh(middle - half), math.tanh(middle + half)


def write_markdown(path, rows, caption):
    """Prints a table and writes it into a file. rows: [{heading: text}, …]."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.write_text(f"{table}\n\n{caption}\n", encoding="utf-8")
    print(f"{table}\n\n{caption}\n")


# --- figures --------------------------------------------------------------------------------------

def new_figure(count, across, width, height):
    """A figure and the axes of `count` panels, each of width × height inches, in rows of across."""
    from matplotlib.figure import Figure
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, place) for place in range(1, count + 1)]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def add_legend(figure, colour):
    """Adds a legend below all panels. colour: {label: colour}."""
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], color=colour[label], label=label) for label in colour]
    columns = int(figure.get_figwidth() / 2.7)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def draw_run(folder):
    """Writes dynamics.png into a run's folder: RUN_DYNAMICS, without α if the method has none."""
    log = read_log(folder / "log.csv")
    try:
        draw_dynamics({"adadim": [log]}, RUN_DYNAMICS).savefig(folder / "dynamics.png", dpi=120)
    except ImportError:
        print("dynamics.png was left out: it needs matplotlib (pip install matplotlib)")


def draw_dynamics(logs, panels=DYNAMICS):
    """Runs over their epochs: a label's mean, with a band of one standard deviation.

    panels: as DYNAMICS, {title: {name in the legend: column}}; those without a value are left out.
    """
    drawn = {title: {name: column for name, column in lines.items()
                     if len(ends_of(sum(logs.values(), []), column))}
             for title, lines in panels.items()}
    drawn = {title: lines for title, lines in drawn.items() if lines}
    figure, axes = new_figure(len(drawn), 2 if len(drawn) <= 4 else 3, 4.4, 3)
    colour = dict(zip(logs, itertools.cycle(PALETTE)))
    for axis, (title, lines) in zip(axes, drawn.items()):
        axis.set(title=title, xlabel="epoch")
        for (name, column), style in zip(lines.items(), ("-", "--", ":")):
            axis.plot([], [], style, color="black", label=name)
            for label, its_logs in logs.items():
                draw_lines(axis, its_logs, column, style, colour[label])
        if any(lines):
            axis.legend(frameon=False, fontsize=9)
        if "covariance" in lines:
            axis.set_yscale("log")      # it is a hundred times the invariance
        if "alpha" in lines.values():
            axis.set_ylim(-0.03, 1.03)
    if len(logs) > 1:
        add_legend(figure, colour)
    return figure


def draw_lines(axis, logs, column, style, colour):
    """Draws a column of a label's logs: their mean with a band, where all of them have a value."""
    points = [zip(log["epoch"], log.get(column, [])) for log in logs]
    curves = [{epoch: value for epoch, value in of_run if not math.isnan(value)}
              for of_run in points]
    epochs = sorted(set.intersection(*map(set, curves)))
    band = [mean_and_deviation([curve[epoch] for curve in curves]) for epoch in epochs]
    mean, deviation = torch.tensor(band).reshape(-1, 2).T       # epochs each
    marker = "." if len(epochs) <= 30 else ""
    axis.plot(epochs, mean, style, color=colour, linewidth=1.5, marker=marker, markersize=5)
    axis.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15)


def draw_relations(logs, pairs):
    """A panel for each pair of columns: small points are runs' ends, large ones a label's mean.

    A point's filling shows the accuracy. Returns None if no run has all columns of a pair.
    """
    ends = {pair: ends_of(sum(logs.values(), []), *pair, "probe_top1") for pair in pairs}
    ends = {pair: points for pair, points in ends.items() if len(points)}       # runs × 3 each
    if not ends:
        return None
    accuracies = torch.cat([points[:, 2] for points in ends.values()])
    colour = dict(zip(logs, itertools.cycle(PALETTE)))
    figure, axes = new_figure(len(ends), min(2, len(ends)), 5.5, 5)
    for axis, (pair, of_all) in zip(axes, ends.items()):
        for label, its_logs in logs.items():
            runs = ends_of(its_logs, *pair, "probe_top1")       # runs × 3
            if not len(runs):
                continue
            mean = runs.mean(0, keepdim=True)
            for some, size, opacity in ((runs, 14, 0.5), (mean, 60, 1)):
                x, y, accuracy = some.T
                points = axis.scatter(x, y, s=size, c=accuracy, alpha=opacity, cmap="cividis",
                                      vmin=accuracies.min(), vmax=accuracies.max(),
                                      edgecolor=colour[label], linewidth=size / 40)
            axis.annotate(label, mean[0, :2].tolist(), (7, -3), textcoords="offset points")
        r, low, high = correlation(of_all[:, :2])
        axis.set(title=f"Pearson's r {r:.2f} ({low:.2f} … {high:.2f}), {len(of_all)} runs",
                 xlabel=AXIS_LABELS[pair[0]], ylabel=AXIS_LABELS[pair[1]])
        axis.margins(0.12)
    figure.colorbar(points, ax=axes, label=AXIS_LABELS["probe_top1"])
    return figure


def accuracies_by_setting(logs):
    """{flag: {label without the flag: {the flag's value: [accuracy, …]}}} for SETTINGS."""
    accuracies = {}
    for label, its_logs in logs.items():
        flag = re.fullmatch(rf"(.+)-({'|'.join(SETTINGS)})-([\w.]+(?:-\d+)*)", label)
        if flag:
            rest, name, value = flag.groups()
            by_value = accuracies.setdefault(name, {}).setdefault(rest, {})
            by_value[value] = [last_value(log, "probe_top1") for log in its_logs]
    return accuracies


def draw_settings(settings):
    """Accuracy for each value of a flag, a panel per flag [Figures 14, 17, 18].

    settings: from accuracies_by_setting(). Bars are the standard deviation over a label's runs.
    """
    labels = dict.fromkeys(label for labels in settings.values() for label in labels)
    colour = dict(zip(labels, itertools.cycle(PALETTE)))
    figure, axes = new_figure(len(settings), len(settings), 5.5, 4.5)
    for axis, (flag, labels) in zip(axes, settings.items()):
        values = dict.fromkeys(value for by_value in labels.values() for value in by_value)
        # by the numbers in them: 2048-2048-256 comes before 2048-2048-1024
        values = sorted(values, key=lambda value: [*map(float, re.findall(r"\d+\.?\d*", value))])
        axis.set_xticks(range(len(values)), values)
        axis.set(xlabel=flag, ylabel="probe accuracy (%)")
        for label, by_value in labels.items():
            places = [place for place, value in enumerate(values) if value in by_value]
            means, deviations = zip(*(mean_and_deviation(by_value[values[i]]) for i in places))
            axis.errorbar(places, means, deviations, color=colour[label], marker="o", capsize=3)
    add_legend(figure, colour)
    return figure


def parse_args(argv=None):
    parser = Parser("figures.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a CSV file of runs")
    add("--out", type=Path, default=Path("figures"), metavar="DIR")
    add("--only", default="*", metavar="LIST", help='labels to read, such as "vicreg,alpha-*"')
    add("--format", default="png", metavar="LIST", help="png, pdf or svg, or several: png,pdf")
    args = parser.parse_args(argv)
    if not {*args.format.split(",")} <= {"png", "pdf", "svg"}:
        parser.error(f"--format {args.format} is not png, pdf or svg, or several with commas")
    return args


def main(argv=None):
    with one_line_errors("figures.py"):
        args = parse_args(argv)
        runs = read_runs(args.runs, args.only)
        logs = logs_by_label(runs)
        args.out.mkdir(parents=True, exist_ok=True)
        write_runs(args.out / "runs.csv", runs)
        write_markdown(args.out / "summary.md", summary(logs),
                       "Last values; ±: the standard deviation over seeds (n − 1).")
        correlated = correlations(logs)
        if correlated:
            write_markdown(args.out / "correlations.md", correlated,
                           "Pearson's r of the runs' last values, with its 95 % interval; for "
                           "fewer than eight runs it is only indicative.")
        settings = accuracies_by_setting(logs)
        figures = {name: draw_relations(logs, pairs) for name, pairs in RELATIONS.items()}
        figures["dynamics"] = draw_dynamics(logs)
        figures["settings"] = draw_settings(settings) if settings else None
        for name, suffix in itertools.product(figures, args.format.split(",")):
            if figures[name] is not None:
                figures[name].savefig(args.out / f"{name}.{suffix}", dpi=120)


if __name__ == "__main__":
    main()
