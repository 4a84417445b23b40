"""The paper's simulations on Gaussian data: how effective rank and I(R;Z) change, and why.

    python simulate.py                  all parts: minutes, most of them for the networks
    python simulate.py features         one part: features, variance, terms or network
    python simulate.py variance --draws 20 --components 10 3
    from simulate import blobs, pca, gaussian_mutual_information

features  Figure 2 a, b: I(R;Z) against the number of features
variance  Figure 2 c, d: I(R;Z) against the clusters' standard deviation; Figure 10: the two
          determinants behind it
terms     the three terms of the bound in Equation 3, see bound_terms, in both settings
network   Figure 11: I(R;Z) between the data and the output of a small network as it learns

R is 1,000 samples around 5 random centres, each feature standardised; Z is its first 10, or 2,
principal components [§3.1, §B.2–B.5]. The results depend on two choices:

- The paper does not mention that features are standardised. With raw features (c) does not level
  off, and neither (d) nor Figure 10's difference falls; the figures show them dashed.
  Standardised, the total variance is always d, but the features' correlations fall from 0.50 to
  0.03 (root mean square) from the smallest to the largest standard deviation: the axis called
  spread also shows decorrelation.
- Z is a function of R, so I(R;Z) would be infinite: both covariances get ε on the diagonal, and
  I(R;Z) depends on it. Ten components share 11 nats with R at ε = 1e-2, 26 at ε = 1e-4.

Writes figures and CSVs to figures/, then checks each trend that the paper claims. Exit status: 0;
1 if a trend is missing; 2 with one line on stderr for bad input.
"""
import itertools
import math
import sys
from pathlib import Path

import plumbing     # noqa: F401  (first: makes Ctrl-C quiet during the next imports)
import torch

import losses
from losses import info_nce, vicreg
from plumbing import cli
from plumbing.panels import check, report, write_figure

FEATURES = (12, 16, 20, 25, 30, 40, 50, 60, 80, 100)
FEATURES_AXIS = "number of features d"
DEVIATIONS = (0.1, 0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32)
DEVIATIONS_AXIS = "clusters' standard deviation"
DIFFERENCE = "log|Σ(R)| − log|Σ(R|Z)| = 2 I(R;Z)"


# --- data, components and information -------------------------------------------------------

def blobs(n, features, std, centers=5, draws=1, generator=None):
    """Points around random centres, as in scikit-learn's make_blobs.

    Each draw has `centers` centres, uniform in [−10, 10], and n / centers points around each (the
    first ones get one more, if n is no multiple), normal with standard deviation std.
    Returns draws × n × features, float64. Raises ValueError on sizes below 1 or std < 0.
    """
    sizes = (n, features, centers, draws)
    if min(sizes) < 1 or not 0 <= std < math.inf:
        raise ValueError(f"expected sizes of at least 1 and std ≥ 0, got {sizes} and {std}")
    uniform = torch.rand(draws, centers, features, generator=generator, dtype=torch.float64)
    centres = 20 * uniform - 10
    noise = torch.randn(draws, n, features, generator=generator, dtype=torch.float64)
    nearest_centre = torch.arange(n) % centers
    return centres[:, nearest_centre] + std * noise


def standardise(x):
    """x (… × n × d) with mean 0 and variance 1 (divided by n) in each feature; 0 if constant."""
    x = x - x.mean(-2, keepdim=True)
    deviation = x.square().mean(-2, keepdim=True).sqrt()
    return x / deviation.clamp_min(1e-12)


