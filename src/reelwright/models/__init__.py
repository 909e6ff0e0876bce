"""Networks, codecs and text encoders: tensors to tensors; no noise schedule is known here."""
