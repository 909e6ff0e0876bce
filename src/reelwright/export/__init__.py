"""A trained model -> files to keep, move and share: a self-contained directory, or one safetensors file.

Both hold the same (see `models.exported`), and the same checkpoint gives the same bytes.
"""

from reelwright.export.verb import FORMATS, Exported, export_final, export_model

__all__ = ["FORMATS", "Exported", "export_final", "export_model"]
