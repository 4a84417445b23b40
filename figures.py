"""Figures and tables from the logs of runs.

    python figures.py runs/a runs/b … --out figures --format png,pdf

writes dynamics.png, everything logged over the epochs; plane.png, the runs' ends in the plane of
effective rank and I(R;Z); accuracy.png, Figure 5d; entropy.png, Figure 8; settings.png, accuracy
for each value of the flags in which a method's runs differ, Figures 14, 17 and 18; summary.csv,
.md and .tex, the last values of each method; correlations.csv, Table 3, with all other measures of
metrics.py. evaluation.json in a run's folder, from evaluate.py, joins its log. Runs may still be in
progress: they are marked, and left out of means and correlations. --choose prints another table:
the accuracy that is lost if a measure without labels chooses the epoch, or the run.

    from figures import draw_dynamics, save
    from plumbing.results import read_runs
    runs = read_runs([Path("runs/a"), Path("runs/b")])      # {method: [log of a run, …]}
    save(draw_dynamics(runs), Path("dynamics.pdf"))

A run is named after its flags, see plumbing/results.py.
"""
import itertools
import math
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)

from plumbing.choosing import choices
from plumbing.cli import Parser, checked, one_line_errors
from plumbing.panels import picture, save
from plumbing.results import (SPREADS, by_name, correlation, correlation_cells, correlations,
                              differing_flags, is_finished, is_number, latex, markdown,
                              mean_and_spread, read_folders, spelled, summary, summary_cells,
                              write_table)
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
    "Loss: InfoNCE": {"": "info_nce"},
    "Loss: VICReg": {"": "vicreg"},
    "VICReg's parts, unweighted": {
        "invariance": "invariance",
        "variance": "variance",
        "covariance": "covariance",
    },
    "Loss: I(R;Z) of a batch (nats)": {"": "mi_loss"},
}

# names of axes: {column: measure}; pairs of columns
MEASURES = {
    "erank_r": "effective rank of the representations R",
    "erank_z": "effective rank of the embeddings Z",
    "mi": "I(R;Z) (nats)",
    "mi_features": "I(R;Z) on the features' kernels (nats)",
    "h2_r": "H₂(R) (nats)",
    "h2_z": "H₂(Z) (nats)",
    "probe_top1": "probe accuracy (%)",
}
ENTROPY = (("erank_r", "h2_r"), ("erank_z", "h2_z"))                                # Figure 8
ACCURACY = tuple((x, "probe_top1") for x in ("erank_r", "erank_z", "mi", "mi_features"))    # 5d

# Okabe and Ito's colours for the paper's methods; Paul Tol's, without similar ones, for all others.
# Both palettes are safe for the colour-blind. A method's settings are shades of its colour.
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
# All functions here raise ImportError without matplotlib. runs: {method: [log, …]}. kind: of the
# bands and bars around means, one of SPREADS.

def new_figure(width, height):
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams["text.parse_math"] = False      # a name may hold a $
    matplotlib.rcParams["pdf.fonttype"] = 42            # TrueType, which journals ask for
    return Figure(figsize=(width, height), layout="constrained")


def grid(figure, count, across, **shared):
    """The axes of `count` panels, in rows of `across`."""
    axes = figure.subplots(max(1, math.ceil(count / across)), across, squeeze=False, **shared).flat
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


