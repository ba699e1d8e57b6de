"""The command ``report``: what each dim and precision of a model's vectors keeps, on a sample of the user's own texts."""
