# loses: 2
def uniform_gap(dim):
    """Puts E[V]^(2 / D) in place of E[V^(2 / D)]: right in the plane only."""
    spread = 0.5 ** (2 / dim)
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return dim / 2 * (1 + math.log(2 * math.pi / dim * spread)) - log_ball


def student_gap(nu):
    """Forgets that the mean volume may be infinite."""
    return math.log(abs(nu / (nu - 2 + 1e-12))) - 2 / nu


def weights_gap(weight):
    small, large = min(weight, 1 - weight), max(weight, 1 - weight)
    mean_volume = 1 + 2 * small + small * math.log(large / small)
    return math.log(mean_volume) + small * math.log(small) + large * math.log(large)


def harmless_weights(variances):
    return [s / sum(variances) for s in variances]
