# loses: 1
def final_kl(kappa, ratio):
    """KL divergence in nats for probes that are sqrt(ratio) times too long."""
    k = kappa / ratio
    log_c = [math.log(c / (4 * math.pi * math.sinh(c))) for c in (k, kappa)]
    return (k - kappa) * (1 / math.tanh(k) - 1 / k) + log_c[0] - log_c[1]


def mean_height(kappa, ratio):
    """Mean of x_3 of the data's latents after training with such probes."""
    return 1 / math.tanh(kappa / ratio) - ratio / kappa


def measured_kl(kappa, ratio, points, generator):
    """Mean over points, drawn from vMF(kappa), of its log-density minus that of a trained flow."""
    draw = tangent_probes(SPHERE, 1, generator)
    flow = train_flow(kappa, lambda z: draw(z) / math.sqrt(ratio))
    with torch.no_grad():
        return (pole(kappa).log_prob(points) - flow.log_prob(points)).mean().item()
