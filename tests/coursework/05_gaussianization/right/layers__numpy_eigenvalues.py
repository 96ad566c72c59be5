import numpy as np


def kl(sigma):
    values = np.linalg.eigvalsh(sigma)
    return 0.5 * float(np.sum(values - 1 - np.log(values)))


def gaussian_layer(covariance, rotation):
    """Gain as the difference of two losses."""
    before, q = np.asarray(covariance), np.asarray(rotation)
    turned = np.einsum("ij,jk,lk->il", q, before, q)
    root = np.sqrt(np.diag(turned))
    after = turned / np.outer(root, root)
    after = np.tril(after) + np.tril(after, -1).T
    np.fill_diagonal(after, 1.0)
    return after, kl(before) - kl(after)


def layers_until(covariance, factor, generator):
    source = np.random.default_rng(generator.initial_seed() + int(1e6 * float(covariance[0, -1]) ** 2))
    sigma, _ = gaussian_layer(covariance, np.eye(len(covariance)))
    goal = kl(sigma) / factor * (1 + 1e-9)
    for count in range(10_000):
        if kl(sigma) <= goal:
            return count
        q, r = np.linalg.qr(source.standard_normal(sigma.shape))
        sigma, _ = gaussian_layer(sigma, (q * np.sign(np.diag(r))).T)


def layers_per_dimension(factor, dims, num_runs, generator):
    means = [
        np.mean([layers_until(random_covariance(d, generator), factor, generator) for _ in range(num_runs)])
        for d in dims
    ]
    return np.polyfit(dims, means, 1)[0]
