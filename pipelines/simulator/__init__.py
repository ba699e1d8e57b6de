"""Scalers against load curves, in simulated time: what they cost, and how long records wait."""
