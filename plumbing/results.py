"""Reads the logs of runs, names the runs, and makes tables of their final values.

    from plumbing.results import labels, read_runs
    read_runs([Path("runs/a"), Path("runs/b")])             # {method: [log of a run, …]}
    labels([config["flags"] for config in configs])         # ["VICReg", "AdaDim, --width 8", …]

Runs are named after the flags in their config.json, never after their folder. Runs that differ
only in their seed are one method.
"""
import csv
import io
import json
import math

import torch

from metrics import pearson
from plumbing.cli import BadInput
from plumbing.run import NAMING_FLAGS, last_value, read_config, read_log, write_whole

# flags that do not distinguish methods
NO_DIFFERENCE = ("--seed", "--out", "--data-dir", "--device", "--resident", "--compile",
                 "--tensorboard", "--resume", "--overwrite", "--classes")
# flags whose defaults depend on the method: only compared within a method
METHODS_OWN = ("--projector", "--augment", "--optimizer", "--lr", "--weight-decay")
# flags without effect unless α is measured
ONLY_WITH_ADA = ("--alpha-every", "--alpha-batches")

# The tables show the last values of these columns; "divided by" makes Table 3's ratios.
SUMMARY = ("probe_top1", "knn_top1", "erank_r", "erank_z", "mi", "alpha")
CORRELATES = {
    "effective rank of R": {"column": "erank_r"},
    "effective rank of Z": {"column": "erank_z"},
    "I(R;Z)": {"column": "mi"},
    "I(R;Z) on the features' kernels": {"column": "mi_features"},
    "effective rank of R / I(R;Z)": {"column": "erank_r", "divided by": "mi"},
    "effective rank of Z / I(R;Z)": {"column": "erank_z", "divided by": "mi"},
    "linear CKA of R and Z": {"column": "cka"},
}
OTHER_MEASURES = {
    "RankMe": "rankme", "LiDAR": "lidar", "α-ReQ": "alpha_req", "stable rank": "stable_rank",
    "participation ratio": "participation", "NESum": "nesum", "H₂": "h2", "W₂": "w2",
    "uniformity": "uniformity",
}
CORRELATES |= {f"{measure} of {letter.upper()}": {"column": f"{column}_{letter}"}
               for measure, column in OTHER_MEASURES.items() for letter in "rz"}


# --- reading --------------------------------------------------------------------------------------

def read_runs(folders):
    """The logs of runs by their names: {method: [log, …]}; raises the errors of read_folders()."""
    return by_name(*read_folders(folders))


def by_name(all_flags, logs):
    runs = {}
    for name, log in zip(labels(all_flags), logs):
        runs.setdefault(name, []).append(log)
    return runs


def read_folders(folders):
    """The flags and the log of each run, as two lists.

    A folder without a log, a configuration or an epoch is left out, and named on stdout.
    Raises BadInput if a file is damaged or no run is left, OSError if a folder does not exist.
    """
    all_flags = []
    logs = []
    for folder in folders:
        missing = what_is_missing(folder)
        if missing:
            print(f"{folder} {missing}: left out")
            continue
        all_flags.append(read_config(folder)["flags"])
        log = read_log(folder / "log.csv")
        if "h2_r" in log and "mi" in log:
            log["h2_r_minus_mi"] = [h - i for h, i in zip(log["h2_r"], log["mi"])]
        logs.append(log | read_evaluation(folder))
    if not logs:
        raise BadInput("there is nothing to draw yet")
    return all_flags, logs


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
    """The reason why a folder cannot be drawn yet, or None."""
    if folder.is_dir() and not (folder / "log.csv").exists():       # a run that failed at once
        return "holds no log.csv"
    if not read_log(folder / "log.csv")["epoch"]:
        return "has no epoch yet"
    if not (folder / "config.json").exists():
        return "holds no config.json"
    return None


# --- names ----------------------------------------------------------------------------------------

def label(flags):
    """The name of a method with these flags: VICReg, AdaDim, "α 0.5", "AdaDim, β 0" …

    flags: from config.json; only NAMING_FLAGS are used.
    """
    alpha, beta = flags["--alpha"], flags["--beta"]
    constant = flags["--mi-scale"] == "1" and beta != 0         # the regulariser of [32]
    if flags["--method"] != "adadim":
        words = [flags["--method"]]
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
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [f"{flag} {spelled(value)}"]


# --- tables ---------------------------------------------------------------------------------------

def summary(runs):
    """{method: [log, …]} → a row per method: its name, its number of runs, and the mean and
    standard deviation (with n − 1; NaN for a single run) of the last values of SUMMARY."""
    rows = []
    for name, logs in runs.items():
        row = {"method": name, "runs": len(logs)}
        for column in SUMMARY:
            ends = [last_value(log, column) for log in logs]
            ends = torch.tensor(ends, dtype=torch.float64)
            row[column] = ends.mean().item()
            row[f"{column}_std"] = ends.std().item() if len(ends) > 1 else math.nan
        rows.append(row)
    return rows


def correlations(runs):
    """Pearson's r between the runs' last probe accuracies and each of CORRELATES [Table 3].

    runs: {method: [log, …]}. Returns rows of quantity, r, |r|, the limits of r's 95 % interval and
    the number of runs with both values; r is NaN for fewer than three.
    """
    every_log = [log for logs in runs.values() for log in logs]
    rows = []
    for quantity, meaning in CORRELATES.items():
        xs = []
        ys = []
        for log in every_log:
            x = last_correlate(log, meaning)
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


def last_correlate(log, meaning):
    """The last value of one of CORRELATES; NaN if it was not logged, or is divided by 0."""
    x = last_value(log, meaning["column"])
    if "divided by" not in meaning:
        return x
    divisor = last_value(log, meaning["divided by"])
    return x / divisor if divisor != 0 else math.nan


def write_table(path, rows):
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def print_tables(summary_rows, correlation_rows):
    width = max(len(row["method"]) for row in summary_rows)
    headings = [f"{column:>14}" for column in SUMMARY]
    print("  ".join([" " * width, "runs", *headings]))
    for row in summary_rows:
        cells = [summary_cell(row, column) for column in SUMMARY]
        print("  ".join([f"{row['method']:{width}}", f"{row['runs']:4}", *cells]))
    print("Pearson's r of probe accuracy and …, largest |r| first; for fewer than eight runs it "
          "is only indicative")
    for row in sorted(correlation_rows, key=lambda row: (math.isnan(row["r"]), -row["abs_r"])):
        print(f"{row['quantity']:31} {row['r']:6.3f}   95 %: {row['low']:6.3f} … "
              f"{row['high']:6.3f}   {row['runs']} runs")


def summary_cell(row, column):
    """Mean ± standard deviation; for a single run, its value."""
    text = f"{row[column]:7.3g}"
    if row["runs"] > 1:
        text += f" ± {row[f'{column}_std']:4.2g}"
    return f"{text:14}"


def differing_flags(all_flags, logs):
    """The last accuracies by flag, method and value: {flag: {label: {value: [accuracy, …]}}}.

    Only for flags with several values within a method, and runs with an accuracy.
    """
    found = {}
    for flags, log in zip(all_flags, logs):
        accuracy = last_value(log, "probe_top1")
        if math.isnan(accuracy):
            continue
        for flag, value in other_flags(flags).items():
            of_method = found.setdefault(flag, {}).setdefault(label(flags), {})
            of_method.setdefault(value, []).append(accuracy)
    return {flag: methods for flag, methods in found.items()
            if any(len(by_value) > 1 for by_value in methods.values())}
