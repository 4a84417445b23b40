"""The paper's simulations on Gaussian data: how effective rank and I(R;Z) change, and why.

    python simulate.py                  all parts: minutes, most of them for the networks
    python simulate.py variance --draws 20 --epsilon 1e-4       one part

features  Figure 2 a, b: I(R;Z) rises with the number of features
variance  Figure 2 c, d: I(R;Z) against the clusters' standard deviation; Figure 10: the two
          determinants behind it; both parts: the three terms of Equation 3, see bound_terms
network   Figure 11: I(R;Z) between the data and the output of a small network as it learns

R is 1,000 samples around 5 random centres, each feature standardised; Z is its first 10, or 2,
principal components [§3.1, §B.2–B.5]. The paper does not mention that features are standardised,
but without it (dashed curves) neither (c) levels off nor (d) falls. The total variance is then
always d; what falls along the axis called spread are the features' correlations, from 0.50 to
0.03 (root mean square). As Z is a function of R, I(R;Z) would be infinite: both covariances get ε
on the diagonal. Ten components share 11 nats with R at ε = 1e-2, 26 at ε = 1e-4.

Draws into figures/, and prints which of the trends that the paper claims this run shows.
"""
import itertools
import math
from pathlib import Path

import torch

from figures import new_figure
from losses import info_nce, vicreg
from run import Parser, at_least, one_line_errors, positive

SAMPLES = 1000                      # per data set
COMPONENTS = (10, 2)                # of Z: early and late in training
FEATURES = (12, 16, 20, 25, 30, 40, 50, 60, 80, 100)
DEVIATIONS = (0.1, 0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32)
USUAL_FEATURES = 25                 # where the standard deviation varies
TERMS = ("variance differential", "conditional variance", "total dimension")   # of Equation 3
DETERMINANTS = ("log|Σ(R)|", "log|Σ(R|Z)|")
SAFE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # for the colour-blind


# --- data, components and information -------------------------------------------------------

def blobs(n, features, std, centers=5, draws=1, generator=None):
    """draws × n × features: points around random centres, as in scikit-learn's make_blobs.

    The centres are uniform in [−10, 10]; the points take turns, and are normal around them with
    standard deviation std. float64.
    """
    centres = torch.rand(draws, centers, features, generator=generator, dtype=torch.float64)
    centres = 20 * centres - 10
    noise = torch.randn(draws, n, features, generator=generator, dtype=torch.float64)
    nearest_centre = torch.arange(n) % centers
    return centres[:, nearest_centre] + std * noise


def standardize(x):
    """x (… × n × d) with mean 0 and variance 1 (divided by n) in each feature; 0 if constant."""
    x = x - x.mean(-2, keepdim=True)
    deviation = x.square().mean(-2, keepdim=True).sqrt()
    return x / deviation.clamp_min(1e-12)


def pca(x, k):
    """The first k principal components (… × n × k) of x (… × n × d)."""
    x = x - x.mean(-2, keepdim=True)
    directions = torch.linalg.eigh(x.mT @ x).eigenvectors       # columns, by increasing variance
    return x @ directions[..., -k:].flip(-1)


def log_determinants(r, z, epsilon=1e-2):
    """log|Σ_R|, log|Σ_Z| and the joint log|Σ_(R,Z)|: three tensors of shape ….

    r: … × n × p. z: … × n × k. Covariances divide by n − 1, and get epsilon on the diagonal.
    """
    n, p = r.shape[-2:]
    joint = torch.cat([r, z], -1).double()                      # … × n × (p + k)
    joint = joint - joint.mean(-2, keepdim=True)
    identity = torch.eye(joint.shape[-1], dtype=torch.float64, device=r.device)
    sigma = joint.mT @ joint / (n - 1) + epsilon * identity
    return [torch.logdet(part) for part in (sigma[..., :p, :p], sigma[..., p:, p:], sigma)]


