import numpy as np


def heun(model, x, times):
    process = model.process
    for i in range(len(times) - 1):
        (a, b), (a_s, b_s) = process.coefficients(times[i]), process.coefficients(times[i + 1])
        ratio = (b_s / a_s) / (b / a)
        data, noise = model.data_and_noise(x, times[i])
        guess = a_s * data + b_s * noise
        if float(b_s) == 0.0:
            return guess
        later = model.noise(guess, times[i + 1])
        x = guess + a_s * (b / a) * (ratio - 1) * (later - noise) / 2
    return x


def fitted_order(steps, errors):
    return -np.polyfit(np.log(np.asarray(steps, dtype=float)), np.log(np.asarray(errors, dtype=float)), 1)[0]
