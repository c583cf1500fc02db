"""Training of the bundled mini-sd, mini-clip and mini-judge models, from drawing the data to the model cards."""
