"""A plain fine-tuning loop, as the documentation of timm and torchvision writes it.

All layers, AdamW, cosine rates, timm's transforms; the epoch with the best val accuracy is kept.
"""

import copy
import time

import timm
import torch
from peer import Answer, Task, load_backbone, load_loaders, predict, run_peer, seconds_since
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn


def train(task: Task) -> Answer:
    """Fine-tune every layer."""
    model = timm.create_model(task.backbone, num_classes=len(task.classes))
    load_backbone(task, model)
    loaders = load_loaders(task)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=task.rate, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=task.epochs)
    best, best_accuracy = copy.deepcopy(model.state_dict()), -1.0
    started = time.monotonic()
    for epoch in range(task.epochs):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        _, accuracy = predict(model, loaders["val"])
        if accuracy > best_accuracy:
            best, best_accuracy = copy.deepcopy(model.state_dict()), accuracy
    seconds = seconds_since(started)
    model.load_state_dict(best)
    predictions, _ = predict(model, loaders["test"])
    return Answer(best_accuracy, predictions, task.epochs * len(task.of("train")), seconds)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(False)
    run_peer(train)
