"""What a measure of uniformity should see, and which measures see it: synthetic studies.

    python uniformity.py                            every part: about two minutes on two cores
    python uniformity.py cloning                    one part: densities, collapse, dimension,
                                                    cloning, means or properties
    python uniformity.py collapse --metric effective_rank nesum
    python uniformity.py --published                at the paper's sizes: hours on a CPU

From Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning" (ICLR 2024),
which compares Wang & Isola's uniformity L_U with its own W2:

densities   one coordinate of a uniform point on the sphere of R^m against N(0, 1/m): histograms,
            KL divergence and Wasserstein distance against m; pairs of coordinates at m = 32
collapse    both against the share η of the coordinates that are zero
dimension   both against m, for several η
cloning     every feature repeated, zero features appended, every sample repeated
means       N(k·1, I) in two dimensions, made unit: the mean alone makes the points collapse
properties  a table: which of the four properties has each measure of metrics.py?

The four properties: a measure does not change when samples are permuted or all repeated, and it
gets worse when every feature is repeated, or when features of zeros are appended.

Samples are unit rows of Gaussian noise (n × m), of whose features a share η is zero. A share of
all of them is left out: nothing would be left to be made unit. --metric puts other measures
beside the two. Figures and CSVs go to figures/; then what the paper says of L_U and W2 is checked.
Exit status: 0; 1 where something that it says is missing; 2, with one line, on bad input.
"""
import csv
import math
import sys
from pathlib import Path

import torch

import metrics
from losses import cosine_kernel, normalize_rows, renyi_entropy, wasserstein_uniformity
from plumbing import cli
from plumbing.panels import COLOURS, check, picture, report, write_figure


def entropy_2(x):
    """H_2 of the cosine kernel."""
    return renyi_entropy(cosine_kernel(x))


MEASURES = {
    "W2": wasserstein_uniformity,
    "L_U": metrics.uniformity,
    "effective_rank": metrics.effective_rank,
    "rankme": metrics.rankme,
    "stable_rank": metrics.stable_rank,
    "participation_ratio": metrics.participation_ratio,
    "nesum": metrics.nesum,
    "alpha_req": metrics.alpha_req,
    "eigenvalue_count": metrics.eigenvalue_count,
    "explained_variance": metrics.explained_variance,
    "H_2": entropy_2,
}
PAPERS = ("W2", "L_U")                  # of which the paper makes claims
LARGEST = {"W2": 2 ** 0.5, "L_U": 4.0}  # how far each can go, from best to worst
COLLAPSED = (0.25, 0.5, 0.75)           # shares η
TIMES = range(1, 11)                    # how often features or samples are repeated

# how many samples, and in how many dimensions: for a first look, and as published
SIZES = {
    "densities": {"points": 200_000, "dimensions": (2, 4, 8, 16, 32, 64, 128, 256)},
    "collapse": {"samples": 4000, "dimensions": (200, 500)},
    "dimension": {"samples": 4000, "dimensions": tuple(2 ** k for k in range(2, 11))},
    "cloning": {"samples": 2000, "instances": 1000},
}
PUBLISHED = {
    "densities": SIZES["densities"],
    "collapse": {"samples": 20_000, "dimensions": (200, 500, 1000)},
    "dimension": {"samples": 50_000, "dimensions": tuple(2 ** k for k in range(2, 13))},
    "cloning": {"samples": 50_000, "instances": 1000},
}


# --- samples ----------------------------------------------------------------------------------

def unit_rows(n, m, eta, generator):
    """n × m unit rows of Gaussian noise, of whose features the last share eta is zero."""
    x = torch.randn(n, m, generator=generator)
    x[:, m - round(eta * m):] = 0
    return normalize_rows(x)


def clone_features(x, times):
    return x.repeat(1, times)


def append_zeros(x, times):
    """Appends (times − 1) · m features of zeros, which the paper calls baby features."""
    n, m = x.shape
    return torch.cat([x, x.new_zeros(n, (times - 1) * m)], 1)


def clone_instances(x, times):
    return x.repeat(times, 1)