def pca(x, k):
    """The first k principal components (… × n × k) of x (… × n × d).

    Raises ValueError unless 1 ≤ k ≤ d.
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"expected from 1 to {x.shape[-1]} components, got {k}")
    x = x - x.mean(-2, keepdim=True)
    directions = torch.linalg.eigh(x.mT @ x).eigenvectors       # columns, by increasing variance
    return x @ directions[..., -k:].flip(-1)


def log_determinants(r, z, epsilon=1e-2):
    """log|Σ_R|, log|Σ_Z| and the joint log|Σ_(R,Z)|: three tensors of shape ….

    r: … × n × p. z: … × n × k. Covariances divide by n − 1, and get epsilon on the diagonal.
    Raises ValueError if r and z do not match, n < 2 or epsilon < 0.
    """
    if r.shape[:-1] != z.shape[:-1] or r.shape[-2] < 2 or not epsilon >= 0:
        raise ValueError("expected equally many samples, 2 or more, and epsilon ≥ 0, "
                         f"got {tuple(r.shape)}, {tuple(z.shape)}, {epsilon}")
    n, p = r.shape[-2:]
    joint = torch.cat([r, z], -1).double()                      # … × n × (p + k)
    joint = joint - joint.mean(-2, keepdim=True)
    identity = torch.eye(joint.shape[-1], dtype=torch.float64, device=r.device)
    sigma = joint.mT @ joint / (n - 1) + epsilon * identity
    sigma_r = sigma[..., :p, :p]
    sigma_z = sigma[..., p:, p:]
    return torch.logdet(sigma_r), torch.logdet(sigma_z), torch.logdet(sigma)


def gaussian_mutual_information(r, z, epsilon=1e-2):
    """I(R;Z) = ½ log(|Σ_R| / |Σ_R|Z|) in nats, R and Z taken as jointly Gaussian [Eq. 1].

    r: … × n × p. z: … × n × k. Returns a tensor of shape …. Raises log_determinants' errors.
    Σ_R|Z = Σ_R − Σ_RZ Σ_Z⁻¹ Σ_ZR is the Schur complement; its determinant is |Σ_(R,Z)| / |Σ_Z|.
    epsilon is added to the diagonals of Σ_R and Σ_Z: if Z is a function of R, I would be infinite.
    """
    log_r, log_z, log_joint = log_determinants(r, z, epsilon)
    return 0.5 * (log_r + log_z - log_joint)


def bound_terms(r, z, epsilon=1e-2):
    """The three terms of Equation 3, by name; their sum is H(R) − I(R;Z) = H(R|Z) in nats.

    The paper's text that we had lacked the formulas; the names are the paper's. It derives them
    from [32]'s bound I(R;Y) ≤ I(Y;T) − I(R;Z) + H(R), with I(Y;T) constant. For Gaussians,
    H(R) − I(R;Z) is exactly

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
    Networks with different data, weights and noise are trained side by side, weights stacked.
    The paper gives neither the batch size, 100 here, nor the activation, ReLU here. Results vary
    much, because ReLUs in the narrow projector die: compare ten or more networks.
    """
    generator = torch.Generator().manual_seed(args.seed)
    data = blobs(args.samples, args.features, 0.01, args.centers, args.networks, generator)
    if not args.raw:
        data = standardise(data)
    data = data.float()                                         # networks × samples × features
    layers = draw_layers(args.features, args.networks, generator)
    parameters = [tensor for layer in layers for tensor in layer.values()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def view_of(x):
        noise = torch.randn(x.shape, generator=generator)
        return x + 0.5 * noise

    def information():
        return gaussian_mutual_information(data, outputs(layers, data).detach(), args.epsilon)

    found = [information()]
    for _ in range(args.epochs):
        order = torch.randperm(args.samples, generator=generator)
        for batch in order.split(args.batch_size):
            if len(batch) == 1:
                continue        # VICReg's variance needs two samples
            x = data[:, batch]                                  # networks × batch × features
            z1 = outputs(layers, view_of(x))
            z2 = outputs(layers, view_of(x))
            loss_of_each = torch.vmap(loss)(z1, z2)
            optimizer.zero_grad()
            loss_of_each.sum().backward()       # networks share no weights: no gradients mix
            optimizer.step()
        found.append(information())
    return torch.stack(found)


def draw_layers(features, networks, generator):
    """Five layers of 20 units, then a projector of two layers of 5; initialised like nn.Linear.

    Returns a dict per layer: weight (networks × inputs × units) and bias (networks × 1 × units).
    """
    def uniform(limit, *shape):
        values = 2 * torch.rand(networks, *shape, generator=generator) - 1
        return (values / limit).requires_grad_()

    layers = []
    for inputs, units in itertools.pairwise([features] + 5 * [20] + 2 * [5]):
        weight = uniform(inputs ** 0.5, inputs, units)
        bias = uniform(inputs ** 0.5, 1, units)
        layers.append({"weight": weight, "bias": bias})
    return layers


def outputs(layers, x):
    """networks × n × features → networks × n × 5, with a ReLU after every layer but the last."""
    for layer in layers[:-1]:
        x = (x @ layer["weight"] + layer["bias"]).relu()
    return x @ layers[-1]["weight"] + layers[-1]["bias"]


# --- the figures ------------------------------------------------------------------------------
# A figure is a list of panels, see plumbing/panels.py.

def sweep(measure, features, deviations, args, kinds=("curves", "raw")):
    """measure(r, args), a dict of one value per draw of R, for all features and deviations.

    kinds: "curves" for standardised features, "raw" for others. Returns {kind: found}, each a
    dict of tensors, len(features) × len(deviations) × draws.
    """
    found = {kind: [] for kind in kinds}
    for d, std in itertools.product(features, deviations):
        # the same random numbers each time, so only what the axis shows differs along a curve
        generator = torch.Generator().manual_seed(args.seed)
        raw = blobs(args.samples, d, std, args.centers, args.draws, generator)
        data = {"curves": standardise(raw), "raw": raw}     # draws × samples × d each
        for kind in kinds:
            found[kind].append(measure(data[kind], args))
    shape = (len(features), len(deviations), args.draws)
    for kind, values in found.items():
        found[kind] = {name: torch.stack([value[name] for value in values]).view(shape)
                       for name in values[0]}
    return found


def information(r, args):
    """I(R;Z) for each number of components of Z."""
    return {k: gaussian_mutual_information(r, pca(r, k), args.epsilon) for k in args.components}


def determinants(r, args):
    """The determinants in I(R;Z), for the smaller number of components."""
    log_r, log_z, log_joint = log_determinants(r, pca(r, min(args.components)), args.epsilon)
    return {"log|Σ(R)|": log_r, "log|Σ(R|Z)|": log_joint - log_z,
            DIFFERENCE: log_r + log_z - log_joint}


def terms(r, args):
    """Equation 3's terms, for the larger number of components."""
    return bound_terms(r, pca(r, max(args.components)), args.epsilon)


