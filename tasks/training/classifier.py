"""The whole model: backbone and head as one module, and the file that holds a fine-tuned one."""

from pathlib import Path

from torch import Tensor, nn

from tasks.artifacts import read_tensors, write_tensors
from tasks.backbones.catalogue import create_architecture
from tasks.errors import ArtifactError
from tasks.records import Finetuned
from tasks.training.heads import build_head
from tasks.training.tensors import from_arrays, to_arrays

BACKBONE, HEAD = "backbone.", "head."


class Classifier(nn.Module):
    """A backbone without classifier, and a head: normalized images to logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits of a batch."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def write_classifier(path: Path, classifier: Classifier) -> None:
    """Write every tensor of a classifier, named `backbone.*` and `head.*`, as safetensors."""
    write_tensors(
        path,
        to_arrays(classifier.backbone, BACKBONE) | to_arrays(classifier.head, HEAD),
    )


def load_finetuned(model: Path, summary: Finetuned) -> Classifier:
    """Read a fine-tuned classifier, in eval mode.

    Raises:
        ArtifactError: The file is missing, damaged or holds another model than the summary says.
    """
    head = build_head(
        summary.head,
        summary.feature_dim,
        len(summary.classes),
        hidden=summary.hidden,
        dropout=summary.dropout,
    )
    classifier = Classifier(
        create_architecture(summary.backbone, image_px=summary.input.image_px), head
    )
    arrays = read_tensors(model)
    strange = [name for name in arrays if not name.startswith((BACKBONE, HEAD))]
    if strange:
        raise ArtifactError(
            f"{model}: tensor {strange[0]} is neither backbone nor head; rerun finetune"
        )
    from_arrays(classifier.backbone, arrays, where=model, prefix=BACKBONE)
    from_arrays(classifier.head, arrays, where=model, prefix=HEAD)
    return classifier.eval()
