"""The paper's simulations [§3.1, §B.2–B.5]: why effective rank and I(R;Z) move as they do, on Gaussian data.

    python simulate.py                     every part: about two minutes on a laptop; figures and CSVs go to figures/
    python simulate.py features            one part: features, variance, terms or network
    python simulate.py variance --draws 20 --std 2 --components 10 3
    from simulate import blobs, pca, gaussian_mutual_information

features  Figure 2 a, b: I(R;Z) against the number of features, at several deviations of the clusters
variance  Figure 2 c, d: I(R;Z) against the clusters' deviation; Figure 10: the two determinants behind it
terms     the three terms of the bound in Equation 3, in both settings
network   Figure 11: I(R;Z) between data and output of a small network that learns by the SimCLR or the VICReg loss

Set-up: R is 1,000 samples around 5 random centres, each feature standardised; Z its first 10, or 2, principal
components. Z is a function of R, so I(R;Z) would be infinite: both covariances get ε on the diagonal. A draw keeps its
random numbers as the deviation changes.

Reconstructed, as the formulas are lost from the paper's text: Equation 3's terms. The text derives them from the bound
I(R;Y) ≤ I(Y;T) − I(R;Z) + H(R) of its [32], with I(Y;T) constant, and names a variance differential, a conditional
variance and a total dimension. H(R) − I(R;Z) = H(R|Z), which for Gaussians is, exactly and in those three terms,

    ½ (log|Σ_R| − log|Σ_Z|)  +  ½ log|Σ_Z|R|  +  d/2 · log 2πe.

The networks' batch size is not given either: it is 100 here, with ReLU after every layer but the last. What they reach
varies much from one to the next, as ReLUs of the narrow projector die: compare ten or more.

After drawing, each trend that the paper claims is checked; exit status: 0; 1 where one is missing; 2, with one line, on
bad input.
"""
import argparse
import csv
import itertools
import math
import os
import sys
from pathlib import Path

import torch

from losses import info_nce, vicreg

PARTS = ("features", "variance", "terms", "network")
FEATURES = (12, 16, 20, 25, 30, 40, 50, 60, 80, 100)                       # where the curves have their points
DEVIATIONS = (0.1, 0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")          # Okabe and Ito's: safe for the colour-blind


# --- the simulation's parts ---------------------------------------------------------------------------------------------

def blobs(n, features, std, centers=5, draws=1, generator=None):
    """Points around random centres, as scikit-learn's make_blobs draws them: draws × n × features, float64.

    Each draw has `centers` centres, uniform in [−10, 10], and n / centers points around each (the first get one more where
    that leaves a rest), normal with deviation std in every direction. Raises ValueError on sizes below 1 or std < 0.
    """
    if min(n, features, centers, draws) < 1 or not 0 <= std < math.inf:
        raise ValueError(f"expected sizes of at least 1 and std ≥ 0, got {(n, features, centers, draws)} and {std}")
    middle = 20 * torch.rand(draws, centers, features, generator=generator, dtype=torch.float64) - 10
    noise = torch.randn(draws, n, features, generator=generator, dtype=torch.float64)
    return middle[:, torch.arange(n) % centers] + std * noise


def standardise(x):
    """x (… × n × d) with mean 0 and, with division by n, deviation 1 in every feature; constant features become 0."""
    x = x - x.mean(-2, keepdim=True)
    return x / x.square().mean(-2, keepdim=True).sqrt().clamp_min(1e-12)


def pca(x, k):
    """The first k principal components (… × n × k) of x (… × n × d). Raises ValueError unless 1 ≤ k ≤ d."""
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"expected from 1 to {x.shape[-1]} components, got {k}")
    x = x - x.mean(-2, keepdim=True)
    directions = torch.linalg.eigh(x.mT @ x).eigenvectors       # by increasing variance
    return x @ directions[..., -k:].flip(-1)


def log_determinants(r, z, epsilon=1e-2):
    """log|Σ_R|, log|Σ_Z| and log|Σ_(R,Z)|, the joint one: three tensors of shape …, for r … × n × p and z … × n × k.

    Covariances with division by n − 1, plus epsilon on the diagonal. Raises ValueError where r and z do not match, on n < 2
    or epsilon < 0.
    """
    if r.shape[:-1] != z.shape[:-1] or r.shape[-2] < 2 or not epsilon >= 0:
        raise ValueError(f"expected as many samples (2 or more) and epsilon ≥ 0, got {tuple(r.shape)}, {tuple(z.shape)}, {epsilon}")
    joint = torch.cat([r, z], -1).double()
    joint = joint - joint.mean(-2, keepdim=True)
    sigma = joint.mT @ joint / (r.shape[-2] - 1) + epsilon * torch.eye(joint.shape[-1], dtype=torch.float64, device=r.device)
    p = r.shape[-1]
    return torch.logdet(sigma[..., :p, :p]), torch.logdet(sigma[..., p:, p:]), torch.logdet(sigma)


