"""A plain PyTorch loop, in one process or several.

python examples/plain_pytorch.py STORE DATA OUT
torchrun --nproc-per-node 2 examples/plain_pytorch.py STORE DATA OUT

STORE may also be a teacher server, http://HOST:PORT: nothing else changes.
"""

import os
import sys

import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import distill

STUDENT, EPOCHS, BATCH, LR = "test_resnet", 5, 64, 3e-3


def main(store: str, data: str, out: str, seed: int = 0) -> None:
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group()
    world = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(seed)

    targets = distill.open(store, data=data)
    criterion = targets.criterion(label_smoothing=0.1)
    loader = DataLoader(
        targets.dataset(),
        batch_size=BATCH // world,
        sampler=targets.sampler(seed=seed),
        collate_fn=targets.collate,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    student = timm.create_model(STUDENT, num_classes=targets.hierarchy.num_classes).to(device)
    model = DistributedDataParallel(student) if world > 1 else student
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=EPOCHS * len(loader), pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            loss = criterion(model(batch["pixels"].to(device).float() / 255), batch)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: labels {loss.labels:.3f}, kd {loss.kd:.4f}", flush=True)
    if not dist.is_initialized() or dist.get_rank() == 0:
        path = f"{out}/student.safetensors"
        criterion.save(student.state_dict(), path, student=STUDENT, size=targets.input_size)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