def gaussian_mutual_information(r, z, epsilon=1e-2):
    """I(R;Z) = ½ log(|Σ_R| / |Σ_R|Z|) in nats, R and Z taken as jointly Gaussian [Eq. 1].

    r: … × n × p. z: … × n × k. Returns a tensor of shape ….
    Σ_R|Z = Σ_R − Σ_RZ Σ_Z⁻¹ Σ_ZR is the Schur complement; its determinant is |Σ_(R,Z)| / |Σ_Z|.
    epsilon is added to the diagonals of Σ_R and Σ_Z: if Z is a function of R, I would be infinite.
    """
    log_r, log_z, log_joint = log_determinants(r, z, epsilon)
    return 0.5 * (log_r + log_z - log_joint)


def bound_terms(r, z, epsilon=1e-2):
    """The three terms of Equation 3, by name; their sum is H(R) − I(R;Z) = H(R|Z) in nats.

    The text that we worked from had no readable equations; the names are the paper's. It derives
    the terms from [32]'s bound I(R;Y) ≤ I(Y;T) − I(R;Z) + H(R), with I(Y;T) constant. For
    Gaussians, H(R) − I(R;Z) is exactly

        ½ (log|Σ_R| − log|Σ_Z|)  +  ½ log|Σ_Z|R|  +  p/2 · log 2πe.
    """
    log_r, log_z, log_joint = log_determinants(r, z, epsilon)
    total_dimension = r.shape[-1] / 2 * math.log(2 * math.pi * math.e)
    return {
        "variance differential": 0.5 * (log_r - log_z),
        "conditional variance": 0.5 * (log_joint - log_r),
        "total dimension": torch.full_like(log_r, total_dimension),
    }


# --- small networks that learn ----------------------------------------------------------------

def network_dynamics(loss, args):
    """I(R;Z) between the data and the output of an MLP while it learns by `loss` [§B.4].

    loss(z1, z2) takes two views' outputs. Returns (epochs + 1) × networks, float64.
    The networks share nothing, not even their data, so gradients do not mix. Batch size 100 and
    ReLU are our choices. ReLUs in the narrow projector die: compare ten or more networks.
    """
    generator = torch.Generator().manual_seed(args.seed)
    data = blobs(SAMPLES, USUAL_FEATURES, 0.01, draws=args.networks, generator=generator)
    data = standardize(data).float()                            # networks × samples × features
    # five layers of 20 units, then a projector of two layers of 5; initialised like nn.Linear
    layers = []     # weights (networks × inputs × units) and biases (networks × 1 × units)
    for inputs, units in itertools.pairwise([USUAL_FEATURES] + 5 * [20] + 2 * [5]):
        pair = [torch.rand(args.networks, rows, units, generator=generator) for rows in (inputs, 1)]
        layers.append([((2 * x - 1) / inputs ** 0.5).requires_grad_() for x in pair])
    optimizer = torch.optim.Adam([tensor for layer in layers for tensor in layer], lr=1e-4)

    def view_output(x):
        return outputs(layers, x + 0.5 * torch.randn(x.shape, generator=generator))

    learnt = [outputs(layers, data).detach()]                   # networks × samples × 5 each
    for _ in range(args.epochs):
        for batch in torch.randperm(SAMPLES, generator=generator).split(100):
            x = data[:, batch]                                  # networks × batch × features
            optimizer.zero_grad()
            torch.vmap(loss)(view_output(x), view_output(x)).sum().backward()
            optimizer.step()
        learnt.append(outputs(layers, data).detach())
    return torch.stack([gaussian_mutual_information(data, z, args.epsilon) for z in learnt])


def outputs(layers, x):
    """networks × n × features → networks × n × 5, with a ReLU after every layer but the last."""
    for weight, bias in layers[:-1]:
        x = (x @ weight + bias).relu()
    weight, bias = layers[-1]
    return x @ weight + bias


# --- claims and figures, also for uniformity.py -------------------------------------------------
# A figure is a list of panels, dicts of title, x and y (the axes' names), at (the points' x),
# curves ({label: points × draws}), claims ({label: the trend that the paper claims}) and perhaps
# raw (the curves of raw features, dashed), range (from the best to the worst possible y), facts
# ({sentence: whether it holds}), and log (if the x axis is logarithmic)

