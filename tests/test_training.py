"""fit() against closed forms, under bad input and divergence, and killed at random moments."""

import doctest
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from refimpl import training
from refimpl.training import TrainingDiverged, fit


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight(*values):
    return torch.tensor(values or (1.0,), dtype=torch.float64, requires_grad=True)


def sgd(lr=0.1):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def run(parameters, loss_fn, **options):
    return fit(parameters, loss_fn, **{"num_steps": 10, "progress": False, **options})


# What it computes


def test_linear_regression_reaches_least_squares():
    x = torch.randn(40, 3, generator=generator(), dtype=torch.float64)
    y = torch.randn(40, 2, generator=generator(1), dtype=torch.float64)
    w = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    run([w], lambda x, y: (x @ w - y).square().mean(), num_steps=600, data=(x, y), lr=0.1, schedule="cosine")
    torch.testing.assert_close(w.detach(), torch.linalg.lstsq(x, y).solution, atol=1e-6, rtol=0)


def test_equals_a_loop_written_by_hand():
    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    x = torch.randn(30, 2, generator=generator())
    ours, by_hand, g = network(), network(), generator(5)
    run(ours, lambda x: ours(x).square().mean(), num_steps=7, data=x, batch_size=10, generator=generator(5), lr=1e-2)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-2, fused=True)
    for step in range(7):
        if step % 3 == 0:
            order = torch.randperm(30, generator=g)
        optimizer.zero_grad()
        by_hand(x[order[10 * (step % 3) : 10 * (step % 3) + 10]]).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True))


def test_modules_dicts_and_lists_train_alike():
    x = torch.randn(20, 2, generator=generator())
    results = []
    for kind in ("module", "dict", "list", "iterator"):
        torch.manual_seed(0)
        net = nn.Linear(2, 1)
        parameters = {
            "module": net,
            "dict": dict(net.named_parameters()),
            "list": list(net.parameters()),
            "iterator": net.parameters(),
        }[kind]
        run(parameters, lambda x, net=net: net(x).square().mean(), data=x, batch_size=5, generator=generator(), ema=0.5)
        results.append(torch.cat([net.weight.flatten(), net.bias]))
    assert all(torch.equal(results[0], other) for other in results)