# --- panels -----------------------------------------------------------------------------------
# A figure is a list of panels, see plumbing/panels.py.

def sweep(args, at, make):
    """{measure: values} of the samples that make(x of the axis, generator) returns.

    Values are a tensor, points of the axis × draws.
    """
    found = {name: [] for name in args.metric}
    for value in at:
        draws = {name: [] for name in args.metric}
        for draw in range(args.draws):
            generator = torch.Generator().manual_seed(args.seed + draw)
            x = make(value, generator)
            for name in args.metric:
                draws[name].append(float(measured(name, x)))
        for name in args.metric:
            found[name].append(draws[name])
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def measured(name, x):
    """A measure of x; NaN where x has too few features for it."""
    try:
        return MEASURES[name](x)
    except ValueError:
        return math.nan


def panels_of(args, study, at, curves, claims, x, log=False):
    """One panel for each measure. curves: {label: what sweep() found}; claims: {measure: claim}."""
    panels = []
    for name in args.metric:
        of_this = {label: found[name] for label, found in curves.items()}
        claimed = dict.fromkeys(of_this, claims[name]) if name in claims else {}
        panels.append(dict(title=f"{name}: {study}", x=x, y=name, at=list(at), curves=of_this,
                           claims=claimed, log=log, range=LARGEST.get(name, 0)))
    return panels


# --- the studies ------------------------------------------------------------------------------

def densities_part(args):
    """A coordinate of the uniform sphere becomes N(0, 1/m); so W2 may compare with a Gaussian."""
    size = args.sizes["densities"]
    generator = torch.Generator().manual_seed(args.seed)
    histograms = []
    distances = {"KL divergence": [], "Wasserstein distance": []}
    for m in size["dimensions"]:
        coordinate = unit_rows(size["points"], m, 0, generator)[:, 0].double()
        gaussian = torch.randn(size["points"], generator=generator).double() / m ** 0.5
        limit = float(torch.stack([coordinate, gaussian]).abs().max())
        on_sphere, normal = (torch.histc(values, 51, -limit, limit)
                             for values in (coordinate, gaussian))
        distances["KL divergence"].append(kl_divergence(on_sphere, normal))
        distances["Wasserstein distance"].append(wasserstein_1d(coordinate, gaussian))
        width = 2 * limit / 51
        middle = torch.linspace(-limit + width / 2, limit - width / 2, 51).tolist()
        curves = {"uniform on the sphere": on_sphere, "N(0, 1/m)": normal}
        curves = {name: (counts / counts.sum() / width)[:, None]
                  for name, counts in curves.items()}
        histograms.append(dict(title=f"m = {m}", x="a coordinate", y="density", at=middle,
                               curves=curves, claims={}))

    panels = []
    for name, values in distances.items():
        values = torch.tensor(values, dtype=torch.float64)[:, None]
        panels.append(dict(title=f"{name} of coordinate and Gaussian", x="dimension m", y=name,
                           at=size["dimensions"], curves={name: values}, log=True,
                           claims={name: "vanishing"}))
    return {"densities": histograms, "distances": panels}


def kl_divergence(p, q):
    """Σ p log(p / q) in nats of two histograms' counts, each bin one higher against empty ones."""
    p = (p + 1) / (p + 1).sum()
    q = (q + 1) / (q + 1).sum()
    return float((p * (p / q).log()).sum())


def wasserstein_1d(x, y):
    """The W1 distance of two samples of equally many numbers."""
    return float((x.sort().values - y.sort().values).abs().mean())


def collapse_part(args):
    size = args.sizes["collapse"]
    shares = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    curves = {}
    for m in size["dimensions"]:
        curves[f"m = {m}"] = sweep(
            args, shares, lambda eta, generator: unit_rows(size["samples"], m, eta, generator))
    claims = {"W2": "rising far", "L_U": "hardly moving"}
    return {"collapse": panels_of(args, "collapse", shares, curves, claims,
                                  "share η of the features that are zero")}


