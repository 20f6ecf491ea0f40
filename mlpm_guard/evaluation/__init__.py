"""How good a guard is: metrics and the runner that computes them over labelled prompts."""
