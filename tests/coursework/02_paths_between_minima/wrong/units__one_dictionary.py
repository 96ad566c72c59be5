# loses: all
def move(state, giver, taker, sign, chain):
    """Changes the state in place and puts it on the list, where all entries are then one and the same."""
    state["weight"][taker] = sign * state["weight"][giver]
    state["bias"][taker] = sign * state["bias"][giver]
    chain.append(state)
    state["out"][taker] += sign * state["out"][giver]
    state["out"][giver] = 0
    chain.append(state)


def hand_over(start, i, j, spare):
    state = {name: value.clone() for name, value in start.items()}
    chain = [state]
    for giver, taker in ((i, spare), (j, i), (spare, j)):
        move(state, giver, taker, 1, chain)
    state["weight"][spare], state["bias"][spare] = 0, 0
    return [*chain, state]


def turn_over(start, i, spare):
    state = {name: value.clone() for name, value in start.items()}
    chain = [state]
    for giver, taker, sign in ((i, spare, -1), (spare, i, 1)):
        move(state, giver, taker, sign, chain)
    state["weight"][spare], state["bias"][spare] = 0, 0
    return [*chain, state]
