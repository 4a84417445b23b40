"""Reads the logs of runs, names the runs, and makes tables of their final values.

    from plumbing.results import labels, read_runs
    read_runs([Path("runs/a"), Path("runs/b")])             # {method: [log of a run, …]}
    labels([config["flags"] for config in configs])         # ["VICReg", "AdaDim, width 8", …]

Runs are named after the flags in their config.json, never after their folder. Runs that differ
only in their seed are one method; an unfinished run has a name of its own.
"""
import csv
import io
import json
import math

import torch

from metrics import pearson
from plumbing.cli import BadInput
from plumbing.run import (NAMING_FLAGS, NO_EFFECT, last_value, read_config, read_log,
                          write_whole)

# flags that do not distinguish methods
NO_DIFFERENCE = (*NO_EFFECT, "--seed", "--eval-every", "--baseline")
# flags whose defaults depend on the method: only compared within a method
METHODS_OWN = ("--projector", "--augment", "--optimizer", "--lr", "--weight-decay")
# flags without effect unless α is measured
ONLY_WITH_ADA = ("--alpha-every", "--alpha-batches")

# as the papers write them; others keep the name that they have in --method
METHOD_NAMES = {
    "barlow_twins": "Barlow Twins", "byol": "BYOL", "simsiam": "SimSiam", "nnclr": "NNCLR",
    "moco_v2": "MoCo v2", "moco_v3": "MoCo v3", "dino": "DINO", "swav": "SwAV",
    "deepcluster_v2": "DeepCluster v2", "ressl": "ReSSL", "lejepa": "LeJEPA",
}
FLAG_NAMES = {"--w2-weight": "W₂", "--lu-weight": "L_U"}        # as losses in a name

# The tables show the last values of these columns, with their headings.
SUMMARY = {"probe_top1": "probe (%)", "knn_top1": "k-NN (%)", "erank_r": "erank R",
           "erank_z": "erank Z", "mi": "I(R;Z)", "alpha": "α"}
SPREADS = {
    "std": "the standard deviation over seeds (n − 1)",
    "ci": "half of the 95 % interval of the mean over seeds (t distribution)",
}
CORRELATES = {
    "effective rank of R": "erank_r",
    "effective rank of Z": "erank_z",
    "I(R;Z)": "mi",
    "I(R;Z) on the features' kernels": "mi_features",
    "effective rank of R / I(R;Z)": "erank_r_over_mi",
    "effective rank of Z / I(R;Z)": "erank_z_over_mi",
    "linear CKA of R and Z": "cka",
}
OTHER_MEASURES = {
    "RankMe": "rankme", "LiDAR": "lidar", "α-ReQ": "alpha_req", "stable rank": "stable_rank",
    "participation ratio": "participation", "NESum": "nesum", "H₂": "h2", "W₂": "w2",
    "uniformity": "uniformity",
}
CORRELATES |= {f"{measure} of {letter.upper()}": f"{column}_{letter}"
               for measure, column in OTHER_MEASURES.items() for letter in "rz"}


# --- reading --------------------------------------------------------------------------------------

def read_runs(folders):
    """The logs of runs by their names: {method: [log, …]}; raises the errors of read_folders()."""
    return by_name(*read_folders(folders))


def by_name(all_flags, logs):
    """{method: [log, …]}; an unfinished run is named, say, "AdaDim (seed 0: epoch 9 of 20)"."""
    runs = {}
    for name, flags, log in zip(labels(all_flags), all_flags, logs):
        if not is_finished(log):
            name += f" (seed {flags.get('--seed')}: {epoch_of(log)})"
        runs.setdefault(name, []).append(log)
    return runs


def is_finished(log):
    return "of_epochs" not in log


def epoch_of(log):
    return f"epoch {log['epoch'][-1]:g} of {log['of_epochs'][-1]:g}"


