"""The whole model: backbone and head as one module, what training starts from, and its file."""

from pathlib import Path

from torch import Tensor, nn

from tasks.artifacts.arrays import read_tensors, write_tensors
from tasks.artifacts.records import Arm, BackboneInfo, Baseline, Finetuned
from tasks.backbones.catalogue import create_architecture, load_backbone
from tasks.errors import ArtifactError
from tasks.heads.registry import build_head, from_arrays, to_arrays

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
    head = build_head(summary)
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


def start_classifier(
    info: BackboneInfo, baseline: Baseline, head: nn.Module, *, arm: Arm, seed: int
) -> Classifier:
    """Make the classifier that training starts from, on the CPU.

    That is the pretrained backbone with the baseline's head, or for training from scratch random
    weights in both.

    Args:
        info: The backbone that made the features.
        baseline: What kind of head it got.
        head: The baseline's head.
        arm: How to transfer.
        seed: The run's seed, of random weights.

    Raises:
        ArtifactError: The backbone's weights are not those that made the features.
    """
    scratch = arm == "scratch"
    weights = "random" if scratch else info.weights
    source = load_backbone(info.name, weights, image_px=info.input.image_px, seed=seed)
    if not scratch and source.weights_sha256 != info.weights_sha256:
        raise ArtifactError(
            f"the weights of {info.name} have sha256 {source.weights_sha256[:12]}..., those that "
            f"made the features {info.weights_sha256[:12]}...; rerun extract"
        )
    backbone = create_architecture(info.name, image_px=info.input.image_px)
    pretrained = source.model.state_dict()
    backbone.load_state_dict({name: pretrained[name] for name in backbone.state_dict()})
    if not scratch:
        return Classifier(backbone, head)
    return Classifier(backbone, build_head(baseline))
