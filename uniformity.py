"""Which measures of uniformity see what they should: synthetic studies.

    python uniformity.py                            all parts: about two minutes on two cores
    python uniformity.py cloning                    one part, see below
    python uniformity.py --published                the paper's sample sizes: hours on a CPU

From Fang et al., "Rethinking the Uniformity Metric in Self-Supervised Learning" (ICLR 2024),
which compares Wang & Isola's uniformity L_U with its own W2:

densities   one coordinate of uniform points on the sphere in R^m against N(0, 1/m): histograms,
            KL divergence and Wasserstein distance against m
collapse    both measures against the share η of zero features
dimension   both measures against m, for several η
cloning     each feature repeated, zero features appended, each sample repeated
means       N(k·1, I) in two dimensions, normalised: with a large mean all points are alike
properties  a table of the four properties: a measure stays the same if samples are permuted or
            each is repeated, and gets worse if features are repeated or zero features appended

Samples are unit rows of Gaussian noise (n × m) in which a share η < 1 of the features is zero.
Draws into figures/, and checks the paper's claims about L_U and W2. Exit status 1: one fails.
"""
import itertools
import math
import sys
from functools import partial
from pathlib import Path

import torch

import metrics
from figures import new_figure
from losses import cosine_kernel, normalize_rows, renyi_entropy, wasserstein_uniformity
from run import Parser, at_least, one_line_errors
from simulate import SAFE_COLOURS, check, draw, report

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
    "H_2": lambda x: renyi_entropy(cosine_kernel(x)),
}
# the two that the paper's claims are about: the distance between their best and worst values
LARGEST = {"W2": 2 ** 0.5, "L_U": 4.0}
BINS = 51                       # of histograms
COLLAPSED = (0.25, 0.5, 0.75)   # shares η
TIMES = range(1, 11)            # how often features or samples are repeated

# numbers of samples and dimensions: for a first look, and the paper's
SIZES = {
    "densities": {"points": 200_000, "dimensions": (2, 4, 8, 16, 32, 64, 128, 256)},
    "collapse": {"samples": 4000, "dimensions": (200, 500)},
    "dimension": {"samples": 4000, "dimensions": tuple(2 ** k for k in range(2, 11))},  # 4, 8, …
    "cloning": {"samples": 2000, "instances": 1000},
}
PUBLISHED = SIZES | {
    "collapse": {"samples": 20_000, "dimensions": (200, 500, 1000)},
    "dimension": {"samples": 50_000, "dimensions": tuple(2 ** k for k in range(2, 13))},
    "cloning": {"samples": 50_000, "instances": 1000},
}


# --- samples ----------------------------------------------------------------------------------

def unit_noise(n, m, eta, generator):
    """n × m unit rows of Gaussian noise; the last share eta of the features is zero."""
    x = torch.randn(n, m, generator=generator)
    x[:, m - round(eta * m):] = 0
    return normalize_rows(x)


def append_zeros(x, times):
    """Appends (times − 1) · m zero features, which the paper calls baby features."""
    return torch.cat([x, torch.zeros_like(x).repeat(1, times - 1)], 1)


def around(k, n, generator):
    """n × 2 points of N(k·1, I), normalised."""
    return normalize_rows(k + torch.randn(n, 2, generator=generator))


def change_noise(times, change, n, eta, generator):
    return change(unit_noise(n, 32, eta, generator), times)


# --- the studies: each returns {name of a figure: panels} ---------------------------------------

def panels_of(args, title, x, at, samples, claims, log=False):
    """A panel of W2 and one of L_U, see simulate.py, with a curve for each label.

    samples: {label: make}, where make(value, generator=…) makes the samples for a value of the
    axis. at: those values. claims: {measure: claim about all its curves}.
    """
    curves = {name: {label: torch.zeros(len(at), args.draws, dtype=torch.float64)
                     for label in samples} for name in LARGEST}
    for label, make in samples.items():
        for point, number in itertools.product(range(len(at)), range(args.draws)):
            generator = torch.Generator().manual_seed(args.seed + number)
            drawn = make(at[point], generator=generator)
            for name in LARGEST:
                curves[name][label][point, number] = MEASURES[name](drawn)
    return [dict(title=f"{name}: {title}", x=x, y=name, at=at, curves=curves[name], log=log,
                 claims=dict.fromkeys(samples, claims[name]) if claims else {}, range=largest)
            for name, largest in LARGEST.items()]


