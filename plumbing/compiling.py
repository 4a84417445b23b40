"""torch.compile: the parts of a run that it compiles."""
import torch

from plumbing.cli import BadInput
from plumbing.distributed import WORLD_SIZE


def compile_networks(learner, device):
    """Compiles a Learner in place; with several processes only its networks, so that no
    communication is compiled. Raises BadInput if torch.compile does not work here."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:      # torch raises many kinds, for example without a C++ compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"--compile yes: torch.compile does not work here ({reason})") from error
    modules = [learner]
    if WORLD_SIZE > 1:
        modules = [learner.method.encoder, learner.method.projector]
    for module in modules:
        module.compile()
