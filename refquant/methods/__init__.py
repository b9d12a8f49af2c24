"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

rtn      round each weight to its nearest level
kquants  the searches behind the block formats of GGUF
"""
