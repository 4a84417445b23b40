"""Figures and tables from the logs of runs.

    python figures.py runs/a runs/b … --out figures

writes dynamics.png, everything logged over the epochs; plane.png, the runs' ends in the plane of
effective rank and I(R;Z); accuracy.png, Figure 5d; entropy.png, Figure 8; settings.png, accuracy
for each value of the flags in which a method's runs differ, Figures 14, 17 and 18; summary.csv,
the last values of each method; correlations.csv, Table 3, with all other measures of metrics.py.
Runs may still be in progress. evaluation.json in a run's folder, from evaluate.py, joins its log.

    from figures import draw_dynamics
    from plumbing.results import read_runs
    runs = read_runs([Path("runs/a"), Path("runs/b")])      # {method: [log of a run, …]}
    draw_dynamics(runs, "dynamics.png")

A run is named after its flags, see plumbing/results.py.
"""
import itertools
import math
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch

from plumbing.cli import Parser, one_line_errors
from plumbing.results import (by_name, correlation, correlations, differing_flags, is_number,
                              print_tables, read_folders, spelled, summary, write_table)
from plumbing.run import last_value, read_log, write_whole

# {title of a panel: {name of a line in the legend: column of log.csv}}
RUN_PANELS = {
    "Accuracy on the test images (%)": {"online linear probe": "probe_top1", "k-NN": "knn_top1"},
    "α, the weight of InfoNCE": {"": "alpha"},
    "Effective rank": {"representations R": "erank_r", "embeddings Z": "erank_z"},
    "Mutual information I(R;Z) (nats)": {"": "mi"},
}
PANELS = RUN_PANELS | {
    "Mutual information I(R;Z) (nats)": {"samples' kernels": "mi", "features'": "mi_features"},
    "Entropy H₂ (nats)": {"R": "h2_r", "Z": "h2_z"},
    "Equation 2's bound: H₂(R) − I(R;Z) (nats)": {"": "h2_r_minus_mi"},
    "Eigenvalues with over 1 % of the variance": {"R": "eigs_r", "Z": "eigs_z"},
    "Variance in the top 30 % of eigenvalues": {"R": "var30_r", "Z": "var30_z"},
    "Uniformity (Wang & Isola)": {"R": "uniformity_r", "Z": "uniformity_z"},
    "Wasserstein uniformity W₂": {"R": "w2_r", "Z": "w2_z"},
    "Alignment of two views of Z": {"": "alignment_z"},
    "RankMe": {"R": "rankme_r", "Z": "rankme_z"},
    "Loss: InfoNCE": {"": "info_nce"},
    "Loss: VICReg": {"": "vicreg"},
    "VICReg's parts, unweighted": {
        "invariance": "invariance",
        "variance": "variance",
        "covariance": "covariance",
    },
    "Loss: I(R;Z) of a batch (nats)": {"": "mi_loss"},
}

# Okabe and Ito's colours for the paper's methods; Paul Tol's, without similar ones, for all others.
# Both palettes are safe for the colour-blind.
COLOURS = {
    "AdaDim": "#d55e00",
    "AdaDim, β 0": "#e69f00",
    "VICReg": "#0072b2",
    "SimCLR": "#56b4e9",
    "α linear": "#009e73",
    "α cosine": "#cc79a7",
}
FREE_COLOURS = ("#332288", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499",
                "#661100", "#888888", "#000000", "#44aa99")


# --- figures --------------------------------------------------------------------------------------
# All functions here raise ImportError without matplotlib.

def new_figure(width, height):
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams["text.parse_math"] = False      # a name may hold a $
    return Figure(figsize=(width, height), layout="constrained")


