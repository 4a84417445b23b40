"""Checks solutions of the exercises, see docs/EXERCISES.md.

    python exercises/check.py 1                     a pass, or one hint
    python exercises/check.py 6 --line 23           is this line of ex6_bugs.py a wrong one?
    python exercises/check.py --all --seed 7        points for each, on other data
    python exercises/check.py --all --folder DIR    of the files in another folder

A solution is compared with the project's own function on several inputs. If it differs as a common
mistake would, the hint is about that mistake. Exit status: 0 if all is right; 1 if not.
"""
import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).absolute().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch        # noqa: E402

from mistakes import BUGS, PARTS                            # noqa: E402
from run import Parser, at_least, one_line_errors           # noqa: E402

FILES = {1: "ex1_info_nce.py", 2: "ex2_covariance.py", 3: "ex3_effective_rank.py",
         4: "ex4_lars.py", 5: "ex5_wasserstein.py", 6: "ex6_bugs.py", 7: "ex7_rankme.py"}
POINTS = {1: 6, 2: 6, 3: 6, 4: 6, 5: 8, 6: 9, 7: 6}      # the rest is for what is handed in
TOLERANCE = 1e-4


class NotYet(Exception):
    """Why a solution does not pass, in one line."""


# --- a student's code ---------------------------------------------------------------------------

def load(path):
    """The functions in a student's file, a dict. Raises NotYet if it cannot be run."""
    if not path.is_file():
        raise NotYet(f"there is no {path.name} in {path.parent}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    call(spec.loader.exec_module, (module,), path.name)
    return vars(module)


def call(function, arguments, name):
    """function(*arguments); whatever it raises becomes a NotYet that names the line."""
    try:
        return function(*arguments)
    except SyntaxError as error:
        raise NotYet(f"{name}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and not str(error):   # PyTorch's have words
            raise NotYet(f"{name} is not written yet: it raises NotImplementedError") from None
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.name == getattr(function, "__name__", "")
               or frame.name == "<module>"]
        where = f", line {own[-1].lineno}" if own else ""
        message = " ".join(str(error).split())[:200]
        raise NotYet(f"{name}{where} raised {type(error).__name__}: {message}") from None


def result_of(function, arguments, name, shapes):
    """The results of a student's function, a list of tensors of these shapes."""
    copies = [x.clone() if torch.is_tensor(x) else x for x in arguments]
    results = call(function, copies, name)
    results = list(results) if isinstance(results, tuple) else [results]
    if not all(torch.is_tensor(x) for x in results):
        raise NotYet(f"{name} returns {type(results[0]).__name__}, not a tensor")
    if [x.shape for x in results] != shapes:
        raise NotYet(f"{name} returns {[tuple(x.shape) for x in results]}, expected shapes are "
                     f"{[tuple(shape) for shape in shapes]}")
    for before, after in zip(arguments, copies):
        if torch.is_tensor(before) and not torch.equal(before, after):
            raise NotYet(f"{name} changes its input: an operation in place, such as z -= …")
    return [x.detach().double() for x in results]


# --- comparing ----------------------------------------------------------------------------------

def tensors(result):
    return [x.double() for x in (result if isinstance(result, tuple) else (result,))]


def near(results, wanted):
    """Whether lists of tensors agree where the results are finite."""
    for x, y in zip(results, wanted):
        x, y = x[x.isfinite()], y[x.isfinite()]
        if not torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE):
            return False
    return True


def hint_for(part, results):
    """The hint of the mistake that has these results, or None."""
    for hint, options in part["mistakes"]:
        wrong = [tensors(part["wrong"](*case, **options)) for case in part["cases"].values()]
        if all(map(near, results.values(), wrong)):
            return hint
    return None