def features_part(args):
    """Figure 2 a, b: I(R;Z) rises with the number of features."""
    at = [d for d in FEATURES if d >= max(args.components)]
    found = sweep(information, at, args.std, args)
    labels = [f"cluster deviation {std:g}" for std in args.std]
    figure2 = []
    for letter, k in zip("ab", args.components):
        panel = dict(title=f"{letter}) {k} components: I(R;Z) and the number of features",
                     x=FEATURES_AXIS, y="I(R;Z) (nats)", at=at,
                     claims=dict.fromkeys(labels, "rising"))
        for kind, values in found.items():
            panel[kind] = {label: values[k][:, i] for i, label in enumerate(labels)}
        figure2.append(panel)
    return {"figure2": figure2}


def variance_part(args):
    """Figure 2 c, d: with the spread, I(R;Z) rises if Z keeps much of R, and falls otherwise.

    Figure 10: the two determinants behind that fall.
    """
    axis = dict(x=DEVIATIONS_AXIS, at=DEVIATIONS, log=True)
    label = f"{args.features} features"
    found = sweep(information, [args.features], DEVIATIONS, args)
    figure2 = []
    for letter, k, claim in zip("cd", args.components, ("rising, then level", "falling")):
        panel = dict(axis, title=f"{letter}) {k} components: I(R;Z) and the spread of the samples",
                     y="I(R;Z) (nats)", claims={label: claim})
        for kind, values in found.items():
            panel[kind] = {label: values[k][0]}
        figure2.append(panel)

    found = sweep(determinants, [args.features], DEVIATIONS, args)
    both = dict(axis, title=f"a) the determinants, {min(args.components)} components",
                y="log determinant")
    difference = dict(axis, title="b) their difference", y="nats", claims={DIFFERENCE: "falling"})
    for kind, values in found.items():
        both[kind] = {name: draws[0] for name, draws in values.items()}
        difference[kind] = {DIFFERENCE: both[kind].pop(DIFFERENCE)}
    both["claims"] = dict.fromkeys(both["curves"], "rising")
    return {"figure2": figure2, "figure10": [both, difference]}


