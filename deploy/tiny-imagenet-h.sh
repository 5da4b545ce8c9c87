#!/bin/sh
# The whole path on tiny-imagenet-h: teacher → store → student → report.
#   sh deploy/tiny-imagenet-h.sh DATA OUT
# DATA holds tiny-imagenet-h/ and teachers/. About six minutes on two cores
# (benchmarks/results/whole_path.md). Source: Ridnik et al. 2021, arXiv 2104.10972, section 3.3.
set -eu
data=$1/tiny-imagenet-h out=$2

distill precompute --teacher resnet18d \
    --weights "$1/teachers/resnet18d-64px-tiny-imagenet-h.safetensors" \
    --label-set "$data/label_set.json" --data "$data" --store "$out/store" --views 2

distill pretrain --student test_resnet --init random --data "$data" --targets "$out/store" --out "$out/student" \
    --cache "$out/cache" --epochs 8 --lr 0.003

distill inspect "$out/store" --plot "$out/charts"
