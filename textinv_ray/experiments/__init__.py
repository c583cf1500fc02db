"""Studies over many concepts: ablations of the training settings, and how many images a word needs."""
