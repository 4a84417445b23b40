"""What it costs to choose an epoch, or a run, without labels: figures.py --choose.

A measure that needs no labels picks the epoch of a run, or the run among those with the same seed,
at which it is best. The points lost are the test accuracy of the best pick minus that of its own.
"""
import math
from typing import NamedTuple

from plumbing.cli import BadInput
from plumbing.results import CORRELATES, is_finished, last_correlate, mean_and_spread
from plumbing.run import last_value

# what is best, according to the authors of the measure; for I(R;Z) both ends
WANTED = {
    "highest": ("effective rank of R", "effective rank of Z", "RankMe of R", "RankMe of Z",
                "LiDAR of R", "LiDAR of Z", "effective rank of R / I(R;Z)",
                "effective rank of Z / I(R;Z)", "I(R;Z)"),
    "lowest": ("I(R;Z)", "uniformity of R", "uniformity of Z"),
    "nearest 1": ("α-ReQ of R", "α-ReQ of Z"),
}
ACCURACY = {"column": "probe_top1"}


class Candidate(NamedTuple):
    """An epoch of a run, or the end of a run."""
    accuracy: float         # on the test images, in per cent
    value: float            # of the measure


def choices(all_flags, logs):
    """A table for print, [{heading: text}, …]: a row for each measure of WANTED in the logs.

    all_flags, logs: see results.read_folders. Raises BadInput if there is nothing to choose from.
    """
    seeds = {}                          # {seed: [log, …]}
    for flags, log in zip(all_flags, logs):
        if is_finished(log):
            seeds.setdefault(flags.get("--seed"), []).append(log)

    def row(name, meaning, wanted, result=lost):
        of_epochs = [result(epochs_of(log, meaning), wanted) for log in logs]
        of_runs = [result(ends_of(seed, meaning), wanted) for seed in seeds.values()]
        return {"picked by": name, "epoch of a run: points lost": text(of_epochs, "runs"),
                "run of a seed: points lost": text(of_runs, "seeds")}

    rows = [row("labels: accuracy (%)", ACCURACY, "highest", picked),
            row("chance", ACCURACY, "average"), row("being the last", ACCURACY, "last")]
    rows[-1]["run of a seed: points lost"] = "–"        # runs have no order
    for wanted, measures in WANTED.items():
        rows += [row(f"{wanted} {measure}", CORRELATES[measure], wanted) for measure in measures]
    known = [cells for cells in rows if list(cells.values())[1:] != ["–", "–"]]
    if not known:
        raise BadInput("--choose: no run has accuracies at two epochs, and no seed two runs")
    return known


def epochs_of(log, meaning):
    """The candidates among a run's epochs. meaning: of CORRELATES."""
    length = len(log["epoch"])
    missing = [math.nan] * length
    accuracies = log.get("probe_top1", missing)
    values = log.get(meaning["column"], missing)
    if len(values) != length:       # from evaluation.json, of the last epoch alone
        values = missing
    divisors = [1.0] * length
    if "divided by" in meaning:
        divisors = log.get(meaning["divided by"], missing)
    return finite(Candidate(accuracy, value / divisor if divisor != 0 else math.nan)
                  for accuracy, value, divisor in zip(accuracies, values, divisors))


def ends_of(logs, meaning):
    """The candidates among the ends of runs."""
    return finite(Candidate(last_value(log, "probe_top1"), last_correlate(log, meaning))
                  for log in logs)


def finite(candidates):
    return [candidate for candidate in candidates if all(map(math.isfinite, candidate))]


def picked(candidates, wanted):
    """The accuracy of the candidate whose value is best; NaN for fewer than two candidates."""
    if len(candidates) < 2:
        return math.nan
    if wanted == "average":
        return sum(candidate.accuracy for candidate in candidates) / len(candidates)
    by_value = sorted(candidates, key=value_of)
    return {
        "last": candidates[-1],
        "highest": by_value[-1],
        "lowest": by_value[0],
        "nearest 1": min(candidates, key=distance_from_1),
    }[wanted].accuracy


def value_of(candidate):
    return candidate.value


def distance_from_1(candidate):
    return abs(candidate.value - 1)


def lost(candidates, wanted):
    """The points lost by the candidate whose value is best; NaN for fewer than two candidates."""
    best = max((candidate.accuracy for candidate in candidates), default=math.nan)
    return best - picked(candidates, wanted)


def text(values, unit):
    """The mean of the known values, its 95 % interval (t distribution), and their number."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    mean, half = mean_and_spread(known, "ci")
    if len(known) == 1:
        return f"{mean:.1f}, 1 {unit[:-1]}"
    return f"{mean:.1f} ({max(0, mean - half):.1f} … {mean + half:.1f}), {len(known)} {unit}"
