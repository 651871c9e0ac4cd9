"""Lightning: the `BackboneFinetuning` callback, which unfreezes the backbone halfway."""

import time

import lightning
import timm
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from peer import Answer, Task, load_backbone, load_loaders, predict, run_peer, seconds_since
from torch import nn


class Model(lightning.LightningModule):
    """A backbone and a linear head."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.rate = task.rate
        self.backbone = timm.create_model(task.backbone, num_classes=0)
        load_backbone(task, self.backbone)
        self.head = nn.Linear(self.backbone.num_features, len(task.classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: tuple, number: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple, number: int) -> None:
        images, labels = batch
        right = (self(images).argmax(dim=1) == labels).float().mean()
        self.log("val_accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = filter(lambda parameter: parameter.requires_grad, self.parameters())
        return torch.optim.Adam(trained, lr=self.rate)


def train(task: Task) -> Answer:
    """Train the head, then from half of the epochs on the backbone too, at a tenth of the rate."""
    model, loaders = Model(task), load_loaders(task)
    best = ModelCheckpoint(monitor="val_accuracy", mode="max")
    trainer = lightning.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=task.epochs // 2), best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    started = time.monotonic()
    trainer.fit(model, loaders["train"], loaders["val"])
    seconds = seconds_since(started)
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    model.load_state_dict(state)
    _, val_accuracy = predict(model, loaders["val"])
    predictions, _ = predict(model, loaders["test"])
    return Answer(val_accuracy, predictions, task.epochs * len(task.of("train")), seconds)


if __name__ == "__main__":
    run_peer(train)