def test_stacked_ensemble_trains_as_its_members_do_alone():
    x, nets = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None], []
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    stacked, _ = torch.func.stack_module_state(nets)
    skeleton = nets[0]

    def losses(x):
        def one(p):
            return (torch.func.functional_call(skeleton, p, (x,)) - x.sin()).square().mean()

        return torch.vmap(one)(stacked).sum()

    run(stacked, losses, num_steps=50, data=x, lr=1e-2)
    for i, net in enumerate(nets):
        run(net, lambda x, net=net: (net(x) - x.sin()).square().mean(), num_steps=50, data=x, lr=1e-2)
        for name, p in net.named_parameters():
            torch.testing.assert_close(stacked[name][i], p)


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (14, 4), (5, 5), (3, 1)])
def test_each_epoch_visits_samples_once_and_in_new_order(n, batch_size):
    seen, w = [], weight()
    data = (torch.arange(n), torch.arange(n) * 10)

    def loss(i, tens):
        assert torch.equal(10 * i, tens) and len(i) == batch_size
        seen.append(i)
        return w.sum()

    per_epoch = n // batch_size
    run([w], loss, num_steps=3 * per_epoch, data=data, batch_size=batch_size, generator=generator(1))
    epochs = torch.cat(seen).view(3, -1)
    assert all(len(set(epoch.tolist())) == per_epoch * batch_size for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_average_follows_its_recursion():
    w, trajectory = weight(1.0, -2.0), []
    g = torch.tensor([0.5, 1.0], dtype=torch.float64)
    history = run(
        [w],
        lambda: (w * g).sum(),
        optimizer=sgd(0.1),
        ema=0.8,
        evaluate=lambda step, ps: {"w": ps[0]},
        evaluate_every=1,
    )
    trajectory = history.evaluations["w"]
    n = len(trajectory) - 1
    closed = 0.8**n * trajectory[0] + sum(0.2 * 0.8 ** (n - k) * trajectory[k] for k in range(1, n + 1))
    torch.testing.assert_close(history.ema["0"], closed)
    trained = w.detach().clone()
    with history.averaged([w]):
        torch.testing.assert_close(w.detach(), closed)
    assert torch.equal(w, trained)
    with pytest.raises(ValueError, match="ema"), run([w], lambda: w.sum()).averaged([w]):
        pass


def test_average_keeps_buffers_frozen_weights_and_ties():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    x = torch.randn(20, 2, generator=generator())
    history = run(net, lambda x: net(x).square().mean(), data=x, ema=0.9)
    assert history.ema.keys() == net.state_dict().keys()
    assert torch.equal(history.ema["1.running_mean"], net[1].running_mean)
    assert torch.equal(history.ema["2.bias"], net[2].bias)
    assert torch.equal(history.ema["0.weight"], history.ema["2.weight"])
    assert not torch.equal(history.ema["0.weight"], net[0].weight)
    net.load_state_dict(history.ema)


def test_schedules_scale_every_group():
    def rates(schedule, num_steps=40):
        w, v = weight(), weight()
        optimizer = torch.optim.SGD([{"params": [w], "lr": 0.5}, {"params": [v], "lr": 0.1}])
        history = run([w, v], lambda: (w + v).sum(), num_steps=num_steps, optimizer=optimizer, schedule=schedule)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]  # given back as it came
        moved = torch.stack([1 - w.detach(), 1 - v.detach()]).squeeze(-1)
        total = sum(history.learning_rate)
        torch.testing.assert_close(moved, torch.tensor([total, total / 5], dtype=torch.float64))
        return history.learning_rate

    cosine = [0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert rates(None) == rates("constant") == [0.5] * 40
    assert rates("cosine") == pytest.approx(cosine)
    warm = rates("warmup_cosine")
    assert warm[:3] == pytest.approx([0.25, 0.5, 0.5]) and warm[-1] < 0.002
    assert all(later <= earlier for earlier, later in zip(warm[2:], warm[3:], strict=False))
    assert rates(lambda step: 1 / (1 + step))[:3] == pytest.approx([0.5, 0.25, 0.5 / 3])


@pytest.mark.parametrize(("clip_norm", "expected"), [(None, 5.0), (100.0, 5.0), (1.0, 1.0)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip_norm, expected):
    w, v = weight(0.0), weight(0.0)
    history = run([w, v], lambda: (3 * w + 4 * v).sum(), num_steps=1, optimizer=sgd(1.0), clip_norm=clip_norm)
    assert history.gradient_norm == pytest.approx([5.0])  # as it was before clipping
    assert math.hypot(w.item(), v.item()) == pytest.approx(expected, rel=1e-5)
    assert v.item() / w.item() == pytest.approx(4 / 3)


# What it records


def test_history_has_the_loss_before_each_update():
    w = weight(1.0)

    def loss():
        first, second = w.square().sum(), -0.5 * w.sum()
        return first + second, {"first": first, "second": second, "weight": w, "constant": 3.0}

    history = run([w], loss, num_steps=120, optimizer=sgd())
    value = 1.0
    for step in range(120):
        assert history.terms["weight"][step] == pytest.approx(value)
        assert history.terms["first"][step] == pytest.approx(value**2)
        assert history.loss[step] == pytest.approx(value**2 - 0.5 * value)
        assert history.gradient_norm[step] == pytest.approx(abs(2 * value - 0.5))
        value -= 0.1 * (2 * value - 0.5)
    assert history.steps == list(range(120)) and history.terms["constant"] == [3.0] * 120
    assert history.learning_rate == [0.1] * 120


@pytest.mark.parametrize(
    ("num_steps", "every", "expected"), [(10, 4, [0, 4, 8, 10]), (8, 4, [0, 4, 8]), (3, None, [0, 1, 2, 3])]
)
def test_evaluation_sees_the_untrained_and_the_trained_network(num_steps, every, expected):
    net = nn.Linear(2, 1, bias=False)
    start, x = net.weight.detach().clone(), torch.ones(4, 2)

    def evaluate(step, module):
        assert module is net
        return {"weight": module.weight, "step": step, "loss": net(x).square().mean()}

    history = run(
        net, lambda x: net(x).square().mean(), data=x, num_steps=num_steps, evaluate=evaluate, evaluate_every=every
    )
    assert history.evaluation_steps == history.evaluations["step"] == expected
    assert torch.equal(history.evaluations["weight"][0], start)
    assert torch.equal(history.evaluations["weight"][-1], net.weight)
    for step, value in zip(history.evaluation_steps[:-1], history.evaluations["loss"][:-1], strict=True):
        assert value == history.loss[step]


def test_plot_labels_its_axes_and_is_logarithmic_where_it_can():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    w = weight(1.0)
    positive = run([w], lambda: (w.square().sum(), {"square": w.square().sum()})).plot()
    assert (positive.get_xlabel(), positive.get_ylabel(), positive.get_yscale()) == ("step", "loss", "log")
    assert [text.get_text() for text in positive.get_legend().get_texts()] == ["loss", "square"]
    _, ax = plt.subplots()
    history = run([w], lambda: w.sum() - 10)
    assert history.plot(ax) is ax and ax.get_yscale() == "linear"
    assert ax.lines[0].get_xydata()[:, 1].tolist() == history.loss
    ax.figure.canvas.draw()
    plt.close("all")


def test_progress_bar_is_optional_and_never_warns(capsys, monkeypatch):
    w = weight()
    fit([w], lambda: w.square().sum(), num_steps=3, progress=False)
    assert capsys.readouterr() == ("", "")
    for module in [name for name in sys.modules if name.startswith("tqdm.auto")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it now fails
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit([w], lambda: w.square().sum(), num_steps=3)
    out, err = capsys.readouterr()
    assert out == "" and "0/3" in err


# When it breaks


def exploding(at, term):
    """A loss whose named term, or gradient, becomes nan at one step, and with it the weights."""
    w, calls = weight(1.0, 2.0), []

    def loss():
        bad = torch.tensor(math.nan if len(calls) == at and term != "gradients" else 0.0)
        calls.append(w.detach().clone())
        fine = w.square().sum()
        if len(calls) - 1 == at and term == "gradients":
            fine = fine + (w - w.detach()).abs().sum().sqrt()  # 0, with infinite slope
        if term == "loss":
            return fine * (1 + bad)
        return fine * (1 + bad), {"fine": fine, "other": bad + 1}

    return w, calls, loss


@pytest.mark.parametrize("at", [0, 1, 49, 50, 51, 117, 199])
@pytest.mark.parametrize(("term", "named"), [("other", "other"), ("loss", "loss"), ("gradients", "gradients")])
def test_divergence_says_what_broke_and_restores_the_last_finite_state(at, term, named):
    w, calls, loss = exploding(at, term)
    with pytest.raises(TrainingDiverged, match=f"step {at}: {named} .*lr.*clip_norm") as caught:
        run([w], loss, num_steps=200, lr=0.01, ema=0.9)
    error = caught.value
    assert (error.step, error.term) == (at, named)
    assert torch.equal(error.state["0"], w) and torch.isfinite(w).all()
    assert torch.equal(w.detach(), calls[at - at % 50])  # what it was at the last look
    assert len(error.history.loss) == at + 1 and len(calls) <= at + 51
    assert all(math.isfinite(value) for value in error.history.loss[:at])


def test_divergence_of_the_parameters_alone_is_seen():
    w = weight(1.0)
    with pytest.raises(TrainingDiverged, match="parameters") as caught:
        run([w], lambda: w.sum(), num_steps=60, optimizer=sgd(), schedule=lambda step: 1.0 if step < 49 else math.inf)
    assert caught.value.term == "parameters" and torch.isfinite(w).all()


@pytest.mark.parametrize(("at", "kept"), [(5, 4), (9, 8)])
def test_the_last_step_is_guarded_and_nothing_broken_is_saved(tmp_path, at, kept):
    w, _, loss = exploding(at, "other")
    with pytest.raises(TrainingDiverged):
        run([w], loss, num_steps=10, checkpoint=tmp_path / "run.pt", checkpoint_every=4)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert saved["step"] == kept and torch.isfinite(saved["tensors"]["0"]).all()


def test_optimizer_can_be_used_again_after_divergence():
    w, calls, loss = exploding(5, "other")
    optimizer = torch.optim.Adam([w], lr=0.01)
    with pytest.raises(TrainingDiverged):
        run([w], loss, optimizer=optimizer)
    run([w], lambda: w.square().sum(), optimizer=optimizer)
    assert torch.isfinite(w).all()


NET = nn.Linear(2, 1)
X = torch.ones(6, 2)


def mean_square(x):
    return NET(x).square().mean()


# With run-time type checking on, the checker may object first: its error is a TypeError that names the argument too.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("num_steps", {"num_steps": 0}),
        ("num_steps", {"num_steps": True}),
        ("num_steps", {"num_steps": 10.0}),
        ("evaluate_every", {"evaluate_every": 0}),
        ("checkpoint_every", {"checkpoint_every": -1}),
        ("batch_size", {"batch_size": 7}),
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"data": None, "batch_size": 2}),
        ("data", {"data": (X, X[:3])}),
        ("data", {"data": X[:0]}),
        ("data", {"data": X / 0}),
        ("data", {"data": [1.0, 2.0]}),
        ("data", {"data": torch.tensor(1.0)}),
        ("lr", {"lr": 0.0}),
        ("lr", {"lr": math.nan}),
        ("lr", {"lr": 0.1, "optimizer": torch.optim.SGD}),
        ("clip_norm", {"clip_norm": -1.0}),
        ("ema", {"ema": 1.0}),
        ("schedule", {"schedule": "linear"}),
        ("optimizer", {"optimizer": lambda parameters: parameters}),
        ("optimizer", {"optimizer": torch.optim.Adam(nn.Linear(2, 1).parameters())}),
        ("evaluate", {"evaluate": lambda step, net: 1.0}),
        ("evaluate", {"evaluate": lambda step, net: {str(step): 1.0}}),
        ("parameters", {"parameters": X}),
        ("parameters", {"parameters": [NET, NET]}),
        ("parameters", {"parameters": [X]}),
        ("parameters", {"parameters": nn.Tanh()}),
        ("parameters", {"parameters": {}}),
        ("loss_fn", {"loss_fn": lambda x: 1.0}),
        ("loss_fn", {"loss_fn": lambda x: NET(x)}),
        ("loss_fn", {"loss_fn": lambda x: (NET(x).mean(), {"vector": NET(x)})}),
        ("loss_fn", {"loss_fn": lambda x: (NET(x).mean(), {"loss": NET(x).mean()})}),
        ("loss_fn", {"loss_fn": lambda x: NET(x).mean().detach()}),
        ("loss_fn", {"loss_fn": lambda x: nn.Linear(2, 1)(x).mean()}),
    ],
)
def test_bad_input_is_named(name, options):
    arguments = {"parameters": NET, "loss_fn": mean_square, "num_steps": 4, "data": X, "progress": False, **options}
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        fit(arguments.pop("parameters"), arguments.pop("loss_fn"), **arguments)


