"""Parts of the export roads: maps and models as files that others read."""
