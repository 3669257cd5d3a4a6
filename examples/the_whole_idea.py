"""Early exit in one screen, without Offramp's runtime: a chain, heads, a threshold, compaction.

    python examples/the_whole_idea.py

Read it to see what `offramp.compile` does for you; it agrees with it sample for sample.
"""

import torch

import offramp
from offramp.policies import Confidence

torch.manual_seed(0)
model = offramp.create(
    "deit_tiny_patch16_224",
    exits="lgvit",
    at=[3, 6, 9],
    num_classes=10,
    image_size=32,
    backbone_args={"patch_size": 8},
).eval()
images = torch.randn(16, 3, 32, 32)
threshold = 0.1115  # untrained, so nobody is sure of anything


@torch.inference_mode()
def early_exit(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (B,) and the exit each sample left at (B,)."""
    labels = torch.empty(len(images), dtype=torch.int64)
    exits = torch.empty(len(images), dtype=torch.int64)
    rows = torch.arange(len(images))  # who is still here
    state: tuple[torch.Tensor, ...] = (images,)
    for segment in model.segments():
        state, outputs = segment(*state)  # some blocks, then a head
        confidence, label = outputs.logits.softmax(-1).max(-1)
        last = segment.exit_index == model.num_exits - 1
        stop = torch.ones_like(confidence, dtype=torch.bool) if last else confidence > threshold
        labels[rows[stop]], exits[rows[stop]] = label[stop], segment.exit_index
        rows = rows[~stop]
        if not len(rows):
            break
        state = tuple(tensor[~stop] for tensor in state)  # the others cost nothing more
    return labels, exits


labels, exits = early_exit(images)
print("left at:", [model.exit_names[k] for k in exits.tolist()])

runner = offramp.compile(model, policy=Confidence.shared(threshold, model.num_exits))
answer = runner(images)
assert torch.equal(answer.exit, exits)
assert torch.equal(answer.labels, labels)
print("the runner agrees")