def read_folders(folders, unfinished=False):
    """The flags and the log of each run, as two lists.

    The log of an unfinished run has another column, of_epochs; not with unfinished=True, which
    takes it for a finished one. Both are named on stdout.
    A folder without a log, a configuration or an epoch is left out, and named on stdout.
    Raises BadInput if a folder does not exist, a file is damaged or no run is left.
    """
    counted = "left out of means and correlations (--unfinished counts it)"
    if unfinished:
        counted = "counted like a finished run"
    all_flags = []
    logs = []
    for folder in folders:
        missing = what_is_missing(folder)
        if missing:
            print(f"{folder} {missing}: left out")
            continue
        flags = read_config(folder)["flags"]
        all_flags.append(flags)
        log = read_log(folder / "log.csv")
        length = len(log["epoch"])
        if flags.get("--epochs", length) != length:
            log["of_epochs"] = [flags["--epochs"]] * length
            print(f"{folder} is unfinished, {epoch_of(log)}: {counted}")
        if unfinished:
            log.pop("of_epochs", None)
        logs.append(log | with_information(log) | read_evaluation(folder))
    if not logs:
        raise BadInput("there is nothing to draw yet")
    return all_flags, logs


def with_information(log):
    """{column: [number]}: Equation 2's bound, and Table 3's ratios, infinite where I(R;Z) is 0.

    The log has R's ratio, too, but empty there, and last_value would take an earlier one.
    """
    found = {"h2_r_minus_mi": [h - i for h, i in zip(log.get("h2_r", []), log.get("mi", []))]}
    for rank in ("erank_r", "erank_z"):
        pairs = zip(log.get(rank, []), log.get("mi", []))
        found[f"{rank}_over_mi"] = [x / i if i != 0 else math.inf for x, i in pairs]
    return found


def read_evaluation(folder):
    """evaluate.py's figures that a run's log lacks, {column: [number]}; {} if there are none.

    Not its k-NN accuracy, which is on all images; the log's is on some.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = [name for name in found if name.startswith(("lidar_", "alignment_", "linear_"))]
        return {name: [float(found[name])] for name in names if found[name] is not None}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path} holds no figures of evaluate.py") from error


def what_is_missing(folder):
    """The reason why a folder cannot be drawn yet, or None. Raises BadInput if there is none."""
    if not folder.exists():
        raise BadInput(f"there is no folder {folder}")
    if folder.is_dir() and not (folder / "log.csv").exists():       # a run that failed at once
        return "holds no log.csv"
    if not read_log(folder / "log.csv")["epoch"]:
        return "has no epoch yet"
    if not (folder / "config.json").exists():
        return "holds no config.json"
    return None


# --- names ----------------------------------------------------------------------------------------

def label(flags):
    """The name of a method with these flags: VICReg, BYOL, "α 0.5", "AdaDim, β 0" …

    flags: from config.json; only NAMING_FLAGS are used.
    """
    alpha, beta = flags["--alpha"], flags["--beta"]
    constant = flags["--mi-scale"] == "1" and beta != 0         # the regulariser of [32]
    if flags["--method"] != "adadim":
        words = [METHOD_NAMES.get(flags["--method"], flags["--method"])]
    elif alpha == "ada":
        words = ["AdaDim"]
    else:
        words = [{0: "VICReg", 1: "SimCLR"}.get(alpha, f"α {spelled(alpha)}")]

    is_adadim = words == ["AdaDim"]
    if constant and not is_adadim:
        words[0] += " + I(R;Z)"
    published = 1e-4 if constant or is_adadim else 0
    has_beta = constant or flags["--method"] == "adadim"
    if has_beta and beta != published:
        words.append(f"β {spelled(beta)}")
    if constant and is_adadim:
        words.append("m 1")
    if flags["--alpha-from"] == "r" and is_adadim:
        words.append("α from R")
    return ", ".join(words)


def spelled(value):
    if value is None:
        return "default"
    if isinstance(value, float):
        value = f"{value:g}"
    return str(value).replace("-", "−") if is_number(value) else str(value)


def is_number(value):
    try:
        float(value)
    except ValueError:
        return False
    return True


def labels(all_flags):
    """A name for each run, in a list: label(), and the flags in which the runs differ."""
    others = [other_flags(flags) for flags in all_flags]
    names = []
    for flags, other in zip(all_flags, others):
        words = [label(flags)]
        of_its_method = [theirs for theirs, theirs_all in zip(others, all_flags)
                         if theirs_all["--method"] == flags["--method"]]
        for flag, value in other.items():
            is_its_own = flag in METHODS_OWN or not flag.startswith("--")
            compared = of_its_method if is_its_own else others
            shared = all(value == theirs[flag] for theirs in compared if flag in theirs)
            if not shared:
                words += spelled_flag(flag, value)
        names.append(", ".join(words))
    return names


def other_flags(flags):
    """The flags, and --set's settings, that can distinguish runs with the same label."""
    measured = flags["--method"] == "adadim" and flags["--alpha"] == "ada"
    without_effect = () if measured else ONLY_WITH_ADA
    left_out = (*NAMING_FLAGS, *NO_DIFFERENCE, *without_effect, "--set")
    kept = {flag: value for flag, value in flags.items()
            if flag.startswith("--") and flag not in left_out}
    return kept | (flags.get("--set") or {})