def gaussian_mutual_information(r, z, epsilon=1e-2):
    """I(R;Z) = ½ log(|Σ_R| / |Σ_R|Z|) in nats, R and Z taken as jointly Gaussian [Eq. 1]; shape … .

    r: … × n × p, z: … × n × k. Σ_R|Z = Σ_R − Σ_RZ Σ_Z⁻¹ Σ_ZR is Schur's complement, so its determinant is
    |Σ_(R,Z)| / |Σ_Z|. epsilon is added to the diagonals of Σ_R and Σ_Z: where Z is a function of R, I is infinite without.
    """
    log_r, log_z, log_joint = log_determinants(r, z, epsilon)
    return 0.5 * (log_r + log_z - log_joint)


def bound_terms(r, z, epsilon=1e-2):
    """The three terms of Equation 3 as reconstructed above, by name; their sum is H(R) − I(R;Z) = H(R|Z) in nats."""
    log_r, log_z, log_joint = log_determinants(r, z, epsilon)
    return {"variance differential": 0.5 * (log_r - log_z), "conditional variance": 0.5 * (log_joint - log_r),
            "total dimension": torch.full_like(log_r, r.shape[-1] / 2 * math.log(2 * math.pi * math.e))}


def network_dynamics(loss, args):
    """I(R;Z) between the data and the output of an MLP that learns by `loss` [§B.4]: (epochs + 1) × networks, float64.

    The networks differ in data, weights and noise, and learn side by side: their weights are stacked.
    """
    generator = torch.Generator().manual_seed(args.seed)
    rand, randn = (lambda *shape, draw=draw: draw(args.networks, *shape, generator=generator) for draw in (torch.rand, torch.randn))
    x = standardise(blobs(args.samples, args.features, 0.01, args.centers, args.networks, generator)).float()
    layers = []
    for a, b in itertools.pairwise([args.features] + 5 * [20] + 2 * [5]):
        layers.append([((2 * rand(*shape) - 1) / a ** 0.5).requires_grad_() for shape in ((a, b), (1, b))])     # as nn.Linear's
    optimizer = torch.optim.Adam([p for layer in layers for p in layer], lr=1e-4, betas=(0.9, 0.999))

    def net(h):
        for weight, bias in layers[:-1]:
            h = (h @ weight + bias).relu()
        return h @ layers[-1][0] + layers[-1][1]

    found = [gaussian_mutual_information(x, net(x).detach(), args.epsilon)]
    for epoch in range(args.epochs):
        for batch in torch.randperm(args.samples, generator=generator).split(args.batch_size):
            if len(batch) > 1:      # VICReg's variance needs two
                z1, z2 = (net(x[:, batch] + 0.5 * randn(len(batch), args.features)) for view in (1, 2))
                optimizer.zero_grad()
                torch.vmap(loss)(z1, z2).sum().backward()
                optimizer.step()
        found.append(gaussian_mutual_information(x, net(x).detach(), args.epsilon))
    return torch.stack(found)


# --- the figures, as panels: dicts of a title, axes and curves, label → (x, mean, spread) ----------------------------------

def spread(values):
    """Mean and standard deviation over the draws."""
    return float(values.mean()), float(values.std(correction=0))


def sweep(measure, points, args):
    """{name: (xs, means, spreads)} of measure(r), a dict of values for each draw, along points (x, features, std)."""
    curves = {}
    for x, features, std in points:
        generator = torch.Generator().manual_seed(args.seed)
        r = standardise(blobs(args.samples, features, std, args.centers, args.draws, generator))
        for name, values in measure(r).items():
            for row, value in zip(curves.setdefault(name, ([], [], [])), (x, *spread(values))):
                row.append(value)
    return curves


def information(args):
    """r → {k: I(R;Z)} with Z the first k principal components of R."""
    return lambda r: {k: gaussian_mutual_information(r, pca(r, k), args.epsilon) for k in args.components}


def by_features(args, std):
    return [(d, d, std) for d in FEATURES if d >= max(args.components)]


def by_deviation(args):
    return [(std, args.features, std) for std in DEVIATIONS]


