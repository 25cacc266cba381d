#!/usr/bin/env bash
# Measure what the labels of a model add if only half of the training images are labeled by people:
#   examples/label_loop.sh DATA OUT [options of train]      DATA: COCO, with the splits train and valid
set -euo pipefail
here=$(dirname "$0")
data=$1 out=$2

# Remove the labels of every second training image.
python "$here/half_labeled.py" "$data" "$out/data"

# (a) Train on the labeled half.
groundtune train "$out/data/labeled" --output-dir "$out/half" "${@:3}"
# (b) Label the other half with this model. A low threshold gives many boxes, since they are reviewed.
groundtune label "$out/half" --data "$out/data/all" --threshold 0.2 --nms 0.6 --output-dir "$out/labeled" --link
# Review the boxes. People would use `groundtune review "$out/labeled"`; this script uses the removed labels.
python "$here/reviewed.py" "$out/labeled" "$data"
# (c) Train on both halves.
groundtune train "$out/labeled" --output-dir "$out/both" "${@:3}"

for run in half both; do
  python -c 'import json, sys; print(sys.argv[1], "valid AP", round(json.load(open(sys.argv[2]))["best"]["valid/AP"], 3))' \
    "$run" "$out/$run/metrics.json"
done
