#!/usr/bin/env bash
# The recipe of the bundled checkpoint: 4,723 sprites of 32x32 in six class folders (CC0).
# usage: examples/train_tiles.sh TILES.zip RUN    (again with the same arguments: it goes on)
set -euo pipefail
exec ddimctl train "$1" --out "$2" \
    --model small --prediction v --schedule cosine --class-conditional --label-dropout 0.1 \
    --steps 15500 --batch-size 16 --lr 1.5e-3 --warmup 500 --ema 0.9995 --precision bf16 \
    --flip --holdout 0.02 --save-every 1000 --sample-every 1000 --log-every 100 \
    --weights-dtype fp16 --resume