def features(args):
    """Figure 2 a, b."""
    found = {std: sweep(information(args), by_features(args, std), args) for std in args.std}
    return [dict(title=f"{letter}) {k} components: I(R;Z) and the number of features", x="number of features d", y="I(R;Z) (nats)",
                 curves={f"cluster deviation {std:g}": found[std][k] for std in args.std}, claim="rising")
            for letter, k in zip("ab", args.components)]


def variance(args):
    """Figure 2 c, d."""
    found = sweep(information(args), by_deviation(args), args)
    return [dict(title=f"{letter}) {k} components: I(R;Z) and the spread of the samples", x="clusters' standard deviation",
                 y="I(R;Z) (nats)", log=True, curves={f"{args.features} features": found[k]}, claim=claim)
            for letter, k, claim in zip("cd", args.components, ("rising, then level", "falling"))]


def determinants(args):
    """Figure 10, for the fewest components."""
    k = min(args.components)

    def measure(r):
        log_r, log_z, log_joint = log_determinants(r, pca(r, k), args.epsilon)
        return {"log|Σ(R)|": log_r, "log|Σ(R|Z)|": log_joint - log_z, "log|Σ(R)| − log|Σ(R|Z)| = 2 I(R;Z)": log_r + log_z - log_joint}

    found = sweep(measure, by_deviation(args), args)
    difference = list(found)[-1]
    return [dict(title=f"a) the determinants, {k} components", x="clusters' standard deviation", y="log determinant", log=True,
                 curves={name: curve for name, curve in found.items() if name != difference}, claim="rising"),
            dict(title="b) their difference", x="clusters' standard deviation", y="nats", log=True,
                 curves={difference: found[difference]}, claim="falling")]