def save(figure, png, colour):
    """Writes a PNG, with a legend below all panels. colour: {method: colour}; {}: no legend."""
    from matplotlib.lines import Line2D
    if colour:
        handles = [Line2D([], [], color=colour[name], label=name) for name in colour]
        longest = max(map(len, colour))
        characters = int(12 * figure.get_figwidth())
        columns = max(1, min(len(handles), 5, characters // (longest + 8)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    write_whole(Path(png), lambda file: figure.savefig(file, format="png", dpi=120))


def colours(names):
    """{method: colour}: fixed for the paper's methods, on a scale for α between 0 and 1."""
    from matplotlib import colormaps
    free = itertools.cycle(FREE_COLOURS)
    found = {}
    for name in names:
        if name in COLOURS:
            found[name] = COLOURS[name]
        elif name.startswith("α ") and is_number(name[2:]):
            found[name] = colormaps["viridis"](float(name[2:]))
        else:
            found[name] = next(free)
    return found


def draw_run(folder):
    """Writes dynamics.png into a run's folder: RUN_PANELS, without α if the method has none."""
    log = read_log(folder / "log.csv")
    panels = {title: lines for title, lines in RUN_PANELS.items()
              if "alpha" in log or "alpha" not in lines.values()}
    try:
        draw_dynamics({"AdaDim": [log]}, folder / "dynamics.png", panels)   # its name is not shown
    except ImportError:
        print("dynamics.png was left out: it needs matplotlib (pip install matplotlib)")


def draw_dynamics(runs, png, panels=PANELS):
    """Runs over their epochs, one line each, as a PNG.

    runs: {method: [log, …]}. panels: as PANELS, {title: {name in the legend: column}}.
    """
    across = 2 if len(panels) <= 4 else 3
    down = math.ceil(len(panels) / across)
    figure = new_figure(4.4 * across, 3 * down)
    axes = figure.subplots(down, across, sharex=True, squeeze=False).flat
    colour = colours(runs)
    for axis, (title, lines) in zip(axes, panels.items()):
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        draw_panel(axis, runs, lines, colour)
    for axis in axes[max(0, len(panels) - across):len(panels)]:     # the lowest of each column
        axis.set_xlabel("epoch")
        axis.tick_params(labelbottom=True)
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    save(figure, png, colour if len(runs) > 1 else {})


def draw_panel(axis, runs, lines, colour):
    """Draws a panel's columns solid, dashed and dotted, each method in its colour."""
    for (name, column), style in zip(lines.items(), ("-", "--", ":")):
        axis.plot([], [], style, color="black", label=name)
        for method, logs in runs.items():
            for log in logs:
                draw_line(axis, log, column, style, colour[method])
    if "covariance" in lines:
        axis.set_yscale("log")      # it is a hundred times the invariance
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.margins(y=0.25)        # room for the legend
        axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")
    elif len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)
    if "alpha" in lines.values():
        axis.set_ylim(-0.03, 1.03)


def draw_line(axis, log, column, style, colour):
    """Draws a column over the epochs that have a value, with points if they are few."""
    epochs = []
    values = []
    for epoch, value in zip(log["epoch"], log.get(column, [])):
        if not math.isnan(value):
            epochs.append(epoch)
            values.append(value)
    marker = "." if len(epochs) < 40 else None
    axis.plot(epochs, values, style, color=colour, linewidth=1.3, marker=marker, markersize=4)


def draw_plane(runs, png):
    """The runs' ends in the plane of effective rank and I(R;Z), as a PNG [Figures 1a, 5].

    runs: {method: [log, …]}. A point's filling shows the accuracy; the colour scale spans at
    least five percentage points, because smaller differences are mostly noise. Its rim has the
    method's colour, as have the thin lines from a method's runs to their mean.
    """
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    colour = colours(runs)
    draw_ends(left, runs, "erank_r", colour)
    points = draw_ends(right, runs, "erank_z", colour)
    left.set_xlabel("effective rank of the representations R")
    right.set_xlabel("effective rank of the embeddings Z")
    left.set_ylabel("I(R;Z) (nats)")
    figure.colorbar(points, ax=[left, right], label="probe accuracy (%)")
    save(figure, png, colour)


def draw_ends(axis, runs, rank, colour):
    """Draws one plane; returns its points. rank: the column of the horizontal axis."""
    accuracies = [last_value(log, "probe_top1") for logs in runs.values() for log in logs]
    known = [accuracy for accuracy in accuracies if math.isfinite(accuracy)] or [0.0]
    margin = max(0, 5 - (max(known) - min(known))) / 2
    scale = dict(vmin=min(known) - margin, vmax=max(known) + margin, cmap="cividis")
    for name, logs in runs.items():
        x = [last_value(log, rank) for log in logs]
        y = [last_value(log, "mi") for log in logs]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        for end_x, end_y in zip(x, y):
            axis.plot([mean_x, end_x], [mean_y, end_y], color=colour[name], linewidth=1, zorder=0)
        accuracy = [last_value(log, "probe_top1") for log in logs]
        points = axis.scatter(x, y, c=accuracy, s=60, edgecolor=colour[name], linewidth=2, **scale)
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    return points


def draw_entropy(runs, png):
    """H_2 against effective rank at the runs' ends, with Pearson's r, as a PNG [Figure 8]."""
    figure = new_figure(9.5, 4.2)
    colour = colours(runs)
    for axis, letter in zip(figure.subplots(1, 2), "rz"):
        draw_relation(axis, runs, f"erank_{letter}", f"h2_{letter}", colour)
        axis.set(xlabel=f"effective rank of {letter.upper()}", ylabel="H₂ (nats)")
    save(figure, png, colour)


def draw_accuracy(runs, png):
    """Accuracy against effective rank and I(R;Z) at the runs' ends, as a PNG [Figure 5d]."""
    figure = new_figure(9.5, 8)
    colour = colours(runs)
    measures = {
        "erank_r": "effective rank of R",
        "erank_z": "effective rank of Z",
        "mi": "I(R;Z) (nats)",
        "mi_features": "I(R;Z) on the features' kernels (nats)",
    }
    for axis, (column, name) in zip(figure.subplots(2, 2, sharey=True).flat, measures.items()):
        draw_relation(axis, runs, column, "probe_top1", colour)
        axis.set(xlabel=name, ylabel="probe accuracy (%)")
        if not axis.collections:        # I(R;Z) of the features is only logged if p = d
            axis.set_visible(False)
    save(figure, png, colour)


def draw_relation(axis, runs, x_column, y_column, colour):
    """Draws a point per run, from its last values; Pearson's r and its interval are the title."""
    xs, ys = [], []
    for name, logs in runs.items():
        for log in logs:
            x, y = last_value(log, x_column), last_value(log, y_column)
            if math.isfinite(x) and math.isfinite(y):
                axis.scatter(x, y, color=colour[name], s=30)
                xs.append(x)
                ys.append(y)
    r, low, high = correlation(xs, ys)
    axis.set_title(f"Pearson's r {r:.2f} ({low:.2f} … {high:.2f}), {len(xs)} runs", fontsize=11)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def draw_settings(settings, png):
    """Accuracy for each value of a flag, a panel per flag, as a PNG [Figures 14, 17, 18].

    settings: from differing_flags. A line joins a method's means; a bar is the standard deviation
    (with n − 1) of its runs with that value, even if they differ in other flags too.
    """
    every_method = dict.fromkeys(method for methods in settings.values() for method in methods)
    colour = colours(every_method)
    figure = new_figure(5.5 * len(settings), 4.5)
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)
    for axis, (flag, methods) in zip(axes.flat, settings.items()):
        draw_setting(axis, methods, colour)
        axis.set(xlabel=flag, ylabel="probe accuracy (%)")
    save(figure, png, colour)


