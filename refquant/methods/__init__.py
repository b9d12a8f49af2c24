"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

rtn        round each weight to its nearest level
gptq       column by column; the columns still to come make up for each column's error
kquants    the searches behind the block formats of GGUF
mixes      which of those formats llama.cpp gives to each tensor; mix_rules has the rules
registry   the methods by name, and the rows of the table
"""
