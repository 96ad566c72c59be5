# loses: 1
def uniform_gap(dim):
    return dim / 2 * (1 + math.log(2 / (dim + 2))) + math.lgamma(dim / 2 + 1)


def student_gap(nu):
    return math.inf if nu <= 2 else -math.log(1 - 2 / nu) - 2 / nu


def weights_gap(weight):
    """Takes it for granted that the first mode is the lower one."""
    mean_volume = 1 + 2 * weight + weight * math.log((1 - weight) / weight)
    return math.log(mean_volume) + weight * math.log(weight) + (1 - weight) * math.log(1 - weight)


def harmless_weights(variances):
    return [s / sum(variances) for s in variances]
