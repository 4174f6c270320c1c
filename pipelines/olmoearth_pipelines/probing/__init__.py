"""The probe road: labels on a map, honest validation, class maps."""
