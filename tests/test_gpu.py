"""Tests of a GPU against the CPU: the same inputs give the same results, up to stated tolerances.

    python -m pytest -q tests/test_gpu.py

A GPU sums in another order; each test states its tolerance. Without CUDA most tests compare the
CPU with itself, which checks this file, and the others are skipped.
"""
import shutil

import pytest
import torch
from torch import nn

import losses
import metrics
import probe
import train
from augment import DRAWS, augment_with
from methods import AdaDim
from models import resnet
from optim import LARS, clip_gradient, make_optimizer
from run import load_checkpoint, read_log
from tests.helpers import TINY, generator, random_images, run, run_until, whole_and_halves

CPU = torch.device("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(),
                                                     reason="needs a GPU with CUDA"))


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return torch.device(request.param)


# for tests that would tell nothing new on a CPU, and take long
on_a_gpu = pytest.mark.parametrize("device", [CUDA], indirect=True)


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Disables TF32, accurate to 1e-3 only, in convolutions; elsewhere it is off by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


@torch.no_grad()
def agree(value, expected, tolerance, name=""):
    """Asserts that two tensors differ by at most this share of the expected one's norm."""
    value, expected = value.cpu().double(), expected.cpu().double()
    assert (value - expected).norm() <= tolerance * expected.norm() + 1e-7, name


# --- functions ----------------------------------------------------------------------------------

LOSSES = {      # functions of both views' r and z
    "info_nce": lambda r1, r2, z1, z2: losses.info_nce(z1, z2),
    "vicreg": lambda r1, r2, z1, z2: losses.vicreg(z1, z2),
    "information": lambda r1, r2, z1, z2: losses.matrix_mutual_information(r1, z1),
    "of order 1": lambda r1, r2, z1, z2: losses.matrix_mutual_information(r1, z1, order=1),
    "w2": lambda r1, r2, z1, z2: losses.wasserstein_uniformity(z1),
    "adadim": lambda r1, r2, z1, z2: losses.adadim(r1, r2, z1, z2, alpha=0.4, beta=0.5)[0],
}


