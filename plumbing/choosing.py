"""What it costs to choose an epoch, or a run, without labels: figures.py --choose.

A measure that needs no labels picks the epoch of a run, or the run among those with the same seed,
at which it is best. The points lost are the test accuracy of the best pick minus that of its own.
"""
import math
from typing import NamedTuple

from plumbing.cli import BadInput
from plumbing.results import CORRELATES, is_finished, mean_and_spread
from plumbing.run import last_value

# what is best, according to the authors of the measure; for I(R;Z) both ends
WANTED = {
    "highest": ("effective rank of R", "effective rank of Z", "RankMe of R", "RankMe of Z",
                "LiDAR of R", "LiDAR of Z", "effective rank of R / I(R;Z)",
                "effective rank of Z / I(R;Z)", "I(R;Z)"),
    "lowest": ("I(R;Z)", "uniformity of R", "uniformity of Z"),
    "closest-to-1": ("α-ReQ of R", "α-ReQ of Z"),
}


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

    def row(name, column, wanted, result=lost):
        of_epochs = [result(epochs_of(log, column), wanted) for log in logs]
        of_runs = [result(ends_of(seed, column), wanted) for seed in seeds.values()]
        return {"picked by": name, "epoch of a run: points lost": text(of_epochs, "runs"),
                "run of a seed: points lost": text(of_runs, "seeds")}

    rows = [row("labels: accuracy (%)", "probe_top1", "highest", picked),
            row("chance", "probe_top1", "average"), row("the last epoch", "probe_top1", "last")]
    rows[-1]["run of a seed: points lost"] = "–"        # runs have no order
    for wanted, measures in WANTED.items():
        rows += [row(f"{wanted} {measure}", CORRELATES[measure], wanted) for measure in measures]
    known = [cells for cells in rows if list(cells.values())[1:] != ["–", "–"]]
    if not known:
        raise BadInput("--choose: no run has accuracies at two epochs, and no seed two runs")
    return known


def epochs_of(log, column):
    """The candidates among a run's epochs."""
    values = log.get(column, [])
    if len(values) != len(log["epoch"]):        # from evaluation.json, of the last epoch alone
        return []
    return finite(map(Candidate, log.get("probe_top1", []), values))


def ends_of(logs, column):
    """The candidates among the ends of runs."""
    return finite(Candidate(last_value(log, "probe_top1"), last_value(log, column))
                  for log in logs)


def finite(candidates):
    return [candidate for candidate in candidates if all(map(math.isfinite, candidate))]


def picked(candidates, wanted):
    """The accuracy of the candidate whose value is best; NaN for fewer than two candidates."""
    if len(candidates) < 2:
        return math.nan
    if wanted == "average":
        return sum(candidate.accuracy for candidate in candidates) / len(candidates)
    by_value = sorted(candidates, key=lambda candidate: candidate.value)
    return {
        "last": candidates[-1],
        "highest": by_value[-1],
        "lowest": by_value[0],
        "closest-to-1": min(candidates, key=lambda candidate: abs(candidate.value - 1)),
    }[wanted].accuracy


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
