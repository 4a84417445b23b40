"""Which measures of uniformity see what they should: synthetic studies.

    python uniformity.py                            all parts: about two minutes on two cores
    python uniformity.py cloning                    one part: densities, collapse, dimension,
                                                    cloning, means or properties
    python uniformity.py collapse --metric effective_rank nesum
    python uniformity.py --published                the paper's sample sizes: hours on a CPU

From Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning" (ICLR 2024),
which compares Wang & Isola's uniformity L_U with its own W2:

densities   one coordinate of uniform points on the sphere in R^m against N(0, 1/m): histograms,
            KL divergence and Wasserstein distance against m; pairs of coordinates at m = 32
collapse    both measures against the share η of zero features
dimension   both measures against m, for several η
cloning     each feature repeated, zero features appended, each sample repeated
means       N(k·1, I) in two dimensions, normalised: a large mean alone makes points collapse
properties  a table: which measures of metrics.py have which of the four properties?

The four properties: a measure stays the same if samples are permuted or each is repeated, and
gets worse if each feature is repeated or zero features are appended.

Samples are unit rows of Gaussian noise (n × m) in which a share η of the features is zero. η = 1
is left out: rows of zeros cannot be normalised. --metric adds measures. Writes figures and CSVs to
figures/, then checks the paper's claims about L_U and W2.
Exit status: 0; 1 if a claim does not hold; 2 with one line on stderr for bad input.
"""
import math
import sys
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch

import metrics
from losses import cosine_kernel, normalize_rows, renyi_entropy, wasserstein_uniformity
from plumbing import cli
from plumbing.panels import COLOURS, check, picture, report, write_figure
from plumbing.results import write_table


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
PAPERS = ("W2", "L_U")                  # the paper's claims are about these two
LARGEST = {"W2": 2 ** 0.5, "L_U": 4.0}  # distance between a measure's best and worst values
BINS = 51                               # of histograms
COLLAPSED = (0.25, 0.5, 0.75)           # shares η
TIMES = range(1, 11)                    # how often features or samples are repeated

# numbers of samples and dimensions: for a first look, and the paper's
SIZES = {
    "densities": {"points": 200_000, "dimensions": (2, 4, 8, 16, 32, 64, 128, 256)},
    "collapse": {"samples": 4000, "dimensions": (200, 500)},
    "dimension": {"samples": 4000, "dimensions": tuple(2 ** k for k in range(2, 11))},
    "cloning": {"samples": 2000, "instances": 1000},
}
PUBLISHED = SIZES | {
    "collapse": {"samples": 20_000, "dimensions": (200, 500, 1000)},
    "dimension": {"samples": 50_000, "dimensions": tuple(2 ** k for k in range(2, 13))},
    "cloning": {"samples": 50_000, "instances": 1000},
}


# --- samples ----------------------------------------------------------------------------------

def unit_rows(n, m, eta, generator):
    """n × m unit rows of Gaussian noise; the last share eta of the features is zero."""
    x = torch.randn(n, m, generator=generator)
    x[:, m - round(eta * m):] = 0
    return normalize_rows(x)


def clone_features(x, times):
    return x.repeat(1, times)


def append_zeros(x, times):
    """Appends (times − 1) · m zero features, which the paper calls baby features."""
    n, m = x.shape
    return torch.cat([x, x.new_zeros(n, (times - 1) * m)], 1)


def clone_instances(x, times):
    return x.repeat(times, 1)


def around(k, n, generator):
    """n × 2 points of N(k·1, I), normalised."""
    return normalize_rows(k + torch.randn(n, 2, generator=generator))


# --- panels -----------------------------------------------------------------------------------
# A figure is a list of panels, see plumbing/panels.py.

def sweep(args, at, make):
    """{measure: values (points of the axis × draws)} of the samples make(x, generator).

    at: the values x of the axis.
    """
    found = {name: torch.zeros(len(at), args.draws, dtype=torch.float64) for name in args.metric}
    for i, x in enumerate(at):
        for draw in range(args.draws):
            generator = torch.Generator().manual_seed(args.seed + draw)
            samples = make(x, generator)
            for name in args.metric:
                found[name][i, draw] = float(measured(name, samples))
    return found


def measured(name, x):
    """A measure of x; NaN if x has too few features for it."""
    try:
        return MEASURES[name](x)
    except ValueError:
        return math.nan


