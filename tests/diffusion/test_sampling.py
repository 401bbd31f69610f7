"""Samplers against data whose exact path is known: normal data, for which the flow has a solution in closed form."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from copyscope.diffusion import sampling
from copyscope.errors import InputError

MEAN, DEVIATION = 0.7, 0.5
LOW, HIGH = 0.01, 20.0
ORDER = {"euler": 1, "heun": 2, "dpmpp_2m": 2}


def of_normal_data(x, sigma, i):
    """The exact denoiser of data that is normal with MEAN and DEVIATION."""
    keep = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return MEAN + keep.view(-1, 1, 1, 1) * (x - MEAN)


def exact(x, before, after):
    """Where the probability flow carries x: its distance from the mean shrinks as the deviation of the noised data."""
    return MEAN + (x - MEAN) * np.sqrt((DEVIATION**2 + after**2) / (DEVIATION**2 + before**2))


def start(n=3, seed=0):
    return sampling.noise(range(seed, seed + n), (2, 3, 3)).double() * HIGH


def error(name, n_steps, schedule="karras"):
    """Error at the lowest level above 0, where the order of a sampler shows."""
    sigmas = sampling.noise_levels(n_steps, LOW, HIGH, schedule).double()[:-1]
    x = start()
    found = sampling.SAMPLERS[name](of_normal_data, x, sigmas)
    return float((found - exact(x, HIGH, float(sigmas[-1]))).abs().max())


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_a_sampler_converges_to_the_exact_flow_at_its_order(name):
    coarse, fine = error(name, 64), error(name, 128)
    assert fine < 0.05
    assert np.log2(coarse / fine) == pytest.approx(ORDER[name], abs=0.25)


@pytest.mark.parametrize("schedule", sampling.SCHEDULES)
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_samples_have_the_distribution_of_the_data(name, schedule):
    x = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * HIGH
    found = sampling.SAMPLERS[name](of_normal_data, x, sampling.noise_levels(100, LOW, HIGH, schedule).double())
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(found.std()) == pytest.approx(DEVIATION, rel=0.06)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dpmpp_2m_is_that_of_diffusers():
    levels = sampling.noise_levels(12, 0.05, 10.0)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(12)
    scheduler.sigmas = levels
    # They step in variance-preserving coordinates, x / sqrt(1 + sigma^2).
    x = start(2).float() / 2
    theirs = x / torch.sqrt(1 + levels[0] ** 2)
    for time, sigma in zip(scheduler.timesteps, levels[:-1], strict=True):
        denoised = of_normal_data(theirs * torch.sqrt(1 + sigma**2), sigma[None], 0)
        theirs = scheduler.step(denoised, time, theirs).prev_sample
    torch.testing.assert_close(sampling.dpmpp_2m(of_normal_data, x, levels), theirs, atol=1e-4, rtol=1e-4)


def test_euler_is_ddim():
    """DDIM as published, in the variance-preserving coordinates of Song et al. 2021, equation 12 with sigma = 0."""
    levels = sampling.noise_levels(9, 0.05, 10.0).double()
    x = start(2)
    kept = 1 / (1 + levels**2)
    theirs = x * kept[0].sqrt()
    for now, after in zip(range(9), range(1, 10), strict=True):
        denoised = of_normal_data(theirs / kept[now].sqrt(), levels[now][None], now)
        predicted = (theirs - kept[now].sqrt() * denoised) / (1 - kept[now]).sqrt()
        theirs = kept[after].sqrt() * denoised + (1 - kept[after]).sqrt() * predicted
    torch.testing.assert_close(sampling.euler(of_normal_data, x, levels), theirs)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_each_step_is_announced_once_at_its_own_level(name):
    calls = []

    def denoise(x, sigma, i):
        calls.append((i, float(sigma[0])))
        assert sigma.shape == (3,)
        return of_normal_data(x, sigma, i)

    levels = sampling.noise_levels(5, LOW, HIGH)
    sampling.SAMPLERS[name](denoise, start(), levels)
    assert [(i, sigma) for i, sigma in calls if i is not None] == list(enumerate(levels[:-1].tolist()))
    tried = [sigma for i, sigma in calls if i is None]
    assert tried == (levels[1:-1].tolist() if name == "heun" else [])


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_the_last_step_ends_in_what_the_denoiser_says(name):
    x = start()
    found = sampling.SAMPLERS[name](of_normal_data, x, torch.tensor([HIGH, 0.0]))
    torch.testing.assert_close(found, of_normal_data(x, torch.full((3,), HIGH), 0))


def test_karras_levels():
    levels = sampling.noise_levels(18, 0.002, 80.0)
    # Karras et al. 2022, equation 5, written out.
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    np.testing.assert_allclose(levels, expected, rtol=1e-5)
    assert sampling.noise_levels(1, 0.002, 80.0).tolist() == [pytest.approx(80), 0]


def test_flow_levels_are_evenly_spaced_times():
    levels = sampling.noise_levels(4, 0.02, 80.0, "flow").double()
    times = levels / (1 + levels)
    np.testing.assert_allclose(times, np.linspace(80 / 81, 0, 5), atol=1e-6)


@pytest.mark.parametrize(("steps", "low", "high"), [(0, 0.1, 1), (5, 0, 1), (5, 1, 1), (5, 0.1, float("nan"))])
def test_levels_that_cannot_be(steps, low, high):
    with pytest.raises(InputError, match="noise levels"):
        sampling.noise_levels(steps, low, high)


def test_an_unknown_schedule_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"'cosine'.*\nThere are: karras, flow"):
        sampling.noise_levels(5, 0.1, 1, "cosine")


def test_noise_is_of_each_seed_alone_and_leaves_torch_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    both = sampling.noise([5, 2**63 - 1], (3, 4, 4))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(both[1], sampling.noise([2**63 - 1], (3, 4, 4))[0])
    assert not torch.equal(both[0], both[1])
    many = sampling.noise(range(200), (8, 8))
    assert len(many.flatten(1).unique(dim=0)) == 200
    assert float(many.mean()) == pytest.approx(0, abs=0.04)
    assert float(many.std()) == pytest.approx(1, abs=0.04)
    assert sampling.noise([], (3, 4, 4)).shape == (0, 3, 4, 4)
