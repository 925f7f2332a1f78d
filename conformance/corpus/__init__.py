"""The sources of the corpus: building blocks, and one module for each category of cases."""
