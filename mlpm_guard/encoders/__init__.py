"""Text to layer states of shape (n, layers, dim). Knows no labels and no scores."""
