"""Layer states to probability. numpy only; knows no text."""
