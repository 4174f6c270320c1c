#!/bin/sh
# From a region and some labelled points to a class map:
# what the map's vectors know of the classes, what one linear layer makes of them, and the map that it draws.
set -e
map=$(olmoearth embed --aoi region.geojson)
olmoearth probe knn --map "$map" --labels labels.geojson
olmoearth probe linear --map "$map" --labels labels.geojson --raw no --predict classes.tif --report report.html
