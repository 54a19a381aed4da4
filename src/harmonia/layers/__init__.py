"""Building blocks of decoders, on flat tokens, with adapters."""
