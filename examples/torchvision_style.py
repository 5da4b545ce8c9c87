"""In the style of torchvision's reference scripts: train_one_epoch, a v2 transform, EMA weights.

python examples/torchvision_style.py STORE DATA OUT
"""

import argparse
from pathlib import Path

import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import distill


def train_one_epoch(model, criterion, optimizer, schedule, loader, device, epoch, ema):
    model.train()
    loader.dataset.set_epoch(epoch)
    for batch in loader:
        loss = criterion(model(batch["pixels"].to(device)), batch)
        optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        ema.update_parameters(model)
    print(f"epoch {epoch + 1}: labels {loss.labels:.3f}, kd {loss.kd:.4f}", flush=True)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    targets = distill.open(args.store, data=args.data)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    loader = DataLoader(
        targets.dataset(transform=normalise),
        batch_size=args.batch_size,
        sampler=targets.sampler(seed=args.seed),
        collate_fn=targets.collate,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        drop_last=True,
    )
    model = timm.create_model(args.model, num_classes=targets.hierarchy.num_classes)
    model, criterion = model.to(args.device), targets.criterion(label_smoothing=0.1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * len(loader), pct_start=0.1
    )
    for epoch in range(args.epochs):
        train_one_epoch(model, criterion, optimizer, schedule, loader, args.device, epoch, ema)
    path = args.out / "student.safetensors"
    about = {"student": args.model, "size": targets.input_size, "mean": mean, "std": std}
    criterion.save(ema.module.state_dict(), path, **about)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    main(parser.parse_args())
