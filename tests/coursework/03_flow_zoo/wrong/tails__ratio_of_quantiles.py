# loses: 2
def hill(x, k):
    """Relative to the k-th largest in place of the next one."""
    top = x.abs().topk(k).values
    return 1 / (top / top[-1]).log().mean().item()


def predicted_index(df, growth):
    found = list(df)
    for i in range(len(df)):
        for j in range(i):
            if growth[i][j]:
                found[i] = min(found[i], found[j] / growth[i][j])
    return found


def needed_slope(df, r):
    """A ratio of probabilities."""
    from scipy import stats

    return math.sqrt(stats.t.sf(r, df) / stats.norm.sf(r))
