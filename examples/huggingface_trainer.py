"""The Trainer of Hugging Face, with a data set of theirs (pip install 'distill-kd[hf]').

python examples/huggingface_trainer.py STORE DATA OUT

DATA is what `datasets` saved with `save_to_disk`, or anything else that STORE was made from.
Several GPUs: by `accelerate launch` or torchrun, each of which takes BATCH images a step.
"""

import sys
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments, set_seed

import distill

STUDENT, EPOCHS, BATCH, LR = "test_resnet", 5, 64, 3e-3


class Student(nn.Module):
    def __init__(self, targets: distill.Targets, criterion: distill.Criterion) -> None:
        super().__init__()
        self.student = timm.create_model(STUDENT, num_classes=targets.hierarchy.num_classes)
        self.criterion = criterion

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        logits = self.student(batch["pixels"].float() / 255)
        return {"loss": self.criterion(logits, batch).total, "logits": logits}


class StoreTrainer(Trainer):
    targets: distill.Targets

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        # All rows: accelerate deals the batches out to its processes.
        return self.targets.sampler(rank=0, world=1, seed=self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer or self.optimizer,
            LR,
            total_steps=num_training_steps,
            pct_start=0.1,
            cycle_momentum=False,
        )
        return self.lr_scheduler


def main(store: str, data: str, out: str, seed: int = 0) -> None:
    set_seed(seed)
    targets = distill.open(store, data=data)
    criterion = targets.criterion(label_smoothing=0.1)
    model = Student(targets, criterion)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=1e-4)
    arguments = TrainingArguments(
        out,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    trainer = StoreTrainer(
        model,
        arguments,
        data_collator=targets.collate,
        train_dataset=targets.dataset(),
        optimizers=(optimizer, None),
    )
    trainer.targets = targets
    trainer.train()
    path, state = f"{out}/student.safetensors", model.student.state_dict()
    criterion.save(state, path, student=STUDENT, size=targets.input_size)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
