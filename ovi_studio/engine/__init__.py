"""Engines: from a request to a clip, in this process or in others, behind one protocol."""
