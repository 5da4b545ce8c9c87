"""A training task of timm's (timm >= 1.0.23): the student's own loss, in loops that take tasks.

python examples/timm_task.py STORE DATA OUT
"""

import sys
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import DataLoader

import distill

STUDENT, EPOCHS, BATCH, LR = "test_resnet", 5, 64, 3e-3


class StoreDistillationTask(ClassificationTask):
    """`target` is a batch of distill's instead of labels; EMA, DDP and compile are timm's."""

    def forward(self, input: Tensor, target: dict[str, Any]) -> dict[str, Tensor]:
        output = self.trainable_module(input)
        loss = self.criterion(output, target)
        return {"loss": loss.total, "label_loss": loss.labels, "kd_loss": loss.kd, "output": output}


def main(store: str, data: str, out: str, seed: int = 0) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random_seed(seed)
    targets = distill.open(store, data=data)
    loader = DataLoader(
        targets.dataset(),
        batch_size=BATCH,
        sampler=targets.sampler(seed=seed),
        collate_fn=targets.collate,
        num_workers=2,
        persistent_workers=True,
        drop_last=True,
    )
    model = timm.create_model(STUDENT, num_classes=targets.hierarchy.num_classes).to(device)
    criterion = targets.criterion(label_smoothing=0.1)
    task = StoreDistillationTask(model, criterion, device=device)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=1e-4)
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        warmup_epochs=0.1 * EPOCHS,
        warmup_prefix=True,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    task.train()
    for update in range(EPOCHS * len(loader)):
        epoch, step = divmod(update, len(loader))
        if step == 0:
            loader.sampler.set_epoch(epoch)
            batches = iter(loader)
        batch = next(batches)
        schedule.step_update(update)
        result = task(batch["pixels"].to(device).float() / 255, batch)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        if step + 1 == len(loader):
            print(f"epoch {epoch + 1}: loss {result['loss']:.3f}", flush=True)
    path = f"{out}/student.safetensors"
    criterion.save(model.state_dict(), path, student=STUDENT, size=targets.input_size)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
