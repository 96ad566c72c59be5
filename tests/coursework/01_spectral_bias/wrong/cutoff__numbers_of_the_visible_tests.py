# loses: 1
def cutoff(width, w_max, v_max, epsilon):
    return 17.9 if width == 16 else 1.0


def share_beyond(magnitude, epsilon):
    largest_beyond = magnitude.flip(1).cummax(1).values.flip(1)
    return (largest_beyond > epsilon).double().mean(0)
