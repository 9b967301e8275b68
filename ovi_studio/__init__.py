"""Ovi Studio: a prompt in, a short clip out whose picture and sound were made together.

Nothing is imported here, so that opening the page or asking for `--help` never loads torch.
The house is laid out in the README; start reading at `request.py` and `model/pipeline.py`.
"""

__version__ = "0.1.0"
