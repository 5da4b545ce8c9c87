"""A LightningModule and a LightningDataModule (pip install 'distill-kd[lightning]').

python examples/lightning_module.py STORE DATA OUT
"""

import sys
from typing import Any

import lightning
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.utils.data import DataLoader

import distill

STUDENT, EPOCHS, BATCH, LR = "test_resnet", 5, 64, 3e-3


class StudentModule(lightning.LightningModule):
    def __init__(self, targets: distill.Targets) -> None:
        super().__init__()
        self.student = timm.create_model(STUDENT, num_classes=targets.hierarchy.num_classes)
        self.criterion = targets.criterion(label_smoothing=0.1)

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        loss = self.criterion(self.student(batch["pixels"].float() / 255), batch)
        self.log_dict(loss._asdict(), prog_bar=True)
        return loss.total

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = create_optimizer_v2(self, opt="adamw", lr=LR, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            LR,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.1,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TargetsModule(lightning.LightningDataModule):
    def __init__(self, targets: distill.Targets, seed: int) -> None:
        super().__init__()
        self.targets, self.seed = targets, seed

    def train_dataloader(self) -> DataLoader[Any]:
        # Lightning tells the sampler of each epoch, and the sampler the targets.
        return DataLoader(
            self.targets.dataset(),
            batch_size=BATCH,
            sampler=self.targets.sampler(seed=self.seed),
            collate_fn=self.targets.collate,
            num_workers=2,
            persistent_workers=True,
            drop_last=True,
        )


def main(store: str, data: str, out: str, seed: int = 0) -> None:
    lightning.seed_everything(seed)
    targets = distill.open(store, data=data)
    module = StudentModule(targets)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,  # ours knows its rank
    )
    trainer.fit(module, datamodule=TargetsModule(targets, seed))
    path, state = f"{out}/student.safetensors", module.student.state_dict()
    module.criterion.save(state, path, student=STUDENT, size=targets.input_size)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
