"""Programs: records, capture, and the folds and passes over them."""
