"""Files of models, before a weight is read: which family a model is of, its configuration, and its tokenizers."""
