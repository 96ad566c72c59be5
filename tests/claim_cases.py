"""The frame of test_claims_of_chapter_NN.py: a right measurement meets a claim's criterion, faulty ones do not."""

from collections.abc import Callable

import torch

from refimpl.claims import Claims


class ClaimCases:
    """One experiment for each claim of a chapter; a claim without one fails.

    An experiment returns the right measurement, and by its name what each fault measures. Register it with
    ``@case("NB-1")``; ``check("NB-1")`` runs it and prints the values (seen with `pytest -rP`).
    """

    def __init__(self, chapter: str):
        self.claims = Claims.declared(chapter).claims
        self.experiments: dict[str, Callable] = {}

    def __call__(self, id: str) -> Callable:
        return lambda experiment: self.experiments.setdefault(id, experiment)

    def check(self, id: str) -> None:
        """Assert that the criterion accepts the right measurement and rejects every faulty one."""
        claim, threads = self.claims[id], torch.get_num_threads()
        torch.set_num_threads(1)  # tensors this small only lose by being shared between threads
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                right, faulty = self.experiments[id]()
        finally:
            torch.set_num_threads(threads)
        print(f"{id} {claim.op} {claim.bound}; right:", _text(right))
        for fault, value in faulty.items():
            print(f"    {fault}:", _text(value))
        assert claim.holds(right)
        assert [fault for fault, value in faulty.items() if claim.holds(value)] == []


def _text(value) -> str:
    return " ".join(f"{v:.4g}" for v in torch.as_tensor(value, dtype=torch.float64).flatten().tolist())
