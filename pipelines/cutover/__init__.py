"""Whether a new output may take the place of an old one: documents.py holds both side by side, places.py reads them."""
