def roulette(product, probe, num_terms, num_exact, p):
    """From a list of v^T A^k v, and a survival probability that shrinks as we go."""
    powers, traces = probe, []
    while len(traces) < num_terms:
        powers = product(powers)
        traces.append(float(torch.dot(probe, powers)))
    estimate, survival = 0.0, 1.0
    for k, trace in enumerate(traces, start=1):
        if k > num_exact + 1:
            survival *= 1 - p
        estimate += trace / (k * survival) * (1 if k % 2 else -1)
    return estimate


def roulette_variance(eigenvalues, num_exact, p):
    """Mean over N of the variance over v, plus variance over N of the mean over v."""
    if max(x * x for x in eigenvalues) >= 1 - p:
        return math.inf
    sums = [sum(-((-x) ** k) / k for k in range(1, num_exact + 1)) for x in eigenvalues]
    chance, survival, of_probe, of_mean = p, 1.0, 0.0, 0.0
    exact = sum(math.log(1 + x) for x in eigenvalues)
    for n in range(1, 401):
        k = num_exact + n
        sums = [total - (-x) ** k / (k * survival) for total, x in zip(sums, eigenvalues)]
        of_probe += chance * 2 * sum(total * total for total in sums)
        of_mean += chance * (sum(sums) - exact) ** 2
        chance *= 1 - p
        survival *= 1 - p
    return of_probe + of_mean


def best_p(eigenvalues, num_exact):
    """Thirds of an interval: the product falls, then rises."""
    high = 0.999 * (1 - max(x * x for x in eigenvalues))

    def price(p):
        return roulette_variance(eigenvalues, num_exact, p) * (num_exact + 1 / p)

    low = high / 10
    for _ in range(30):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (one, high) if price(one) > price(two) else (low, two)
    return (low + high) / 2