def dimension_part(args):
    """From m = 4 on, where a quarter of the features is a whole number."""
    size = args.sizes["dimension"]
    curves = {}
    for eta in (0, *COLLAPSED):
        curves[f"η = {eta:.0%}"] = sweep(
            args, size["dimensions"],
            lambda m, generator: unit_rows(size["samples"], m, eta, generator))
    panels = panels_of(args, "dimension", size["dimensions"], curves, {}, "dimension m", log=True)
    for panel in panels:
        ends = [float(values[-1].mean()) for values in panel["curves"].values()]
        apart = max(ends) - min(ends) > 0.08 * LARGEST.get(panel["y"], math.inf)
        at_end = f"at m = {panel['at'][-1]}"
        panel["facts"] = {
            "W2": {f"tells the η apart {at_end}": apart},
            "L_U": {f"does not tell the η apart {at_end}": not apart},
        }.get(panel["y"], {})
    return {"dimension": panels}


def cloning_part(args):
    size = args.sizes["cloning"]
    changes = {
        "every feature repeated": (clone_features, size["samples"], "rising", "level"),
        "features of zeros appended": (append_zeros, size["samples"], "rising", "level"),
        "every sample repeated": (clone_instances, size["instances"], "level", "rising"),
    }
    panels = []
    for title, (change, samples, w2_claim, lu_claim) in changes.items():
        curves = {}
        for eta in COLLAPSED:
            curves[f"η = {eta:.0%}"] = sweep(
                args, TIMES,
                lambda times, generator: change(unit_rows(samples, 32, eta, generator), times))
        claims = {"W2": w2_claim, "L_U": lu_claim}
        panels += panels_of(args, title, TIMES, curves, claims, "times")
    return {"cloning": panels}


def means_part(args):
    """Points around a far mean are all alike once they are unit, though Σ = I is isotropic."""
    def around(k, generator):
        return normalize_rows(k + torch.randn(2000, 2, generator=generator))

    at = (0, 0.5, 1, 2, 4, 8, 16, 32)
    curves = {"N(k·1, I), made unit": sweep(args, at, around)}
    claims = {"W2": "rising", "L_U": "rising"}
    return {"means": panels_of(args, "large means", at, curves, claims, "mean k")}


# --- the four properties ------------------------------------------------------------------------

PROPERTIES = ("permuted samples: unchanged", "repeated samples: unchanged",
              "repeated features: worse", "appended zeros: worse")


def properties(measure, generator, tolerance=1e-3):
    """{property: whether a measure has it}, on Gaussian noise of 400 × 96 with η = 25 %.

    What "worse" is, up or down, is taken from the measure itself: where it goes as three quarters
    of the features collapse. tolerance: of that way, what counts as no change.
    """
    x = unit_rows(400, 96, 0.25, generator)
    value = float(measure(x))
    way = float(measure(unit_rows(400, 96, 0.75, generator))) - value
    changed = {
        "permuted": x[torch.randperm(len(x), generator=generator)],
        "instances": clone_instances(x, 2),
        "features": clone_features(x, 2),
        "zeros": append_zeros(x, 2),
    }
    moved = {}
    for name, samples in changed.items():
        moved[name] = (float(measure(samples)) - value) / way if way else math.nan
    holds = (abs(moved["permuted"]) < tolerance, abs(moved["instances"]) < tolerance,
             moved["features"] > tolerance, moved["zeros"] > tolerance)
    return dict(zip(PROPERTIES, holds))


def check_properties(table):
    """W2 has all four; L_U has the first alone [Theorem 1]."""
    results = {}
    for title, holds in table["W2"].items():
        results[f"properties, W2, {title}"] = holds
    for title, holds in table["L_U"].items():
        first = title == PROPERTIES[0]
        sentence = f"properties, L_U, {title}" + ("" if first else ": not so")
        results[sentence] = holds == first
    return results


# each returns {file's name: figure}
PARTS = {"densities": densities_part, "collapse": collapse_part, "dimension": dimension_part,
         "cloning": cloning_part, "means": means_part}


# --- files ------------------------------------------------------------------------------------