def check_part(part, functions, seed):
    """Raises NotYet, with a hint if there is one, unless a function is right."""
    name = part["name"]
    if not callable(functions.get(name)):
        raise NotYet(f"there is no function {name}")
    part = part | {"cases": part["cases"](torch.Generator().manual_seed(seed))}
    wanted = {case: tensors(part["right"](*arguments))
              for case, arguments in part["cases"].items()}
    results = {case: result_of(functions[name], arguments, name, [x.shape for x in wanted[case]])
               for case, arguments in part["cases"].items()}

    differ = [case for case in wanted if not near(results[case], wanted[case])]
    if differ:
        hint = hint_for(part, results)
        raise NotYet(f"{name}: {hint}" if hint else f"{name} differs for {', '.join(differ)}")
    finite = {case: all(x.isfinite().all() for x in xs) for case, xs in results.items()}
    if not all(finite.values()):
        cases = ", ".join(case for case in finite if not finite[case])
        hint = part.get("not_finite" if any(finite.values()) else "never_finite", "")
        raise NotYet(f"{name}: NaN or infinity for {cases}. {hint}".strip())
    if "gradient" in part:
        check_gradient(part, functions[name])
    if "avoids" in part:
        check_size(functions[name], name, part["avoids"])


def check_gradient(part, function):
    for case, (x, *others) in part["cases"].items():
        x = x.clone().requires_grad_()
        loss = call(function, (x, *others), part["name"])
        if loss.requires_grad:
            loss.backward()
        if x.grad is None or not x.grad.isfinite().all():
            raise NotYet(f"{part['name']}, {case}: {part['gradient']}")


def check_size(function, name, side):
    """Raises NotYet if 200 × 200 entries are made, 200 being z's rows (side 0) or columns (1)."""
    sizes = []

    def note(x):
        sizes.append(x.numel())
        return x

    z = torch.randn((200, 10) if side == 0 else (10, 200), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, note):      # what a gradient would need
        call(function, (z,), name)
    if max(sizes, default=0) >= 200 ** 2:
        kind = ("n × n", "d × d")[side]
        raise NotYet(f"{name} is right, but makes {kind} entries: that is the other function's way")


# --- reporting ----------------------------------------------------------------------------------

def check_lines(path, numbers):
    """The functions whose wrong lines are among these lines of ex6_bugs.py, and messages."""
    if not numbers:
        raise NotYet("name the lines that you suspect: --line 23, or --line 23 30 42")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names, messages = set(), []
    for number in numbers:
        text = lines[number - 1].strip() if number <= len(lines) else ""
        name = BUGS.get(hashlib.sha256(text.encode()).hexdigest()[:16])
        names |= {name} - {None}
        verdict = f"yes, the wrong line of {name}" if name else "this line is right"
        messages.append(f"line {number}: {verdict}")
    return names, messages


def report(number, functions=None, folder=HERE, seed=0, lines=()):
    """Checks an exercise, prints what there is to say, and returns the points.

    functions: {name: function} of a notebook, instead of the file in the folder.
    """
    path = Path(folder) / FILES[number]
    points = POINTS[number]
    try:
        if number == 6:
            names, messages = check_lines(path, lines)
            points = points * len(names) // len(BUGS)
            message = "; ".join(messages)
        else:
            functions = load(path) if functions is None else functions
            for part in PARTS[number]:
                check_part(part, functions, seed)
            message = "passed"
    except NotYet as why:
        points, message = 0, f"not yet. {why}"
    print(f"exercise {number}: {message} ({points} of {POINTS[number]} points)")
    return points


def main(argv=None):
    with one_line_errors("check.py"):
        parser = Parser("check.py", __doc__)
        add = parser.add_argument
        add("number", nargs="?", type=int, choices=FILES, help="of the exercise")
        add("--all", action="store_true", help="check all, and add up the points")
        add("--seed", type=at_least(0), default=0, metavar="N", help="draws the inputs")
        add("--folder", type=Path, default=HERE, help="where the solutions are (default: here)")
        add("--line", type=at_least(1), nargs="+", default=[], metavar="N",
            help="of exercise 6: up to three lines")
        args = parser.parse_args(argv)
        if (args.number is None) != args.all:
            parser.error("give the number of an exercise, or --all")
        if len(args.line) > len(BUGS):
            parser.error(f"--line takes at most {len(BUGS)} lines: there is one in each function")
        numbers = list(FILES) if args.all else [args.number]
        points = sum(report(number, None, args.folder, args.seed, args.line) for number in numbers)
        wanted = sum(POINTS[number] for number in numbers)
        if args.all:
            print(f"{points} of {wanted} points")
        if args.number == 6 and args.line:
            wanted = POINTS[6] * len(args.line) // len(BUGS)
    sys.exit(0 if points == wanted else 1)


if __name__ == "__main__":
    main()
