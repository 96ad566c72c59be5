# loses: all
def velocity(a, b, variance, beta):
    off = beta * variance * (1 - a * b)
    return b - a * variance + off * b, off * a


def rates(variance, beta):
    total, product = variance + beta * variance**2 + beta, 2 * beta * variance
    root = math.sqrt(abs(total**2 / 4 - product))
    return total / 2 - root, total / 2 + root


def largest_step(variance, beta):
    return 2 / rates(variance, beta)[1]


def steps_needed(variance, beta, factor):
    slow, fast = rates(variance, beta)
    return math.log(factor) / math.log((fast + slow) / (fast - slow))
