"""Prediction: the embed road with a head at its end, or a saved probe over a finished map."""