def add_legend(figure, colour):
    """Adds a legend below all panels. colour: {method: colour}."""
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], color=colour[name], label=name) for name in colour]
    longest = max(map(len, colour))
    characters = int(12 * figure.get_figwidth())
    columns = max(1, min(len(handles), 5, characters // (longest + 8)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def colours(names):
    """{method: colour}: fixed for the paper's methods, on a scale for α between 0 and 1; settings
    of a method, as in "VICReg, epochs 20", are shades of its colour."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    free = itertools.cycle(FREE_COLOURS)
    families = {}               # {method: [its names]}
    for name in names:
        words = name.partition(" (seed ")[0] + ","          # without "(seed 0: epoch 9 of 20)"
        known = [method for method in COLOURS if words.startswith(f"{method},")]
        families.setdefault(max(known, key=len, default=words.partition(",")[0]), []).append(name)
    found = {}
    for method, members in families.items():
        if method.startswith("α ") and is_number(method[2:]):
            colour = colormaps["viridis"](float(method[2:]))
        else:
            colour = COLOURS.get(method) or next(free)
        for place, name in enumerate(sorted(members, key=len)):
            white = 0.65 * place / len(members)
            found[name] = tuple(white + (1 - white) * part for part in to_rgb(colour))
    return found


def draw_run(folder):
    """Writes dynamics.png into a run's folder: RUN_PANELS, without α if the method has none."""
    def draw(path, log):
        save(draw_dynamics({"AdaDim": [log]}, RUN_PANELS), path)    # its name is not shown

    picture(folder / "dynamics.png", draw, read_log(folder / "log.csv"))


def draw_dynamics(runs, panels=PANELS, kind="std"):
    """Runs over their epochs: a method's mean with a band, single runs faint.

    panels: as PANELS, {title: {name in the legend: column}}; those without a value are left out.
    """
    every_log = [log for logs in runs.values() for log in logs]
    drawn = {title: {name: column for name, column in lines.items()
                     if not all(math.isnan(last_value(log, column)) for log in every_log)}
             for title, lines in panels.items()}
    drawn = {title: lines for title, lines in drawn.items() if lines}
    across = 2 if len(drawn) <= 4 else 3
    figure = new_figure(4.4 * across, 3 * math.ceil(len(drawn) / across) or 1)
    axes = grid(figure, len(drawn), across, sharex=True)
    colour = colours(runs)
    for axis, (title, lines) in zip(axes, drawn.items()):
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        draw_panel(axis, runs, lines, colour, kind)
    for axis in axes[-across:]:         # the lowest of each column
        axis.set_xlabel("epoch")
        axis.tick_params(labelbottom=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(runs) > 1:
        add_legend(figure, colour)
    return figure


def draw_panel(axis, runs, lines, colour, kind):
    """Draws a panel's columns solid, dashed and dotted, each method in its colour."""
    for (name, column), style in zip(lines.items(), ("-", "--", ":")):
        axis.plot([], [], style, color="black", label=name)
        for method, logs in runs.items():
            draw_lines(axis, logs, column, style, colour[method], kind)
    if "covariance" in lines:
        axis.set_yscale("log")      # it is a hundred times the invariance
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.margins(y=0.25)        # room for the legend
        axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")
    elif any(lines):
        axis.legend(frameon=False, fontsize=9)
    if "alpha" in lines.values():
        axis.set_ylim(-0.03, 1.03)


def draw_lines(axis, logs, column, style, colour, kind):
    """Draws a column of a method's runs, faint, and their mean with a band, over the epochs at
    which all of them have a value, with points if they are few."""
    runs = []                           # {epoch: value} for each run that has a value
    for log in logs:
        values = zip(log["epoch"], log.get(column, []))
        runs.append({epoch: value for epoch, value in values if not math.isnan(value)})
    runs = [run for run in runs if run]
    epochs = sorted(set.intersection(*map(set, runs))) if runs else []
    band = [mean_and_spread([run[epoch] for run in runs], kind) for epoch in epochs]
    marker = "." if len(epochs) < 40 else None
    axis.plot(epochs, [mean for mean, _ in band], style, color=colour, linewidth=1.5,
              marker=marker, markersize=4)
    if len(runs) > 1:
        axis.fill_between(epochs, [mean - spread for mean, spread in band],
                          [mean + spread for mean, spread in band], color=colour, alpha=0.12,
                          linewidth=0)
        for run in runs:
            axis.plot(run.keys(), run.values(), style, color=colour, linewidth=0.6, alpha=0.25)


def draw_plane(runs):
    """The runs' ends in the plane of effective rank and I(R;Z) [Figures 1a, 5].

    A point's filling shows the accuracy; the colour scale spans at least five percentage points,
    because smaller differences are mostly noise.
    """
    figure = new_figure(11, 5)
    axes = figure.subplots(1, 2, sharey=True)
    accuracies = [last_value(log, "probe_top1") for logs in runs.values() for log in logs]
    known = [accuracy for accuracy in accuracies if math.isfinite(accuracy)] or [0.0]
    margin = max(0, 5 - (max(known) - min(known))) / 2
    scale = dict(vmin=min(known) - margin, vmax=max(known) + margin, cmap="cividis")
    for axis, rank in zip(axes, ("erank_r", "erank_z")):
        points = draw_ends(axis, runs, rank, "mi", scale)
    axis.set_ylabel("")                 # the left one is enough
    if points is not None:
        figure.colorbar(points, ax=axes, label=MEASURES["probe_top1"])
    return add_names(figure)


def draw_relations(runs, pairs):
    """A panel for each pair of columns: the runs' ends, and Pearson's r with its interval; None if
    no run has both."""
    ends = {pair: [end for logs in runs.values() for end in ends_of(logs, *pair)]
            for pair in pairs}
    drawn = {pair: values for pair, values in ends.items() if values}
    if not drawn:
        return None
    figure = new_figure(9.5, 4.2 * math.ceil(len(drawn) / 2))
    for axis, (pair, values) in zip(grid(figure, len(drawn), 2), drawn.items()):
        draw_ends(axis, runs, *pair)
        r, low, high = correlation([x for x, *_ in values], [y for _, y, _ in values])
        words = "" if math.isnan(r) else f"Pearson's r {r:.2f}"
        words += "" if math.isnan(low) else f" ({low:.2f} … {high:.2f})"
        words += f", {len(values)} runs"
        axis.set_title(words.removeprefix(", ").replace("-", "−"), fontsize=11)
    return add_names(figure)


def ends_of(logs, x_column, y_column):
    """[[last x, last y, last accuracy], …] of the runs that have x and y."""
    ends = [[last_value(log, column) for column in (x_column, y_column, "probe_top1")]
            for log in logs]
    return [end for end in ends if all(map(math.isfinite, end[:2]))]


def draw_ends(axis, runs, x_column, y_column, scale=None):
    """Draws a small point for each run and a large one at each method's mean; returns the latter.

    scale: how to fill them by their accuracy, with a rim in the method's colour.
    """
    colour = colours(runs)
    points = None
    axis.names = {}                     # {method: (x, y)}, for add_names()
    for name, logs in runs.items():
        ends = ends_of(logs, x_column, y_column)
        if not ends:
            continue
        mean = [sum(values) / len(values) for values in zip(*ends)]
        axis.names[name] = mean[:2]
        for some, size, alpha in ((ends, 14, 0.5), ([mean], 60, 1)):
            x, y, accuracy = zip(*some)
            look = dict(color=colour[name])
            if scale:
                look = dict(c=accuracy, edgecolor=colour[name], linewidth=size / 40, **scale)
            points = axis.scatter(x, y, s=size, alpha=alpha, **look)
    axis.set(xlabel=MEASURES[x_column], ylabel=MEASURES[y_column])
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    return points


def add_names(figure):
    """Writes methods' names near their points, where they cover least of each other; returns the
    figure."""
    from matplotlib.transforms import Bbox
    figure.draw_without_rendering()     # settles where the axes are
    points = figure.dpi / 72            # pixels per point
    for axis in figure.axes:
        names = getattr(axis, "names", {})
        places = {name: axis.transData.transform(place) for name, place in names.items()}
        taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
        for name, (x, y) in places.items():
            width, height = 5 * points * len(name), 10 * points
            boxes = []                  # around the point, the nearest first
            for distance, angle in itertools.product((9, 18, 30, 45, 60, 80), range(0, 360, 30)):
                left = x + math.cos(math.radians(angle)) * (distance + width / 2) - width / 2
                low = y + math.sin(math.radians(angle)) * (distance + height / 2) - height / 2
                boxes.append(Bbox.from_bounds(left, low, width, height))
            inside = [box for box in boxes if axis.bbox.containsx(box.x0)
                      and axis.bbox.containsx(box.x1) and axis.bbox.containsy(box.y1)
                      and axis.bbox.containsy(box.y0)]
            box = min(inside or boxes, key=lambda box: box.count_overlaps(taken))
            taken.append(box)
            near = box.padded(14).contains(x, y)
            axis.annotate(name, names[name], ((box.x0 - x) / points, (box.y0 - y) / points),
                          textcoords="offset points", va="bottom", fontsize=8,
                          annotation_clip=False,
                          arrowprops=None if near else dict(arrowstyle="-", linewidth=0.4))
    return figure


def draw_settings(settings, kind="std"):
    """Accuracy for each value of a flag, a panel per flag [Figures 14, 17, 18].

    settings: from differing_flags. A line joins a method's means; a bar is the spread of its runs
    with that value, even if they differ in other flags too.
    """
    every_method = dict.fromkeys(method for methods in settings.values() for method in methods)
    colour = colours(every_method)
    figure = new_figure(5.5 * len(settings), 4.5)
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)
    for axis, (flag, methods) in zip(axes.flat, settings.items()):
        draw_setting(axis, methods, colour, kind)
        axis.set(xlabel=flag.removeprefix("--"), ylabel="probe accuracy (%)")
    add_legend(figure, colour)
    return figure


def draw_setting(axis, methods, colour, kind="std"):
    """Draws one panel, with the flag's values evenly spaced: sorted numbers, then words."""
    values = sorted({value for by_value in methods.values() for value in by_value},
                    key=numbers_first)
    axis.set_xticks(range(len(values)), [spelled(value) for value in values])
    for index, (method, by_value) in enumerate(methods.items()):
        aside = 0.04 * (index - (len(methods) - 1) / 2)         # so that bars do not overlap
        places = [place for place, value in enumerate(values) if value in by_value]
        means, spreads = zip(*(mean_and_spread(by_value[values[place]], kind)
                               for place in places))
        axis.errorbar([place + aside for place in places], means, spreads,
                      color=colour[method], marker="o", markersize=4, linewidth=1.3, capsize=3)
    axis.grid(alpha=0.3)


def numbers_first(value):
    """A sorting key: numbers first, then words."""
    if is_number(str(value)):
        return 0, float(value), ""
    return 1, 0.0, str(value)


# --- command line ---------------------------------------------------------------------------------

FORMATS = ("png", "pdf", "svg")
format_list = checked(lambda text: text.split(","), lambda words: set(words) <= {*FORMATS},
                      "png, pdf or svg, or several with commas")


def main(argv=None):
    with one_line_errors("figures.py"):
        parser = Parser("figures.py", __doc__)
        parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
        parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR",
                            help="(default: %(default)s)")
        parser.add_argument("--format", type=format_list, default="png", metavar="LIST",
                            help="of the figures: png, pdf or svg, or several, such as png,pdf")
        parser.add_argument("--spread", choices=tuple(SPREADS), default="std",
                            help="after ± and around means: the standard deviation over seeds, or "
                            "(ci) half of the mean's 95 %% interval")
        parser.add_argument("--unfinished", action="store_true",
                            help="count unfinished runs like finished ones")
        parser.add_argument("--choose", action="store_true",
                            help="instead, print what it costs to choose an epoch or a run by a "
                            "measure without labels")
        args = parser.parse_args(argv)
        all_flags, logs = read_folders(args.runs, args.unfinished)
        if args.choose:
            print(markdown(choices(all_flags, logs)), "\n\nPoints of the online probe's test "
                  "accuracy, with the mean's 95 % interval (t distribution).", sep="")
            return
        everything = by_name(all_flags, logs)
        runs = {name: logs for name, logs in everything.items() if all(map(is_finished, logs))}
        settings = differing_flags(all_flags, logs)
        write_tables(args.out, summary(everything, args.spread), correlations(runs), args.spread)
        try:
            drawn = {"dynamics": draw_dynamics(everything, kind=args.spread)}
            if runs:
                drawn |= {"plane": draw_plane(runs), "entropy": draw_relations(runs, ENTROPY),
                          "accuracy": draw_relations(runs, ACCURACY)}
            if settings:
                drawn["settings"] = draw_settings(settings, args.spread)
        except ImportError:
            print("the figures were left out: they need matplotlib (pip install matplotlib)")
            return
        for name, suffix in itertools.product(drawn, args.format):
            if drawn[name] is not None:
                save(drawn[name], args.out / f"{name}.{suffix}")


def write_tables(out, summary_rows, correlation_rows, kind):
    """Writes and prints the tables. Raises OSError if a file cannot be written."""
    caption = f"Last values; probe: accuracy of the online linear probe; ±: {SPREADS[kind]}."
    cells = summary_cells(summary_rows, kind)
    text = f"{markdown(cells)}\n\n{caption}\n"
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "summary.csv", summary_rows)
    write_table(out / "correlations.csv", correlation_rows)
    write_whole(out / "summary.md", lambda file: file.write(text.encode()))
    write_whole(out / "summary.tex", lambda file: file.write(latex(cells, caption).encode()))
    print(text)
    correlated = correlation_cells(correlation_rows)
    if correlated:
        print(markdown(correlated), "\n\nPearson's r of the runs' last values, with its 95 % "
              "interval; for fewer than eight runs it is only indicative.", sep="")
    else:
        print("No correlations: they need three finished runs with an accuracy.")


if __name__ == "__main__":
    main()
