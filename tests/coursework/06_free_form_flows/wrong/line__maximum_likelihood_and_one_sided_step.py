# loses: 3
def velocity(a, b, variance, beta):
    off = 2 * beta * variance * (1 - a * b)
    return (1 / a if a else 0.0) - a * variance + off * b, off * a


def rates(variance, beta):
    total, product = variance + 2 * beta * variance**2 + 2 * beta, 4 * beta * variance
    root = math.sqrt(total**2 / 4 - product)
    return product / (total / 2 + root), total / 2 + root


def largest_step(variance, beta):
    return 1 / rates(variance, beta)[1]


def steps_needed(variance, beta, factor):
    slow, fast = rates(variance, beta)
    return math.log(factor) * fast / slow
