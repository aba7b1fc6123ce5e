"""Record schemas of editing data sets, one module each, and the registry that recognises them."""
