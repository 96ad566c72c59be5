# loses: 1
def cutoff(width, w_max, v_max, epsilon):
    return math.sqrt(width * w_max * v_max / epsilon)


def share_beyond(magnitude, epsilon):
    return (magnitude > epsilon).double().mean(0)
