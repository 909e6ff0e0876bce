"""Reelwright: from a folder of captioned clips to a text-to-video model you own."""

__version__ = "0.1.0"
