# loses: 3
def velocity(a, b, variance, beta):
    off = 2 * beta * variance * (1 - a * b)
    return b - a * variance + off * b, off * a


def rates(variance, beta):
    return min(1.0, 4 * beta), max(1.0, 4 * beta)


def largest_step(variance, beta):
    return 2 / rates(variance, beta)[1]


def steps_needed(variance, beta, factor):
    slow, fast = rates(variance, beta)
    return math.log(factor) / math.log((fast + slow) / (fast - slow))
