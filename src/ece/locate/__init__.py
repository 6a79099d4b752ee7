"""Where a fact is: neuron scores (Eq. 5-7), the smallest sufficient set (Eq. 8), the layers to edit."""
