import numpy as np


def predicted(dim, skewness, kurtosis):
    def even(*powers):
        below = math.prod(range(dim, dim + sum(powers), 2))
        return math.prod(math.prod(range(p - 1, 0, -2)) for p in powers) / below

    cubes = dim * even(6)
    fourths = dim * even(8) + dim * (dim - 1) * even(4, 4)
    return torch.tensor(skewness**2 * cubes / 12 + kurtosis**2 * fourths / 48)


def negentropy(x, p):
    log_ratio = p.clamp_min(1e-300).log() + x**2 / 2 + math.log(2 * math.pi) / 2
    return torch.trapezoid(p * log_ratio, x, dim=-1)


def mean_negentropy(family, dim, num_draws, generator):
    total = 0.0
    for _ in range(num_draws):
        q = haar(dim, generator=generator)[:, -1]
        total += negentropy(*projected_density(q, family)).item()
    return total / num_draws


def exponent(family, dims, num_draws, generator):
    means = [mean_negentropy(family, dim, num_draws, generator) for dim in dims]
    return np.polyfit(np.log(dims), np.log(means), 1)[0]
