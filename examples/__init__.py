"""Small programs that show what the recipes do; each runs by itself."""
