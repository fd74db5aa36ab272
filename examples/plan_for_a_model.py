"""Write a sequence plan for a model of yours, and check it: two ranks must compute what one process computes.

The plan is in example_model.py. The ranks here are threads of this process; on several devices `GroupComm` takes
their place. `torchspan sp derive` proposes such a plan for you. A plan for a model of ComfyUI or diffusers belongs into
`ray_parallel.sequence.plans`.
"""

from __future__ import annotations

import copy

import torch

from example_model import PLAN, Transformer
from ray_parallel.sequence import Comm, parallelize, run_threads


def main() -> None:
    """Run the model alone and on two ranks, and compare."""
    torch.manual_seed(0)
    model = Transformer(depth=2, width=64).eval()
    x_BTC = torch.randn(1, 37, 64)  # an odd number of tokens: the ranks get parts of unequal length
    with torch.no_grad():
        expected = model(x_BTC)

    def on_one_rank(comm: Comm) -> torch.Tensor:
        mine = copy.deepcopy(model)
        with torch.no_grad(), parallelize(mine, PLAN, comm):
            return torch.as_tensor(mine(x_BTC))

    for rank, output in enumerate(run_threads(2, on_one_rank)):
        difference = ((output - expected).abs().max() / expected.abs().max()).item()
        print(f"rank {rank}: {difference:.1e} from one process")
        assert difference <= 1e-6


if __name__ == "__main__":
    main()
