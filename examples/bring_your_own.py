"""Give a timm model of your own early exits, from its first line to a batch that leaves early.

    python examples/bring_your_own.py

A small vision transformer on scikit-learn's handwritten digits; a minute on two cores.
"""

import timm
import torch

import offramp
from offramp.data import batches

data = offramp.open_dataset("digits")  # 8×8 pixels, ten classes

# The model you have. Any timm ViT does; pretrained ones come with pretrained=True.
backbone = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    embed_dim=48,
    depth=6,
    num_heads=3,
    num_classes=10,
)
model = offramp.create(backbone, exits="lgvit", at=[1, 2, 4])
print("exits:", ", ".join(model.exit_names))

stage = {"epochs": 15, "batch_size": 64, "lr": 2e-3, "sched": "cosine"}
offramp.fit(model, recipe="joint", data=data, joint=stage)

# What every exit says about samples it was not trained on, once; everything else is arithmetic.
records = offramp.collect(model, data, split="calibration")
point = offramp.calibrate(records, max_drop=1.0)
print("promise:", point.promise)
print("leaving at each exit:", [f"{share:.0%}" for share in point.exit_share])

runner = offramp.compile(model, point)
batch = next(batches(data.split("test"), batch_size=64, preprocessing=model.preprocessing))
answer = runner(batch.images)
right = (answer.labels == batch.labels).double().mean()
print(f"{right:.1%} right, {answer.blocks.double().mean():.2f} of {len(model.chain)} blocks run")

# Held-out truth, with a confidence interval.
held_out = offramp.evaluate(point, offramp.collect(model, data, split="test"))
print(held_out.verdict)
print(f"speed-up: layers {held_out.speedup_layers:.2f}×, MACs {held_out.speedup_macs:.2f}×")
assert torch.isfinite(answer.logits).all()
