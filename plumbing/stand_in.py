"""Lets the scripts answer --help and the like at once: importing torch would take seconds.

A command line that only prints a text gets a stand-in for each of PACKAGES: an empty object whose
every attribute is the object itself, and which can be called, used as a decorator and inherited
from. With it a script defines its classes and its parser, prints and exits. Were it ever to go
on, to training say, Parser.parse_args would refuse.
"""
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGES = ("torch", "torchvision", "numpy", "PIL")
SCRIPTS = ("train.py", "evaluate.py", "study.py", "figures.py", "simulate.py", "uniformity.py",
           "data.py")       # not those of users, which may compute something at once


def only_prints(script, words):
    """Whether a script (a path) will print a text, or refuse a flag that its source never names."""
    own = words[:words.index("--")] if "--" in words else words
    given = {word.partition("=")[0] for word in own if re.fullmatch(r"-h|--[a-z0-9-]+(=.*)?", word)}
    prints = {"-h", "--help", {"train.py": "--methods", "study.py": "--list"}.get(script.name)}
    named = re.findall(r"--[a-z0-9-]+", script.read_text(encoding="utf-8"))
    return bool(given & prints) or not given <= {"-h", *named}


class StandIn(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):       # Python itself looks for these
            raise AttributeError(name)
        return self

    def __iter__(self):
        return iter(())

    def __call__(self, *arguments, **settings):
        return self

    def __mro_entries__(self, bases):
        return ()                       # class Method(nn.Module) has no base class then


class Finder:
    """An entry of sys.meta_path that finds a StandIn for every module of PACKAGES."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            return ModuleSpec(name, Finder, is_package=True)
        return None

    @staticmethod
    def create_module(spec):
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module):
        pass


def is_active():
    return Finder in sys.meta_path
