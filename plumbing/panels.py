"""The figures of simulate.py and uniformity.py: panels of curves, as a picture and as a CSV.

A figure is a list of panels. A panel is a dict of its title, the names of its axes x and y, and

    at          the x values of its curves' points
    curves      {label: values}, a tensor of points × draws
    claims      {label: the trend that the paper claims for the curve}

and, optionally,

    raw         the same curves of raw features, drawn dashed
    range       the distance between the best and the worst possible y
    facts       {sentence: whether it holds}: other claims
    log         whether the x axis is logarithmic
"""
import csv
import itertools
import math

from plumbing.run import write_whole

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")   # safe for the colour-blind


# --- claims -------------------------------------------------------------------------------------

def shows(claim, means, largest=0.0):
    """Whether a curve has the claimed trend; wiggles of up to 2 % of its range are ignored.

    means: of the curve's points. largest: the measure's possible range, for claims about how far
    a curve moves: "level" is less than 0.2 % of that, "rising" more, "hardly moving" less than
    12 %, "rising far" more than 25 %.
    """
    low, high = min(means), max(means)
    slack = 0.02 * (high - low)
    steps = [after - before for before, after in itertools.pairwise(means)]
    rises = high > low and all(step > -slack for step in steps)
    falls = high > low and all(step < slack for step in steps)
    moved = high - low
    return {
        "rising": rises and moved > 0.002 * largest,
        "rising far": rises and moved > 0.25 * largest,
        "falling": falls,
        "vanishing": falls and means[-1] < 0.05 * means[0],
        "level": moved < 0.002 * largest,
        "hardly moving": moved < 0.12 * largest,
        "rising, then level": rises_then_levels(means),
    }[claim]


def rises_then_levels(means):
    """Whether most of the rise comes first: the last third varies by less than a fifth of it."""
    rise = max(means) - means[0]
    end = means[-max(2, len(means) // 3):]
    rises = rise > 0.05 * abs(means[0]) and min(end) > means[0] + 0.5 * rise
    return rises and max(end) - min(end) < 0.2 * rise


def check(name, panels, kind="curves"):
    """{sentence: whether it holds} for each claim about a figure's curves, or its "raw" ones."""
    results = {}
    for panel in panels:
        where = f"{name}, {panel['title']}"
        for label, claim in panel["claims"].items():
            if label in panel.get(kind, {}):
                means = panel[kind][label].mean(1).tolist()
                sentence = f"{where}, {label}: {claim} ({means[0]:.3g} → {means[-1]:.3g})"
                results[sentence] = shows(claim, means, panel.get("range", 0))
        if kind == "curves":
            facts = panel.get("facts", {})
            results |= {f"{where}: {sentence}": holds for sentence, holds in facts.items()}
    return results


def report(results, holds="yes ", lacks="NO  "):
    """Prints {sentence: whether it holds}; returns whether all hold."""
    for sentence, value in results.items():
        print(holds if value else lacks, sentence)
    return all(results.values())


# --- files --------------------------------------------------------------------------------------

def write_figure(out, name, panels):
    """Writes NAME.csv and, if matplotlib is installed, NAME.png; returns the files' names."""
    write_csv(out / f"{name}.csv", panels)
    return [f"{name}.csv", *picture(out / f"{name}.png", draw, panels)]


def picture(path, draw, content):
    """Calls draw(path, content); returns the file's name in a list, which is empty if matplotlib
    is not installed."""
    try:
        draw(path, content)
    except ImportError:
        print(f"{path.name} was left out: it needs matplotlib (pip install matplotlib)")
        return []
    return [path.name]


def save(figure, path):
    """Writes a figure, as a PNG, PDF or SVG by the path's suffix; atomic."""
    suffix = path.suffix[1:]
    write_whole(path, lambda file: figure.savefig(file, format=suffix, dpi=120))


def write_csv(path, panels):
    """Writes a row per point of each curve: its mean and standard deviation over the draws."""
    axes = {panel["x"] for panel in panels}
    x_name = axes.pop() if len(axes) == 1 else "x"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["panel", "curve", x_name, "mean", "std"])
        for panel in panels:
            raw = {f"{label}, raw": values for label, values in panel.get("raw", {}).items()}
            for label, values in (panel["curves"] | raw).items():
                for x, draws in zip(panel["at"], values):
                    numbers = (x, draws.mean(), draws.std(correction=0))
                    texts = [f"{float(number):.6g}" for number in numbers]
                    rows.writerow([panel["title"], label, *texts])


def draw(path, panels):
    """Draws the panels into one picture, two per row."""
    from matplotlib.figure import Figure
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = 7.5 if columns == 1 else 13
    figure = Figure(figsize=(width, 4.8 * rows), layout="constrained")
    for axis, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels):
        draw_panel(axis, panel)
    figure.savefig(path, dpi=150)


def draw_panel(axis, panel):
    """Draws each curve's mean, with a band of one standard deviation on either side."""
    for label, colour in zip(panel["curves"], itertools.cycle(COLOURS)):
        draw_curve(axis, panel["at"], panel["curves"][label], colour, "solid", label)
        if "raw" in panel:
            draw_curve(axis, panel["at"], panel["raw"][label], colour, "dashed")
    if "raw" in panel:
        axis.plot([], [], color="grey", linestyle="dashed", label="dashed: raw features")
    if panel.get("log"):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(panel["title"], fontsize=12)
    axis.set(xlabel=panel["x"], ylabel=panel["y"])
    axis.grid(alpha=0.3)
    # below the axis, where no curve crosses it
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False,
                fontsize=9, columnspacing=1.2, handlelength=1.8)


def draw_curve(axis, x, values, colour, linestyle, label=None):
    """values: points × draws."""
    mean = values.mean(1).numpy()
    spread = values.std(1, correction=0).numpy()
    marker = "o" if len(x) < 50 else None
    axis.plot(x, mean, label=label, color=colour, linestyle=linestyle, marker=marker,
              markersize=3.5)
    axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
