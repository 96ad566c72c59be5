"""Networks trained elsewhere: our samplers through the adapter against diffusers' own loop, and weights from files."""

import hashlib
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from refimpl.diffusion import DDPM, LevelTable, from_adm, from_diffusers, load_weights
from refimpl.diffusion.samplers import ddim

F64 = torch.float64
SHAPE, DIM = (3, 8, 8), 192


@pytest.fixture(scope="module")
def network():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def scheduler(prediction_type="epsilon", **settings):
    from diffusers import DDIMScheduler

    return DDIMScheduler(prediction_type=prediction_type, **(dict(clip_sample=False) | settings))


def diffusers_loop(network, scheduler, x, num_steps, **settings):
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(network(x, t).sample, t, x, **settings).prev_sample
    return x


def start():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_ddim_is_that_of_diffusers(network, prediction_type, beta_schedule):
    theirs = scheduler(prediction_type, beta_schedule=beta_schedule)
    expected = diffusers_loop(network, theirs, start(), 10)
    model = from_diffusers(network, theirs)
    times = torch.arange(901, -1, -100).clamp_min(0)  # diffusers counts 900, 800, ..., 0, and ends at the data
    times = torch.cat([times, times.new_zeros(1)]).double()
    with torch.no_grad():
        ours = ddim(model, start().flatten(1), times)
    assert model.calls == 10
    scale = expected.abs().mean()
    assert torch.allclose(ours / scale, expected.flatten(1) / scale, atol=2e-4)


def test_clamped_and_noisy_ddim_is_that_of_diffusers(network):
    theirs = scheduler(clip_sample=True)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected = diffusers_loop(
        network, theirs, start(), 10, eta=0.7, use_clipped_model_output=True, generator=generators[0]
    )
    times = torch.tensor([*range(901, 0, -100), 0], dtype=F64)
    with torch.no_grad():
        ours = ddim(
            from_diffusers(network, theirs), start().flatten(1), times, eta=0.7, clamp=1.0, generator=generators[1]
        )
    assert torch.allclose(ours, expected.flatten(1), atol=2e-5)


def test_an_index_shifted_by_one_would_be_seen(network):
    theirs = scheduler()
    expected = diffusers_loop(network, theirs, start(), 10).flatten(1)
    times = torch.tensor([*range(902, 0, -100), 0], dtype=F64)
    with torch.no_grad():
        ours = ddim(from_diffusers(network, theirs), start().flatten(1), times)
    scale = expected.abs().mean()
    assert not torch.allclose(ours / scale, expected / scale, atol=2e-4)


def test_levels_are_diffusers_levels_and_default_betas_are_ddpms():
    alpha_bar = scheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    process = LevelTable(alpha_bar)
    a, b = process.coefficients(torch.arange(1, 1001, dtype=F64))
    assert torch.allclose(a.square(), alpha_bar.double()) and torch.allclose(
        a.square() + b.square(), torch.ones_like(a)
    )
    assert [c.item() for c in process.coefficients(torch.tensor(0.0))] == [1.0, 0.0]
    linear = LevelTable(scheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod)
    assert torch.allclose(linear.log_alpha_bar, DDPM().log_alpha_bar, rtol=1e-3)
    assert torch.equal(linear.times(10), DDPM().times(10))


def test_betas_stand_for_a_scheduler_and_kinds_can_be_named(network):
    model = from_diffusers(network, torch.linspace(1e-4, 0.02, 1000), predicts="v")
    assert model.predicts == "v" and torch.allclose(model.process.log_alpha_bar, DDPM().log_alpha_bar, rtol=1e-3)
    assert from_diffusers(network, scheduler("v_prediction")).predicts == "v"
    assert from_diffusers(network, scheduler("sample")).predicts == "data"


