"""Make a network smaller by taking parts of it away: single weights, whole channels, whole blocks.

``weights`` sets weights to zero (lesson 03), ``channels`` removes channels (lesson 04), ``blocks`` removes blocks and
exchanges activation functions (lesson 09). Leaves out: which of it pays, which ``search`` and ``compression`` measure.
"""
