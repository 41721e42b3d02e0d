#!/bin/sh
# The study of the collapse on the paper's own models: every K, five seeds, on one GPU. If it was stopped, the
# same command goes on. It needs a model hub and several days: docs/collapse.md.
set -eu
out=${1:-outputs/collapse-hub}
python -m studies.pooler --shuffle-only --set model=bert --out outputs/poolers-bert
python -m studies sweep experiment=collapse_hub seed=0,1,2,3,4 device=cuda precision=bf16 train.padding=longest run_dir="$out"
