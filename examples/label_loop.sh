#!/usr/bin/env bash
# Label, train, go round again: what do the boxes of a model bring where only half of the images have a person's?
#   examples/label_loop.sh DATA OUT [options of train]      DATA: COCO, with the splits train and valid
set -euo pipefail
here=$(dirname "$0")
data=$1 out=$2
python "$here/half_labeled.py" "$data" "$out/data" # the labels of every second training image are taken away

# (a) the half that has labels, alone
groundtune train "$out/data/labeled" --output-dir "$out/half" "${@:3}"
# (b) its model draws the boxes of the other half, rather too many, as somebody looks through them
groundtune label "$out/half" --data "$out/data/all" --threshold 0.2 --nms 0.6 --output-dir "$out/labeled" --link
# people accept and reject now: groundtune review "$out/labeled". This plays them, by the labels that were taken away
python "$here/reviewed.py" "$out/labeled" "$data"
# (c) both halves
groundtune train "$out/labeled" --output-dir "$out/both" "${@:3}"

for run in half both; do
  python -c 'import json, sys; print(sys.argv[1], "valid AP", round(json.load(open(sys.argv[2]))["best"]["valid/AP"], 3))' \
    "$run" "$out/$run/metrics.json"
done