def draw_pairs(path, args):
    """Pairs of coordinates at m = 32, on the sphere and of the Gaussian, as two heat maps."""
    from matplotlib.figure import Figure
    generator = torch.Generator().manual_seed(args.seed)
    points = args.sizes["densities"]["points"]
    samples = {
        "uniform on the sphere": unit_rows(points, 32, 0, generator)[:, :2],
        "N(0, I/32)": torch.randn(points, 2, generator=generator) / 32 ** 0.5,
    }
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, x) in zip(axes, samples.items()):
        *_, picture = axis.hist2d(*x.T.numpy(), bins=51, range=[(-0.7, 0.7)] * 2, density=True,
                                  cmap="cividis", vmin=0, vmax=5.5)
        axis.set(title=title, xlabel="coordinate 1", ylabel="coordinate 2", aspect="equal")
    figure.colorbar(picture, ax=axes, label="density")
    figure.savefig(path, dpi=150)


def draw_means(path, args):
    """The unit points for a few means: they collapse to one."""
    from matplotlib.figure import Figure
    generator = torch.Generator().manual_seed(args.seed)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axis, k in zip(figure.subplots(1, 4), (0, 1, 4, 32)):
        x = normalize_rows(k + torch.randn(500, 2, generator=generator))
        axis.scatter(*x.T.numpy(), s=8, alpha=0.3, color=COLOURS[0])
        axis.set(title=f"k = {k}", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def write_properties(path, table):
    """Writes the table of properties as a CSV, and prints it."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["measure", *PROPERTIES])
        print(f"{'':21}" + "  ".join(PROPERTIES))
        for name, holds in table.items():
            cells = ["yes" if value else "no" for value in holds.values()]
            rows.writerow([name, *cells])
            columns = [cell.ljust(len(title)) for cell, title in zip(cells, PROPERTIES)]
            print(f"{name:21}" + "  ".join(columns))


# --- the command line -------------------------------------------------------------------------

def parse(argv):
    parser = cli.Parser("uniformity.py", __doc__)
    add = parser.add_argument
    add("part", nargs="?", choices=(*PARTS, "properties"), help="this part only")
    add("--metric", nargs="+", choices=MEASURES, default=[], metavar="NAME",
        help=f"measures to put beside W2 and L_U: {', '.join(MEASURES)}")
    add("--draws", type=cli.whole_number(1), default=3, metavar="N", help="samples per point")
    add("--seed", type=cli.whole_number(0, 2 ** 31 - 1), default=0, metavar="N",
        help="of all random numbers")
    add("--published", action="store_true", help="the paper's sizes, in place of smaller ones")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="for figures and CSVs")
    args = parser.parse_args(argv)
    args.metric = list(dict.fromkeys([*PAPERS, *args.metric]))
    args.sizes = PUBLISHED if args.published else SIZES
    return args


def study(args):
    """Computes, writes and checks the parts that were asked for; whether all claims hold."""
    results = {}
    written = []
    for part in [args.part] if args.part else [*PARTS, "properties"]:
        print(f"{part} …", flush=True)
        if part == "properties":
            generator = torch.Generator().manual_seed(args.seed)
            table = {name: properties(measure, generator) for name, measure in MEASURES.items()}
            write_properties(args.out / "properties.csv", table)
            written.append("properties.csv")
            results |= check_properties(table)
            continue
        for name, panels in PARTS[part](args).items():
            written += write_figure(args.out, f"uniformity_{name}", panels)
            results |= check(name, panels)
        if part == "densities":
            written += picture(args.out / "uniformity_pairs.png", draw_pairs, args)
        if part == "means":
            written += picture(args.out / "uniformity_points.png", draw_means, args)
    print(f"in {args.out}: {', '.join(written)}")
    print("the paper's claims, and whether this run shows them:")
    return report(results)


def main(argv=None):
    with cli.one_line_errors("uniformity.py"):
        args = parse(argv)
        cli.make_output_folder(args.out)
        if not args.published:
            print("smaller samples than the paper's: --published has its own")
        sys.exit(0 if study(args) else 1)


if __name__ == "__main__":
    main()
