"""Families of pretrained video models (diffusers' classes) behind the project's contract, one file a family."""