def test_gradients_and_counts_pass_through_the_adapter(network):
    model = from_diffusers(network, scheduler())
    x = start().flatten(1).requires_grad_()
    (gradient,) = torch.autograd.grad(model.data(x, 500).square().sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert (model.calls, model.pullbacks) == (1, 1)
    chains = torch.stack([x, x + 1]).detach()
    with torch.no_grad():
        assert torch.allclose(model.noise(chains, 500)[0], model.noise(chains[0], 500), atol=1e-5)


class TinyADM(nn.Module):
    """The interface of guided-diffusion: (images, timesteps) -> noise and variances, in as many channels each."""

    def __init__(self, channels_out=6):
        super().__init__()
        self.mix, self.seen = nn.Conv2d(3, channels_out, 3, padding=1), []

    def forward(self, x, timesteps):
        self.seen.append(timesteps)
        return self.mix(x) * (1 + timesteps[:, None, None, None] / 1000)


@pytest.mark.parametrize("channels_out", [3, 6])
def test_adm_gives_noise_in_its_first_channels(channels_out):
    torch.manual_seed(0)
    network, x = TinyADM(channels_out), start()
    model = from_adm(network, SHAPE)
    assert torch.equal(model.noise(x.flatten(1), 800).detach(), network(x, torch.full((2,), 799))[:, :3].flatten(1))
    assert network.seen[0].dtype == torch.int64 and network.seen[0].tolist() == [799, 799]
    mixed = model.noise(x.flatten(1), torch.tensor([[1.0], [1000.0]]))
    assert network.seen[-1].tolist() == [0, 999] and mixed.shape == (2, DIM)
    assert isinstance(model.process, DDPM) and model.process.num_levels == 1000
    short = from_adm(network, SHAPE, process=DDPM(10))
    assert ddim(short, x.flatten(1), short.process.times(10)).isfinite().all() and short.calls == 10


def test_a_network_in_another_precision_is_asked_in_its_own():
    model = from_adm(TinyADM().to(torch.bfloat16), SHAPE)
    assert model.noise(start().flatten(1).double(), 5).dtype == F64


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_come_from_a_file(tmp_path, suffix):
    torch.manual_seed(0)
    trained, fresh = TinyADM(), TinyADM()
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(trained.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    filled = load_weights(fresh, path, sha256=digest)
    assert filled is fresh and torch.equal(fresh.mix.weight, trained.mix.weight)
    assert not fresh.training and not fresh.mix.weight.requires_grad
    with pytest.raises(ValueError, match=f"got a file with SHA-256 {digest}, expected 00; download it again"):
        load_weights(fresh, str(path), sha256="00")
    with pytest.raises(ValueError, match="its parameters are not those of the network"):
        load_weights(TinyADM(3), path)


def test_a_missing_file_is_named_with_its_address(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adm.pt is missing: put https://example.org/adm.pt there"):
        load_weights(TinyADM(), tmp_path / "adm.pt", address="https://example.org/adm.pt")


class Harmful:
    def __reduce__(self):
        return (print, ("code in a weights file ran",))


def test_code_in_a_file_never_runs(tmp_path, capsys):
    torch.save({"mix.weight": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_weights(TinyADM(), tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (
            TypeError,
            lambda n: from_diffusers(n, SimpleNamespace()),
            r"scheduler: got SimpleNamespace, expected one with",
        ),
        (ValueError, lambda n: from_diffusers(n, scheduler("flow")), r"its network predicts 'flow', expected one of"),
        (ValueError, lambda n: from_diffusers(n, scheduler(), predicts="epsilon"), r"predicts: got 'epsilon'"),
        (ValueError, lambda n: LevelTable(torch.tensor([0.5, 0.9])), r"alpha_bar: expected falling numbers"),
        (ValueError, lambda n: LevelTable(torch.tensor([1.0, 0.9])), r"alpha_bar: expected falling numbers"),
        (ValueError, lambda n: LevelTable(torch.tensor([0.5, 0.0])), r"alpha_bar: expected falling numbers"),
        (ValueError, lambda n: from_adm(n, (3,)), r"shape: got \(3,\), expected \(height, width\)"),
        (
            ValueError,
            lambda n: from_adm(TinyADM(), SHAPE).noise(torch.zeros(3), 1),
            r"x: got shape \(3,\), expected rows",
        ),
        (ValueError, lambda n: from_adm(TinyADM(5), SHAPE).noise(torch.zeros(DIM), 1), r"network: returned shape"),
        (TypeError, lambda n: from_adm(None, SHAPE), r"network: got NoneType, expected a function"),
    ],
)
def test_bad_input(monkeypatch, network, error, call, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error, match=message):
        call(network)
