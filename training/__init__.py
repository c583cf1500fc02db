"""Training of the bundled mini-sd and mini-clip models, from drawing the data to the model cards."""
