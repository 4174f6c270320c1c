#!/bin/sh
# How much a random split flatters: the same map, labels and probe, first with whole blocks of land held out.
# The spatial score holds for land away from the labels, the random one only for land between them.
set -e
probe=${1:-knn}
map=$(olmoearth embed --aoi region.geojson)
for split in spatial random; do
    olmoearth probe "$probe" --map "$map" --labels labels.geojson --split "$split" --raw no > "$probe-$split.txt"
    printf '%-8s %s\n' "$split" "$(sed -n 1p "$probe-$split.txt")"
done
