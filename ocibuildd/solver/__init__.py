"""Which work a build needs, in what order, and what of it was done before.

``cache``: keys and their preimages, pure.  ``schedule``: who runs when, pure.  ``solve``: drives
both.
"""
