import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from monai_attention.registration.velocity_prior import VelocityPriorLoss


def test_it_is_the_divergence_from_the_prior_but_for_a_constant():
    size, strength = (3, 4), 2.5
    number = torch.arange(12).view(size)
    adjacent = torch.zeros(12, 12, dtype=torch.double)
    for axis, n in enumerate(size):
        first, second = (number.narrow(axis, start, n - 1).flatten() for start in (0, 1))
        adjacent[first, second] = adjacent[second, first] = 1
    precision = strength * (adjacent.sum(0).diag() - adjacent)
    prior = MultivariateNormal(torch.zeros(12).double(), precision_matrix=precision + 1e-6 * torch.eye(12).double())
    generator = torch.Generator().manual_seed(0)
    ours, exact = [], []
    for _ in range(2):
        mean, log_variance = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.double)
        pairs = zip(mean[0].flatten(1), log_variance[0].flatten(1), strict=True)
        components = [kl_divergence(MultivariateNormal(m, v.exp().diag()), prior) for m, v in pairs]
        exact.append(torch.stack(components).sum() / 12)
        ours.append(VelocityPriorLoss(strength)(mean, log_variance))
    torch.testing.assert_close(ours[0] - ours[1], exact[0] - exact[1], rtol=1e-4, atol=1e-5)


def test_the_batch_is_averaged_and_the_mean_can_be_weighted_apart():
    mean = torch.zeros(2, 1, 5)
    mean[1, 0, 2:] = 3  # one difference of 3 in the second sample
    plain, apart = (VelocityPriorLoss(1.0, weight)(mean, torch.zeros(2, 1, 5)) for weight in (None, 2.0))
    torch.testing.assert_close(plain, torch.tensor(((1 + 2 + 2 + 2 + 1) / 5 + 9 / 10) / 2))
    torch.testing.assert_close(apart - plain, torch.tensor(9 / 10 / 2))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        VelocityPriorLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