def panels_of(args, study, at, curves, claims, x, log=False):
    """One panel per measure. curves: {label: result of sweep()}; claims: {measure: claim}."""
    panels = []
    for name in args.metric:
        of_this = {label: found[name] for label, found in curves.items()}
        claimed = dict.fromkeys(of_this, claims[name]) if name in claims else {}
        panels.append(dict(title=f"{name}: {study}", x=x, y=name, at=list(at), curves=of_this,
                           claims=claimed, log=log, range=LARGEST.get(name, 0)))
    return panels


# --- the studies ------------------------------------------------------------------------------

def densities_part(args):
    """A coordinate of uniform points approaches N(0, 1/m): so W2 may compare with a Gaussian."""
    size = args.sizes["densities"]
    n = size["points"]
    generator = torch.Generator().manual_seed(args.seed)
    histograms = []
    distances = {"KL divergence": [], "Wasserstein distance": []}
    for m in size["dimensions"]:
        coordinate = unit_rows(n, m, 0, generator)[:, 0].double()
        gaussian = torch.randn(n, generator=generator).double() / m ** 0.5
        limit = float(torch.stack([coordinate, gaussian]).abs().max())
        on_sphere = torch.histc(coordinate, BINS, -limit, limit)
        normal = torch.histc(gaussian, BINS, -limit, limit)
        distances["KL divergence"].append(kl_divergence(on_sphere, normal))
        distances["Wasserstein distance"].append(wasserstein_1d(coordinate, gaussian))

        width = 2 * limit / BINS
        middle = torch.linspace(-limit + width / 2, limit - width / 2, BINS).tolist()
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
    """Σ p log(p / q) in nats, of two histograms' counts; 1 is added to each against empty bins."""
    p = (p + 1) / (p + 1).sum()
    q = (q + 1) / (q + 1).sum()
    return float((p * (p / q).log()).sum())


def wasserstein_1d(x, y):
    """The W1 distance of two equally large samples of numbers."""
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
    """Starts at m = 4, where η = 25 % is one feature."""
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
        if panel["y"] == "W2":
            panel["facts"] = {f"tells the η apart {at_end}": apart}
        if panel["y"] == "L_U":
            panel["facts"] = {f"does not tell the η apart {at_end}": not apart}
    return {"dimension": panels}


def cloning_part(args):
    size = args.sizes["cloning"]
    studies = {
        "every feature repeated": {"change": clone_features, "samples": size["samples"],
                                   "claims": {"W2": "rising", "L_U": "level"}},
        "features of zeros appended": {"change": append_zeros, "samples": size["samples"],
                                       "claims": {"W2": "rising", "L_U": "level"}},
        "every sample repeated": {"change": clone_instances, "samples": size["instances"],
                                  "claims": {"W2": "level", "L_U": "rising"}},
    }
    panels = []
    for title, study in studies.items():
        curves = {}
        for eta in COLLAPSED:
            curves[f"η = {eta:.0%}"] = sweep(
                args, TIMES, lambda times, generator: study["change"](
                    unit_rows(study["samples"], 32, eta, generator), times))
        panels += panels_of(args, title, TIMES, curves, study["claims"], "times")
    return {"cloning": panels}


def means_part(args):
    """With a large mean all normalised points are alike, although Σ = I is isotropic."""
    at = (0, 0.5, 1, 2, 4, 8, 16, 32)
    found = sweep(args, at, lambda k, generator: around(k, 2000, generator))
    claims = {"W2": "rising", "L_U": "rising"}
    return {"means": panels_of(args, "large means", at, {"N(k·1, I), made unit": found}, claims,
                               "mean k")}


# each returns {name of its files: panels}
PARTS = {"densities": densities_part, "collapse": collapse_part, "dimension": dimension_part,
         "cloning": cloning_part, "means": means_part}


# --- the four properties ------------------------------------------------------------------------

def properties(measure, generator, tolerance=1e-3):
    """{property: whether a measure has it}, on 400 × 96 Gaussian noise with η = 25 %.

    "Worse" is the direction in which the measure moves as η grows to 75 %. tolerance: the share
    of that distance that counts as no change.
    """
    x = unit_rows(400, 96, 0.25, generator)
    value = float(measure(x))
    distance = float(measure(unit_rows(400, 96, 0.75, generator))) - value

    def moved(samples):
        return (float(measure(samples)) - value) / distance if distance else math.nan

    permuted = x[torch.randperm(len(x), generator=generator)]
    return {
        "permuted samples: unchanged": abs(moved(permuted)) < tolerance,
        "repeated samples: unchanged": abs(moved(clone_instances(x, 2))) < tolerance,
        "repeated features: worse": moved(clone_features(x, 2)) > tolerance,
        "appended zeros: worse": moved(append_zeros(x, 2)) > tolerance,
    }