def spelled_flag(flag, value):
    """A flag's part of a name, in a list, which is empty if the flag was not given."""
    if value is None or (flag in FLAG_NAMES and value == "0"):
        return []
    name = FLAG_NAMES.get(flag, flag.removeprefix("--"))
    return [f"{name} {spelled(value)}"]


# --- tables ---------------------------------------------------------------------------------------

def mean_and_spread(values, kind="std"):
    """The mean of finite values, and their spread, see SPREADS; NaN for too few of them."""
    values = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    if len(values) < 2:
        return values.mean().item(), math.nan
    deviation = values.std().item()
    if kind == "ci":
        deviation *= t_quantile(len(values) - 1) / math.sqrt(len(values))
    return values.mean().item(), deviation


def t_quantile(freedom):
    """The 97.5 % quantile of Student's t: exact for up to four degrees of freedom, then within
    0.003, from the first terms of its expansion around the normal distribution's."""
    few = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    expanded = 1.96 + 2.372 / freedom + 2.823 / freedom ** 2 + 2.56 / freedom ** 3
    return few.get(freedom, expanded)


def summary(runs, kind="std"):
    """{method: [log, …]} → a row per method: its name, its number of runs, and the mean and
    spread of the last values of SUMMARY. kind: one of SPREADS."""
    rows = []
    for name, logs in runs.items():
        row = {"method": name, "runs": len(logs)}
        for column in SUMMARY:
            ends = [last_value(log, column) for log in logs]
            row[column], row[f"{column}_{kind}"] = mean_and_spread(ends, kind)
        rows.append(row)
    return rows


def correlations(runs):
    """Pearson's r between the runs' last probe accuracies and each of CORRELATES [Table 3].

    runs: {method: [log, …]}. Returns rows of quantity, r, |r|, the limits of r's 95 % interval and
    the number of runs with both values; r is NaN for fewer than three.
    """
    every_log = [log for logs in runs.values() for log in logs]
    rows = []
    for quantity, column in CORRELATES.items():
        xs = []
        ys = []
        for log in every_log:
            x = last_value(log, column)
            y = last_value(log, "probe_top1")
            if math.isfinite(x) and math.isfinite(y):
                xs.append(x)
                ys.append(y)
        r, low, high = correlation(xs, ys)
        rows.append({"quantity": quantity, "r": r, "abs_r": abs(r), "low": low, "high": high,
                     "runs": len(xs)})
    return rows


