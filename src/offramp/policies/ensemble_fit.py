"""The weights of an ensemble policy, fitted on records."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from offramp.policies.base import Parameters

if TYPE_CHECKING:
    from offramp.calibration.records import Records
    from offramp.policies.ensemble import Ensemble

_SAMPLES = 4096
_NUMBERS = 1_000_000  # samples × classes in hand per exit: a fit takes seconds, not minutes
_STEPS = 30


def fit_ensembles(
    rule: type["Ensemble"],
    records: "Records",
    *,
    include_last: bool = False,
    offsets: bool = True,
) -> Parameters:
    """Weights and offsets that minimise each ensemble's negative log-likelihood.

    A unit normal prior on every weight w_mj, and on every bias b_m around their mean, keeps small
    sets from being learnt by heart. ZTW fits on the training set for two epochs with Adam; on held
    out records the problem is small enough to be solved (L-BFGS, from w = 0 and b = 0, each
    ensemble from the one before it).

    Args:
        rule: the family whose formula is fitted.
        records: a few thousand samples of them, spread evenly, are used.
        include_last: give the last exit an ensemble too; ZTW leaves it out.
        offsets: False keeps the plain weighted mean: weights only.
    """
    rows = records.num_exits if include_last else records.num_exits - 1
    classes = records.outputs(0, slice(0, 1)).logits.shape[-1]
    count = min(len(records), _SAMPLES, max(_NUMBERS // classes, 1))
    picked = torch.linspace(0, len(records) - 1, count).long()
    logits = records.logits[picked][:, :rows].transpose(0, 1)  # (rows, n, C)
    voices = rule.voice(logits.float()).contiguous()
    labels = records.labels[picked]
    w, b = torch.zeros(0), torch.zeros(classes)
    found: Parameters = {"weights": [], "offsets": []}
    for m in range(rows):
        w = torch.cat([w, torch.zeros(1)])
        w, b = _fit_one(rule, voices[: m + 1], labels, w, b, offsets=offsets)
        start = rule.offset(b) if offsets else torch.zeros(classes)
        found["weights"].append(_short(w.exp()))
        found["offsets"].append(_short(start))
    return found


def _fit_one(
    rule: type["Ensemble"], voices: Tensor, labels: Tensor, w: Tensor, b: Tensor, *, offsets: bool
) -> tuple[Tensor, Tensor]:
    """Best w (m+1,) and b (C,) of one ensemble for voices (m+1, n, C)."""
    members, count = len(voices), len(labels)
    factor = rule.share(1.0, members)
    flat = voices.reshape(members, -1)  # one matrix product per evaluation
    with torch.enable_grad():
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_(offsets)
        learned = [w, b] if offsets else [w]
        solver = torch.optim.LBFGS(
            learned, max_iter=_STEPS, tolerance_change=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            total = ((factor * w.exp()) @ flat).view(count, -1)
            running = total + rule.offset(b) if offsets else total
            prior = w.square().sum() + (b - b.mean()).square().sum()
            return F.nll_loss(rule.readout(running), labels) + prior / (2 * count)

        def closure() -> Tensor:
            solver.zero_grad()
            value = loss()
            value.backward()
            return value

        before, w0, b0 = loss().item(), w.detach().clone(), b.detach().clone()
        solver.step(closure)
        after = loss().item()
    better = after <= before  # false for NaN as well
    return (w.detach(), b.detach()) if better else (w0, b0)


def _short(values: Tensor) -> list[float]:
    """Six digits: points hold these tables once per point of their front."""
    return [float(f"{value:.6g}") for value in values.tolist()]