def test_terms_must_stay_the_same():
    names = iter("abcdefghij")
    with pytest.raises(ValueError, match="loss_fn"):
        run(NET, lambda x: (mean_square(x), {next(names): 1.0}), data=X)


# Checkpoints


def checkpointed(path, *, seed=0, num_steps=12, width=2, batch_size=2, **options):
    torch.manual_seed(seed)
    g = generator(seed)
    x = torch.randn(8, 2, generator=g)
    net = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.5), nn.Linear(width, 1))
    loss = options.pop("loss", lambda net, x: net(x).square().mean())
    history = run(
        net, lambda x: loss(net, x), num_steps=num_steps, data=x, batch_size=batch_size, generator=g, checkpoint=path,
        **{"checkpoint_every": 5, **options},
    )  # fmt: skip
    return net, history


class Interrupt(Exception):
    pass


def interrupt_at(step):
    calls = []

    def loss(net, x):
        calls.append(step)
        if len(calls) > step:
            raise Interrupt
        return net(x).square().mean()

    return loss


def test_finished_run_is_read_back_without_training(tmp_path):
    path = tmp_path / "new" / "folder" / "run.pt"
    net, history = checkpointed(path, ema=0.9)

    def never(net, x):
        raise AssertionError("trained again")

    again, same = checkpointed(path, ema=0.9, loss=never)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert same.loss == history.loss and all(torch.equal(same.ema[name], t) for name, t in history.ema.items())
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


