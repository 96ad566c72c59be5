# loses: 1
def hill(x, k):
    top = x.abs().topk(k + 1).values
    return 1 / (top[:-1] / top[-1]).log().mean().item()


def predicted_index(df, growth):
    """As if a power made a tail lighter."""
    found = list(df)
    for i in range(len(df)):
        for j in range(i):
            if growth[i][j]:
                found[i] = min(found[i], found[j] * growth[i][j])
    return found


def needed_slope(df, r):
    from scipy import stats

    return r / stats.norm.isf(stats.t.sf(r, df))