def draw_setting(axis, methods, colour):
    """Draws one panel, with the flag's values evenly spaced: sorted numbers, then words."""
    values = sorted({value for by_value in methods.values() for value in by_value},
                    key=numbers_first)
    axis.set_xticks(range(len(values)), [spelled(value) for value in values])
    for index, (method, by_value) in enumerate(methods.items()):
        aside = 0.04 * (index - (len(methods) - 1) / 2)         # so that bars do not overlap
        places = [place for place, value in enumerate(values) if value in by_value]
        ends = [torch.tensor(by_value[values[place]], dtype=torch.float64) for place in places]
        means = [end.mean().item() for end in ends]
        deviations = [end.std().item() if len(end) > 1 else 0 for end in ends]
        axis.errorbar([place + aside for place in places], means, deviations,
                      color=colour[method], marker="o", markersize=4, linewidth=1.3, capsize=3)
    axis.grid(alpha=0.3)


def numbers_first(value):
    """A sorting key: numbers first, then words."""
    if is_number(str(value)):
        return 0, float(value), ""
    return 1, 0.0, str(value)


# --- command line ---------------------------------------------------------------------------------

def main(argv=None):
    with one_line_errors("figures.py"):
        parser = Parser("figures.py", __doc__)
        parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
        parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR",
                            help="(default: %(default)s)")
        args = parser.parse_args(argv)
        all_flags, logs = read_folders(args.runs)
        runs = by_name(all_flags, logs)
        settings = differing_flags(all_flags, logs)
        summary_rows = summary(runs)
        correlation_rows = correlations(runs)

        args.out.mkdir(parents=True, exist_ok=True)
        write_table(args.out / "summary.csv", summary_rows)
        write_table(args.out / "correlations.csv", correlation_rows)
        print_tables(summary_rows, correlation_rows)
        try:
            draw_dynamics(runs, args.out / "dynamics.png")
            draw_plane(runs, args.out / "plane.png")
            draw_entropy(runs, args.out / "entropy.png")
            draw_accuracy(runs, args.out / "accuracy.png")
            if settings:
                draw_settings(settings, args.out / "settings.png")
        except ImportError:
            print("the figures were left out: they need matplotlib (pip install matplotlib)")


if __name__ == "__main__":
    main()
