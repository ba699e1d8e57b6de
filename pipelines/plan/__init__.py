"""The command ``plan``: what a run or a batch would be, said before it starts."""
