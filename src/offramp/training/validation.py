"""Accuracy of every exit while training goes on."""

import torch

from offramp.data import Split, batches
from offramp.model import MultiExitModel


@torch.no_grad()
def exit_accuracy(
    model: MultiExitModel,
    split: Split,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 256,
) -> list[float]:
    """Accuracy of every exit over a split, in percent."""
    model.eval()
    hits = torch.zeros(model.num_exits)
    for batch in batches(split, batch_size=batch_size, preprocessing=model.preprocessing):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(batch.images.to(device))
        labels = batch.labels.to(device)
        hits += torch.stack([(said[0].argmax(-1) == labels).sum() for said in outputs]).cpu()
    return [round(100 * hit.item() / len(split), 3) for hit in hits]