def densities_part(args):
    """A coordinate of uniform points approaches N(0, 1/m): so W2 may compare with a Gaussian."""
    n, dimensions = args.sizes["densities"]["points"], args.sizes["densities"]["dimensions"]
    generator = torch.Generator().manual_seed(args.seed)
    histograms = []
    distances = {"KL divergence": [], "Wasserstein distance": []}
    for m in dimensions:
        coordinate = unit_noise(n, m, 0, generator)[:, 0].double()
        gaussian = torch.randn(n, generator=generator).double() / m ** 0.5
        limit = float(torch.stack([coordinate, gaussian]).abs().max())
        on_sphere = torch.histc(coordinate, BINS, -limit, limit)
        normal = torch.histc(gaussian, BINS, -limit, limit)
        distances["KL divergence"].append(kl_divergence(on_sphere, normal))
        distances["Wasserstein distance"].append(wasserstein_1d(coordinate, gaussian))

        width = 2 * limit / BINS
        middle = torch.linspace(-limit + width / 2, limit - width / 2, BINS).tolist()
        counts = {"uniform on the sphere": on_sphere, "N(0, 1/m)": normal}
        curves = {name: (count / count.sum() / width)[:, None] for name, count in counts.items()}
        histograms.append(dict(title=f"m = {m}", x="a coordinate", y="density", at=middle,
                               curves=curves, claims={}))

    panels = [dict(title=f"{name} of coordinate and Gaussian", x="dimension m", y=name, log=True,
                   at=dimensions, claims={name: "vanishing"},
                   curves={name: torch.tensor(values, dtype=torch.float64)[:, None]})
              for name, values in distances.items()]
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
    samples = {f"m = {m}": partial(unit_noise, size["samples"], m) for m in size["dimensions"]}
    return {"collapse": panels_of(args, "collapse", "share η of zero features", shares, samples,
                                  {"W2": "rising far", "L_U": "hardly moving"})}


def dimension_part(args):
    n, dimensions = args.sizes["dimension"]["samples"], args.sizes["dimension"]["dimensions"]
    samples = {f"η = {eta:.0%}": partial(unit_noise, n, eta=eta) for eta in (0, *COLLAPSED)}
    panels = panels_of(args, "dimension", "dimension m", dimensions, samples, {}, log=True)

    def apart(panel):
        ends = [float(values[-1].mean()) for values in panel["curves"].values()]
        return max(ends) - min(ends) > 0.08 * panel["range"]

    w2, l_u = panels
    at_end = f"at m = {dimensions[-1]}"
    w2["facts"] = {f"tells the η apart {at_end}": apart(w2)}
    l_u["facts"] = {f"does not tell the η apart {at_end}": not apart(l_u)}
    return {"dimension": panels}


def cloning_part(args):
    n, instances = args.sizes["cloning"]["samples"], args.sizes["cloning"]["instances"]
    panels = []
    for title, change, count, w2_claim, lu_claim in (
            ("every feature repeated", lambda x, k: x.repeat(1, k), n, "rising", "level"),
            ("features of zeros appended", append_zeros, n, "rising", "level"),
            ("every sample repeated", lambda x, k: x.repeat(k, 1), instances, "level", "rising")):
        samples = {f"η = {eta:.0%}": partial(change_noise, change=change, n=count, eta=eta)
                   for eta in COLLAPSED}
        panels += panels_of(args, title, "times", TIMES, samples,
                            {"W2": w2_claim, "L_U": lu_claim})
    return {"cloning": panels}


def means_part(args):
    samples = {"N(k·1, I), made unit": partial(around, n=2000)}
    return {"means": panels_of(args, "large means", "mean k", (0, 0.5, 1, 2, 4, 8, 16, 32),
                               samples, {"W2": "rising", "L_U": "rising"})}


