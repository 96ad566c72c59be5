def input_shift(model, x, delta, t, s, eta):
    (a, b), (a_s, b_s) = model.process.coefficients(t), model.process.coefficients(s)
    variance = (eta * b_s / b) ** 2 * (1 - a**2 / a_s**2)
    noise = [model.noise(v, t) for v in (x, x + delta)]
    means = [a_s * (v - b * n) / a + (b_s**2 - variance).sqrt() * n for v, n in zip((x, x + delta), noise, strict=True)]
    move = means[1] - means[0]
    along = (noise[1] - noise[0]) * ((b_s**2 - variance).sqrt() - a_s * b / a)
    straight = delta * a_s / a
    return move, 0.5 * (move**2).sum(-1) / variance, ((straight**2).sum(-1) + (along**2).sum(-1)) / variance


def weight_ratio(process, t, s, gamma):
    inverse = (process.coefficients(t)[0] / process.coefficients(s)[0]) ** 2
    published, bound = gamma**2 * inverse * gamma**2, gamma**2 / inverse
    return published / bound