def terms_part(args):
    """The three terms of Equation 3 in both settings."""
    at = [d for d in FEATURES if d >= max(args.components)]
    std = args.std[(len(args.std) - 1) // 2]                    # the middle one
    by_features = sweep(terms, at, [std], args, ["curves"])["curves"]
    by_deviation = sweep(terms, [args.features], DEVIATIONS, args, ["curves"])["curves"]
    return {"terms": [
        dict(title=f"a) more features (deviation {std:g})",
             x=FEATURES_AXIS, y="nats", at=at,
             curves={name: values[:, 0] for name, values in by_features.items()},
             claims={"total dimension": "rising"}),
        dict(title=f"b) more spread ({args.features} features)",
             x=DEVIATIONS_AXIS, y="nats", at=DEVIATIONS, log=True,
             curves={name: values[0] for name, values in by_deviation.items()},
             claims={"variance differential": "rising", "conditional variance": "rising"}),
    ]}


def network_part(args):
    """Figure 11: I(R;Z) rises, then levels off, and ends higher for VICReg."""
    curves = {"SimCLR": network_dynamics(info_nce, args), "VICReg": network_dynamics(vicreg, args)}
    title = f"I(R;Z) of data and output while a small network learns ({args.networks} networks)"
    if args.raw:
        title += ", raw data"
    ends = {name: float(values[-1].mean()) for name, values in curves.items()}
    return {"figure11": [
        dict(title=title, x="epoch", y="I(R;Z) (nats)", at=range(args.epochs + 1), curves=curves,
             claims=dict.fromkeys(curves, "rising, then level"),
             facts={"VICReg above SimCLR at the end": ends["VICReg"] > ends["SimCLR"]}),
    ]}


# each returns {name of its files: panels}
PARTS = {"features": features_part, "variance": variance_part, "terms": terms_part,
         "network": network_part}


# --- the command line -------------------------------------------------------------------------

def parse(argv):
    """Parses the flags; raises BadInput if one is wrong, or does not fit another."""
    parser = cli.Parser("simulate.py", __doc__)
    add = parser.add_argument
    count = cli.whole_number(1)
    above_zero = cli.number(0, above=True)
    add("part", nargs="?", choices=PARTS, help="draw this part only")
    add("--draws", type=count, default=100, metavar="N", help="random data sets per point")
    add("--seed", type=cli.whole_number(0, 2 ** 63 - 1), default=0, metavar="N", help="random seed")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="for figures and CSVs")
    add("--samples", type=cli.whole_number(2), default=1000, metavar="N", help="per data set")
    add("--centers", type=count, default=5, metavar="N", help="clusters per data set")
    add("--features", type=count, default=25, metavar="D",
        help="number of features when the standard deviation varies")
    add("--std", type=above_zero, nargs="+", default=[0.1, 1, 8, 32], metavar="S",
        help="clusters' standard deviations when the number of features varies, a curve for each "
        "(default: 0.1 1 8 32)")
    add("--components", type=count, nargs=2, default=[10, 2], metavar="K",
        help="numbers of principal components in Z, early and late in training (default: 10 2)")
    add("--epsilon", type=above_zero, default=1e-2, metavar="E",
        help="added to the covariances' diagonals")
    add("--epochs", type=count, default=1000, metavar="N", help="epochs of the networks")
    add("--raw", action="store_true", help="do not standardise the networks' data")
    add("--networks", type=count, default=16, metavar="N",
        help="networks per loss, with different weights and data")
    # torch.vmap cannot map a kernel that is computed in several blocks
    add("--batch-size", type=cli.whole_number(2, losses.BLOCK // 2), default=100, metavar="N",
        help="batch size of the networks")
    args = parser.parse_args(argv)

    args.components.sort(reverse=True)
    most = args.components[0]
    limit = min(args.features, max(FEATURES))
    if args.part != "network" and most > limit:
        raise cli.BadInput(f"--components {most} is more than the number of features, {limit}: "
                           "raise --features, or ask for fewer components")
    return args


def simulate(args):
    """Computes, writes and checks the wanted parts; returns whether all claims hold."""
    figures = {}                # name of the files: panels
    written = []
    for part in [args.part] if args.part else PARTS:
        print(f"{part} …", flush=True)
        for name, panels in PARTS[part](args).items():
            if name == "figure2" and args.part:
                name = f"figure2_{part}"        # half of it
            figures.setdefault(name, []).extend(panels)     # figure2 has the panels of two parts
            written += write_figure(args.out, name, figures[name])
    print(f"in {args.out}: {', '.join(dict.fromkeys(written))}")

    results = {}
    raw_results = {}
    for name, panels in figures.items():
        results |= check(name, panels)
        raw_results |= check(name, panels, "raw")
    print("the paper's claims, and whether this run shows them:")
    all_hold = report(results)
    if raw_results:
        print("the same with raw features, dashed in the figures, about which nothing is claimed:")
        report(raw_results, lacks="no  ")
    return all_hold


def main(argv=None):
    with cli.one_line_errors("simulate.py"):
        args = parse(argv)
        cli.make_output_folder(args.out)
        sys.exit(0 if simulate(args) else 1)


if __name__ == "__main__":
    main()
