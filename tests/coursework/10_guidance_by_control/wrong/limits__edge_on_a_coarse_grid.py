# loses: 1
def edge(process, num_steps):
    """The largest sigma at which the explicit plug-in diverges for data N(0, 1)."""
    low, high = 0.01, 2.0
    while high / low > 1.2:
        middle = math.sqrt(low * high)
        diverged = final_law(process, num_steps, 1.0, 0.0, middle, False, False)[1] > 1
        low, high = (middle, high) if diverged else (low, middle)
    return math.sqrt(low * high)


def limit_law(y, sigma):
    """Mean and standard deviation of the plug-in for data N(0, 1), two floats."""
    mean = -y * math.expm1(-1 / sigma**2)
    return mean, math.sqrt(-0.5 * sigma**2 * math.expm1(-2 / sigma**2))
