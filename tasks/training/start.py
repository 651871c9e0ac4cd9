"""What training starts from."""

from torch import nn

from tasks.backbones.catalogue import create_architecture, load_backbone
from tasks.errors import ArtifactError
from tasks.records import Arm, BackboneInfo, Baseline
from tasks.training.classifier import Classifier
from tasks.training.heads import build_head


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
    new = build_head(
        baseline.head,
        baseline.feature_dim,
        len(baseline.classes),
        hidden=baseline.hidden,
        dropout=baseline.dropout,
    )
    return Classifier(backbone, new)
