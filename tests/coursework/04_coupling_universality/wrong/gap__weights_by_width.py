# loses: 1
def uniform_gap(dim):
    return dim / 2 * (1 + math.log(2 / (dim + 2))) + math.lgamma(dim / 2 + 1)


def student_gap(nu):
    return math.inf if nu <= 2 else -math.log(1 - 2 / nu) - 2 / nu


def weights_gap(weight):
    small, large = min(weight, 1 - weight), max(weight, 1 - weight)
    mean_volume = 1 + 2 * small + small * math.log(large / small)
    return math.log(mean_volume) + small * math.log(small) + large * math.log(large)


def harmless_weights(variances):
    """Equal peaks as on the line, where the height goes with the standard deviation."""
    total = sum(math.sqrt(s) for s in variances)
    return [math.sqrt(s) / total for s in variances]
