"""The code that a reader copies to use the exported model; tests run it as it is printed."""

BEGIN = """\
import json
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps

folder = Path("data/report/model")
about = json.loads((folder / "regraft.json").read_text(encoding="utf-8"))
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
"""
HEAD = """
# The head is not what timm's classifier of this architecture is made of: it is a file of its own.
from collections import OrderedDict
from safetensors.torch import load_file

form = json.loads((folder / "head.json").read_text(encoding="utf-8"))
head = torch.nn.Sequential(OrderedDict(
    (layer["name"], getattr(torch.nn, layer["kind"])(**layer["arguments"]))
    for layer in form["layers"]
))
head.load_state_dict(load_file(folder / "head.safetensors"))
model = torch.nn.Sequential(model, head).eval()
"""
PREDICT = """
image = ImageOps.exif_transpose(Image.open("image.jpg"))
if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
image = prepare(image.convert("RGB"))
with torch.inference_mode():
    logits = model(image[None])
probabilities = (logits / about["temperature"]).softmax(dim=1)[0]
best = int(probabilities.argmax())
print(about["classes"][best], round(float(probabilities[best]), 3))
"""


def loading_code(*, whole: bool) -> str:
    """Give Python code that loads the exported model and classifies image.jpg.

    Args:
        whole: Whether timm alone gives the logits.
    """
    return BEGIN + ("" if whole else HEAD) + PREDICT