def shows(claim, means, largest=0.0):
    """Whether a curve has the claimed trend; wiggles of up to 2 % of its range are ignored.

    means: of the curve's points. largest: how far the measure can move at all.
    """
    moved = max(means) - min(means)
    steps = [after - before for before, after in itertools.pairwise(means)]
    rises = moved > 0 and all(step > -0.02 * moved for step in steps)
    falls = moved > 0 and all(step < 0.02 * moved for step in steps)
    # most of the rise comes first: the last third varies by less than a fifth of it
    end = means[-max(2, len(means) // 3):]
    rise = max(means) - means[0]
    settles = (rise > 0.05 * abs(means[0]) and min(end) > means[0] + 0.5 * rise
               and max(end) - min(end) < 0.2 * rise)
    return {
        "rising": rises and moved > 0.002 * largest,
        "rising far": rises and moved > 0.25 * largest,
        "rising, then level": settles,
        "falling": falls,
        "vanishing": falls and means[-1] < 0.05 * means[0],
        "level": moved < 0.002 * largest,
        "hardly moving": moved < 0.12 * largest,
    }[claim]


def check(name, panels):
    """{sentence: whether it holds} for each claim about a figure's curves."""
    results = {}
    for panel in panels:
        where = f"{name}, {panel['title']}"
        for label, claim in panel["claims"].items():
            means = panel["curves"][label].mean(1).tolist()
            sentence = f"{where}, {label}: {claim} ({means[0]:.3g} → {means[-1]:.3g})"
            results[sentence] = shows(claim, means, panel.get("range", 0))
        results |= {f"{where}: {fact}": holds for fact, holds in panel.get("facts", {}).items()}
    return results


def report(results):
    """Prints {sentence: whether it holds}; returns whether all hold."""
    print("the paper's claims, and whether this run shows them:")
    for sentence, holds in results.items():
        print("yes " if holds else "NO  ", sentence)
    return all(results.values())


def draw(path, panels):
    """Draws the panels, two per row: means with bands of a standard deviation on either side."""
    across = min(2, len(panels))
    figure, axes = new_figure(len(panels), across, 7.5 if across == 1 else 6.5, 4.8)
    for axis, panel in zip(axes, panels):
        for kind, style, note in (("curves", "-", ""), ("raw", "--", ", raw features")):
            curves = panel.get(kind, {}).items()
            for (label, values), colour in zip(curves, itertools.cycle(SAFE_COLOURS)):
                mean = values.mean(1).numpy()
                spread = values.std(1, correction=0).numpy()
                axis.plot(panel["at"], mean, style, color=colour, label=label + note)
                axis.fill_between(panel["at"], mean - spread, mean + spread, color=colour,
                                  alpha=0.2, linewidth=0)
        if panel.get("log"):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


# --- the parts: each returns {name of a figure: panels} -----------------------------------------

def sweep(points, args):
    """quantities() of standardised and of raw R, points × draws. A point: features, deviation."""
    standardized, raw = [], []
    for d, std in points:
        # the same random numbers each time, so only what the axis shows differs along a curve
        generator = torch.Generator().manual_seed(args.seed)
        r = blobs(SAMPLES, d, std, draws=args.draws, generator=generator)   # draws × samples × d
        standardized.append(quantities(standardize(r), args.epsilon))
        raw.append(quantities(r, args.epsilon))
    return [{name: torch.stack([result[name] for result in results]) for name in results[0]}
            for results in (standardized, raw)]


def quantities(r, epsilon):
    """{name: one value per draw of R}; I(R;Z) by the number of components of Z."""
    early, late = COMPONENTS
    information = {k: gaussian_mutual_information(r, pca(r, k), epsilon) for k in COMPONENTS}
    log_r, log_z, log_joint = log_determinants(r, pca(r, late), epsilon)
    determinants = dict(zip(DETERMINANTS, (log_r, log_joint - log_z)))
    return information | determinants | bound_terms(r, pca(r, early), epsilon)


def features_part(args):
    axis = dict(x="number of features d", y="I(R;Z) (nats)", at=FEATURES)
    sweeps = {f"cluster deviation {std:g}": sweep([(d, std) for d in FEATURES], args)
              for std in (0.1, 1, 8, 32)}
    figure2 = []
    for letter, k in zip("ab", COMPONENTS):
        title = f"{letter}) {k} components: I(R;Z) and the number of features"
        figure2.append(dict(axis, title=title, claims=dict.fromkeys(sweeps, "rising"),
                            curves={label: curves[k] for label, (curves, _) in sweeps.items()},
                            raw={label: raw[k] for label, (_, raw) in sweeps.items()}))
    curves, _ = sweeps["cluster deviation 1"]
    terms = dict(axis, title="a) more features (deviation 1)", y="nats",
                 curves={name: curves[name] for name in TERMS},
                 claims={"total dimension": "rising", "conditional variance": "falling"})
    return {"figure2": figure2, "terms": [terms]}


def variance_part(args):
    """With the spread, I(R;Z) rises if Z keeps much of R, and falls otherwise."""
    axis = dict(x="clusters' standard deviation", y="nats", at=DEVIATIONS, log=True)
    curves, raw = sweep([(USUAL_FEATURES, std) for std in DEVIATIONS], args)
    label = f"{USUAL_FEATURES} features"
    figure2 = []
    for letter, k, claim in zip("cd", COMPONENTS, ("rising, then level", "falling")):
        title = f"{letter}) {k} components: I(R;Z) and the spread of the samples"
        figure2.append(dict(axis, title=title, y="I(R;Z) (nats)", claims={label: claim},
                            curves={label: curves[k]}, raw={label: raw[k]}))
    terms = dict(axis, title=f"b) more spread ({label})",
                 curves={name: curves[name] for name in TERMS},
                 claims={"variance differential": "rising", "conditional variance": "rising"})
    k = COMPONENTS[1]
    both = dict(axis, title=f"a) the determinants, {k} components", y="log determinant",
                claims=dict.fromkeys(DETERMINANTS, "rising"),
                curves={name: curves[name] for name in DETERMINANTS},
                raw={name: raw[name] for name in DETERMINANTS})
    label = "log|Σ(R)| − log|Σ(R|Z)| = 2 I(R;Z)"
    difference = dict(axis, title="b) their difference", claims={label: "falling"},
                      curves={label: 2 * curves[k]}, raw={label: 2 * raw[k]})
    return {"figure2": figure2, "terms": [terms], "figure10": [both, difference]}


def network_part(args):
    curves = {"SimCLR": network_dynamics(info_nce, args), "VICReg": network_dynamics(vicreg, args)}
    higher = bool(curves["VICReg"][-1].mean() > curves["SimCLR"][-1].mean())
    title = f"I(R;Z) of data and output while a small network learns ({args.networks} networks)"
    panel = dict(title=title, x="epoch", y="I(R;Z) (nats)", at=range(args.epochs + 1),
                 curves=curves, claims=dict.fromkeys(curves, "rising, then level"),
                 facts={"VICReg above SimCLR at the end": higher})
    return {"figure11": [panel]}


PARTS = {"features": features_part, "variance": variance_part, "network": network_part}


def parse(argv):
    parser = Parser("simulate.py", __doc__)
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="draw this part only")
    add("--draws", type=at_least(1), default=100, metavar="N", help="random data sets per point")
    add("--seed", type=at_least(0), default=0, metavar="N", help="random seed")
    add("--epsilon", type=positive, default=1e-2, metavar="E", help="of the covariances")
    add("--epochs", type=at_least(1), default=1000, metavar="N", help="epochs of the networks")
    add("--networks", type=at_least(1), default=16, metavar="N", help="networks per loss")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="for figures")
    return parser.parse_args(argv)


def main(argv=None):
    with one_line_errors("simulate.py"):
        args = parse(argv)
        args.out.mkdir(parents=True, exist_ok=True)
        figures = {}
        for part in [args.part] if args.part else PARTS:
            print(f"{part} …", flush=True)
            for name, panels in PARTS[part](args).items():
                figures.setdefault(name, []).extend(panels)
        results = {}
        for name, panels in figures.items():
            draw(args.out / f"{name}.png", panels)
            results |= check(name, panels)
        print(f"in {args.out}: {', '.join(f'{name}.png' for name in figures)}")
        report(results)


if __name__ == "__main__":
    main()
