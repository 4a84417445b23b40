"""What runs are called beside each other, by the flags in their config.json.

    from plumbing.labels import labels
    labels([config["flags"] for config in configs])     # ["VICReg", "AdaDim, --width 8", …]

Never by their folder's name; the seed plays no part: runs that differ in it alone are one method.
"""

# flags of which label() makes a name
SPELLED = ("--method", "--alpha", "--beta", "--mi-scale", "--alpha-from")
# flags that tell no method from another
NO_DIFFERENCE = ("--seed", "--out", "--data-dir", "--device", "--resident", "--compile",
                 "--tensorboard", "--resume", "--overwrite", "--classes")
# flags whose defaults are the method's: between methods they tell nothing
METHODS_OWN = ("--projector", "--augment", "--optimizer", "--lr", "--weight-decay")
# flags that are without effect unless α is measured
ONLY_WITH_ADA = ("--alpha-every", "--alpha-batches")


def label(flags):
    """What a method with these flags is called: VICReg, AdaDim, "α 0.5", "AdaDim, β 0" …

    flags: those of config.json. Those that are not among SPELLED play no part.
    """
    if flags["--method"] != "adadim":
        return with_regulariser(flags["--method"], flags)
    if flags["--alpha"] == "ada":
        return measured_label(flags)
    return fixed_label(flags)


def measured_label(flags):
    """With α measured: AdaDim, and what differs from the published method."""
    words = ["AdaDim"]
    if flags["--beta"] != 1e-4:
        words.append(f"β {spelled(flags['--beta'])}")
    if flags["--mi-scale"] == "1" and flags["--beta"] != 0:
        words.append("m 1")
    if flags["--alpha-from"] == "r":
        words.append("α from R")
    return ", ".join(words)


def fixed_label(flags):
    """With α fixed or growing, and I(R;Z) where it has a part."""
    alpha = flags["--alpha"]
    name = {0: "VICReg", 1: "SimCLR"}.get(alpha, f"α {spelled(alpha)}")
    if flags["--beta"] != 0 and flags["--mi-scale"] != "1":
        return f"{name}, β {spelled(flags['--beta'])}"
    return with_regulariser(name, flags)


def with_regulariser(name, flags):
    """The name, and the constant regulariser of [32], whose weight is 1e-4, where there is one."""
    beta = flags["--beta"]
    if beta == 0 or flags["--mi-scale"] != "1":
        return name
    name = f"{name} + I(R;Z)"
    return name if beta == 1e-4 else f"{name}, β {spelled(beta)}"


def spelled(value):
    """A flag's value in a name."""
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
    """What runs are called that stand side by side: label(), and the flags in which they differ.

    all_flags: the flags of each run. Returns a list, in their order.
    """
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
    """The flags, and --set's settings, that may tell a run from another with the same label."""
    measured = flags["--method"] == "adadim" and flags["--alpha"] == "ada"
    without_effect = () if measured else ONLY_WITH_ADA
    left_out = (*SPELLED, *NO_DIFFERENCE, *without_effect, "--set")
    kept = {flag: value for flag, value in flags.items()
            if flag.startswith("--") and flag not in left_out}
    return kept | (flags.get("--set") or {})


def spelled_flag(flag, value):
    """A list of one word, or of none where the flag was not given."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [f"{flag} {spelled(value)}"]
