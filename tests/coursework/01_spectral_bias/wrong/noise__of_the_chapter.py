# loses: all
def design_noise(x):
    return radial_noise(x, 0.1, reference=x)
