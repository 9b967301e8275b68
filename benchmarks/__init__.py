"""Measurements and checks that are too long for the tests; each says at its head how it is run."""
