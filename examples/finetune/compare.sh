#!/bin/sh
# Raw bands, kNN, a linear probe, a frozen start and layer-wise rates, all on the same windows and splits, in one table.
# Runs in a folder with labels and an olmoearth.toml that names catalogue, model and dates under [finetune].
# Where heldout.geojson is there, the better run draws the map of that area.
set -e
here=$(cd "$(dirname "$0")" && pwd)
olmoearth finetune --recipe frozen-start -o runs/frozen-start
olmoearth finetune --llrd 0.65 --no-baselines -o runs/llrd
best=$(python3 "$here/compare.py" runs/frozen-start runs/llrd --to compare.md)
cat compare.md
if [ -f heldout.geojson ]; then
    olmoearth predict --model "$best" --aoi heldout.geojson -o predictions/heldout
fi
