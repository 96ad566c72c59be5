# loses: 2
def with_input(state, unit, like, sign=1):
    """Turns the weights over, but not the bias."""
    new = {name: value.clone() for name, value in state.items()}
    new["weight"][unit], new["bias"][unit] = sign * state["weight"][like], abs(sign) * state["bias"][like]
    return new


def with_output(state, giver, taker, sign=1):
    new = {name: value.clone() for name, value in state.items()}
    new["out"][taker] += sign * state["out"][giver]
    new["out"][giver] = 0
    return new


def freed(state, unit):
    return with_input(state, unit, unit, sign=0)


def hand_over(start, i, j, spare):
    chain = [start]
    for giver, taker in ((i, spare), (j, i), (spare, j)):
        chain.append(with_input(chain[-1], taker, giver))
        chain.append(with_output(chain[-1], giver, taker))
    return [*chain, freed(chain[-1], spare)]


def turn_over(start, i, spare):
    chain = [start]
    for giver, taker, sign in ((i, spare, -1), (spare, i, 1)):
        chain.append(with_input(chain[-1], taker, giver, sign))
        chain.append(with_output(chain[-1], giver, taker, sign))
    return [*chain, freed(chain[-1], spare)]
