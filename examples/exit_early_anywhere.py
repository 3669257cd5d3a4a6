"""Early exit without Offramp or torch: one ONNX file, plain ONNX Runtime, any language.

    offramp export RUN --to onnx
    python examples/exit_early_anywhere.py bundle/single.onnx IMAGE…
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
prepare, classes, exits = about["preprocessing"], about["classes"], about["exit_names"]
height, width = prepare["image_size"]
method = Image.Resampling[prepare["interpolation"].upper()]

for path in sys.argv[2:]:
    image = Image.open(path).convert("RGB")
    if max(image.size) <= 64:  # small images are shown whole
        image = image.resize((width, height), method)
    side = int(min(height, width) / prepare["crop_pct"])
    left, top = (round((edge - kept) / 2) for edge, kept in [(0, 0), (0, 0)])
