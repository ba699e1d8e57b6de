"""The GPU half of the model: token ids in, unit vectors out. The only room that imports torch.

``layout``, ``packing``, ``quantize`` and ``ranges`` stay free of it; importing this package imports none of them.
"""
