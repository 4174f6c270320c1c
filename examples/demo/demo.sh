#!/bin/sh
# The main job on the shipped example, offline: a map of the region, then what a few labels make of it.
set -e
olmoearth embed --aoi region.geojson
olmoearth probe knn
