"""Measuring a model, edited or not. Knows no method."""