def correlation(xs, ys):
    """Pearson's r of two lists, NaN if they are shorter than three, and its 95 % interval."""
    r = pearson(xs, ys).item() if len(xs) > 2 else math.nan
    return r, *interval(r, len(xs))


def interval(r, n):
    """The 95 % interval of a correlation of n pairs, by Fisher's transformation, or NaN twice."""
    if math.isnan(r) or n < 4:
        return math.nan, math.nan
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    half = 1.96 / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def write_table(path, rows):
    """Writes a CSV, with empty fields for NaN. rows: dicts with the same keys."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    for row in rows:
        table.writerow({name: "" if value != value else value for name, value in row.items()})
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def summary_cells(rows, kind):
    """summary()'s rows as a table for print: [{heading: text}, …]."""
    return [{"": row["method"], "runs": str(row["runs"])}
            | {heading: with_spread(row[column], row[f"{column}_{kind}"])
               for column, heading in SUMMARY.items()}
            for row in rows]


def correlation_cells(rows):
    """correlations()'s rows as a table for print, largest |r| first, without those that have none.
    """
    known = [row for row in rows if not math.isnan(row["r"])]
    return [{"accuracy and …": row["quantity"], "r": f"{row['r']:.2f}".replace("-", "−"),
             "95 %": f"{row['low']:.2f} … {row['high']:.2f}".replace("-", "−").replace("nan", "–"),
             "runs": str(row["runs"])}
            for row in sorted(known, key=lambda row: -row["abs_r"])]


def with_spread(mean, spread):
    """A mean with three digits, and ± its spread if that is known; – for no mean."""
    if math.isnan(mean):
        return "–"
    size = max(abs(mean), 0 if math.isnan(spread) else spread)
    decimals = max(0, 2 - math.floor(math.log10(size))) if size > 0 else 0
    text = f"{mean:.{decimals}f}" if spread != 0 else f"{mean:.3g}"
    if spread > 0:
        text += f" ± {spread:.{decimals}f}"
    return text.replace("-", "−")


def markdown(cells):
    """A Markdown table. cells: [{heading: text}, …]."""
    widths = {heading: max(len(heading), *(len(row[heading]) for row in cells))
              for heading in cells[0]}
    lines = [{heading: heading for heading in widths},
             {heading: "-" * width for heading, width in widths.items()}, *cells]
    return "\n".join("| " + " | ".join(line[heading].ljust(width)
                                       for heading, width in widths.items()) + " |"
                     for line in lines)


LATEX = {character: rf"\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "α": r"$\alpha$", "β": r"$\beta$",
    "±": r"$\pm$", "−": "$-$", "–": "--", "₂": "$_2$"}


def latex(cells, caption):
    """A LaTeX table, which needs no package. cells: [{heading: text}, …]."""
    table = str.maketrans(LATEX)
    rows = [" & ".join(text.translate(table) for text in line) + r" \\"
            for line in (cells[0], *(row.values() for row in cells))]
    return "\n".join([r"\begin{table}", r"\centering",
                      rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}", r"\hline", rows[0],
                      r"\hline", *rows[1:], r"\hline", r"\end{tabular}",
                      rf"\caption{{{caption.translate(table)}}}", r"\end{table}"])


def differing_flags(all_flags, logs):
    """The last accuracies by flag, method and value: {flag: {label: {value: [accuracy, …]}}}.

    Only for flags with several values within a method, and finished runs with an accuracy.
    """
    found = {}
    for flags, log in zip(all_flags, logs):
        accuracy = last_value(log, "probe_top1")
        if math.isnan(accuracy) or not is_finished(log):
            continue
        for flag, value in other_flags(flags).items():
            of_method = found.setdefault(flag, {}).setdefault(label(flags), {})
            of_method.setdefault(value, []).append(accuracy)
    return {flag: methods for flag, methods in found.items()
            if any(len(by_value) > 1 for by_value in methods.values())}