def terms(args):
    """The three terms of Equation 3 in both settings, for the most components."""
    k, std = max(args.components), args.std[(len(args.std) - 1) // 2]
    measure = lambda r: bound_terms(r, pca(r, k), args.epsilon)
    return [dict(title=f"a) more features (deviation {std:g})", x="number of features d", y="nats",
                 curves=sweep(measure, by_features(args, std), args), claim={"total dimension": "rising"}),
            dict(title=f"b) more spread ({args.features} features)", x="clusters' standard deviation", y="nats", log=True,
                 curves=sweep(measure, by_deviation(args), args),
                 claim={"variance differential": "rising", "conditional variance": "rising"})]


def network(args):
    """Figure 11."""
    curves = {}
    for name, loss in (("SimCLR", info_nce), ("VICReg", vicreg)):
        runs = network_dynamics(loss, args)
        curves[name] = (list(range(args.epochs + 1)), runs.mean(1).tolist(), runs.std(1, correction=0).tolist())
    return [dict(title=f"I(R;Z) of data and output while a small network learns ({args.networks} networks)", x="epoch",
                 y="I(R;Z) (nats)", curves=curves, claim="rising, then level", above=("VICReg", "SimCLR"))]


# --- does the run show what the paper claims? -------------------------------------------------------------------------------

def shows(claim, curve):
    """Whether a curve (a list of means) has the claimed trend; wiggles of 2 % of its range count for nothing."""
    low, high = min(curve), max(curve)
    steps, slack = [b - a for a, b in itertools.pairwise(curve)], 0.02 * (high - low)
    if claim == "rising":
        return high > low and all(step > -slack for step in steps)
    if claim == "falling":
        return high > low and all(step < slack for step in steps)
    # rising, then level: most of the rise comes first, and the last fifth of the points stays within a fifth of it
    rise, end = high - curve[0], curve[-max(2, len(curve) // 5):]
    return rise > 0.05 * abs(curve[0]) and max(end) - min(end) < 0.2 * rise and min(end) > curve[0] + 0.5 * rise


def check(name, panels):
    """Prints a line for each claim; whether all hold."""
    results = []
    for panel in panels:
        where = f"{name} {panel['title'].split(')')[0]})" if panel["title"][1] == ")" else name
        for label, (_, curve, _) in panel["curves"].items():
            claim = panel["claim"].get(label) if isinstance(panel["claim"], dict) else panel["claim"]
            if claim:
                results.append((shows(claim, curve), f"{where}, {label}: {claim}"))
        if "above" in panel:
            above, below = (panel["curves"][label][1][-1] for label in panel["above"])
            results.append((above > below, f"{where}: {panel['above'][0]} above {panel['above'][1]} at the end"))
    for holds, text in results:
        print(f"{'yes' if holds else 'NO '}  {text}")
    return all(holds for holds, _ in results)


def write(out, name, panels):
    """Writes name.csv and, where matplotlib is there, name.png; returns the names."""
    with open(out / f"{name}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["panel", "curve", panels[0]["x"] if len({panel["x"] for panel in panels}) == 1 else "x", "mean", "std"])
        for panel in panels:
            for label, curve in panel["curves"].items():
                rows.writerows([panel["title"], label, *(f"{value:.6g}" for value in point)] for point in zip(*curve))
    try:
        import matplotlib
    except ImportError:
        return [f"{name}.csv"]
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    plt.rcParams.update({"font.size": 11})
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    size = (7.5 if across == 1 else 13, 4.2 * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels):
        for (label, (x, mean, std)), colour in zip(panel["curves"].items(), itertools.cycle(COLOURS)):
            axis.plot(x, mean, label=label, color=colour, marker="o" if len(x) < 50 else None, markersize=3.5)
            low, high = ([m + sign * s for m, s in zip(mean, std)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        if panel.get("log"):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(out / f"{name}.png", dpi=150)
    plt.close(figure)
    return [f"{name}.csv", f"{name}.png"]


def stop(message):
    print(f"simulate.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    def number(kind, low, above=False, high=math.inf):
        def parse(text):
            try:
                value = kind(text)
            except ValueError:
                value = math.nan
            if not (value > low if above else value >= low) or value >= high:
                raise argparse.ArgumentTypeError(f"must be a number {'above' if above else 'of at least'} {low}, not {text!r}")
            return value
        return parse

    parser = argparse.ArgumentParser(prog="simulate.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message} (--help explains the flags)")
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="draw this part only")
    add("--draws", type=number(int, 1), default=100, metavar="N", help="random data sets a point (default: %(default)s)")
    add("--seed", type=number(int, 0, high=2 ** 63), default=0, help="(default: %(default)s)")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="where figures and CSVs go (default: %(default)s)")
    add("--samples", type=number(int, 2), default=1000, metavar="N", help="in a data set (default: %(default)s)")
    add("--centers", type=number(int, 1), default=5, metavar="N", help="clusters (default: %(default)s)")
    add("--features", type=number(int, 1), default=25, metavar="D",
        help="where it is the deviation that changes (default: %(default)s)")
    add("--std", type=number(float, 0, True), nargs="+", default=[0.1, 1, 8, 32], metavar="S", help="clusters' deviations where it is the "
        "number of features that changes, a curve each (default: 0.1 1 8 32)")
    add("--components", type=number(int, 1), nargs=2, default=[10, 2], metavar="K", help="principal components that are Z, "
        "early and late in training (default: 10 2)")
    add("--epsilon", type=number(float, 0, True), default=1e-2, metavar="E",
        help="on the covariances' diagonals (default: %(default)s)")
    add("--epochs", type=number(int, 1), default=1000, metavar="N", help="of the network (default: %(default)s)")
    add("--networks", type=number(int, 1), default=16, metavar="N", help="that learn by each loss, from weights and data of "
        "their own (default: %(default)s)")
    add("--batch-size", type=number(int, 2), default=100, metavar="N", help="of the networks (default: %(default)s)")
    args = parser.parse_args(argv)
    args.components.sort(reverse=True)
    if args.part != "network":
        limit, where = min((args.features, "--features"), (FEATURES[-1], "features that the widest data set has"))
        if args.components[0] > limit:
            stop(f"--components {args.components[0]} is more than the {limit} {where}: there are no more components than features")
    written, drawn = [], {}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if not os.access(args.out, os.W_OK | os.X_OK):
            stop(f"cannot write to {args.out}")
        for part in [args.part] if args.part else PARTS:
            print(f"{part} …", flush=True)
            if part == "features":
                drawn["figure2" if not args.part else "figure2_features"] = features(args)
            elif part == "variance":
                drawn["figure2" if not args.part else "figure2_variance"] = drawn.get("figure2", []) + variance(args)
                drawn["figure10"] = determinants(args)
            elif part == "terms":
                drawn["terms"] = terms(args)
            else:
                drawn["figure11"] = network(args)
            for name in drawn:
                if f"{name}.csv" not in written and not (part == "features" and name == "figure2"):     # whose other half comes next
                    written += write(args.out, name, drawn[name])
        print(f"in {args.out}: {', '.join(written)}")
        if not any(name.endswith(".png") for name in written):
            print("the figures were left out: they need matplotlib (pip install matplotlib)")
        print("what the paper claims, and whether this run shows it:")
        sys.exit(0 if all([check(name, panels) for name, panels in drawn.items()]) else 1)
    except BrokenPipeError:     # as in: python simulate.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        stop(error)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        stop("there is not enough memory: try fewer --draws or --samples")
    except KeyboardInterrupt:
        print("simulate.py: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
