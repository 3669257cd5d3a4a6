"""What leaving at each exit costs in a loss, and the models of a sweep over its price."""

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import torch
from torch import distributed as dist

from offramp.costs.macs import model_costs
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.hub import RECIPE
from offramp.model import MultiExitModel
from offramp.training.bilevel import Mixture

FOLDER, FRONT, TIMES = "tradeoffs", "front.json", "costs-time.json"


def relative_costs(model: MultiExitModel, counted: str, run: Path) -> list[float]:
    """Cost of leaving at each exit with all heads before it on, over that of the last: (L,).

    Args:
        counted: ``macs``; ``blocks``; ``time``, measured here with torch at batch size 1 and kept
            in the run's folder; or the file of a `CostTable`, measured where the model will run.
    """
    table = _table(model, counted, run)
    if table.num_exits != model.num_exits:
        raise OfframpError(
            f"recipe.costs: {counted} has {table.num_exits} exits, the model {model.num_exits}"
        )
    paid = table.leave_cost()
    return [cost / paid[-1] for cost in paid]


def _table(model: MultiExitModel, counted: str, run: Path) -> CostTable:
    if counted == "macs":
        return model_costs(model)
    if counted == "blocks":
        starts, ends = (0, *model.blocks[:-1]), model.blocks
        body = tuple(float(end - start) for start, end in zip(starts, ends, strict=True))
        return CostTable(unit="blocks", body=body, head=(0.0,) * len(body), full=sum(body))
    if counted == "time":
        return _measured(model, run / TIMES)
    return CostTable.load(counted)


def _measured(model: MultiExitModel, path: Path) -> CostTable:
    """Times of a run, measured once: another measurement would be another loss."""
    several = dist.is_available() and dist.is_initialized()
    if not path.is_file() and (not several or dist.get_rank() == 0):
        from offramp.runtime import latency_table

        chain = model.chain
        images = torch.zeros(1, chain.in_chans, *chain.image_size)
        latency_table(model, images, (1,))[1].save(path)
    if several:
        dist.barrier()
    return CostTable.load(path)


def keeper(run: Path, tradeoff: float) -> Callable[[MultiExitModel, Mixture], None]:
    """What keeps the model of one λ as a run folder of its own, ``tradeoffs/λ``, and its place in
    ``tradeoffs/front.json``, cheapest price first."""

    def keep(model: MultiExitModel, found: Mixture) -> None:
        name = f"{tradeoff:g}"
        folder, front = run / FOLDER / name, run / FOLDER / FRONT
        model.save_pretrained(folder)
        if (run / RECIPE).is_file():
            copyfile(run / RECIPE, folder / RECIPE)
        entries = {row["run"]: row for row in (read_json(front) if front.is_file() else [])}
        entries[name] = {
            "run": name,
            "tradeoff": tradeoff,
            "validation": round(found.accuracy, 3),
            "cost": round(found.cost, 5),
        }
        write_json(front, sorted(entries.values(), key=lambda row: row["tradeoff"]))

    return keep


def forget(model: MultiExitModel, found: Mixture) -> None:
    """Keeps nothing: with one λ the run itself is its model."""
