"""The command ``search``: which of an output's vectors are nearest to a question, by looking at each."""