def test_interrupted_cell_can_be_run_again_with_the_same_objects(tmp_path):
    expected, _ = checkpointed(tmp_path / "whole.pt")
    torch.manual_seed(0)
    g = generator(0)
    x = torch.randn(8, 2, generator=g)
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for stop in (7, 9):
        loss = interrupt_at(stop)
        options = dict(num_steps=12, data=x, batch_size=2, generator=g, checkpoint=tmp_path / "run.pt")
        try:
            run(net, lambda x, loss=loss: loss(net, x), optimizer=optimizer, checkpoint_every=5, **options)
        except Interrupt:
            continue
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("torn", ["run.pt.tmp", "run.pt"])
def test_torn_files(tmp_path, torn):
    with pytest.raises(Interrupt):
        checkpointed(tmp_path / "run.pt", loss=interrupt_at(7))
    (tmp_path / torn).write_bytes((tmp_path / "run.pt").read_bytes()[:500])
    if torn == "run.pt":
        with pytest.raises(ValueError, match="checkpoint.*run.pt.*delete"):
            checkpointed(tmp_path / "run.pt")
        return
    net, _ = checkpointed(tmp_path / "run.pt")
    expected, _ = checkpointed(tmp_path / "whole.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))


def test_failure_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Interrupt):
        checkpointed(tmp_path / "run.pt", loss=interrupt_at(7))
    old = (tmp_path / "run.pt").read_bytes()

    def half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpointed(tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == old


def test_file_is_read_without_pickle(tmp_path):
    torch.save({"identity": Path("x")}, tmp_path / "run.pt")  # an object that only pickle could make
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpointed(tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_steps": 13}, "num_steps is 12 there and 13 here"),
        ({"batch_size": 4}, "batch_size is 2 there and 4 here"),
        ({"width": 3}, r"parameter 0.weight is torch.float32 \(2, 2\) there and torch.float32 \(3, 2\) here"),
        ({"seed": 1}, "values in data.*seed is 0 there and 1 here"),
        ({"lr": 0.5}, "lr of group 0 is 0.001 there and 0.5 here"),
        ({"optimizer": torch.optim.SGD}, "optimizer is Adam there and SGD here"),
        ({"schedule": "cosine"}, "schedule is None there and cosine here"),
        ({"clip_norm": 1.0}, "clip_norm is None there and 1.0 here"),
        ({"ema": 0.5}, "ema is None there and 0.5 here"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, options, names):
    checkpointed(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=names):
        checkpointed(tmp_path / "run.pt", **options)


def identical(a, b):
    """Bitwise equality of nested results."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def worker():
    """Sends a folder to the training process; returns the child that trains there and a function to await it."""
    # A finished child stays a zombie until it is asked for, so that a late kill cannot hit another process.
    command = [sys.executable, str(Path(__file__).with_name("_resume_worker.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def ask(line):
            process.stdin.write(f"{line}\n")
            return int(process.stdout.readline())

        def start(folder):
            return ask(folder), lambda: ask("wait")

        yield start
        process.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_run_killed_at_a_random_moment_resumes_to_the_same_bits(worker, tmp_path):
    def finished(folder):
        return [torch.load(folder / name, weights_only=True) for name in ("run.pt", "result.pt")]

    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.perf_counter()
    _, wait = worker(whole)
    assert wait() == 0
    seconds = time.perf_counter() - began
    expected, moments = finished(whole), random.Random(0)
    assert expected[0]["step"] == len(expected[1]["loss"]) == 100

    kills, resumed, writing = 0, 0, 0
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        child, wait = worker(folder)
        time.sleep(moments.uniform(0.0, 0.95) * seconds)
        if attempt % 3 == 0:  # every third kill waits until a checkpoint is being written
            limit = time.perf_counter() + seconds / 2
            while not (folder / "run.pt.tmp").exists() and time.perf_counter() < limit:
                pass
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(wait()):
            continue  # it was faster than the kill
        kills += 1
        resumed += (folder / "run.pt").exists()
        writing += (folder / "run.pt.tmp").exists()
        _, wait = worker(folder)
        assert wait() == 0
        assert identical(finished(folder), expected), f"kill {kills} changed the result"
        if kills == 20:
            break
    print(f"{kills} kills, {resumed} resumed from a checkpoint, {writing} while writing one")
    assert kills == 20 and resumed >= 10 and writing >= 1


def test_doctests():
    torch.manual_seed(0)
    assert doctest.testmod(training).failed == 0
