"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

rtn     round each weight to its nearest level
obq     round one weight at a time, the cheapest next, and let the rest of its row make up for the error
gptq    the same in one order for all rows, column by column: OBQ at the size of real layers
awq     scale the input channels first, so that those which carry large activations are rounded finely
"""
