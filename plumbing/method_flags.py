"""The flags of train.py that belong to a method: its name, its settings, weights of loss terms."""
import argparse

from plumbing.cli import BadInput, Parser, checked, matching

NUMBER = r"\d+(\.\d*)?(e[+-]?\d+)?"
weight_type = matching(rf"{NUMBER}(:{NUMBER})?", "a weight such as 0.2, or two such as 30:0")
three_weights = matching(rf"{NUMBER},{NUMBER},{NUMBER}", "three weights such as 25,25,1")


def read_alpha(text):
    return text if text in ("ada", "linear", "cosine") else float(text)


def is_alpha(value):
    return isinstance(value, str) or 0 <= value <= 1


alpha_type = checked(read_alpha, is_alpha, "ada, linear, cosine or a number from 0 to 1")


# Members of AdaDim's family that --method knows by name: the defaults that make them [Table 6]
FAMILY = {
    "vicreg": {"--alpha": 0.0, "--beta": 0.0, "--mi-scale": "1"},
    "simclr": {"--alpha": 1.0, "--beta": 0.0, "--mi-scale": "1"},
}


def known_names(methods):
    """The values of --method."""
    return tuple(dict.fromkeys((*methods, *FAMILY)))


def chosen_method(argv, methods):
    """Reads --method alone: the defaults of other flags depend on it."""
    parser = Parser("train.py", None, add_help=False)
    parser.add_argument("--method", default="adadim", choices=known_names(methods))
    args, _ = parser.parse_known_args(argv)
    return args.method


def check_method_flags(parser, args, given, methods):
    """Prints a note about flags in `given` that the chosen method ignores."""
    method = methods[args.method]
    without_effect = set()
    for other in methods.values():
        without_effect |= given.intersection(other.uses).difference(method.uses)
    if without_effect:
        print(f"note: {args.method} has no use for {', '.join(sorted(without_effect))}")
    if args.mi_scale == "alpha" and "--alpha" not in method.uses:
        parser.error(f"--mi-scale alpha: {args.method} has no α; use --mi-scale 1")


def read_settings(name, words, methods):
    """{setting: value} of the named method: its defaults, overridden by --set.

    words: such as ["queue=4096"], or None. Raises BadInput on an unknown setting or a bad value.
    """
    known = methods[name].settings
    values = {setting: known[setting].default for setting in known}
    for word in words or ():
        setting, _, text = word.partition("=")
        if setting not in known:
            listed = ", ".join(known) or "none"
            raise BadInput(f"--set {word}: the settings of {name}, as NAME=VALUE: {listed}")
        try:
            values[setting] = known[setting].kind(text)
        except argparse.ArgumentTypeError as error:
            raise BadInput(f"--set {setting} {error}") from error
    return values


def all_methods(methods, shared_defaults):
    """The text of train.py --methods: each method's name, paper, defaults and settings."""
    lines = []
    for name, method in methods.items():
        lines.append(f"{name}: {method.paper}")
        defaults = [f"{flag} {value}" for flag, value in method.defaults.items()
                    if flag not in shared_defaults]
        if defaults:
            lines.append(f"    {' '.join(defaults)}")
        for setting, (default, _, meaning) in method.settings.items():
            line = f"    --set {setting}={default}"
            lines.append(f"{line:44}{meaning}".rstrip())
    for name, flags in FAMILY.items():
        words = [f"{flag} {value}" for flag, value in flags.items() if flag != "--mi-scale"]
        lines.append(f"{name}: adadim with {' '.join(words)}")
    return "\n".join(lines)
