# loses: 2
def hill(x, k):
    """The right tail alone."""
    top = x.topk(k + 1).values
    return 1 / (top[:-1] / top[-1]).log().mean().item()


def predicted_index(df, growth):
    """Looks at the bases only: what came to a feature from others is lost."""
    found = list(df)
    for i in range(len(df)):
        for j in range(i):
            if growth[i][j]:
                found[i] = min(found[i], df[j] / growth[i][j])
    return found


def needed_slope(df, r):
    from scipy import stats

    return r / stats.norm.isf(stats.t.sf(r, df))