def check_properties(table):
    """{sentence: whether it holds}: W2 has all four properties, L_U the first alone [Theorem 1]."""
    results = {f"properties, W2, {title}": holds for title, holds in table["W2"].items()}
    for title, holds in table["L_U"].items():
        claimed = title.startswith("permuted")
        results[f"properties, L_U, {title}" + ("" if claimed else ": not so")] = holds == claimed
    return results


# --- files ------------------------------------------------------------------------------------

def draw_pairs(path, args):
    """Heat maps of pairs of coordinates at m = 32, on the sphere and of a Gaussian."""
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
        *_, image = axis.hist2d(*x.T.numpy(), bins=BINS, range=[(-0.7, 0.7)] * 2, density=True,
                                cmap="cividis", vmin=0, vmax=5.5)
        axis.set(title=title, xlabel="coordinate 1", ylabel="coordinate 2", aspect="equal")
    figure.colorbar(image, ax=axes, label="density")
    figure.savefig(path, dpi=150)


def draw_means(path, args):
    """The normalised points for a few means: they collapse to one."""
    from matplotlib.figure import Figure
    generator = torch.Generator().manual_seed(args.seed)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axis, k in zip(figure.subplots(1, 4), (0, 1, 4, 32)):
        axis.scatter(*around(k, 500, generator).T.numpy(), s=8, alpha=0.3, color=COLOURS[0])
        axis.set(title=f"k = {k}", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def write_properties(path, table):
    """Prints the table of properties, and writes it as a CSV."""
    rows = []
    print(f"{'':21}" + "  ".join(table["W2"]))
    for name, holds in table.items():
        answers = {title: "yes" if value else "no" for title, value in holds.items()}
        rows.append({"measure": name, **answers})
        columns = [answer.ljust(len(title)) for title, answer in answers.items()]
        print(f"{name:21}" + "  ".join(columns))
    write_table(path, rows)


# --- the command line -------------------------------------------------------------------------

def parse(argv):
    parser = cli.Parser("uniformity.py", __doc__)
    add = parser.add_argument
    add("part", nargs="?", choices=(*PARTS, "properties"), help="compute this part only")
    add("--metric", nargs="+", choices=MEASURES, default=[], metavar="NAME",
        help=f"measures in addition to W2 and L_U: {', '.join(MEASURES)}")
    add("--draws", type=cli.whole_number(1), default=3, metavar="N", help="samples per point")
    add("--seed", type=cli.whole_number(0, 2 ** 31 - 1), default=0, metavar="N", help="random seed")
    add("--published", action="store_true", help="use the paper's sample sizes")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="for figures and CSVs")
    args = parser.parse_args(argv)
    args.metric = list(dict.fromkeys([*PAPERS, *args.metric]))
    args.sizes = PUBLISHED if args.published else SIZES
    return args


def study(args):
    """Computes, writes and checks the wanted parts; returns whether all claims hold."""
    results = {}
    written = []
    for part in [args.part] if args.part else [*PARTS, "properties"]:
        print(f"{part} …", flush=True)
        figures = PARTS[part](args) if part in PARTS else {}
        for name, panels in figures.items():
            written += write_figure(args.out, f"uniformity_{name}", panels)
            results |= check(name, panels)
        if part == "densities":
            written += picture(args.out / "uniformity_pairs.png", draw_pairs, args)
        if part == "means":
            written += picture(args.out / "uniformity_points.png", draw_means, args)
        if part == "properties":
            generator = torch.Generator().manual_seed(args.seed)
            table = {name: properties(measure, generator) for name, measure in MEASURES.items()}
            write_properties(args.out / "properties.csv", table)
            written.append("properties.csv")
            results |= check_properties(table)
    print(f"in {args.out}: {', '.join(written)}")
    print("the paper's claims, and whether this run shows them:")
    return report(results)


def main(argv=None):
    with cli.one_line_errors("uniformity.py"):
        args = parse(argv)
        cli.make_output_folder(args.out)
        if not args.published:
            print("samples are smaller than the paper's, which --published takes")
        sys.exit(0 if study(args) else 1)


if __name__ == "__main__":
    main()
