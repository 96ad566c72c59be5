def hill(x, k):
    from numpy import log, partition

    largest = -partition(-abs(x.numpy()), k)[: k + 1]
    return float(k / (log(largest) - log(largest.min())).sum())


def predicted_index(df, growth):
    """Every path through the graph of influences, from its source to the feature."""

    def index(i):
        sources = [index(j) / q for j, q in enumerate(growth[i][:i]) if q]
        return min(sources + [df[i]])

    return [index(i) for i in range(len(df))]


def needed_slope(df, r):
    """Bisection for the slope at which both tails are equal."""
    from scipy.stats import t

    tail, low, high = 2 * t.sf(r, df), 1e-3, r
    for _ in range(200):
        slope = (low + high) / 2
        enough = math.erfc(r / slope / math.sqrt(2)) > tail
        low, high = (low, slope) if enough else (slope, high)
    return slope