PARTS = {"densities": densities_part, "collapse": collapse_part, "dimension": dimension_part,
         "cloning": cloning_part, "means": means_part}


# --- the four properties ------------------------------------------------------------------------

def properties(measure, generator, tolerance=1e-3):
    """{property: whether a measure has it}, on 400 × 96 Gaussian noise with η = 25 %.

    "Worse" is the direction in which the measure moves as η grows to 75 %. tolerance: the share
    of that distance that counts as no change.
    """
    x = unit_noise(400, 96, 0.25, generator)
    value = float(measure(x))
    distance = float(measure(unit_noise(400, 96, 0.75, generator))) - value

    def moved(samples):
        return (float(measure(samples)) - value) / distance if distance else math.nan

    permuted = x[torch.randperm(len(x), generator=generator)]
    return {
        "permuted samples: unchanged": abs(moved(permuted)) < tolerance,
        "repeated samples: unchanged": abs(moved(x.repeat(2, 1))) < tolerance,
        "repeated features: worse": moved(x.repeat(1, 2)) > tolerance,
        "appended zeros: worse": moved(append_zeros(x, 2)) > tolerance,
    }


def check_properties(seed):
    """Prints a table. Returns the claims: W2 has all four, L_U the first alone [Theorem 1]."""
    generator = torch.Generator().manual_seed(seed)
    table = {name: properties(measure, generator) for name, measure in MEASURES.items()}
    print(f"{'':21}" + "  ".join(table["W2"]))
    for name, row in table.items():
        answers = [f"{'yes' if row[title] else 'no':{len(title)}}" for title in row]
        print(f"{name:21}" + "  ".join(answers))

    results = {f"properties, W2, {title}": holds for title, holds in table["W2"].items()}
    for title, holds in table["L_U"].items():
        claimed = title.startswith("permuted")
        results[f"properties, L_U, {title}" + ("" if claimed else ": not so")] = holds == claimed
    return results


def draw_points(path, seed):
    """Coordinates at m = 32, on the sphere and of a Gaussian: they look alike. And N(k·1, I)."""
    generator = torch.Generator().manual_seed(seed)
    samples = {"uniform on the sphere": unit_noise(2000, 32, 0, generator)[:, :2],
               "N(0, I/32)": torch.randn(2000, 2, generator=generator) / 32 ** 0.5}
    samples |= {f"k = {k}": around(k, 500, generator) for k in (1, 4, 32)}
    figure, axes = new_figure(len(samples), len(samples), 3, 3.4)
    for axis, (title, x) in zip(axes, samples.items()):
        axis.scatter(*x.T.numpy(), s=8, alpha=0.3, color=SAFE_COLOURS[0])
        axis.set(title=title, xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    figure.savefig(path, dpi=150)


def parse(argv):
    parser = Parser("uniformity.py", __doc__)
    add = parser.add_argument
    add("part", nargs="?", choices=(*PARTS, "properties"), help="compute this part only")
    add("--draws", type=at_least(1), default=3, metavar="N", help="samples per point")
    add("--seed", type=at_least(0), default=0, metavar="N", help="random seed")
    add("--published", action="store_true", help="use the paper's sample sizes")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="for figures")
    args = parser.parse_args(argv)
    args.sizes = PUBLISHED if args.published else SIZES
    return args


def main(argv=None):
    with one_line_errors("uniformity.py"):
        args = parse(argv)
        args.out.mkdir(parents=True, exist_ok=True)
        results = {}
        for part in [args.part] if args.part else [*PARTS, "properties"]:
            print(f"{part} …", flush=True)
            if part == "properties":
                results |= check_properties(args.seed)
                continue
            for name, panels in PARTS[part](args).items():
                draw(args.out / f"uniformity_{name}.png", panels)
                results |= check(name, panels)
            if part in ("densities", "means"):
                draw_points(args.out / "uniformity_points.png", args.seed)
        print(f"the figures are {args.out}/uniformity_*.png")
        sys.exit(0 if report(results) else 1)


if __name__ == "__main__":
    main()
