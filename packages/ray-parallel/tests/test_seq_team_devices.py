"""A team over strict simulated devices: the same values, every byte on the right device, no copy without its wait."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_parallel.sequence import Attn, Kind, Mesh, Plan, Region, Seq, ThreadComm, ThreadTeam, parallelize

PLAN = Plan(regions=[Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"": Attn("v", "v")})])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(("kind", "ranks"), [("ulysses", 2), ("ulysses", 3), ("all_gather", 2), ("ring", 3)])
def test_a_plan_over_devices_of_one_process(sim: types.ModuleType, kind: Kind, ranks: int) -> None:
    torch.manual_seed(5)
    x = torch.randn(1, 13, 12)
    with torch.inference_mode():
        expected = Model().eval()(x)
        devices = [torch.device("sim", index) for index in range(ranks)]
        models = [Model().eval().to(device) for device in devices]

        def install(comm: ThreadComm) -> Any:
            return parallelize(models[comm.rank], PLAN, Mesh.of(comm, kind))

        def forward(comm: ThreadComm) -> Tensor:
            assert torch.accelerator.current_device_index() == comm.rank
            return models[comm.rank](x.to(devices[comm.rank]))  # type: ignore[no-any-return]

        with ThreadTeam(devices) as team:
            handles = team.run(install)
            for _ in range(2):
                results = team.run(forward)
            for handle in handles:
                handle.remove()
        for result, device in zip(results, devices, strict=True):
            assert result.device == device
            torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=2e-6)
        assert all(torch.equal(results[0].cpu(), result.cpu()) for result in results)
    assert torch.accelerator.current_device_index() == 0


def test_devices_that_cannot_reach_each_other_are_served_through_the_host(sim: types.ModuleType) -> None:
    sim.corrupt_link(0, 1)
    sim.corrupt_link(1, 0)
    devices = [torch.device("sim", index) for index in range(2)]

    def through_host(tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.to("cpu").to(device, copy=True)

    def gathered(comm: ThreadComm) -> list[list[float]]:
        mine = torch.full((2,), float(comm.rank), device=devices[comm.rank])
        return [part.tolist() for part in comm.all_gather(mine, [2, 2])]

    with ThreadTeam(devices) as team:
        assert team.run(gathered) != [[[0.0, 0.0], [1.0, 1.0]]] * 2
    with ThreadTeam(devices, copy=through_host) as team:
        assert team.run(gathered) == [[[0.0, 0.0], [1.0, 1.0]]] * 2