def value_and_gradients(loss, inputs, device):
    inputs = [x.to(device).requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value, torch.autograd.grad(value, inputs, materialize_grads=True)


@pytest.mark.parametrize("block", [1024, 48])       # the whole kernel, and several blocks
@pytest.mark.parametrize("d", [24, 160])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(device, monkeypatch, name, d, block):
    """Values to 1e-5, gradients to 1e-4."""
    monkeypatch.setattr(losses, "BLOCK", block)
    r1, r2 = randn(2, 64, 40).relu()
    z1, z2 = randn(2, 64, d, seed=1)
    expected, expected_gradients = value_and_gradients(LOSSES[name], (r1, r2, z1, z2), CPU)
    value, gradients = value_and_gradients(LOSSES[name], (r1, r2, z1, z2), device)
    assert value.device.type == device.type
    agree(value, expected, 1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        agree(gradient, expected_gradient, 1e-4)


@pytest.mark.parametrize("recipe, view", [("vicreg", 0), ("simclr", 0), ("byol", 1),
                                          ("ressl", 0), ("ressl", 1)])
@pytest.mark.parametrize("size", [32, 224])         # vicreg's blur begins at 224
def test_augmentation_of_the_same_draws(device, recipe, view, size):
    """To 1e-3, which is a quarter of a grey level."""
    images = random_images(8, size)
    draws = torch.rand(8, DRAWS, generator=generator(1))
    expected = augment_with(draws, images, recipe, view)
    views = augment_with(draws.to(device), images.to(device), recipe, view)
    assert (views.cpu() - expected).abs().max() < 1e-3


def three_lars_steps(device):
    """Weights, momenta and the gradients' mean norm after three steps with clipping."""
    weights = [nn.Parameter(randn(*shape).to(device)) for shape in ((20, 12), (12,), (8, 3, 3, 3))]
    optimizer = LARS(weights, lr=0.3)
    mean_norm = torch.zeros((), device=device)
    for step in range(3):
        for w in weights:
            w.grad = 10 ** step * randn(*w.shape, seed=step).to(device)     # the later are clipped
        clip_gradient(weights, optimizer, mean_norm, factor=2.0)
        optimizer.step()
    momenta = [optimizer.state[w]["momentum_buffer"] for w in weights]
    return [*weights, *momenta, mean_norm]


def test_lars_and_clipping(device):
    """Three steps to 1e-5."""
    for state, expected in zip(three_lars_steps(device), three_lars_steps(CPU)):
        agree(state, expected, 1e-5)


def test_metrics(device):
    """All columns of log.csv to 1e-4, accuracies exactly, LiDAR to 1e-6."""
    r = randn(1200, 64).relu()                      # more than one block of a kernel
    z = randn(1200, 64, seed=1) @ randn(64, 64, seed=2) + r
    expected = metrics.representation_metrics(r, z)
    columns = metrics.representation_metrics(r.to(device), z.to(device))
    assert columns == pytest.approx(expected, rel=1e-4, abs=1e-6)

    labels = torch.randint(10, (1200,), generator=generator(3))
    sets = (r[:600], labels[:600], r[600:], labels[600:])
    on_device = (x.to(device) for x in sets)
    assert float(metrics.knn_accuracy(*on_device)) == float(metrics.knn_accuracy(*sets))

    views = r[:600].view(200, 3, 64)
    agree(metrics.lidar(views.to(device)), metrics.lidar(views), 1e-6)


# --- networks -----------------------------------------------------------------------------------

def small_learner(device, *flags):
    """A narrow ResNet-18 with AdaDim and a probe, with the same weights on every device."""
    torch.manual_seed(0)
    args = train.parse_args(["--dataset", "shapes", "--alpha", "0.4", "--projector", "32-32",
                             "--lr", "0.1", *flags])
    encoder, p = resnet("resnet18", 8, "small")
    method = AdaDim(args, encoder, p, n_images=64)
    learner = train.Learner(method, probe.OnlineProbe(encoder, p, 10))
    return learner.to(device, memory_format=torch.channels_last), args


def steps(device, count, precision="fp32", compiled=False):
    """Takes `count` steps of train.py on 64 images; returns the logs of each, and the learner."""
    learner, args = small_learner(device)
    optimizer = make_optimizer("lars", learner.param_groups(args))
    autocast, scaler = train.mixed_precision(precision, device)
    if compiled:
        learner.compile()
    views = randn(128, 3, 16, 16).to(device, memory_format=torch.channels_last)
    index = torch.arange(64, device=device)
    batch = views, index, index % 10
    progress = torch.tensor(0.5, dtype=torch.float64, device=device)
    all_logs = []
    for number in range(count):
        train.set_learning_rates(optimizer, number, warmup=2, total=count)
        logs, _ = train.training_step(learner, learner, optimizer, scaler, autocast, args.clip,
                                      batch, progress)
        all_logs.append({name: float(value) for name, value in logs.items()})
    return all_logs, learner


def test_one_step(device):
    """Logs to 1e-4, gradients to 1e-2: batch norms of a random network magnify rounding."""
    expected_logs, expected_learner = steps(CPU, 1)
    logs, learner = steps(device, 1)
    assert logs[0] == pytest.approx(expected_logs[0], rel=1e-4, abs=1e-5)
    for (name, p), expected in zip(learner.named_parameters(), expected_learner.parameters()):
        agree(p.grad, expected.grad, 1e-2, name)


@on_a_gpu
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None,
                    reason="torch.compile needs a C++ compiler")
def test_compiled_steps(device):
    """Three steps to 1e-2 of the plain ones."""
    plain, _ = steps(device, 3)
    compiled, _ = steps(device, 3, compiled=True)
    for logs, expected in zip(compiled, plain):
        assert logs == pytest.approx(expected, rel=1e-2, abs=1e-3)


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_learns_as_float32_does(device, precision):
    """The first loss to 5 %; after ten steps on one batch it has fallen."""
    expected, _ = steps(device, 1)
    logs, learner = steps(device, 10, precision)
    assert logs[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05)
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert all(value.isfinite().all() for value in learner.parameters())


# --- whole runs ---------------------------------------------------------------------------------

TWO_EPOCHS = [*TINY, "--epochs", 2, "--alpha-every", 1, "--eval-every", 1]      # of four steps


@pytest.mark.parametrize("begins_on, ends_on", [("device", "device"), ("device", "cpu"),
                                                ("cpu", "device")])
def test_resumed_runs(device, begins_on, ends_on, tmp_path):
    """The second epoch's loss and α are those of a whole run: to 1 % on the same device.

    On another device only weights and α go on: its random numbers are another generator's.
    """
    types = {"cpu": "cpu", "device": device.type}
    whole, cut = ([*TWO_EPOCHS, "--out", tmp_path / name] for name in ("whole", "cut"))
    run_until(4, *cut, "--device", types[begins_on])
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["epoch"] == 1
    assert run(*cut, "--device", types[ends_on], "--resume") == 0
    assert run(*whole, "--device", types[begins_on]) == 0
    tolerance = 0.01 if types[begins_on] == types[ends_on] else 0.5
    expected, resumed = (read_log(tmp_path / name / "log.csv") for name in ("whole", "cut"))
    for column in ("epoch", "loss", "info_nce", "vicreg", "alpha", "lr"):
        assert resumed[column] == pytest.approx(expected[column], rel=tolerance), column
    assert resumed["alpha"][0] == 0 < resumed["alpha"][1] < 1


# AdaDim's step on a whole batch, or each process's step on its half of it. The encoder has no batch
# norm, because its statistics would be those of a half.
HALVES = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import methods, probe, train
from distributed import RANK, WORLD_SIZE

folder, device = sys.argv[1:]
torch.manual_seed(0)
args = train.parse_args("--dataset shapes --alpha 0.4 --beta 2 --w2-weight 0.7".split())
encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU())
method = methods.AdaDim(args, encoder, 20, 16)
method.projector = nn.Linear(20, 12)
model = learner = train.Learner(method, probe.OnlineProbe(encoder, 20, 3)).to(device)
views, index, labels = torch.randn(2, 16, 3, 4, 4), torch.arange(16), torch.randint(3, (16,))
if WORLD_SIZE > 1:
    dist.init_process_group("gloo")         # NCCL takes one process per GPU
    model = nn.parallel.DistributedDataParallel(learner)
    views = views.view(2, WORLD_SIZE, -1, 3, 4, 4)[:, RANK]
    index, labels = (x.view(WORLD_SIZE, -1)[RANK] for x in (index, labels))
batch = views.flatten(0, 1), index, labels, torch.tensor(0.5).double()
objective, logs, _ = model(*(x.to(device) for x in batch))
objective.backward()
results = {name: p.grad.cpu() for name, p in learner.named_parameters()}
torch.save(results | {"loss": logs["loss"].cpu()}, f"{folder}/{WORLD_SIZE}-{RANK}.pt")
"""


@on_a_gpu
def test_two_processes_on_one_gpu(device, tmp_path):
    """The loss and every gradient equal those of one process to 1e-4."""
    whole, halves = whole_and_halves(HALVES, tmp_path, device.type)
    for half in halves:
        for name, value in whole.items():
            agree(half[name], value, 1e-4, name)
