"""Early exit without Offramp or torch: one ONNX file in plain ONNX Runtime, as in any language.

offramp export RUN --to onnx
python examples/exit_early_anywhere.py BUNDLE/single.onnx IMAGE…
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
prepare, exits = about["preprocessing"], about["exit_names"]
height, width = prepare["image_size"]
method = Image.Resampling[prepare["interpolation"].upper()]

for path in sys.argv[2:]:
    image = Image.open(path).convert("RGB")
    if max(image.size) > 64:  # of a photo the centre; of a small image all
        short = int(min(height, width) / prepare["crop_pct"])
        image = image.resize([short * side // min(image.size) for side in image.size], method)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image.resize((width, height), method), np.float32) / 255
    pixels = (pixels - np.float32(prepare["mean"])) / np.float32(prepare["std"])
    answer, exit_index, score = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
    label = int(answer.argmax())
    name = about["classes"][label] if about["classes"] else label
    print(f"{path}: {name} (left at: {exits[exit_index[0]]}, score {score[0]:.3f})")
