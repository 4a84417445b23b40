"""torch.compile: the parts of a run that it compiles, and a check that it works here."""
import torch

from plumbing.cli import BadInput
from plumbing.distributed import WORLD_SIZE


def compile_networks(learner, device):
    """Compiles a Learner in place; with several processes only its networks, so that no
    communication is compiled. Raises BadInput if torch.compile does not work here."""
    check_compiler(device)
    modules = [learner]
    if WORLD_SIZE > 1:
        modules = [learner.method.encoder, learner.method.projector]
    for module in modules:
        module.compile()


def check_compiler(device):
    """Raises BadInput if torch.compile fails, for example because a CPU has no C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:      # torch raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"--compile yes: torch.compile does not work here ({reason})") from error
