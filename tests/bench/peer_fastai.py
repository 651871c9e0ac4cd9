"""fastai: `vision_learner(...).fine_tune(epochs, base_lr)` with its default augmentation."""

import time

import pandas
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    vision_learner,
)
from peer import Answer, Task, load_backbone, run_peer, seconds_since

FROZEN_EPOCHS = 1  # of fine_tune, by default


def train(task: Task) -> Answer:
    """One epoch of the head, then `epochs` of everything, with discriminative rates."""
    rows = [(path, task.classes[label], False) for path, label in task.of("train")]
    rows += [(path, task.classes[label], True) for path, label in task.of("val")]
    loaders = ImageDataLoaders.from_df(
        pandas.DataFrame(rows, columns=["name", "label", "is_valid"]),
        path="/",
        valid_col="is_valid",
        item_tfms=Resize(task.image_px),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(task.mean, task.std)],
        bs=task.batch_size,
        num_workers=task.threads,
    )
    learner = vision_learner(loaders, task.backbone, pretrained=False, metrics=accuracy)
    load_backbone(task, learner.model[0].model)
    started = time.monotonic()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(task.epochs, base_lr=task.rate)
        seconds = seconds_since(started)
        val_accuracy = float(learner.validate()[1])
        test = loaders.test_dl([path for path, _ in task.of("test")])
        probabilities, _ = learner.get_preds(dl=test)
    names = list(loaders.vocab)
    found = [task.classes.index(names[number]) for number in probabilities.argmax(dim=1)]
    shown = (FROZEN_EPOCHS + task.epochs) * len(task.of("train"))
    return Answer(val_accuracy, found, shown, seconds)


if __name__ == "__main__":
    run_peer(train)
