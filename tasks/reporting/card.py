"""The model card: Markdown with the header that the Hugging Face hub reads."""

import html
import json
import re

from tasks.artifacts.tables import ClassRow
from tasks.artifacts.words import FROZEN, printable
from tasks.reporting.export import Exported
from tasks.reporting.findings import Findings, conclude, find_alerts, name_shipped
from tasks.reporting.pages import make_environment
from tasks.reporting.provenance import Provenance

BEGIN = """\
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageCms, ImageOps

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

def read_image(path):  # upright 8-bit sRGB, as the training images were read
    known = about["preprocessing"]
    file = Image.open(path)
    deep_color = any("RGB" in str(tile.args) and ";16" in str(tile.args) for tile in file.tile)
    image = ImageOps.exif_transpose(file)
    profile, alpha = image.info.get("icc_profile", b""), Image.new("L", image.size, 255)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        black, white = known["floats" if image.mode == "F" else "integers"]
        values = (np.asarray(image, dtype=np.float64) - black) * 255 / ((white - black) or 1)
        image = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("L") if image.mode == "LA" else image.convert("RGBA").convert("RGB")
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    if deep_color:  # Pillow gives the high bytes of 16-bit colors
        black, white = known["integers"]
        image = image.point(lambda high: (high * 257 - black) * 255 / (white - black))
    try:
        found = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[found.profile.xcolor_space]
        if space == image.mode or (space, image.mode) == ("RGB", "L"):
            image = ImageCms.profileToProfile(
                image.convert(space), found, ImageCms.createProfile("sRGB"), outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
    except (ImageCms.PyCMSError, OSError, KeyError):
        pass  # no color profile, or one that cannot be used: the colors are taken as sRGB
    canvas = Image.new("RGB", image.size, tuple(known["background"]))
    canvas.paste(image.convert("RGB"), mask=alpha)
    return canvas


image = prepare(read_image("image.jpg"))
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


SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


def render_card(findings: Findings, exported: Exported, provenance: Provenance) -> str:
    """Give the card; the same arguments give the same text."""
    metrics = findings.metrics
    models = [(FROZEN, metrics.baseline)]
    if metrics.finetuned:
        models.append((findings.tuned_name, metrics.finetuned))
    template = make_environment(
        {"md": escape_markdown, "yaml": quote_yaml}, autoescape=False
    ).get_template("card.md.jinja")
    text = template.render(
        f=findings,
        exported=exported,
        provenance=provenance,
        conclusion=conclude(findings),
        alerts=find_alerts(findings, provenance.code),
        classes=findings.health.classes,
        models=models,
        weakest=_weakest(findings.classes),
        license=_name_licenses(findings),
        shipped_name=name_shipped(findings),
        head=findings.shipped_head,
        code=loading_code(whole=exported.whole),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def escape_markdown(text: str) -> str:
    """Give a text that Markdown and html show as it is, on one line."""
    return SPECIAL.sub(r"\\\1", html.escape(printable(text), quote=False))


def quote_yaml(text: str) -> str:
    """Give a text as a YAML string on one line; every json string is one. It holds no html."""
    return json.dumps(printable(text)).replace("<", "\\u003c")


def _weakest(classes: list[ClassRow]) -> ClassRow | None:
    """The class with the lowest recall; None where every recall is the same."""
    found = [(row.recall, row.class_, row) for row in classes if row.recall is not None]
    if len({value for value, _, _ in found}) < 2:
        return None
    return min(found, key=lambda item: item[:2])[2]


def _name_licenses(findings: Findings) -> str:
    data = findings.origin.license or "not stated"
    weights = findings.backbone.weights_license or "not stated"
    return f"data: {data}; pretrained weights: {weights}"
