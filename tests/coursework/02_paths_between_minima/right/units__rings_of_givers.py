def with_input(state, unit, like, sign=1):
    new = {name: value.clone() for name, value in state.items()}
    new["weight"][unit], new["bias"][unit] = sign * state["weight"][like], sign * state["bias"][like]
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
    """The spare unit keeps the place while unit i turns its inputs; then i takes the output back, turned."""
    lent = with_output(with_input(start, spare, i), i, spare)
    turned = with_input(lent, i, i, sign=-1)
    back = with_output(turned, spare, i, sign=-1)
    return [start, with_input(start, spare, i), lent, turned, back, freed(back, spare)]
